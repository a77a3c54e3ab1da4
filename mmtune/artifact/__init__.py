"""A frozen, versioned model on disk: weights, configuration, preprocessing, tokenizer, and the fingerprint over them."""

from mmtune.artifact.load import load
from mmtune.artifact.save import save

__all__ = ["load", "save"]
