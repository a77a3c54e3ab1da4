"""The configuration of a server: `serve.yaml`, with the options of the command line on top."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, RecipeError
from mmtune.recipe.block import RecipeBlock, check, invalid
from mmtune.recipe.recipe_file import read_document
from mmtune.runtime.plugins import nearest
from mmtune.serve.settings import Limits, Rates, Settings, value_limits

log = logging.getLogger("mmtune.serve")
LIMITS, RATES, DEFAULTS = Limits(), Rates(), Settings()


class LimitsBlock(RecipeBlock):
    """`limits`: limits on requests (see `mmtune.serve.settings.Limits`)."""

    max_bytes: int = Field(LIMITS.max_bytes, ge=1)
    max_k: int = Field(LIMITS.max_k, ge=1)
    max_filter: int = Field(LIMITS.max_filter, ge=0)
    max_concurrent: int = Field(LIMITS.max_concurrent, ge=1)
    max_decoded: int = Field(LIMITS.max_decoded, ge=1)
    body_seconds: float = Field(LIMITS.body_seconds, gt=0)
    max_arriving: int = Field(LIMITS.max_arriving, ge=1)
    bodies_per_address: int = Field(LIMITS.bodies_per_address, ge=1)
    max_uploads: int | None = Field(None, ge=1)
    """Without effect since the search page stores no uploads; still accepted, with a warning."""
    values: dict[str, int | float] = Field(default_factory=value_limits)

    @field_validator("values")
    @classmethod
    def _known(cls, given: dict[str, int | float]) -> dict[str, int | float]:
        known = value_limits()
        for name, limit in given.items():
            if name not in known:
                raise invalid(f"{name!r}{nearest(name, list(known))}")
            if not limit > 0:
                raise invalid(f"{name}: {limit} must be greater than 0")
        return {**known, **given}


class RatesBlock(RecipeBlock):
    """`rates`: requests of one client (see `mmtune.serve.settings.Rates`)."""

    per_token: float = Field(RATES.per_token, ge=0)
    per_address: float = Field(RATES.per_address, ge=0)
    burst: float = Field(RATES.burst, gt=0)
    failures: float = Field(RATES.failures, ge=1)


class ServeConfig(RecipeBlock):
    """The keys of `serve.yaml`. They are the options of `mmtune serve`; `window` is in milliseconds.

    A relative `collection`, `tokens` or `rerank` in the file is relative to the directory of the file.
    """

    collection: str
    host: str = DEFAULTS.host
    port: int = Field(DEFAULTS.port, ge=0, le=65_535)
    token: str | None = Field(None, repr=False)
    tokens: str | None = None
    trusted_proxies: list[str] = []
    workers: int = Field(1, ge=1, le=256)
    page: bool = True
    log: Literal["plain", "json"] = "plain"
    access_log: bool = False
    traces: bool = False
    window: float = Field(1000 * DEFAULTS.window, ge=0)
    batch: int = Field(DEFAULTS.batch, ge=1)
    watch: float = Field(DEFAULTS.watch, gt=0)
    grace: float = Field(DEFAULTS.grace, ge=0)
    drain: float = Field(DEFAULTS.drain, ge=0)
    history: bool = True
    probe: float = Field(DEFAULTS.probe, ge=0)
    rerank: str | None = None
    rerank_depth: int = Field(50, ge=1)
    limits: LimitsBlock = LimitsBlock()
    rates: RatesBlock = RatesBlock()

    def settings(self, spool: Path | None = None, session_key: bytes | None = None) -> Settings:
        """Return the settings of one server process. Loads the scorer of `rerank`.

        spool, session_key: what the processes of one server share (see `Settings`)
        """
        from mmtune.index.query.rerank import load_rerank

        if self.limits.max_uploads is not None:
            log.warning("limits.max_uploads has no effect: the search page stores no uploads any more; delete the key")
        key = {} if session_key is None else {"session_key": session_key}
        return Settings(
            self.host,
            self.port,
            self.token,
            Limits(**self.limits.model_dump(exclude={"max_uploads"})),
            window=self.window / 1000,
            batch=self.batch,
            page=self.page,
            watch=self.watch,
            grace=self.grace,
            rerank=load_rerank(self.rerank, self.rerank_depth),
            tokens=None if self.tokens is None else Path(self.tokens),
            trusted_proxies=tuple(self.trusted_proxies),
            rates=Rates(**self.rates.model_dump()),
            drain=self.drain,
            log=self.log,
            access_log=self.access_log,
            traces=self.traces,
            workers=self.workers,
            spool=spool,
            history=self.history,
            probe=self.probe,
            **key,
        )


def read_config(path: str | Path | None, options: Mapping[str, object]) -> ServeConfig:
    """Read a configuration file; options of the command line override its values.

    path: a YAML file, or None
    options: {dotted key: value}; values that are None are ignored

    Raises DataError, in one line that names the file and the key, for an unknown key (the most similar one is named), a value of
    another type, and a missing collection.
    """
    document: JsonObject = {}
    if path is not None:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        try:
            loaded = read_document(path)
        except RecipeError as e:
            raise DataError(str(e)) from None
        if not isinstance(loaded, dict):
            raise DataError(f"{path}: must be a mapping, such as `collection: shop`")
        if "token" in loaded:
            raise DataError(
                f"{path}: token: a secret does not belong into this file; use `tokens: FILE` (see `mmtune serve token`), or set "
                "the environment variable MMTUNE_TOKEN"
            )
        document = loaded
        for key in ("collection", "tokens"):
            if isinstance(value := document.get(key), str):
                document[key] = str(Path(path).parent / value)
    for key, value in options.items():
        if value is not None:
            _set(document, key.split("."), value)
    try:
        config = check(ServeConfig, {"collection": "", **document}, where=str(path) if path is not None else "")
    except RecipeError as e:
        raise DataError(str(e)) from None
    if not config.collection:
        raise DataError(f"{path}: collection: is missing: name the directory of the collection")
    return config


def _set(document: JsonObject, keys: list[str], value: object) -> None:
    """Set a nested key. A block of the file that is no mapping is left as it is, so that it is reported."""
    for key in keys[:-1]:
        block = document.setdefault(key, {})
        if not isinstance(block, dict):
            return
        document = block
    document[keys[-1]] = value
