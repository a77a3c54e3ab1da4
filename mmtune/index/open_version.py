"""A version open for search: its pinned model and its stores, checked against each other before the first answer."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmtune import modalities
from mmtune.data.identity_labels import label
from mmtune.errors import DataError, ModelError, Rejected
from mmtune.index.layout import Layout
from mmtune.index.pinned_model import difference, load_pinned
from mmtune.index.release import canaries
from mmtune.index.stores import open_store
from mmtune.model.encode import decoded, encode_batches
from mmtune.model.prompts import QUERY

if TYPE_CHECKING:
    from mmtune.index.protocols import Store
    from mmtune.index.query.filters import Filter
    from mmtune.model.dual_encoder import Model

Key = tuple[str, str, int]


class QueryCache:
    """Vectors of queries by (fingerprint, modality, label of the content): another model's are another key."""

    def __init__(self, size: int = 4096):
        self.size, self._held, self._guard = size, OrderedDict[Key, np.ndarray](), Lock()

    def get(self, key: Key) -> np.ndarray | None:
        """The vector [D], or None."""
        with self._guard:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: Key, vector_D: np.ndarray) -> None:
        """Keep it; the one unused for longest goes."""
        with self._guard:
            self._held[key] = vector_D
            while len(self._held) > self.size:
                self._held.popitem(last=False)


class QueryContent(NamedTuple):
    """What is asked with, decoded: the signal, its bytes where there are any, and their label, the content's identity."""

    signal: Any
    data: bytes | None = None
    mark: int = 0


def decode_query(modality: str, value: Any) -> QueryContent:
    """What a user asks with, decoded. Bytes are the content; a string is a path, or the value itself where the modality is language.
    DataError names the modality."""
    kind = modalities.get(modality)
    try:
        if isinstance(value, str | Path) and not kind.language:
            value = Path(value).read_bytes()
        elif isinstance(value, str):
            value = value.encode("utf-8", "replace")
        if isinstance(value, bytes):
            return QueryContent(kind.decode(value), value, label(kind.content_key(value)))
        return QueryContent(kind.coerce(value))
    except OSError as e:
        raise DataError(f"{value}: {e.strerror}") from None
    except Rejected as e:
        raise DataError(f"the query's {modality}: {e}") from None


