"""A trainable cross-encoder: the towers of a dual encoder, and a transformer over the token states of both values of a pair."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune import modalities
from mmtune.contracts import Pair, Preprocess, Signal
from mmtune.errors import DataError, ModelError
from mmtune.model.dual_encoder import Model
from mmtune.model.encode import decoded
from mmtune.model.joint_scorer import ItemStates, JointScorer, PairScorer, TokenShape
from mmtune.model.prompts import with_prompt
from mmtune.model.token_states import as_sequence, captured_states, fit_length, is_padded, mean_of_windows, token_mask
from mmtune.model.window_groups import preprocess_in_groups
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock

if TYPE_CHECKING:
    from pathlib import Path

VALUES_AT_ONCE = 64
"""Values in one forward pass of a tower, outside training."""
PAIRS_AT_ONCE = 64
"""Pairs in one forward pass of the joint layers, outside training."""


class CrossEncoderModel(Model):
    """A scorer of pairs (`contracts.Scorer`) that shares its towers with a dual encoder.

    In training it takes the place of the dual encoder: `encode_inputs` returns the packed states of values (`ItemStates`), and
    the loss scores pairs of them. Load one with `mmtune.load_cross_encoder`.

    dual: the dual encoder, whose modules are used, not copied
    joint: the layers on top
    """

    def __init__(self, dual: Model, joint: PairScorer) -> None:
        super().__init__(dual.backbones, dual.width)
        self.dual = (dual,)  # in a tuple, so that its parameters are not counted twice
        self.towers, self.heads, self.head_kinds = dual.towers, dual.heads, dual.head_kinds
        self.own_scales, self._scales, self._max_log = dual.own_scales, dual._scales, dual._max_log
        self.settings, self.info = dual.settings, dual.info
        self.joint = joint.to(dual.device)
        self._guard = threading.Lock()

    # --- states of values ----------------------------------------------------------------------------------------

    def pair_preprocess(self, modality: str, preprocess: Preprocess) -> Preprocess:
        """Return the preprocessing of a modality's values, given that of the dual encoder with its prompts."""
        return preprocess

    def embedding(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the dual encoder's embeddings of the preprocessed inputs of N values."""
        return super().encode_inputs(modality, inputs)

    def states(self, modality: str, inputs: Mapping[str, Tensor]) -> ItemStates:
        """Return embeddings and token states of the preprocessed inputs of N values."""
        windows = {k: v for k, v in inputs.items() if k != "segments"}
        tower = self.towers[modality]
        with captured_states(tower) as captured:
            embedding = self.embedding(modality, inputs)
        count, shape = len(next(iter(windows.values()))), self.joint.shapes[modality]
        runs = len(captured)
        tokens = torch.cat([as_sequence(x, count if runs == 1 else len(x)) for x in captured]).float()
        tokens, mask = fit_length(tokens, token_mask(tower, windows, tokens), shape.tokens, is_padded(tower, windows))
        if (segments := inputs.get("segments")) is not None:
            tokens, mask = mean_of_windows(tokens, mask, segments)
        return ItemStates(embedding, tokens * mask[..., None], mask)

    def encode_inputs(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the packed states of N values (`ItemStates.packed`)."""
        return self.states(modality, inputs).packed()

    def output_width(self, modality: str) -> int:
        """Number of columns of `encode_inputs`."""
        shape = self.joint.shapes[modality]
        return self.dim + shape.tokens * (shape.width + 1)

    def unpacked(self, modality: str, packed: Tensor) -> ItemStates:
        """The states in the result of `encode_inputs`."""
        return ItemStates.unpacked(packed, self.dim, self.joint.shapes[modality])

    # --- scores --------------------------------------------------------------------------------------------------

    def score_states(self, pair: Pair, queries: ItemStates, candidates: ItemStates, i: Tensor, j: Tensor) -> Tensor:
        """Score the pairs (queries i, candidates j) of these modalities: float32 [P]."""
        scale, _ = self.logit_scale(*pair)
        return self.joint(pair, queries, candidates, i, j, scale.float())

    def packed_values(self, modality: str, signals: Sequence[Signal]) -> Tensor:
        """Return the packed states of decoded values, [N, output_width] on the CPU, without gradient."""
        preprocess = self.pair_preprocess(modality, with_prompt(self.towers[modality].preprocess, self.prompts, modality))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(signals), VALUES_AT_ONCE):
                some = decoded(signals[start : start + VALUES_AT_ONCE])
                for items in preprocess_in_groups(some, preprocess, VALUES_AT_ONCE):
                    inputs = {k: v.to(self.device) for k, v in preprocess.collate(items).items()}
                    parts.append(self.encode_inputs(modality, inputs).cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self.output_width(modality))

    def score_packed(self, pair: Pair, queries: Tensor, candidates: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Score the pairs (queries i, candidates j) of packed states, in batches, without gradient: float32 [P] on the CPU."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(i), PAIRS_AT_ONCE):
                sides = []
                for m, packed, index in ((pair[0], queries, i), (pair[1], candidates, j)):
                    used, at = torch.unique(index[start : start + PAIRS_AT_ONCE], return_inverse=True)
                    sides.append((self.unpacked(m, packed[used].to(self.device)), at.to(self.device)))
                (left, at_left), (right, at_right) = sides
                parts.append(self.score_states(pair, left, right, at_left, at_right).cpu())
        return torch.cat(parts) if parts else torch.zeros(0)

    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> list[float]:
        """Return one score per pair of decoded values, in either order; a higher score means more similar.

        Equal objects are encoded once in a call. Raises DataError for a pair of modalities that the model was not trained on.
        """
        by_pair: dict[Pair, list[int]] = {}
        for n, (left, right) in enumerate(pairs):
            by_pair.setdefault((self._modality_of(left), self._modality_of(right)), []).append(n)
        out = [0.0] * len(pairs)
        with self._guard:
            for pair, numbers in by_pair.items():
                if pair not in self.joint.pairs and pair[::-1] not in self.joint.pairs:
                    known = ", ".join("-".join(p) for p in self.joint.pairs)
                    raise DataError(f"this cross-encoder scores pairs of {known}, not {'-'.join(pair)}")
                packed, index = [], []
                for side, m in enumerate(pair):
                    unique = {id(pairs[n][side]): pairs[n][side] for n in numbers}
                    position = {key: at for at, key in enumerate(unique)}
                    packed.append(self.packed_values(m, list(unique.values())))
                    index.append(torch.tensor([position[id(pairs[n][side])] for n in numbers]))
                for n, value in zip(numbers, self.score_packed(pair, *packed, *index).tolist(), strict=True):
                    out[n] = value
        return out

    def _modality_of(self, signal: Signal) -> str:
        """The modality of a decoded value: a string is a text; of the others, the one whose `accepts` says so."""
        names = [m for m in self.joint.shapes if modalities.get(m).language == isinstance(signal, str)]
        accepting = [m for m in names if isinstance(signal, str) or modalities.get(m).accepts(signal)]
        if len(accepting) != 1:
            raise DataError(
                f"a cross-encoder of {', '.join(self.joint.shapes)} cannot score a value of type {type(signal).__name__}"
            )
        return accepting[0]

    # --- identity ------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Hash of towers, joint layers and settings: equal fingerprints mean equal scores."""
        from mmtune.model.cross_encoder_files import fingerprint_of

        return fingerprint_of(self)

    def save_to(
        self,
        directory: "str | Path",
        metrics: Mapping[str, object] | None = None,
        info: Mapping[str, object] | None = None,
    ) -> str:
        """Save the cross-encoder with scores and facts about its run. Returns its fingerprint."""
        from mmtune.model.cross_encoder_files import save_cross_encoder

        return save_cross_encoder(self, directory, metrics, info)

    def save(self, directory: "str | Path", **options: object) -> str:
        """Save the cross-encoder in a directory, for `mmtune.load_cross_encoder`. Returns its fingerprint."""
        if options:
            raise ModelError(f"a cross-encoder is saved without {', '.join(options)}")
        return self.save_to(directory)


def new_cross_encoder(
    dual: Model, config: CrossEncoderBlock, pairs: Sequence[Pair], examples: Mapping[str, Signal], seed: int = 0
) -> CrossEncoderModel:
    """Put untrained joint layers on a dual encoder.

    pairs: pairs of modalities to score
    examples: one decoded value of each modality, from which the shapes of the token states are read
    seed: seed of the joint layers

    Raises ModelError if a tower has no token states.
    """
    shapes = {}
    for m, signal in examples.items():
        tower = dual.towers[m]
        inputs = {k: v.to(dual.device) for k, v in tower.preprocess.collate([tower.preprocess(signal)]).items()}
        with captured_states(tower) as captured, torch.inference_mode():
            tower.encode({k: v for k, v in inputs.items() if k != "segments"})
        tokens = as_sequence(captured[0], len(next(iter(inputs.values()))))
        limit = int(getattr(tower.preprocess, "limit", config.max_tokens)) if is_padded(tower, inputs) else tokens.shape[1]
        shapes[m] = TokenShape(min(config.max_tokens, limit), tokens.shape[2])
    dual.ensure_logit_scales(pairs)
    return CrossEncoderModel(dual, JointScorer(shapes, pairs, config, dual.dim, seed))
