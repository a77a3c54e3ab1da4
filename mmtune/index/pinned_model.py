"""Save the model of a version in the collection (pin it), and describe how a saved model differs from the expected one.

A fingerprint only shows that two models differ. The identity, with a hash of each tensor, file and setting, shows what differs.
The identity is computed from the files of the artifact (the saved model), so that it is available even if the artifact no
longer loads.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import DataError, ModelError, first_line
from mmtune.model.artifact.format import MANIFEST, WEIGHTS
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

    ModelSpec = Model | str | Path | Mapping[str, str]
    """A model in memory, a MODEL string, or one such string per tower."""

SHOWN = 3
"""Most names that an error message lists per kind of difference."""

Identity = dict[str, dict[str, str]]
"""{"weights": {tensor name: hash}, "files": {path: hash}, "settings": {key: value as JSON}}."""


def artifact_identity(directory: Path) -> Identity:
    """Compute the identity of the artifact in a directory."""
    import torch
    from safetensors import safe_open

    weights = {}
    with safe_open(str(directory / WEIGHTS), "pt") as f:
        for name in sorted(f.keys()):
            t = f.get_tensor(name)
            raw = t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
            weights[name] = hashlib.sha256(f"{t.dtype} {tuple(t.shape)}".encode() + raw).hexdigest()[:16]
    parts = directory / "parts"
    files = {
        p.relative_to(parts).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16]
        for p in sorted(parts.rglob("*"))
        if p.is_file()
    }
    layout = json.loads((directory / MANIFEST).read_text())["layout"]
    settings = {k: json.dumps(v, sort_keys=True) for k, v in layout.items()}
    return {"weights": weights, "files": files, "settings": settings}


def identity_differences(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return one line per kind of difference, e.g. "weights: 2 of 40 (a, b)"; [] when the identities are equal."""
    lines = []
    for kind in ("weights", "files", "settings"):
        a, b = before.get(kind, {}), after.get(kind, {})
        names = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            lines.append(f"{kind}: {len(names)} of {len({*a, *b})} ({shown})")
    return lines


def load_for_embedding(model: "ModelSpec", dim: int | None) -> "Model":
    """Load `model` if it is not in memory, and return it in eval mode.

    dim: truncate the embeddings to this many dimensions; None means all.
    """
    from mmtune.model.artifact import load

    loaded = load(model) if isinstance(model, str | Path | Mapping) else model
    return loaded.eval() if dim is None else loaded.eval().truncated(dim)


def pin_model(collection: Path, model: "Model") -> "Model":
    """Save a model as COLL/models/FINGERPRINT and load it from that directory. Concurrent processes save it only once."""
    from mmtune.model.artifact import save

    directory = collection / "models" / model.fingerprint
    run_jobs_once([directory], lambda d: d, Path.exists, lambda d: save(model, d))
    return load_pinned(directory, model.fingerprint, {}, "(new)")


def load_pinned(directory: Path, fingerprint: str, identity: Mapping[str, Mapping[str, str]], version: str) -> "Model":
    """Load the saved model of a version. Raises ModelError, naming the differences from `identity`, when it was changed."""
    from mmtune.model.artifact import load

    try:
        model = load(directory)
        actual, fault = model.fingerprint, ""
    except (ModelError, DataError, OSError) as e:
        model, actual, fault = None, "", str(e)
    if model is not None and actual == fingerprint:
        return model
    try:
        lines = identity_differences(identity, artifact_identity(directory))
    except Exception as e:  # a damaged artifact can raise anything; the reason becomes part of the message
        lines = [first_line(e)]
    where = "; ".join(lines) or fault or "its manifest"
    raise ModelError(
        f"version {version} was embedded by {fingerprint}, and {directory} is now {actual or 'damaged'}: what differs: "
        f"{where}. Its vectors must not be searched with another model; restore that directory, or build a new version"
    )
