"""Save and load models as artifacts.

An artifact is a directory with the weights, configuration, preprocessing and tokenizer of a model, and with their fingerprint.
"""

from mmtune.model.artifact.load import load, load_adapters
from mmtune.model.artifact.save import refuse_other_files, save

__all__ = ["load", "load_adapters", "refuse_other_files", "save"]
