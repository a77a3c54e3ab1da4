"""Names of the files in the directory of a cross-encoder."""

from pathlib import Path

MANIFEST, WEIGHTS, TOWERS, METRICS = "cross_encoder.json", "joint.safetensors", "towers", "metrics.json"
FORMAT = 1
KIND, SEQUENCE = "kind", "sequence_classification"
"""Key of the manifest, and its value for a classifier of two texts, whose other files are those of transformers."""


def is_cross_encoder(path: str | Path) -> bool:
    """Whether `path` is the directory of a cross-encoder, or of a run that trained one."""
    return any((p / MANIFEST).is_file() for p in (Path(path), Path(path) / "artifact"))
