"""Search for hyperparameters: one training run a trial, chosen by Optuna, pruned by validation, resumable after a kill at any moment.

OUT gets study.log (Optuna's journal), trials/N (the run of trial N), sweep.json, sweep.yaml and sweep.html. The same call continues: finished
trials count, and a trial that was running continues from its last checkpoint, or starts again if it has none. The sampler is seeded for each
trial, so a continued sweep tries the same values as an uninterrupted one.
"""

import json
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mmtune.errors import MissingExtra, MmtuneError, RecipeError, TrainingError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import read_document, without_blanks
from mmtune.run import train
from mmtune.runtime.files import read_json, truncate_torn_line, write_json, write_text
from mmtune.sweeps.search_space import Choices, Range, as_space, parse_space, with_values
from mmtune.sweeps.sweep_result import SweepResult, TrialRow
from mmtune.training.callbacks import Callback, CallbackContext

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

STARTUP_TRIALS = 5
"""Trials whose values are random, and before which nothing is pruned."""


class Pruned(Exception):
    """The trial is worse than the median of the earlier ones at this point of training."""


class Pruning(Callback):
    """Reports each validation to the study, and ends the run if the trial is to be pruned."""

    def __init__(self, trial: "Trial"):
        self.trial = trial

    def on_validation(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        progress = round(1000 * context.step / max(context.total_steps, 1))  # comparable where the trials differ in steps
        if progress == 0:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a continued trial reports a validation again
            self.trial.report(metrics["metric"], progress)
        if progress < 1000 and self.trial.should_prune():
            raise Pruned


def sweep(
    recipe: "Recipe | Mapping[str, object] | str | Path",
    space: "Mapping[str, object] | Sequence[str]",
    out: str | Path,
    *,
    trials: int = 20,
    timeout: float | None = None,
    gate: str | None = None,
    seed: int = 0,
    prune: bool = True,
    quiet: bool = False,
) -> SweepResult:
    """Train a recipe with different values of its keys and return the best run; parameters as in `mmtune.sweep`."""
    document, searched = _document(recipe, space)
    checked = Recipe.parse(document, str(recipe) if isinstance(recipe, str | Path) else "recipe")
    if not checked.data.val:
        raise RecipeError("data.val: a sweep needs validation data, by which trials are compared; set it")
    if gate is not None and gate in (checked.data.val, *_specs(checked)):
        raise RecipeError(f"--gate {gate}: the best trial was chosen on data.val; give a third split that no trial has seen")
    if trials < 1:
        raise RecipeError(f"--trials {trials} is not 1 or more")
    directory = Path(out)
    _claim(directory, document, searched)
    study = _study(directory, seed, prune)
    started = time.monotonic()
    while timeout is None or time.monotonic() - started < timeout:
        trial = _unfinished(study) or _next(study, trials, seed)
        if trial is None:
            break
        _run_trial(study, trial, document, searched, directory, prune, quiet)
    result = _result(study, checked, directory)
    if gate is not None:
        result.comparison = _compared(checked, result.artifact, gate, quiet)
    write_json(directory / "sweep.json", result.to_dict())
    write_text(directory / "sweep.html", result.to_html())
    return result


def _document(
    recipe: "Recipe | Mapping[str, object] | str | Path", space: "Mapping[str, object] | Sequence[str]"
) -> tuple[dict[str, object], dict[str, Range | Choices]]:
    """Return the recipe as plain data, and what is searched. Items of `space` with one value are overrides of the recipe."""
    searched, overrides = (as_space(space), []) if isinstance(space, Mapping) else parse_space(space)
    if isinstance(recipe, str | Path):
        document = read_document(recipe, overrides)
    else:
        document = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
        document = with_values(document, {k: yaml.safe_load(v) for k, _, v in (o.partition("=") for o in overrides)})
    if not isinstance(document, Mapping):
        raise RecipeError(f"{recipe}: a recipe is a mapping of keys; this is {type(document).__name__}")
    if not searched:
        raise RecipeError("nothing is searched; give KEY=[LOW..HIGH], KEY=[LOW..HIGH log] or KEY={A,B}")
    for key in searched:
        if key.startswith("run.") or key == "train.seed":
            raise RecipeError(f"{key}: cannot be searched")
    return with_values(without_blanks(document), {}), searched


def _specs(recipe: Recipe) -> list[str]:
    given = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    return [s if isinstance(s, str) else str(getattr(s, "path", s)) for s in given]


def _claim(directory: Path, document: Mapping[str, object], searched: Mapping[str, Range | Choices]) -> None:
    """Write what the sweep is to sweep.yaml. TrainingError if the directory belongs to another sweep."""
    path = directory / "sweep.yaml"
    text = yaml.safe_dump(
        {"recipe": document, "search": {k: str(v) for k, v in searched.items()}}, sort_keys=True, allow_unicode=True
    )
    if path.exists() and path.read_text() != text:
        raise TrainingError(
            f"{path}: another sweep (other recipe or other values); continue it as it was, or choose another --out"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _optuna() -> None:
    try:
        import optuna
    except ImportError as e:
        raise MissingExtra(f'sweep needs Optuna: pip install "mmtune[sweep]" ({e})') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _study(directory: Path, seed: int, prune: bool) -> "optuna.Study":
    _optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = directory / "study.log"
    truncate_torn_line(journal)  # of a kill while it was written: Optuna would append to it, and then not read the journal
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="mmtune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS) if prune else optuna.pruners.NopPruner(),
    )


def _sampler(seed: int, number: int) -> "optuna.samplers.BaseSampler":
    import optuna

    return optuna.samplers.TPESampler(seed=seed * 1_000_003 + number, n_startup_trials=STARTUP_TRIALS)


def _unfinished(study: "optuna.Study") -> "Trial | None":
    """The trial that was running when the sweep was killed."""
    from optuna.trial import Trial, TrialState

    running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    return Trial(study, running[0]._trial_id) if running else None


def _next(study: "optuna.Study", trials: int, seed: int) -> "Trial | None":
    """A new trial, or None if there are as many as wanted."""
    number = len(study.get_trials(deepcopy=False))
    if number >= trials:
        return None
    study.sampler = _sampler(seed, number)
    return study.ask()


def _run_trial(
    study: "optuna.Study",
    trial: "Trial",
    document: Mapping[str, object],
    searched: Mapping[str, Range | Choices],
    directory: Path,
    prune: bool,
    quiet: bool,
) -> None:
    """Train one trial and tell the study its metric, that it was pruned, or why it failed."""
    from optuna.trial import TrialState

    values = {key: kind.suggest(trial, key) for key, kind in searched.items()}
    run = directory / "trials" / str(trial.number)
    if not quiet:
        shown = " ".join(f"{k}={v}" for k, v in values.items())
        print(f"trial {trial.number}: {shown}", file=sys.stderr, flush=True)
    changed = with_values(document, {**values, "run.dir": str(run)})
    begin = time.monotonic()
    try:
        callbacks = [Pruning(trial)] if prune else []
        result = train(changed, resume=(run / "checkpoints").exists(), quiet=quiet, callbacks=callbacks)
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
    except MmtuneError as e:
        trial.set_user_attr("error", str(e))
        study.tell(trial, state=TrialState.FAIL)
        if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]):
            raise  # no trial has worked yet: the mistake is probably in all of them
    else:
        trial.set_user_attr("seconds", round(time.monotonic() - begin, 1))
        study.tell(trial, result.best[0]["metric"])
    _remove_losers(study, directory)


