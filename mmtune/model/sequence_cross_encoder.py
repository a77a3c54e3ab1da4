"""A cross-encoder of two texts: a sequence classifier of transformers (BERT and others with one output) that is trained on pairs.

The dual encoder beside it only chooses negatives and first candidates. The saved directory is a plain checkpoint of transformers and
sentence-transformers.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmtune import modalities
from mmtune.backbones.cross_encoders import CrossEncoder, fingerprint_of_scorer
from mmtune.backbones.sequence_classifier import SequenceClassifier, Tokens, load_sequence_classifier
from mmtune.contracts import Pair, Preprocess, Signal
from mmtune.errors import ModelError, RecipeError
from mmtune.model.cross_encoder import CrossEncoderModel
from mmtune.model.cross_encoder_format import FORMAT, KIND, MANIFEST, METRICS, SEQUENCE
from mmtune.model.dual_encoder import Model
from mmtune.model.joint_scorer import ItemStates, PairScorer, TokenShape
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock
from mmtune.runtime.files import atomic_dir, write_json

TOKENS, MASK = "pair_tokens", "pair_mask"
"""Names of the inputs with the number of the classifier's tokens and their ids [N, T], and their mask."""


class SequenceScorer(PairScorer):
    """Scores pairs of texts by a sequence classifier. The states of a text are its number of tokens and their ids, float32 [N, T, 1]."""

    def __init__(self, classifier: SequenceClassifier, pairs: Sequence[Pair]) -> None:
        super().__init__({m: TokenShape(classifier.limit + 1, 1) for p in pairs for m in p}, pairs)
        self.classifier = classifier

    def forward(self, pair: Pair, queries: ItemStates, candidates: ItemStates, i: Tensor, j: Tensor, scale: Tensor) -> Tensor:
        """Score the pairs (queries i, candidates j): float32 [P], the classifier's logits. `scale` is not used."""
        left, right = (_tokens_of(states) for states in (queries, candidates))
        if pair not in self.pairs:
            left, right, i, j = right, left, j, i
        return self.classifier([(left[a], right[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)])


def _tokens_of(states: ItemStates) -> list[Tokens]:
    kept = states.mask.sum(1).tolist()
    numbers = states.tokens[..., 0].long().tolist()
    return [Tokens(row[1:n], row[0]) for row, n in zip(numbers, kept, strict=True)]


class WithPairTokens:
    """A Preprocess that adds the token ids of the classifier to those of the dual encoder's tower, without its prompts."""

    def __init__(self, inner: Preprocess, classifier: SequenceClassifier) -> None:
        self.inner, self.classifier = inner, classifier

    def is_deterministic(self, signal: Signal) -> bool:
        """Whether the result can be cached in training: whether that of the inner preprocessing can."""
        check = getattr(self.inner, "is_deterministic", None)
        return True if check is None else bool(check(signal))

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        tokens = self.classifier.tokens_of(signal)
        return {**self.inner(signal, rng), TOKENS: torch.tensor([tokens.length, *tokens.ids], dtype=torch.int64)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Collate a batch; the token ids are padded to the longest text that the classifier reads, so that all batches have one width."""
        inputs = self.inner.collate([{k: v for k, v in item.items() if k != TOKENS} for item in items])
        tokens = torch.zeros(len(items), self.classifier.limit + 1, dtype=torch.int64)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, item in enumerate(items):
            count = len(item[TOKENS])
            tokens[row, :count], mask[row, :count] = item[TOKENS], True
        return {**inputs, TOKENS: tokens, MASK: mask}


class SequenceCrossEncoderModel(CrossEncoderModel):
    """A trainable re-ranker of two texts. Its states of values are token ids; see `CrossEncoderModel` for its part in training."""

    joint: SequenceScorer

    def pair_preprocess(self, modality: str, preprocess: Preprocess) -> Preprocess:
        """Add the classifier's token ids to the preprocessed values."""
        return WithPairTokens(preprocess, self.joint.classifier)

    def states(self, modality: str, inputs: Mapping[str, Tensor]) -> ItemStates:
        """Return embeddings by the dual encoder, without gradient, and token ids of N values."""
        tokens, mask = inputs[TOKENS], inputs[MASK]
        with torch.no_grad():
            embedding = self.embedding(modality, {k: v for k, v in inputs.items() if k not in (TOKENS, MASK)})
        return ItemStates(embedding.float(), tokens.float()[..., None], mask)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the classifier, which is that of the loaded scorer."""
        return fingerprint_of_scorer("cross_encoder", self.joint.classifier.module)

    def save_to(
        self,
        directory: str | Path,
        metrics: Mapping[str, object] | None = None,
        info: Mapping[str, object] | None = None,
    ) -> str:
        """Save the classifier and its tokenizer as a checkpoint of transformers, with a manifest; returns the fingerprint."""
        directory, classifier = Path(directory), self.joint.classifier
        if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
            raise ModelError(f"{directory}: contains files that are not a cross-encoder's; save into a new or empty directory")
        fingerprint, pairs = self.fingerprint, [list(p) for p in self.joint.pairs]
        with atomic_dir(directory) as tmp:
            classifier.module.save_pretrained(tmp)  # type: ignore[operator]  # a model of transformers
            classifier.tokenizer.save_pretrained(tmp)
            manifest = {"format": FORMAT, KIND: SEQUENCE, "fingerprint": fingerprint, "pairs": pairs, "info": dict(info or {})}
            write_json(tmp / MANIFEST, manifest)
            write_json(tmp / METRICS, dict(metrics or {}))
        return fingerprint


def new_sequence_cross_encoder(
    dual: Model, config: CrossEncoderBlock, pairs: Sequence[Pair], seed: int = 0
) -> SequenceCrossEncoderModel:
    """Load the classifier of `cross_encoder.model` beside a dual encoder, for pairs of texts.

    Raises RecipeError for pairs of other modalities, and ModelError if the classifier cannot be used.
    """
    assert config.model is not None
    for m in {m for p in pairs for m in p}:
        if not modalities.get(m).language:
            raise RecipeError(f"cross_encoder.model: {config.model} reads two texts, but the pairs have {m}; leave the key out")
    dual.ensure_logit_scales(pairs)
    classifier = load_sequence_classifier(config.model, 2 * config.max_tokens, seed)
    return SequenceCrossEncoderModel(dual, SequenceScorer(classifier, pairs))


def load_sequence_cross_encoder(directory: Path, fingerprint: str, device: str | None) -> CrossEncoder:
    """Load a saved classifier as a scorer. Raises ModelError if its weights do not have this fingerprint."""
    scorer = CrossEncoder(str(directory), device=device)
    if scorer.fingerprint != fingerprint:
        raise ModelError(f"{directory}: its content does not have the fingerprint {fingerprint}: a file was edited or damaged")
    return scorer
