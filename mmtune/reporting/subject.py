"""What a report is about: two models, the rows they are judged on, and the run that made the second one, if any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.errors import DataError, RecipeError
from mmtune.runtime.files import read_json, read_jsonl_log

AUDIT = ".audit.json"


@dataclass
class Run:
    """What a RUN directory says: its resolved recipe, environment, log lines in order, audits of mined negatives by name;
    between: the sweep of weights between base and tuned, if there was one."""

    directory: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    log: list[dict[str, Any]]
    audits: dict[str, dict[str, Any]]
    between: dict[str, Any] = field(default_factory=dict)


@dataclass
class Subject:
    """base, candidate: MODELs, None when only the numbers of a comparison are there (`document`). retention: DATA on
    which nothing may be lost."""

    title: str
    base: Any = None
    candidate: Any = None
    data: str | None = None
    gate: Mapping[str, Any] | None = None
    retention: str | None = None
    run: Run | None = None
    document: dict[str, Any] = field(default_factory=dict)


def read_run(directory: Path) -> Run:
    """Raises DataError naming the file that a run has and this directory lacks or holds broken."""
    import yaml

    try:
        recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    except FileNotFoundError:
        raise DataError(f"{directory}: no run (it has no recipe.yaml); name a RUN directory or a comparison's JSON") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"{directory / 'recipe.yaml'}: {' '.join(str(e).split())}") from None
    environment = directory / "environment.json"
    log, between = directory / "metrics.jsonl", directory / "interpolation.json"
    return Run(
        directory,
        recipe,
        read_json(environment) if environment.exists() else {},
        read_jsonl_log(log),
        {p.name.removesuffix(AUDIT): read_json(p) for p in sorted(directory.rglob("*" + AUDIT))},
        read_json(between) if between.exists() else {},
    )


def subject(
    target: "str | Path | None",
    base: Any = None,
    candidate: Any = None,
    data: str | None = None,
    gate: Mapping[str, Any] | None = None,
) -> Subject:
    """RUN or COMPARISON as a Subject; what is given beside it goes before what it says. Raises DataError with the fix."""
    if target is None:
        if base is None or candidate is None or data is None:
            raise DataError("name a RUN or a comparison's JSON, or all of --base, --candidate and --data")
        return Subject(f"{_short(candidate)} against {_short(base)}", base, candidate, data, gate)
    path = Path(target)
    if not path.exists():
        raise DataError(f"{path}: no such run or comparison")
    if path.is_file():
        return _comparison(path, base, candidate, data, gate)
    run = read_run(path)
    artifact = path / "artifact"
    if candidate is None and not (artifact / "mmtune.json").is_file():
        raise DataError(f"{path}: the run is not finished (no artifact); go on with `mmtune train {path}/recipe.yaml --resume`")
    data = data or (run.recipe.get("data") or {}).get("val")
    if not data:
        raise DataError(f"{path}: its recipe has no data.val; add --data DATA that the model was not trained on")
    stored = run.recipe.get("data") or {}
    retention = stored.get("retention") or stored.get("general")  # the key of earlier versions
    base = base if base is not None else run.recipe["model"]
    return Subject(path.resolve().name, base, candidate or str(artifact), data, gate or run.recipe.get("gate"), retention, run)


def _comparison(path: Path, base: Any, candidate: Any, data: str | None, gate: Mapping[str, Any] | None) -> Subject:
    document = read_json(path)
    missing = [k for k in ("verdict", "reason", "directions", "slices", "gate") if k not in document]
    if missing:
        raise DataError(
            f"{path}: no comparison (no {missing[0]!r}); write one with `mmtune compare BASE CANDIDATE DATA --json`"
        )
    given = [base is not None, candidate is not None, data is not None]
    if any(given) and not all(given):
        raise DataError(f"{path}: to show queries as well, give all of --base, --candidate and --data")
    return Subject(path.stem, base, candidate, data, gate or document["gate"], document=document)


def _short(model: Any) -> str:
    parts = [p for p in str(model).replace("\\", "/").split("/") if p]
    return parts[-2] if parts[-1:] == ["artifact"] and len(parts) > 1 else parts[-1]  # RUN/artifact is called as the run