def _remove_losers(study: "optuna.Study", directory: Path) -> None:
    """Delete weights and checkpoints of finished trials other than the best; recipe.yaml and metrics.jsonl stay."""
    best = _best(study)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and (best is None or trial.number != best.number):
            for part in ("artifact", "checkpoints", "mining"):
                shutil.rmtree(directory / "trials" / str(trial.number) / part, ignore_errors=True)


def _best(study: "optuna.Study") -> "FrozenTrial | None":
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return max(complete, key=lambda t: (t.value if t.value is not None else -1.0, -t.number), default=None)


def _result(study: "optuna.Study", recipe: Recipe, directory: Path) -> SweepResult:
    best = _best(study)
    if best is None or best.value is None:
        raise TrainingError(f"{directory}: no trial was trained to its end; call again with more --trials or --timeout")
    return SweepResult(
        metric=recipe.train.metric,
        best=best.number,
        best_metric=best.value,
        best_values=_values_of(best),
        artifact=str(directory / "trials" / str(best.number) / "artifact"),
        trials=[_row(t) for t in study.get_trials(deepcopy=False)],
        importances=_importances(study),
    )


def _values_of(trial: "FrozenTrial") -> dict[str, object]:
    return {k: json.loads(v) if isinstance(v, str) else v for k, v in trial.params.items()}


def _row(trial: "FrozenTrial") -> TrialRow:
    return TrialRow(
        number=trial.number,
        state=trial.state.name.lower(),
        metric=trial.value if trial.value is not None else next(iter(reversed(trial.intermediate_values.values())), None),
        values=_values_of(trial),
        seconds=trial.user_attrs.get("seconds"),
        error=trial.user_attrs.get("error", ""),
    )


def _importances(study: "optuna.Study") -> dict[str, float]:
    """Share of each key in the metric's variance (Optuna's default evaluator); {} for fewer than four complete trials or one metric value."""
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState

    values = [t.value for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])]
    if len(values) < 4 or len(set(values)) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {k: float(v) for k, v in get_param_importances(study).items()}
    except (RuntimeError, ValueError):  # no key varies among the complete trials
        return {}


def _compared(recipe: Recipe, artifact: str, data: str, quiet: bool) -> dict[str, object]:
    """Compare the best model with the recipe's base on a third split, by the recipe's gate."""
    from mmtune.comparison.compare_models import compare
    from mmtune.model.artifact import load

    comparison = compare(load(recipe.model), artifact, data, gate=recipe.gate, retention=recipe.data.retention, quiet=quiet)
    return {"data": data, "status": comparison.status, "summary": str(comparison), **comparison.to_dict()}


def read_result(out: str | Path) -> SweepResult:
    """Read the result of a finished sweep from OUT/sweep.json."""
    return SweepResult(**read_json(Path(out) / "sweep.json"))
