"""The end of a run: merge adapters, interpolate with the base model if the recipe says so, evaluate, and save the artifact."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.trained_pairs import trained_pairs
from mmtune.evaluation.validation import Validate
from mmtune.model import artifact
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.tune_block import LOW_RANK
from mmtune.training.checkpoint import TrainerState
from mmtune.training.precision import resolve_precision
from mmtune.training.regularise.wise_ft import interpolate
from mmtune.training.train_result import TrainResult
from mmtune.training.training_inputs import TrainingInputs
from mmtune.training.tuning.adapter_files import save_adapters, save_provenance
from mmtune.training.tuning.tune import TunedModel
from mmtune.training.validation_rows import training_labels

if TYPE_CHECKING:
    from mmtune.evaluation.rerank_evaluation import RerankResult
    from mmtune.evaluation.result import Result
    from mmtune.training.loop import Trainer


def finish_model(tuned: TunedModel, recipe: Recipe, inputs: TrainingInputs, validate: Validate | None) -> float | None:
    """Merge adapters into the weights, and interpolate with the base model if the recipe says so.

    With lora or qlora, the adapters are also saved, to RUN/adapters. Returns the interpolation coefficient, or None.
    """
    directory = Path(recipe.run.dir)
    tuned.merge()
    coefficient = None
    if recipe.interpolation is not None:
        assert validate is not None  # the recipe refuses an interpolation without validation data
        path = directory / "interpolation.json"
        budget = recipe.retention.at_most if recipe.retention else None
        coefficient = interpolate(tuned.model, tuned.start, validate, recipe.interpolation, path, recipe.train.metric, budget)
    if any(t.how in LOW_RANK for t in tuned.towers.values()):
        share = 1.0 if coefficient is None else coefficient
        save_adapters(tuned, directory / "adapters", recipe.model, inputs.base_fingerprint, share)
    tuned.close()
    return coefficient


def save_run(
    trainer: "Trainer", tuned: TunedModel, recipe: Recipe, inputs: TrainingInputs, coefficient: float | None
) -> TrainResult:
    """Evaluate the finished model on data.val, if given, and save it to RUN/artifact."""
    model, directory, state = inputs.model, Path(recipe.run.dir), trainer.state
    model.info |= {"matryoshka": sorted(recipe.matryoshka.dims) if recipe.matryoshka else [], "seen": seen_pairs(inputs)}
    result = evaluate(model, inputs.val, allow_trained=recipe.data.allow_trained) if inputs.val else None
    metrics = result.to_dict() if result else {}
    info = artifact_info(recipe, inputs, tuned) | {"interpolated": coefficient, "steps": state.step}
    # the labels of all streamed rows were never in memory
    labels = trainer.epochs.seen_texts() if inputs.is_streamed else training_labels(inputs)
    fingerprint = artifact.save(model, directory / "artifact", metrics=metrics, info=info, trained_on=labels)
    if tuned.adapters:
        save_provenance(directory / "adapters", directory / "artifact", info)
    return train_result(directory, fingerprint, tuned, state, result, coefficient)


def seen_pairs(inputs: TrainingInputs) -> list[list[str]]:
    """The pairs of modalities that this run or an earlier training of its model compares."""
    return [list(p) for p in sorted({*trained_pairs(inputs.model), *((min(p), max(p)) for p in inputs.pairs)})]


def train_result(
    directory: Path,
    fingerprint: str,
    tuned: TunedModel,
    state: TrainerState,
    result: "Result | RerankResult | None",
    coefficient: float | None = None,
) -> TrainResult:
    """Build the result of a finished run.

    directory: the run directory
    fingerprint: of the saved artifact
    result: scores on data.val, or None without it
    coefficient: interpolation coefficient, or None
    """
    return TrainResult(
        artifact=str(directory / "artifact"),
        fingerprint=fingerprint,
        trainable={m: c.to_dict() for m, c in tuned.counts.items()},
        coefficient=coefficient,
        metrics=result.to_dict() if result else {},
        pairs_per_second=state.pairs_per_second,
        wait=state.wait_share,
        pairs=state.pairs,
        seconds=state.seconds,
        steps=state.step,
        best=[{"metric": m, "checkpoint": n} for m, n in state.best],
        result=result,
    )


def base_and_data(inputs: TrainingInputs) -> JsonObject:
    """Provenance that is known before the first step: the base model, the training data and the trained pairs."""
    return {
        "base": str(inputs.model.info.get("source")),
        "base_fingerprint": inputs.base_fingerprint,
        "data": inputs.data.spec,
        "data_fingerprint": inputs.data.fingerprint,
        "pairs": [list(p) for p in inputs.pairs],
    }


def artifact_info(recipe: Recipe, inputs: TrainingInputs, tuned: TunedModel) -> JsonObject:
    """Provenance of the artifact, for its manifest and its model card."""
    model = inputs.model
    info: JsonObject = {
        **base_and_data(inputs),
        "tune": {m: c.how for m, c in tuned.counts.items()},
        "seed": recipe.train.seed,
        "precision": resolve_precision(recipe.train.precision),
        "seen": model.info["seen"],
    }
    return info | ({"matryoshka": model.info["matryoshka"]} if recipe.matryoshka else {})
