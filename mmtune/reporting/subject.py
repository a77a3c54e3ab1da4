"""What a report is about: two models, the test data, and the run that made the second model, if any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, RecipeError
from mmtune.runtime.files import read_json, read_jsonl_log

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

AUDIT = ".audit.json"
ModelSpec: TypeAlias = "str | Mapping[str, str] | Model"
"""A MODEL string, one MODEL a tower, or a loaded model."""


@dataclass
class RunRecords:
    """The files of a RUN directory: its resolved recipe, environment, log lines in order, audits of mined negatives by name, and
    the interpolation between base and tuned weights, if there was one."""

    directory: Path
    recipe: JsonObject
    environment: JsonObject
    log: list[JsonObject]
    audits: dict[str, JsonObject]
    interpolation: JsonObject = field(default_factory=dict)


@dataclass
class ReportSubject:
    """base, candidate: MODELs, None where only a comparison's numbers are given (`document`). retention: DATA on which nothing
    may be lost."""

    title: str
    base: "ModelSpec | None" = None
    candidate: "ModelSpec | None" = None
    data: str | None = None
    gate: Mapping[str, object] | None = None
    retention: str | None = None
    run: RunRecords | None = None
    document: JsonObject = field(default_factory=dict)


def read_run(directory: Path) -> RunRecords:
    """The files of a RUN directory. DataError when it is none, RecipeError for a broken recipe."""
    import yaml

    try:
        recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    except FileNotFoundError:
        raise DataError(f"{directory}: no run (it has no recipe.yaml); name a RUN directory or a comparison's JSON") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"{directory / 'recipe.yaml'}: {' '.join(str(e).split())}") from None
    environment, interpolation = directory / "environment.json", directory / "interpolation.json"
    return RunRecords(
        directory,
        recipe,
        read_json(environment) if environment.exists() else {},
        read_jsonl_log(directory / "metrics.jsonl"),
        {p.name.removesuffix(AUDIT): read_json(p) for p in sorted(directory.rglob("*" + AUDIT))},
        read_json(interpolation) if interpolation.exists() else {},
    )


def report_subject(
    target: "str | Path | None",
    base: "ModelSpec | None" = None,
    candidate: "ModelSpec | None" = None,
    data: str | None = None,
    gate: Mapping[str, object] | None = None,
) -> ReportSubject:
    """A RUN directory, a comparison's JSON, or (target None) two models and DATA as a ReportSubject.

    Arguments go before what the target says. DataError, with what to do, where something is missing.
    """
    if target is None:
        if base is None or candidate is None or data is None:
            raise DataError("name a RUN or a comparison's JSON, or all of --base, --candidate and --data")
        return ReportSubject(f"{_short_name(candidate)} against {_short_name(base)}", base, candidate, data, gate)
    path = Path(target)
    if not path.exists():
        raise DataError(f"{path}: no such run or comparison")
    if path.is_file():
        return _comparison(path, base, candidate, data, gate)
    run = read_run(path)
    artifact = path / "artifact"
    if candidate is None and not (artifact / "mmtune.json").is_file():
        raise DataError(
            f"{path}: the run is not finished (no artifact); continue it with `mmtune train {path}/recipe.yaml --resume`"
        )
    stored = run.recipe.get("data") or {}
    data = data or stored.get("val")
    if not data:
        raise DataError(f"{path}: its recipe has no data.val; add --data DATA that the model was not trained on")
    retention = stored.get("retention") or stored.get("general")  # the key of earlier versions
    return ReportSubject(
        path.resolve().name,
        base if base is not None else run.recipe["model"],
        candidate or str(artifact),
        data,
        gate or run.recipe.get("gate"),
        retention,
        run,
    )


def _comparison(
    path: Path, base: "ModelSpec | None", candidate: "ModelSpec | None", data: str | None, gate: Mapping[str, object] | None
) -> ReportSubject:
    document = read_json(path)
    missing = [k for k in ("verdict", "reason", "directions", "slices", "gate") if k not in document]
    if missing:
        raise DataError(
            f"{path}: no comparison (no {missing[0]!r}); write one with `mmtune compare BASE CANDIDATE DATA --json`"
        )
    given = [base is not None, candidate is not None, data is not None]
    if any(given) and not all(given):
        raise DataError(f"{path}: to show queries as well, give all of --base, --candidate and --data")
    return ReportSubject(path.stem, base, candidate, data, gate or document["gate"], document=document)


def _short_name(model: "ModelSpec") -> str:
    """The last part of a path; RUN/artifact is called like the run."""
    parts = [p for p in str(model).replace("\\", "/").split("/") if p]
    return parts[-2] if parts[-1:] == ["artifact"] and len(parts) > 1 else parts[-1]