class OpenVersion:
    """Made by `open_version`. Threads share it; everything in an answer comes from here."""

    def __init__(
        self,
        record: dict[str, Any],
        model: "Model",
        stores: "dict[str, Store]",
        cache: QueryCache,
        kept: "Mapping[str, tuple[np.ndarray, np.ndarray]]",
    ):
        self.record, self.model, self.stores, self.cache, self.canaries = record, model, stores, cache, kept
        self.version, self.fingerprint, self.dim = record["version"], record["fingerprint"], record["dim"]

    def require(self, modality: str) -> None:
        """ModelError unless the model has that tower."""
        modalities.get(modality)
        if modality not in self.model.towers:
            raise ModelError(
                f"version {self.version}: its model has no {modality} tower; it has {', '.join(self.model.towers)}"
            )

    def encode(self, modality: str, values: Sequence[Any]) -> np.ndarray:
        """Query vectors [N, D] of values of one modality, by this version's model alone."""
        self.require(modality)
        return self.vectors_of(modality, [decode_query(modality, v) for v in values])

    def vectors_of(self, modality: str, contents: Sequence[QueryContent]) -> np.ndarray:
        """As `encode`, of contents that are decoded; those that were asked before come from the cache."""
        out = np.empty((len(contents), self.dim), np.float32)
        keys = [None if c.data is None else (self.fingerprint, modality, c.mark) for c in contents]
        held = [self.cache.get(key) if key else None for key in keys]
        todo = [n for n, found in enumerate(held) if found is None]
        made = self.forward(modality, [contents[n].signal for n in todo])
        for n, vector_D in zip(todo, made, strict=True):
            out[n] = vector_D
            if key := keys[n]:
                self.cache.put(key, out[n].copy())
        for n, found in enumerate(held):
            if found is not None:
                out[n] = found
        return out

    def forward(self, modality: str, signals: Sequence[Any]) -> Iterable[np.ndarray]:
        """Vectors [D] of decoded queries, in order: the tower's pass itself. ModelError when the model is another by now."""
        if self.model.fingerprint != self.fingerprint:
            raise ModelError(
                f"version {self.version}: its model was changed in memory: it was {self.fingerprint}, and is "
                f"{self.model.fingerprint}; open the collection again"
            )
        for part_ND in encode_batches(self.model, modality, decoded(signals), 64, lambda n: None, QUERY):
            yield from part_ND

    def vector(self, item: str) -> tuple[str, np.ndarray]:
        """(modality, vector [D]) of an item as it is stored. DataError when no store has it."""
        for name, store in self.stores.items():
            try:
                return name, store.fetch([item])[0]
            except DataError:
                continue
        raise DataError(f"version {self.version} has no item {item!r}")

    def search(
        self,
        query_QD: np.ndarray,
        k: int,
        where: "Filter | None" = None,
        target: Sequence[str] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The k best items of each query over the stores of `target` (default: all), an item by its best modality."""
        names = list(target or self.stores)
        for name in names:
            if name not in self.stores:
                raise DataError(f"version {self.version} has no index of {name}; it has {', '.join(self.stores)}")
        merged: list[dict[str, dict[str, Any]]] = [{} for _ in query_QD]
        for name in names:
            for best, hits in zip(merged, self.stores[name].search(query_QD, k, where), strict=True):
                for hit in hits:
                    if hit.id not in best or hit.score > best[hit.id]["score"]:
                        meta = dict(hit.meta)
                        line = {"id": hit.id, "score": hit.score, "found": name, "group": meta.get("group")}
                        best[hit.id] = {**line, "meta": {k: v for k, v in meta.items() if k != "group"}}
        return [sorted(b.values(), key=lambda r: (r["score"], r["id"]), reverse=True)[:k] for b in merged]

    def close(self) -> None:
        """Release the stores."""
        for store in self.stores.values():
            store.close()


def load_version(
    layout: Layout,
    version: str,
    models: "dict[str, Model]",
    cache: QueryCache,
    handles: "Mapping[str, Store] | None" = None,
) -> OpenVersion:
    """Check and open: the pinned artifact is what it was, the canaries have their vectors, every store is stamped with the same
    fingerprint. ModelError names what differs. models: those loaded (and so checked) already, by fingerprint; handles: stores
    of it that are open already."""
    record = layout.record(version)
    if record["version"] != version:
        raise DataError(f"version {version}: {layout.directory(version)} is a copy of {record['version']}; remove it")
    mark = record["fingerprint"]
    model = models.get(mark)
    if model is None:
        model = load_pinned(layout.path / "models" / mark, mark, record["identity"], version)
    kept = canaries.check(model, layout.directory(version) / "canaries.safetensors")
    stores: dict[str, Store] = {}
    for name in record["modalities"]:
        place = layout.place(version, name, record["store"]["kind"], record["store"].get("url"))
        store = handles[name] if handles else open_store(place)
        if store.fingerprint != mark or store.dim != record["dim"]:
            raise ModelError(
                f"version {version}: its {name} store holds {store.dim} numbers of {store.fingerprint}, and the version is "
                f"{record['dim']} of {mark}{_who(layout, store.fingerprint, record)}; build a new version"
            )
        stores[name] = store
    models[mark] = model
    return OpenVersion(record, model, stores, cache, kept)


def _who(layout: Layout, mark: str, record: dict[str, Any]) -> str:
    """Which other version has that fingerprint, and how its model differs."""
    for other in map(layout.record, layout.versions()):
        if other["fingerprint"] == mark and mark != record["fingerprint"]:
            return f" (the model of {other['version']}; {'; '.join(difference(record['identity'], other['identity']))})"
    return ""
