"""A frozen, versioned model on disk: weights, configuration, preprocessing, tokenizer, and the fingerprint over them."""

from mmtune.model.artifact.load import load, load_adapters
from mmtune.model.artifact.save import save

__all__ = ["load", "load_adapters", "save"]
