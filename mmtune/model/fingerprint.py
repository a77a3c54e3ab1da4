"""The name of an embedding space: a hash over everything that a vector depends on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mmtune.model.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
RULES = {"normalised": True, "dtype": "float32", "metric": "cosine"}


def fingerprint(weights: "Iterable[tuple[str, Tensor]]", files: Mapping[str, bytes], layout: Layout) -> str:
    """ "mm1-" and 32 hex digits of SHA-256 over the weights (name, dtype, shape, bytes; adapters merged), the configuration,
    preprocessing and tokenizer files, and the layout (dimensions, pooling, prompts, normalisation, dtype, metric)."""
    import torch

    h = hashlib.sha256(f"mmtune {FORMAT}\n".encode())
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        t = tensor.detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    for name in sorted(files):
        h.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    h.update(json.dumps(layout.to_hash() | RULES, sort_keys=True).encode())
    return f"mm{FORMAT}-{h.hexdigest()[:32]}"
