"""Pool the token embeddings of a text to one embedding, with the pooling modes of sentence-transformers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmtune.errors import ModelError

POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Pooling mode -> its key in a 1_Pooling/config.json of sentence-transformers before version 5.4. Modes that are set to true
there are concatenated in this order."""


def read_modes(document: Mapping[str, object], where: str) -> list[str]:
    """Read the pooling modes from the configuration of a Pooling module of sentence-transformers, in their order.

    Several modes mean that their results are concatenated. Raises ModelError if a mode is unknown, or if the configuration
    excludes the prompt from pooling, because ignoring that would change the embeddings.

    document: content of the module's config.json
    where: that file, for error messages
    """
    if document.get("include_prompt") is False:
        raise ModelError(f"{where}: include_prompt: false (prompt tokens excluded from pooling) is not supported")
    given = document.get("pooling_mode")
    if given is None:
        flags = [k for k, v in document.items() if k.startswith("pooling_mode_") and v is True]
        names = {key: mode for mode, key in POOLINGS.items()}
        unknown = [k for k in flags if k not in names]
        modes = unknown or [mode for mode, key in POOLINGS.items() if key in flags] or ["mean"]
    else:
        modes = [given] if isinstance(given, str) else [str(m) for m in given] if isinstance(given, list) else [str(given)]
    check_modes(modes, where)
    return modes


def check_modes(modes: Sequence[str], where: str) -> None:
    """Raise ModelError, which starts with `where`, for a mode that is not in POOLINGS."""
    for mode in modes:
        if mode not in POOLINGS:
            raise ModelError(f"{where}: pooling {mode!r} is not supported; known: {', '.join(POOLINGS)}")


def pool(hidden_BTC: Tensor, mask_BT: Tensor, modes: Sequence[str]) -> Tensor:
    """Pool token embeddings [B, T, C] to [B, C * number of modes].

    mask_BT: 1 for tokens, 0 for padding, which must be on the right

    The modes are those of `sentence_transformers.models.Pooling`.
    """
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTC.dtype)
    pooled = []
    for mode in modes:
        if mode == "cls":
            pooled.append(hidden_BTC[:, 0])
        elif mode == "max":
            pooled.append(hidden_BTC.masked_fill(mask_BT1 == 0, float("-inf")).amax(1))
        elif mode == "lasttoken":
            last = (mask_BT.sum(1) - 1).clamp(min=0)
            pooled.append(hidden_BTC[torch.arange(len(last), device=last.device), last])
        else:
            weights = mask_BT1
            if mode == "weightedmean":
                weights = mask_BT1 * torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device).view(1, -1, 1)
            total = weights.sum(1).clamp(min=1e-9)
            pooled.append((hidden_BTC * weights).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total))
    return torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]


def pool_all(hidden_BTC: Tensor, mode: str) -> Tensor:
    """Pool embeddings without padding [B, T, C] to [B, C]."""
    return pool(hidden_BTC, torch.ones(hidden_BTC.shape[:2], device=hidden_BTC.device), [mode])
