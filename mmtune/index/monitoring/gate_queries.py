"""The gate's queries of a version, as a reference for the queries that the served version gets: their best scores and features.

A feature vector is a random Fourier feature map of the query's embedding (Rahimi & Recht 2007) for the Gaussian kernel whose width is
the median distance of the gate's queries. The distance of the means of two samples of features is their maximum mean discrepancy (MMD,
Gretton et al. 2012), and a mean of features can be kept for any number of queries as a sum and a count. No query, text or id is stored.

The file is COLL/versions/VERSION/gate_queries.safetensors: for each modality, "scores" float32 [n], "features" float32 [n, F] and
"frequencies" float32 [F / 2, D].
"""

import contextlib
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.index.tensor_files import map_tensors
from mmtune.runtime.files import write_bytes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion

MAX_QUERIES = 512
"""Most queries of a modality that are kept."""
MIN_QUERIES = 20
"""Fewer queries of a modality are no reference."""
FREQUENCIES = 32
"""Random frequencies of the feature map; it has twice as many features."""
LOW_SHARE = 0.05
"""A score counts as low if it is below that of 95% of the gate's queries."""


@dataclass(frozen=True)
class GateSample:
    """The gate's queries of one modality.

    scores: cosine similarity of the first result of each query [n]; NaN for a query without results
    features: feature vectors [n, F]
    frequencies: random frequencies of the feature map [F / 2, D]
    id: names this reference; features of two references cannot be compared
    """

    scores: np.ndarray
    features: np.ndarray
    frequencies: np.ndarray
    id: str

    def features_of(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the feature vectors [N, F] of embeddings [N, D]. Each has length 1."""
        return fourier_features(vectors_ND, self.frequencies)

    @functools.cached_property
    def low_edge(self) -> int:
        """Histogram bin below which a score counts as low (see `traffic_counts.score_bin`)."""
        from mmtune.index.monitoring.traffic_counts import score_bin

        scores = self.scores[~np.isnan(self.scores)]
        return score_bin(float(np.quantile(scores, LOW_SHARE))) if len(scores) else -100


@dataclass(frozen=True)
class GateQueries:
    """The gate's queries of one version, by modality. at: when they were stored; source: what data they are from."""

    samples: Mapping[str, GateSample]
    at: str
    source: str


def fourier_features(vectors_ND: np.ndarray, frequencies_RD: np.ndarray) -> np.ndarray:
    """Return random Fourier features [N, 2 R], scaled so that each row has length 1."""
    angles = np.asarray(vectors_ND, np.float32) @ frequencies_RD.T
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(len(frequencies_RD))


def kernel_frequencies(vectors_ND: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw the frequencies [R, D] for the Gaussian kernel whose width is the median distance of the vectors."""
    rng = np.random.default_rng(seed)
    some = vectors_ND[rng.permutation(len(vectors_ND))[:256]].astype(np.float64)
    squares = np.maximum(0, (some**2).sum(1)[:, None] + (some**2).sum(1) - 2 * some @ some.T)
    distances = np.sqrt(squares[np.triu_indices(len(some), 1)])
    width = float(np.median(distances)) if len(distances) else 1.0
    return (rng.standard_normal((FREQUENCIES, vectors_ND.shape[1])) / max(width, 1e-3)).astype(np.float32)


def path_of(layout: CollectionLayout, version: str) -> Path:
    """Return the path of a version's reference."""
    return layout.directory(version) / "gate_queries.safetensors"


def store_gate_queries(layout: CollectionLayout, version: "OpenVersion", data: "Data", source: str = "") -> GateQueries:
    """Search `version` with rows of `data`, and keep their best scores and features as its reference.

    A row that is an item of the collection does not count as its own result. Modalities with fewer than MIN_QUERIES rows are left
    out. Raises DataError if none is left.
    """
    from safetensors.numpy import save

    from mmtune.embedding.embed_rows import embed_rows
    from mmtune.model.prompts import QUERY

    arrays: dict[str, np.ndarray] = {}
    for m in [m for m in data.modalities if m in version.model.towers]:
        rows = np.flatnonzero(data.present[m])
        if len(rows) < MIN_QUERIES:
            continue
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_QUERIES])
        vectors_ND = embed_rows(version.model, data, m, rows, role=QUERY)
        results = version.search(vectors_ND, 2)
        scores = np.full(len(rows), np.nan, np.float32)
        for n, row in enumerate(rows.tolist()):
            other = [r.score for r in results[n] if r.id != data.ids[row]]
            scores[n] = other[0] if other else np.nan
        frequencies = kernel_frequencies(vectors_ND)
        features = fourier_features(vectors_ND, frequencies).astype(np.float32)
        arrays |= {f"{m}/scores": scores, f"{m}/features": features, f"{m}/frequencies": frequencies}
    if not arrays:
        raise DataError(
            f"{source or 'the queries'}: fewer than {MIN_QUERIES} rows of a modality that {version.version} accepts"
        )
    write_bytes(
        path_of(layout, version.version), save(arrays, {"fingerprint": version.fingerprint, "at": now(), "source": source})
    )
    stored = read_gate_queries(layout, version.version)
    assert stored is not None
    return stored


def keep_gate_queries(layout: CollectionLayout, live: str | None, new: "OpenVersion", data: "Data | None") -> None:
    """Store the reference of a version that is about to be promoted: the gate's queries, or else those of a live version with the same
    model. Too few queries are no reason against the promotion: the version then has no reference."""
    if data is not None:
        with contextlib.suppress(DataError):
            store_gate_queries(layout, new, data, Path(data.spec).name)
    elif live is not None and layout.record(live)["fingerprint"] == new.fingerprint and path_of(layout, live).exists():
        write_bytes(path_of(layout, new.version), path_of(layout, live).read_bytes())


def read_gate_queries(layout: CollectionLayout, version: str) -> GateQueries | None:
    """Return the reference of a version, or None if none was stored. Raises DataError for a damaged file."""
    path = path_of(layout, version)
    if not path.exists():
        return None
    file = map_tensors(
        path, "the gate's queries cannot be read ({error}); store them again with `mmtune index health --queries`"
    )
    samples = {}
    for m in [name.rpartition("/")[0] for name in file.arrays if name.endswith("/scores")]:
        scores, features, frequencies = (np.array(file.arrays[f"{m}/{x}"]) for x in ("scores", "features", "frequencies"))
        id = hashlib.sha256(frequencies.tobytes()).hexdigest()[:12]
        samples[m] = GateSample(scores, features, frequencies, id)
    return GateQueries(samples, file.metadata.get("at", ""), file.metadata.get("source", ""))
