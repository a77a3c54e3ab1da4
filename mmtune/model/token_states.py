"""Token states of a tower: the input of its last block, for any library whose towers consist of blocks.

The input of the last block is used because its output is often computed for one token only (see
`mmtune.backbones.cpu_fast.first_token_block`), and because vision-language models read their vision encoder there, too.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones import Tower
from mmtune.errors import ModelError
from mmtune.model.tower_blocks import blocks


@contextlib.contextmanager
def captured_states(tower: Tower) -> Iterator[list[Tensor]]:
    """Context manager that collects the input of the tower's last block at each of its forward passes.

    Raises ModelError if the tower has no blocks, e.g. because another runtime executes it.
    """
    found = blocks(tower.modules)
    if not found:
        raise ModelError(
            f"{tower.modality}: this tower has no blocks whose token states a cross-encoder could read; use a transformer or a "
            "convolutional network of hf, open_clip, timm or st"
        )
    states: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        state = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        assert isinstance(state, Tensor)
        states.append(state)

    hook = found[-1].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield states
    finally:
        hook.remove()


def as_sequence(state: Tensor, items: int) -> Tensor:
    """Return a block's input as [N, T, C].

    state: [N, T, C] or [T, N, C], or a feature map [N, C, H, W] or [N, H, W, C]
    items: N
    """
    if state.ndim == 4:
        channels_last = state.shape[1] == state.shape[2] != state.shape[3]
        return state.flatten(1, 2) if channels_last else state.flatten(2).transpose(1, 2)
    return state.transpose(0, 1) if state.shape[0] != items and state.shape[1] == items else state


def token_mask(tower: Tower, inputs: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """bool [N, T]: False for padding. tokens: [N, T, C]"""
    mask = tower.token_mask(dict(inputs)) if tower.token_mask else inputs.get("attention_mask")
    if mask is None or mask.shape != tokens.shape[:2]:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask.bool()


def is_padded(tower: Tower, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the tower's sequences have different lengths, so that batches are padded."""
    return tower.token_mask is not None or "attention_mask" in inputs


def fit_length(tokens: Tensor, mask: Tensor, length: int, truncate: bool) -> tuple[Tensor, Tensor]:
    """Bring sequences to `length`: shorter ones are padded.

    tokens: [N, T, C]
    mask: [N, T]
    truncate: whether longer ones are truncated; otherwise neighbouring tokens are averaged, which needs a mask without padding
    """
    size = tokens.shape[1]
    if size > length and not truncate:
        pooled = F.adaptive_avg_pool1d(tokens.transpose(1, 2), length).transpose(1, 2)
        return pooled, mask.new_ones(len(mask), length)
    if size > length:
        return tokens[:, :length], mask[:, :length]
    return F.pad(tokens, (0, 0, 0, length - size)), F.pad(mask, (0, length - size))


def mean_of_windows(tokens: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Average the token states of each item's windows, position by position. segments: int [W], the item of each window."""
    items = int(segments[-1]) + 1
    weight = mask.to(tokens.dtype)[..., None]
    total = tokens.new_zeros(items, *tokens.shape[1:]).index_add(0, segments, tokens * weight)
    count = tokens.new_zeros(items, tokens.shape[1], 1).index_add(0, segments, weight)
    return total / count.clamp(min=1), count[..., 0] > 0
