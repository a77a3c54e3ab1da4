"""Up to 32 inputs kept with a version, and the vectors they had: embedded again when it is opened and before it goes live.

The fingerprint covers what is written down (weights, files, settings); canaries cover what is not: a library whose resampling
changed, a device whose kernels differ, code that was edited.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, ModelError
from mmtune.index.catalog import Catalog
from mmtune.model.encode import encode_batches
from mmtune.runtime.files import write_bytes

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

COUNT = 32
ALIKE = 0.999
BATCH = 8


def apart(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """bool [N]: rows that are not the same unit vector. By distance, which is the cosine for unit vectors and sees lengths."""
    return ~(((a_ND.astype(np.float64) - b_ND) ** 2).sum(1) <= 2 * (1 - ALIKE))


def embed_bytes(
    model: "Model", modality: str, values: Sequence[bytes], role: str | None = None, batch_size: int = BATCH
) -> np.ndarray:
    """Float32 unit vectors [N, D] of contents."""
    kind = modalities.get(modality)
    items = ((lambda v=v: kind.decode(v)) for v in values)
    parts = list(encode_batches(model, modality, items, batch_size, lambda n: None, role))
    return np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)


def keep(model: "Model", catalog: Catalog, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Choose inputs of every modality that model and corpus have, embed them, publish them at `path`.

    Returns {modality: (labels [n], vectors [n, D])}.
    """
    from safetensors.numpy import save

    names = [m for m in catalog.counts() if m in model.towers]
    arrays: dict[str, np.ndarray] = {}
    made = {}
    for m in names:
        items = catalog.sample(m, max(1, COUNT // len(names)))
        values = [catalog.read(i, m) for i in items]
        labels = np.array([i.contents[m][0] for i in items], np.int64)
        made[m] = (labels, embed_bytes(model, m, values))
        arrays |= {f"{m}/labels": labels, f"{m}/vectors": made[m][1]}
        arrays |= {f"{m}/{n}": np.frombuffer(v, np.uint8) for n, v in enumerate(values)}
    write_bytes(path, save(arrays, {"fingerprint": model.fingerprint}))
    return made


def _read(path: Path) -> tuple[dict[str, Any], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, (f.metadata() or {}).get("fingerprint", "")
    except (OSError, SafetensorError) as e:
        raise DataError(f"{path}: the canaries cannot be read ({e}); build a new version") from None


def check(model: "Model", path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{modality: (labels [n], vectors [n, D] of now)} of the canaries. ModelError where a vector of now and one of then have a
    cosine below 0.999, naming the modality."""
    arrays, mark = _read(path)
    if mark != model.fingerprint:
        raise ModelError(f"{path}: canaries of another model ({mark}, not {model.fingerprint})")
    found = {}
    for name in [k.rpartition("/")[0] for k in arrays if k.endswith("/labels")]:
        then = arrays[f"{name}/vectors"]
        now = embed_bytes(model, name, [arrays[f"{name}/{n}"].tobytes() for n in range(len(then))])
        cosines = (now.astype(np.float64) * then).sum(1) if now.shape == then.shape else np.zeros(len(then))
        bad = int(apart(now, then).sum()) if now.shape == then.shape else len(then)
        if bad:
            raise ModelError(
                f"{path}: {bad} of {len(then)} stored {name} inputs have another vector than when they were indexed (the worst "
                f"cosine is {cosines.min():.4f}, {ALIKE} is asked): weights and files are the same, so the code or a library "
                "that prepares them changed; bring it back, or build a new version"
            )
        found[name] = (arrays[f"{name}/labels"], now)
    if not any(len(labels) for labels, _ in found.values()):
        raise ModelError(f"{path}: it holds no canaries, so nothing says that the model is what it was; build a new version")
    return found
