"""What a version's model is, in pieces that can be named when they differ: weights by tensor, files, settings.

The fingerprint says that two models differ; the identity says where. It is read from the artifact's directory as it lies
there, so it can be asked of one that no longer loads.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import DataError, ModelError
from mmtune.model.artifact.format import MANIFEST, WEIGHTS
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

SHOWN = 3


def identity(directory: Path) -> dict[str, dict[str, str]]:
    """{"weights": {tensor: digest}, "files": {path: digest}, "settings": {key: value as JSON}} of an artifact's directory."""
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


def difference(was: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What differs, a line a kind: "weights: 2 of 40 tensors (a, b)"; [] when nothing does."""
    lines = []
    for kind in ("weights", "files", "settings"):
        a, b = was.get(kind, {}), now.get(kind, {})
        names = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            lines.append(f"{kind}: {len(names)} of {len({*a, *b})} ({shown})")
    return lines


def narrowed(model: "Model | str | Path | Mapping[str, str]", dim: int | None) -> "Model":
    """A model by name or in memory, its first `dim` dimensions when asked for, ready to embed."""
    from mmtune.model.artifact import load

    found = load(model) if isinstance(model, str | Path | Mapping) else model
    return found.eval() if dim is None else found.eval().truncated(dim)


def kept(collection: Path, model: "Model") -> "Model":
    """The model as a collection keeps it, COLL/models/FINGERPRINT; processes that come at once save it once."""
    from mmtune.model.artifact import save

    directory = collection / "models" / model.fingerprint
    run_jobs_once([directory], lambda d: d, Path.exists, lambda d: save(model, d))
    return load_pinned(directory, model.fingerprint, {}, "(new)")


def load_pinned(directory: Path, fingerprint: str, was: Mapping[str, Mapping[str, str]], version: str) -> "Model":
    """The artifact that a version pinned, if it still is what it was. ModelError names what differs."""
    from mmtune.model.artifact import load

    try:
        model = load(directory)
        mark, fault = model.fingerprint, ""
    except (ModelError, DataError, OSError) as e:
        model, mark, fault = None, "", str(e)
    if model is not None and mark == fingerprint:
        return model
    try:
        lines = difference(was, identity(directory))
    except Exception as e:  # whatever is wrong with a damaged artifact: the reason is part of the answer
        lines = [str(e).splitlines()[0] if str(e) else type(e).__name__]
    where = "; ".join(lines) or fault or "its manifest"
    raise ModelError(
        f"version {version} was embedded by {fingerprint}, and {directory} is {mark or 'not whole'}: what differs: {where}. "
        "Its vectors would be searched with another model; restore that directory, or build a new version"
    )
