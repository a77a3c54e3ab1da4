"""Scorers that encode both values of a pair together: cross-encoders for two texts, and image-text matching models."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.contracts import Signal
from mmtune.errors import DataError, ModelError, first_line
from mmtune.runtime.devices import default_device


def fingerprint_of_scorer(kind: str, module: nn.Module) -> str:
    """Hash the scorer's kind, the class of its module and its weights (SHA-256, hexadecimal)."""
    digest = hashlib.sha256(f"{kind}\0{type(module).__name__}\0".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Pretrained(Protocol):
    """A class of transformers with `from_pretrained`, e.g. AutoTokenizer."""

    def from_pretrained(self, name: str, /, *, trust_remote_code: bool) -> Untyped: ...


def load_pretrained(cls: _Pretrained, model: str, what: str) -> Untyped:
    """Call `cls.from_pretrained` without running Python code of the checkpoint.

    model: a directory or a hub name
    what: what is loaded, for the message

    Raises ModelError if it cannot be loaded.
    """
    try:
        return cls.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ModelError(f"{model}: cannot load a {what} ({first_line(e)})") from None


class CrossEncoder:
    """Score pairs of texts with a cross-encoder, e.g. ms-marco-MiniLM.

    Any sequence classifier with a single output works, in the file layout of transformers or of sentence-transformers. A score
    is the classifier's logit. It is unbounded, so use it with the losses margin_mse or kl.
    """

    def __init__(self, model: str, batch_size: int = 64, device: str | None = None, max_length: int | None = None) -> None:
        """Load the cross-encoder.

        model: a directory or a hub name
        batch_size: pairs in one forward pass
        device: None means a CUDA GPU, else Apple's GPU (MPS), else the CPU
        max_length: limit of both texts together, in tokens; None means the tokenizer's own limit

        Raises ModelError if the model cannot be loaded or has more than one output.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = load_pretrained(AutoModelForSequenceClassification, model, "sequence classifier").eval()
        if self.model.config.num_labels != 1:
            raise ModelError(
                f"{model}: this classifier has {self.model.config.num_labels} outputs; a cross-encoder that scores similarity "
                "has one"
            )
        self.tokenizer = load_pretrained(AutoTokenizer, model, "tokenizer")
        self.batch_size, self.max_length = batch_size, max_length
        self.device = device or str(default_device())
        self.model.to(self.device)
        self.fingerprint = fingerprint_of_scorer("cross_encoder", self.model)

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> list[float]:
        """Return the logit of each pair of strings. Raises DataError if a pair contains anything but strings."""
        if any(not isinstance(x, str) for p in pairs for x in p):
            raise DataError("a cross-encoder scores pairs of texts; for an image and a text use the scorer `matcher`")
        out: list[float] = []
        for i in range(0, len(pairs), self.batch_size):
            left, right = zip(*pairs[i : i + self.batch_size], strict=True)
            inputs = self.tokenizer(
                list(left), list(right), padding=True, truncation=True, return_tensors="pt", max_length=self.max_length
            )
            out += self.model(**inputs.to(self.device)).logits[:, 0].float().tolist()
        return out


class Matcher:
    """Score pairs of an image and a text with BLIP's image-text matching head (Li et al. 2022, arXiv 2201.12086).

    A score is the log-odds that the image and the text match. It is unbounded, so use it with the losses margin_mse or kl.
    """

    def __init__(self, model: str, batch_size: int = 32, device: str | None = None) -> None:
        """Load the matching model.

        model: a directory or a hub name
        batch_size: pairs in one forward pass
        device: None means a CUDA GPU, else Apple's GPU (MPS), else the CPU

        Raises ModelError if the model cannot be loaded.
        """
        from transformers import AutoProcessor, BlipForImageTextRetrieval

        self.model = load_pretrained(BlipForImageTextRetrieval, model, "BLIP matching model").eval()
        self.processor = load_pretrained(AutoProcessor, model, "processor")
        self.batch_size = batch_size
        self.device = device or str(default_device())
        self.model.to(self.device)
        self.fingerprint = fingerprint_of_scorer("matcher", self.model)

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> list[float]:
        """Return the log-odds of each pair; a pair is (image, text) or (text, image). Raises DataError for any other pair."""
        out: list[float] = []
        for i in range(0, len(pairs), self.batch_size):
            batch = [(y, x) if isinstance(x, str) else (x, y) for x, y in pairs[i : i + self.batch_size]]
            if any(isinstance(x, str) or not isinstance(y, str) for x, y in batch):
                raise DataError("a matcher scores an image with a text; for two texts use the scorer `cross_encoder`")
            images = [x.convert("RGB") for x, _ in batch]
            inputs = self.processor(
                images=images, text=[y for _, y in batch], padding=True, truncation=True, return_tensors="pt"
            )
            logits = self.model(**inputs.to(self.device), use_itm_head=True).itm_score.float()
            out += (logits[:, 1] - logits[:, 0]).tolist()
        return out
