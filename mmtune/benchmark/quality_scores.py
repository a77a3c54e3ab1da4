"""Score the vectors of a method of `mmtune bench quality`, keep the value of every query, and compare methods query by query."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmtune.benchmark.quality_features import Sides
from mmtune.benchmark.quality_floors import Vectors
from mmtune.comparison.paired_difference import DirectionPair, SeedsDifference, mean_difference, paired_differences
from mmtune.contracts import direction
from mmtune.evaluation.clusters import clusters_by_value
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.result import Direction


def score(vectors: Vectors, sides: Sides, source: Mapping[str, str | None] | None = None) -> dict[str, Direction]:
    """Return the directions {name: Direction} with the value of every query: each side to the other, and the signal to itself.

    source: {id of a scored row: e.g. its recording}; queries of the same value are a cluster, else every query is one of its own
    """
    signal, language = sides
    across = {signal: replace(vectors.queries, fingerprint=""), language: replace(vectors.candidates, fingerprint="")}
    pairs = [(signal, language), (language, signal)]
    found = dict(evaluate_vectors(across, ks=(1,), pairs=pairs, per_query=True).directions)
    within = {signal: replace(vectors.within, fingerprint="")}
    found |= evaluate_vectors(within, ks=(1,), pairs=[(signal, signal)], per_query=True).directions
    for name, of in found.items():
        known = source if source is not None and name.startswith(f"{signal}->") else None
        of.clusters = np.arange(of.queries) if known is None else clusters_by_value(of.query_rows, known)
    return found


def score_names(sides: Sides) -> list[tuple[str, str]]:
    """The (direction, metric) that the benchmark reports."""
    signal, language = sides
    forward, back, alone = direction(signal, language), direction(language, signal), direction(signal, signal)
    return [(forward, "hit@1"), (forward, "map"), (back, "map"), (alone, "hit@1"), (alone, "recall@1")]


def save_values(path: Path, directions: Mapping[str, Direction], names: Sequence[tuple[str, str]]) -> None:
    """Write the values, ids and clusters of all queries to an .npz file. names: the (direction, metric) to keep"""
    arrays: dict[str, np.ndarray] = {}
    for name, metric in names:
        if (of := directions.get(name)) is not None:
            assert of.values is not None and of.clusters is not None
            ids = [min(rows) for rows in of.query_rows]
            arrays |= {f"{name} {metric}": of.values[metric], f"{name} ids": np.array(ids), f"{name} clusters": of.clusters}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's own annotation lacks arrays by name
    part.replace(path)


def method_difference(pairs: Sequence[tuple[Path, Path]], name: str, metric: str) -> SeedsDifference | None:
    """Return the difference of one score between two methods, paired by query and by seed.

    pairs: the files of `save_values` of the two methods for each seed, as (base, candidate)

    None if a file is missing or lacks the score, or if the methods were scored on other queries.
    """
    found = []
    for files in pairs:
        if not all(f.is_file() for f in files):
            return None
        with np.load(files[0]) as base, np.load(files[1]) as candidate:
            key = f"{name} {metric}"
            if key not in base or key not in candidate or not np.array_equal(base[f"{name} ids"], candidate[f"{name} ids"]):
                return None
            of = [
                Direction(len(d[key]), 0, {}, clusters=d[f"{name} clusters"], values={metric: d[key]})
                for d in (base, candidate)
            ]
        found.append(paired_differences([DirectionPair(of[0], of[1])], [metric])[metric])
    return mean_difference(found) if found else None
