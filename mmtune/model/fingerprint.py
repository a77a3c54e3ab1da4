"""Compute the fingerprint of a model, a hash of everything that its embeddings depend on.

The fingerprint identifies the embedding space: embeddings are comparable only if their models have the same fingerprint.
It begins with the number of its format, "mm3-". An artifact keeps the format that it was saved with:

- format 1 hashes the backbones' files byte by byte
- format 2 hashes what the embeddings depend on in these files (`backbones.canonical_files`), so that it does not change when
  another version of transformers writes them anew
- format 3 also names the weights in a way that does not change with the version of transformers (`backbones.weight_names`)
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mmtune.backbones.canonical_files import canonical_files
from mmtune.backbones.weight_names import named_by_key
from mmtune.errors import ModelError
from mmtune.model.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3  # increased whenever the computation changes; part of the fingerprint
# Properties of the embeddings that are the same for all models of these formats.
RULES = {"normalised": True, "dtype": "float32", "metric": "cosine"}


def fingerprint(
    weights: "Iterable[tuple[str, Tensor]]", files: Mapping[str, bytes], layout: Layout, format: int = FORMAT
) -> str:
    """Return "mm3-" and the first 32 hex digits of a SHA-256 hash of the arguments and RULES.

    weights: name and tensor of each weight (adapters merged); name, dtype, shape and content are hashed
    files: configuration, preprocessing and tokenizer files, {"number/path": content}
    layout: dimension, heads, prompts, pooling
    format: 1, 2 or 3
    """
    import torch

    h = hashlib.sha256(f"mmtune {format}\n".encode())
    named = named_by_key(weights) if format > 2 else weights
    for name, tensor in sorted(named, key=lambda item: item[0]):
        t = tensor.detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    if format == 1:
        for name in sorted(files):
            h.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    else:
        h.update(json.dumps(canonical_files(files), sort_keys=True).encode() + b"\n")
    h.update(json.dumps(layout.to_hash() | RULES, sort_keys=True).encode())
    return f"mm{format}-{h.hexdigest()[:32]}"


def format_of(fingerprint: str) -> int:
    """Return the format of a fingerprint. Raises ModelError if this version does not know it."""
    match = re.match(r"mm(\d+)-", fingerprint)
    number = int(match[1]) if match else 0
    if not 1 <= number <= FORMAT:
        raise ModelError(f"the fingerprint {fingerprint!r} has a format that this mmtune does not know; update mmtune")
    return number
