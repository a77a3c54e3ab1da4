"""`mmtune.predict`: class, nearest known examples and anomaly score of files and rows that nobody has labelled."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmtune.contracts import Signal
from mmtune.data.skip_bad import ADDRESS
from mmtune.errors import DataError, RecipeError, Rejected
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.model.encode import encode_values
from mmtune.prediction.fit_predictors import ClassNames, PredictorOptions, fit_predictors, machine_rows
from mmtune.prediction.located_windows import check_locate, locate_windows
from mmtune.prediction.predict_inputs import PredictInput, find_inputs, predicted_modalities
from mmtune.prediction.prediction_result import Prediction, Predictions, Undecodable
from mmtune.prediction.predictors import PREDICTORS, Predictor
from mmtune.prediction.stored_predictors import load_predictors, save_predictors
from mmtune.runtime.progress import Progress
from mmtune.runtime.threads import data_thread_pool

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.data.in_memory import DataLike
    from mmtune.model.dual_encoder import Model

CHUNK = 32
"""Number of inputs that are decoded at a time; their signals are in memory together."""
WORKERS = 4
"""Number of threads that decode."""


def predict(
    model: "Model | str | Path",
    inputs: object,
    *,
    task: str = "knn",
    reference: "DataLike | None" = None,
    label: str = "group",
    classes: ClassNames = (),
    prompts: Sequence[str] = (),
    normal: str | None = None,
    neighbours: int | None = None,
    exclude_same: str | None = None,
    threshold: str | float | None = None,
    modalities: Sequence[str] | None = None,
    machine: str | None = None,
    locate: float | None = None,
    save: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    scorer: str | None = None,
    domain: str | None = None,
    balance: str | None = None,
    known_anomalies: bool = False,
) -> Predictions:
    """Predict the class or the anomaly score of each input. The public function `mmtune.predict` explains the parameters."""
    loaded = as_model(model)
    check_locate(locate)
    options = PredictorOptions(
        label=label,
        neighbours=neighbours,
        threshold=threshold,
        exclude_same=exclude_same,
        normal=normal,
        classes=classes,
        prompts=tuple(prompts),
        batch_size=batch_size,
        quiet=quiet,
        machine=machine,
        scorer=scorer,
        domain=domain,
        balance=balance,
        known_anomalies=known_anomalies,
    )
    names = predicted_modalities(loaded, modalities)
    predictors = prepare(loaded, task, reference, names, options, save)
    found = find_inputs(loaded, inputs, modalities)
    result = Predictions(task, loaded.fingerprint, [], ignored=found.ignored)
    with Progress("predict", len(found.inputs), quiet=quiet) as progress:
        for start in range(0, len(found.inputs), CHUNK):
            some = found.inputs[start : start + CHUNK]
            for done in predict_inputs(loaded, predictors, some, batch_size, locate):
                (result.predictions if isinstance(done, Prediction) else result.errors).append(done)  # type: ignore[arg-type]
            progress.advance(len(some))
    result.thresholds = {m: p.threshold for m, p in predictors.items() if p.threshold is not None}
    return result


def prepare(
    model: "Model",
    task: str,
    reference: "DataLike | None",
    names: Sequence[str],
    options: PredictorOptions,
    save: bool = False,
) -> dict[str, Predictor]:
    """Return {modality: predictor}: made from reference data or class names, or else those stored in the model's artifact.

    save: also store them in the artifact
    """
    if task not in PREDICTORS:
        raise RecipeError(f"unknown task {task!r}; predict knows {', '.join(PREDICTORS)}")
    if reference is None and not options.classes:
        stored = load_predictors(model, task, names, options.machine)
        if stored:
            if given := [*options.given(), *(["save"] if save else [])]:
                raise RecipeError(
                    f"{', '.join(given)}: needs the reference data; a stored predictor keeps what it was made with"
                )
            return stored
    data = None if reference is None else as_data(reference)
    if options.machine is not None:
        data = machine_rows(data, options.machine)
    predictors = fit_predictors(model, task, data, names, options)
    if save:
        save_predictors(model, predictors, options.machine)
    return predictors


def predict_inputs(
    model: "Model",
    predictors: dict[str, Predictor],
    inputs: Sequence[PredictInput],
    batch_size: int = 64,
    locate: float | None = None,
) -> Iterator[Prediction | Undecodable]:
    """Yield a `Prediction` for each input, or `Undecodable`, in their order.

    locate: also predict windows of this length in seconds of each recording that is longer
    """
    done: dict[int, Prediction | Undecodable] = {}
    decoded: dict[str, list[tuple[int, Signal]]] = {}
    with data_thread_pool(WORKERS) as pool:
        for i, (signal, error) in enumerate(pool.map(_decode, inputs)):
            name = inputs[i].modality
            if error is None and name not in predictors:
                error = f"there are no references of the modality {name}, only of {', '.join(predictors)}"
            if error is not None:
                done[i] = Undecodable(inputs[i].name, error)
            else:
                decoded.setdefault(str(name), []).append((i, signal))
    for name, signals in decoded.items():
        vectors = encode_values(model, name, [s for _, s in signals], batch_size)
        predicted = predictors[name].predict([inputs[i] for i, _ in signals], vectors)
        for (i, signal), prediction in zip(signals, predicted, strict=True):
            windows = locate_windows(model, predictors[name], inputs[i], signal, locate, batch_size) if locate else ()
            done[i] = replace(prediction, windows=windows)
    yield from (done[i] for i in range(len(inputs)))


def _decode(one: PredictInput) -> tuple[Signal, str | None]:
    """Return (signal, None), or (None, why it cannot be decoded)."""
    try:
        return one.decode(), None
    except (Rejected, DataError, OSError) as e:
        return None, ADDRESS.sub("", str(e)).removeprefix(f"{one.name}: ")
