"""Names of the files in the directory of a cross-encoder."""

from pathlib import Path

MANIFEST, WEIGHTS, TOWERS, METRICS = "cross_encoder.json", "joint.safetensors", "towers", "metrics.json"


def is_cross_encoder(path: str | Path) -> bool:
    """Whether `path` is the directory of a cross-encoder, or of a run that trained one."""
    return any((p / MANIFEST).is_file() for p in (Path(path), Path(path) / "artifact"))
