"""What a report is about: two models, the test data, and the training run of the second model, if there was one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.seed_statistics import seed_runs
from mmtune.model.artifact.format import FITTED_HEADS
from mmtune.runtime.files import read_json, read_jsonl_log

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

AUDIT = ".audit.json"  # suffix of the audits of mined negatives
ModelSpec: TypeAlias = "str | Mapping[str, str] | Model"
"""A MODEL string, {modality: MODEL}, or a loaded model."""


@dataclass
class RunRecords:
    """The files of a RUN directory.

    recipe: the resolved recipe
    environment: versions and machine
    log: lines of metrics.jsonl, in order
    audits: {name of the mining round: audit of its negatives}
    interpolation: scores between base and tuned model; {} if there was no interpolation
    """

    directory: Path
    recipe: JsonObject
    environment: JsonObject
    log: list[JsonObject]
    audits: dict[str, JsonObject]
    interpolation: JsonObject = field(default_factory=dict)


@dataclass
class ReportSubject:
    """The models and data of a report.

    title: title of the report
    base, candidate: the two models; None if there are only the numbers in `document`
    data: the test data, or None
    gate: what the candidate must achieve
    retention: DATA on which nothing may be lost
    run: records of the run that trained the candidate, or None
    document: contents of a comparison's JSON file, or {}
    """

    title: str
    base: "ModelSpec | None" = None
    candidate: "ModelSpec | None" = None
    data: str | None = None
    gate: Mapping[str, object] | None = None
    retention: str | None = None
    run: RunRecords | None = None
    document: JsonObject = field(default_factory=dict)


def read_run(directory: Path) -> RunRecords:
    """Read the files of a RUN directory. Raises DataError if it is not a run, and RecipeError if its recipe cannot be read."""
    import yaml

    try:
        recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    except FileNotFoundError:
        raise DataError(
            f"{directory}: this is not a run (it has no recipe.yaml); name a RUN directory or the JSON file of a comparison"
        ) from None
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
    """Resolve a RUN directory, a comparison's JSON file, or (with target None) two models and DATA.

    The other arguments override what the target says. Raises DataError, saying what to do, if something is missing.
    """
    if target is None:
        if base is None or candidate is None or data is None:
            raise DataError("name a RUN or the JSON file of a comparison, or give all of --base, --candidate and --data")
        return ReportSubject(f"{_short_name(candidate)} against {_short_name(base)}", base, candidate, data, gate)
    path = Path(target)
    if not path.exists():
        raise DataError(f"{path}: there is no such run or comparison")
    if path.is_file():
        return _comparison(path, base, candidate, data, gate)
    seeds = seed_runs(path)  # of several seeds, the first one's log and example searches are shown
    first = seeds.runs[0] if seeds else path
    run = read_run(first)
    artifact = path if seeds else path / "artifact"
    if candidate is None and seeds is None and not (artifact / "mmtune.json").is_file():
        raise DataError(
            f"{path}: the run is not finished (no artifact); continue it with `mmtune train {path}/recipe.yaml --resume`"
        )
    stored = run.recipe.get("data") or {}
    data = data or stored.get("val")
    if not data:
        raise DataError(f"{path}: its recipe has no data.val; add --data with DATA on which the model was not trained")
    retention = stored.get("retention") or stored.get("general")  # "general" is the key in recipes of older versions
    return ReportSubject(
        path.resolve().name,
        base if base is not None else _base(first, run.recipe),
        candidate or str(artifact),
        data,
        gate or run.recipe.get("gate"),
        retention,
        run,
    )


def _base(run: Path, recipe: JsonObject) -> "ModelSpec":
    """The model that the run's artifact is compared with: its fitted heads, if there are any, else the recipe's model."""
    fitted = run / FITTED_HEADS
    spec: ModelSpec = str(fitted) if fitted.is_dir() else recipe["model"]
    return spec


def _comparison(
    path: Path, base: "ModelSpec | None", candidate: "ModelSpec | None", data: str | None, gate: Mapping[str, object] | None
) -> ReportSubject:
    document = read_json(path)
    missing = [k for k in ("verdict", "reason", "directions", "slices", "gate") if k not in document]
    if missing:
        raise DataError(
            f"{path}: this is not a comparison (it has no {missing[0]!r}); write one with `mmtune compare BASE CANDIDATE DATA --json`"
        )
    given = [base is not None, candidate is not None, data is not None]
    if any(given) and not all(given):
        raise DataError(f"{path}: to show example queries too, give all of --base, --candidate and --data")
    return ReportSubject(path.stem, base, candidate, data, gate or document["gate"], document=document)


def _short_name(model: "ModelSpec") -> str:
    """Return the last part of a path. The artifact of a run, RUN/artifact, is named after the run."""
    parts = [p for p in str(model).replace("\\", "/").split("/") if p]
    return parts[-2] if parts[-1:] == ["artifact"] and len(parts) > 1 else parts[-1]
