"""Compute the fingerprint of a model, a hash of everything that its embeddings depend on.

The fingerprint identifies the embedding space: embeddings are comparable only if their models have the same fingerprint.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mmtune.model.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1  # increased whenever the computation changes; part of the fingerprint
# Properties of the embeddings that are the same for all models of this format.
RULES = {"normalised": True, "dtype": "float32", "metric": "cosine"}


def fingerprint(weights: "Iterable[tuple[str, Tensor]]", files: Mapping[str, bytes], layout: Layout) -> str:
    """Return "mm1-" and the first 32 hex digits of a SHA-256 hash of the arguments and RULES.

    weights: name and tensor of each weight (adapters merged); name, dtype, shape and content are hashed
    files: configuration, preprocessing and tokenizer files
    layout: dimension, heads, prompts, pooling
    """
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
