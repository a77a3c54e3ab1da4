"""What differs in a run that trains a cross-encoder: the model, its objective, its validation, and what is saved at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Pair
from mmtune.data.decode import decode_row
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import RecipeError
from mmtune.evaluation.metrics import metric_columns
from mmtune.evaluation.rerank_evaluation import (
    FirstStage,
    RerankedDirection,
    RerankResult,
    first_stage,
    name_of,
    rerank_direction,
)
from mmtune.losses.rerank_loss import LOSSES
from mmtune.model.cross_encoder import CrossEncoderModel, new_cross_encoder
from mmtune.model.sequence_cross_encoder import new_sequence_cross_encoder
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import Processes
from mmtune.training.finish import artifact_info, train_result
from mmtune.training.rerank_objective import RerankObjective
from mmtune.training.train_result import TrainResult

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model
    from mmtune.training.loop import Trainer
    from mmtune.training.training_inputs import TrainingInputs
    from mmtune.training.tuning.tune import TunedModel

CACHE_BYTES = 1 << 30
"""Limit of the memory for states of values during a validation."""
CUTOFFS = (1, 5, 10)


class ValueStates:
    """Packed states of the values of a dataset, computed when they are needed. The oldest are dropped beyond CACHE_BYTES."""

    def __init__(self, model: CrossEncoderModel, data: "Data") -> None:
        self.model, self.data = model, data
        self._states: dict[tuple[str, int], Tensor] = {}
        self._bytes = 0

    def of(self, modality: str, rows: np.ndarray) -> Tensor:
        """Return the packed states of these rows of the dataset, [n, output_width]."""
        missing = [r for r in dict.fromkeys(rows.tolist()) if (modality, r) not in self._states]
        found = {r: self._states[modality, r] for r in rows.tolist() if (modality, r) in self._states}
        packed = self.model.packed_values(modality, [decode_row(self.data, r, modality) for r in missing])
        for r, state in zip(missing, packed, strict=True):
            found[r] = self._states[modality, r] = state.clone()
            self._bytes += state.nbytes
        while self._bytes > CACHE_BYTES:
            self._bytes -= self._states.pop(next(iter(self._states))).nbytes
        return torch.stack([found[r] for r in rows.tolist()])


class RerankValidation:
    """Validates a cross-encoder: re-ranks the first candidates of the base model on `data.val` (a `Validate` function).

    The candidates are retrieved once, when this object is made, with the model as it is then.
    """

    def __init__(
        self, dual: "Model", data: "Data", pairs: list[Pair], config: CrossEncoderBlock, metric: str, processes: Processes
    ) -> None:
        self.data, self.metric, self.processes = data, metric, processes
        names = [m for m in dict.fromkeys(m for p in pairs for m in p) if m in data.modalities]
        vectors = embed_data(dual, data, names, processes=processes)
        wanted = dict.fromkeys(d for p in pairs for d in (p, p[::-1]) if set(d) <= set(vectors))
        self.stages: dict[Pair, FirstStage] = {d: first_stage(vectors, d, config.depth) for d in wanted}
        self.rows = {m: np.flatnonzero(data.present[m]) for m in names}

    def evaluate(self, model: CrossEncoderModel) -> RerankResult:
        """Compute all metrics before and after re-ranking, in every direction."""
        was_training = model.training
        model.eval()
        states = ValueStates(model, self.data)

        def score(a: str, b: str, queries: np.ndarray, candidates: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
            left, right = states.of(a, self.rows[a][queries]), states.of(b, self.rows[b][candidates])
            return model.score_packed((a, b), left, right, torch.from_numpy(i), torch.from_numpy(j)).numpy()

        columns = metric_columns(CUTOFFS, [self.metric], "train.metric")
        found: dict[str, RerankedDirection] = {}
        for pair, stage in self.stages.items():
            result = rerank_direction(stage, score, columns)
            if result.queries:
                found[name_of(pair)] = result
        model.train(was_training)
        if not found:
            raise RecipeError(f"data.val: {self.data.spec} has no query with a relevant candidate for the trained pairs")
        return RerankResult(found)

    def __call__(self, model: "Model") -> dict[str, float]:
        """Return {"a->b METRIC": value after re-ranking, "first stage a->b METRIC": before, "metric": the mean of the former}."""
        if not self.processes.is_main_process:
            return dict(self.processes.broadcast())
        assert isinstance(model, CrossEncoderModel)
        directions = self.evaluate(model).directions
        values = {f"{d} {self.metric}": r.reranked[self.metric] for d, r in directions.items()}
        before = {f"first stage {d} {self.metric}": r.first_stage[self.metric] for d, r in directions.items()}
        return dict(self.processes.broadcast(values | before | {"metric": sum(values.values()) / len(values)}))


@dataclass(frozen=True)
class CrossEncoderRun:
    """The parts of a run that trains a cross-encoder.

    model: the cross-encoder, which shares the towers of the run's dual encoder
    objective: its objective
    validate: validation by re-ranking, or None without `data.val`
    config: the recipe's block
    """

    model: CrossEncoderModel
    objective: RerankObjective
    validate: RerankValidation | None
    config: CrossEncoderBlock

    def add_lr_shares(self, tuned: "TunedModel", lr: float) -> None:
        """Give the new layers their own learning rate; a classifier of two texts has that of the recipe. lr: `train.lr`"""
        share = 1.0 if self.config.model else self.config.lr / lr
        tuned.lr_shares |= {id(p): share for p in self.model.joint.parameters()}

    def save(self, trainer: "Trainer", tuned: "TunedModel", recipe: Recipe, inputs: "TrainingInputs") -> TrainResult:
        """Evaluate the finished cross-encoder on `data.val`, if given, and save it to RUN/artifact."""
        directory, state = Path(recipe.run.dir), trainer.state
        tuned.merge()
        tuned.close()
        inputs.model.info["seen"] = [list(p) for p in inputs.pairs]
        result = self.validate.evaluate(self.model) if self.validate else None
        metrics = result.to_dict() if result else {}
        info = artifact_info(recipe, inputs, tuned) | {"steps": state.step}
        fingerprint = self.model.save_to(directory / "artifact", metrics, info)
        return train_result(directory, fingerprint, tuned, state, result)


def build_cross_encoder(
    recipe: Recipe, inputs: "TrainingInputs", processes: Processes, say: Callable[[str], None]
) -> CrossEncoderRun | None:
    """Build the cross-encoder of a recipe with `cross_encoder:`, before its towers are tuned; None without that block.

    say: prints a line
    """
    config = recipe.cross_encoder
    if config is None:
        return None
    model = _new_model(recipe, config, inputs)
    objective = RerankObjective(model, inputs.pairs, LOSSES[config.loss], config.negatives, processes)
    validate = None
    if inputs.val is not None:
        validate = RerankValidation(inputs.model, inputs.val, inputs.pairs, config, recipe.train.metric, processes)
    trained = sum(p.numel() for p in model.joint.parameters())
    what = config.model or f"{config.layers} joint layers of width {config.width}"
    say(f"cross-encoder: {what}, {trained:,} parameters are trained")
    return CrossEncoderRun(model, objective, validate, config)


def _new_model(recipe: Recipe, config: CrossEncoderBlock, inputs: "TrainingInputs") -> CrossEncoderModel:
    """Put joint layers on the towers, or load the classifier of two texts."""
    if config.model is not None:
        return new_sequence_cross_encoder(inputs.model, config, inputs.pairs, recipe.train.seed)
    data = inputs.indexed
    examples = {m: decode_row(data, int(np.flatnonzero(data.present[m])[0]), m) for m in inputs.trained}
    return new_cross_encoder(inputs.model, config, inputs.pairs, examples, recipe.train.seed)
