"""Tokenize texts with an open_clip tokenizer, which always pads to the full context length."""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor


class OpenClipTokenize:
    """Turn one text into token ids, {"text": [context_length]}."""

    def __init__(self, tokenizer: Callable[[list[str]], Tensor]):
        """tokenizer: maps N texts to token ids [N, context_length]."""
        self.tokenizer = tokenizer

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"text": self.tokenizer([signal])[0]}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"text": torch.stack([i["text"] for i in items])}


def tokenizer_from_files(files: Mapping[str, bytes]) -> Callable[[list[str]], Tensor]:
    """Build the tokenizer of an open_clip checkpoint from its files in local-dir layout, {relative path: content}."""
    import open_clip

    with tempfile.TemporaryDirectory() as tmp:
        for name, data in files.items():
            (Path(tmp) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(tmp) / name).write_bytes(data)
        return open_clip.get_tokenizer(f"local-dir:{tmp}")
