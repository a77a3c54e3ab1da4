"""The layers of a cross-encoder on top of the towers: a transformer over the token states of both values of a pair."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.contracts import Pair
from mmtune.losses.gather_rows import rows_at
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock


class TokenShape(NamedTuple):
    """Shape of the token states of one value: at most `tokens` vectors of dimension `width`."""

    tokens: int
    width: int


class ItemStates(NamedTuple):
    """The states of N values of one modality.

    embedding: [N, D], L2-normalised
    tokens: [N, T, C]
    mask: bool [N, T], False for padding
    """

    embedding: Tensor
    tokens: Tensor
    mask: Tensor

    def at(self, index: Tensor) -> "ItemStates":
        """The states of the values at these positions. index: int64 [P]"""
        return ItemStates(rows_at(self.embedding, index), rows_at(self.tokens, index), self.mask[index])

    def packed(self) -> Tensor:
        """All in one tensor [N, D + T x C + T], as the trainer passes the outputs of towers."""
        return torch.cat([self.embedding, self.tokens.flatten(1), self.mask.to(self.tokens.dtype)], 1)

    @staticmethod
    def unpacked(packed: Tensor, dim: int, shape: TokenShape) -> "ItemStates":
        """The inverse of `packed`. dim: D"""
        embedding, tokens, mask = packed.split([dim, shape.tokens * shape.width, shape.tokens], 1)
        return ItemStates(embedding, tokens.unflatten(1, (shape.tokens, shape.width)), mask > 0.5)


class PairScorer(nn.Module):
    """Base class of what scores pairs of states of values.

    shapes: {modality: shape of its token states}
    pairs: pairs of modalities that it scores; a pair can be scored in both directions
    """

    def __init__(self, shapes: Mapping[str, TokenShape], pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.shapes, self.pairs = dict(shapes), [(a, b) for a, b in pairs]


class JointScorer(PairScorer):
    """Scores pairs of values by self-attention over their token states together (single-stream, as in UNITER and ViLT).

    shapes: {modality: shape of its token states}
    pairs: pairs of modalities that it scores; a pair can be scored in both directions
    config: number and size of the layers
    seed: seed of the initial weights
    """

    def __init__(
        self, shapes: Mapping[str, TokenShape], pairs: Sequence[Pair], config: CrossEncoderBlock, dim: int, seed: int = 0
    ) -> None:
        super().__init__(shapes, pairs)
        self.config, self.dim = config, dim
        width = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.project = nn.ModuleDict(
                {m: nn.Sequential(nn.LayerNorm(s.width), nn.Linear(s.width, width)) for m, s in self.shapes.items()}
            )
            # "embed" in these names: no weight decay
            self.summary_token_embed = nn.Parameter(torch.randn(width) * 0.02)
            self.side_embed = nn.Parameter(torch.randn(2, width) * 0.02)
            layer = nn.TransformerEncoderLayer(
                width,
                config.attention_heads,
                4 * width,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
            for parameter in self.layers.parameters():  # the layers are copies of each other
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
            self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pair: Pair, queries: ItemStates, candidates: ItemStates, i: Tensor, j: Tensor, scale: Tensor) -> Tensor:
        """Score the pairs (queries i, candidates j): float32 [P].

        pair: their modalities, in either direction
        i, j: int64 [P], positions in `queries` and `candidates`
        scale: the model's logit scale, by which the cosine is multiplied
        """
        cosine = (rows_at(queries.embedding, i) * rows_at(candidates.embedding, j)).sum(1)
        x, y = self._projected(pair[0], queries), self._projected(pair[1], candidates)
        first, second = (x, i), (y, j)
        if pair not in self.pairs:
            first, second = second, first
        sequence, masks = [], []
        for side, ((tokens, mask), index) in enumerate((first, second)):
            sequence.append(rows_at(tokens, index) + self.side_embed[side])
            masks.append(mask[index])
        summary = self.summary_token_embed.expand(len(i), 1, -1)
        keep = F.pad(torch.cat(masks, 1), (1, 0), value=True)
        out = self.layers(torch.cat([summary, *sequence], 1), src_key_padding_mask=~keep)
        return scale * cosine + self.head(out[:, 0])[:, 0].float()

    def _projected(self, modality: str, states: ItemStates) -> tuple[Tensor, Tensor]:
        """Return (projected tokens [N, T, width], mask), without positions that are padding in every value."""
        used = torch.nonzero(states.mask.any(0))
        length = int(used.max()) + 1 if len(used) else 1
        return self.project[modality](states.tokens[:, :length]), states.mask[:, :length]
