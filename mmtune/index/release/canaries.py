"""Canaries: up to 32 inputs that are stored with a version, together with their embeddings.

They are embedded again when the version is opened and before it is promoted, and must get the same embeddings. The fingerprint
covers what is saved: weights, files and settings. Canaries detect other changes: a library with another resampling, a device
with other kernels, edited code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, ModelError
from mmtune.index.item_catalog import Catalog, labels_of
from mmtune.model.encode import encode_batches
from mmtune.runtime.files import write_bytes

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

CanaryVectors = dict[str, tuple[np.ndarray, np.ndarray]]
"""{modality: (content hashes [n], vectors [n, D])}."""

COUNT = 32
"""Most canaries of a version, over all modalities."""
MIN_COSINE = 0.999
"""Vectors with at least this cosine similarity count as the same: kernels and batch sizes cause small differences."""
BATCH = 8
"""Default number of inputs per forward pass."""


def differing_rows(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """Return bool [N], True for rows of `a_ND` and `b_ND` that are not the same vector.

    The squared distance is compared, which is 2 * (1 - cosine) for L2-normalised vectors. Unlike the cosine, it also detects
    vectors that are not normalised.
    """
    return ~(((a_ND.astype(np.float64) - b_ND) ** 2).sum(1) <= 2 * (1 - MIN_COSINE))


def embed_bytes(
    model: "Model", modality: str, values: Sequence[bytes], role: str | None = None, batch_size: int = BATCH
) -> np.ndarray:
    """Embed encoded contents; returns L2-normalised float32 vectors [N, D]. role: see `mmtune.model.prompts`."""
    kind = modalities.get(modality)
    items = ((lambda v=v: kind.decode(v)) for v in values)
    parts = list(encode_batches(model, modality, items, batch_size, lambda n: None, role))
    return np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)


def store_canaries(model: "Model", catalog: Catalog, path: Path) -> CanaryVectors:
    """Choose canaries of every modality that both model and catalog have, embed them, and save them at `path`.

    Returns their vectors.
    """
    from safetensors.numpy import save

    names = [m for m in catalog.counts() if m in model.towers]
    arrays: dict[str, np.ndarray] = {}
    canaries: CanaryVectors = {}
    for m in names:
        items = catalog.sample(m, max(1, COUNT // len(names)))
        values = [catalog.read(i, m) for i in items]
        canaries[m] = (labels_of(items, m), embed_bytes(model, m, values))
        arrays |= {f"{m}/labels": canaries[m][0], f"{m}/vectors": canaries[m][1]}
        arrays |= {f"{m}/{n}": np.frombuffer(v, np.uint8) for n, v in enumerate(values)}
    write_bytes(path, save(arrays, {"fingerprint": model.fingerprint}))
    return canaries


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Read a canary file; returns ({name: array}, fingerprint)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, (f.metadata() or {}).get("fingerprint", "")
    except (OSError, SafetensorError) as e:
        raise DataError(f"{path}: the canaries cannot be read ({e}); build a new version") from None


def verify_canaries(model: "Model", path: Path) -> CanaryVectors:
    """Embed the canaries again and return their vectors.

    Raises ModelError, naming the modality, when a vector differs from the stored one (cosine similarity below MIN_COSINE).
    """
    arrays, fingerprint = _read(path)
    if fingerprint != model.fingerprint:
        raise ModelError(f"{path}: canaries of another model ({fingerprint}, not {model.fingerprint})")
    canaries: CanaryVectors = {}
    for name in [k.rpartition("/")[0] for k in arrays if k.endswith("/labels")]:
        stored = arrays[f"{name}/vectors"]
        fresh = embed_bytes(model, name, [arrays[f"{name}/{n}"].tobytes() for n in range(len(stored))])
        cosines = (fresh.astype(np.float64) * stored).sum(1) if fresh.shape == stored.shape else np.zeros(len(stored))
        bad = int(differing_rows(fresh, stored).sum()) if fresh.shape == stored.shape else len(stored)
        if bad:
            raise ModelError(
                f"{path}: {bad} of {len(stored)} stored {name} inputs have another vector than when they were indexed (the "
                f"lowest cosine similarity is {cosines.min():.4f}, {MIN_COSINE} is required). Weights and files are the same, so "
                "the code or a library changed; restore it, or build a new version"
            )
        canaries[name] = (arrays[f"{name}/labels"], fresh)
    if not any(len(labels) for labels, _ in canaries.values()):
        raise ModelError(f"{path}: contains no canaries, so the model cannot be verified to be unchanged; build a new version")
    return canaries


def keep_canaries(path: Path, labels: Mapping[str, np.ndarray]) -> bool:
    """Remove the canaries whose content is not among `labels` ({modality: content hashes}) from a canary file, atomically.

    Returns False, and changes nothing, when no canary would be left.
    """
    from safetensors.numpy import save

    arrays, fingerprint = _read(path)
    kept: dict[str, np.ndarray] = {}
    count = removed = 0
    for name in [k.rpartition("/")[0] for k in arrays if k.endswith("/labels")]:
        had = arrays[f"{name}/labels"]
        rows = np.flatnonzero(np.isin(had, labels.get(name, np.empty(0, np.int64))))
        kept |= {f"{name}/labels": had[rows], f"{name}/vectors": arrays[f"{name}/vectors"][rows]}
        kept |= {f"{name}/{n}": arrays[f"{name}/{row}"] for n, row in enumerate(rows.tolist())}
        count, removed = count + len(rows), removed + len(had) - len(rows)
    if not count:
        return False
    if removed:
        write_bytes(path, save(kept, {"fingerprint": fingerprint}))
    return True
