"""Retrieval metrics from the ranks of the relevant candidates alone, as trec_eval defines them.

hit@k is ir_measures' Success@k (CLIP_benchmark calls it recall), recall@k its R@k, precision@k its P@k (always over k),
mrr RR, map AP, ndcg@k nDCG@k with linear gains and log2(rank + 1) discounts (Järvelin & Kekäläinen 2002).
"""

import numpy as np

from mmtune.errors import RecipeError


def names(ks: tuple[int, ...]) -> list[str]:
    """Every metric, in the order of tables."""
    return [f"{m}@{k}" for m in ("hit", "recall", "precision") for k in ks] + ["mrr", "map"] + [f"ndcg@{k}" for k in ks]


def check_ks(ks: tuple[int, ...]) -> tuple[int, ...]:
    """Sorted unique cut-offs. Raises RecipeError for anything but whole numbers from 1 up."""
    bad = [k for k in ks if not isinstance(k, int | np.integer) or k < 1]
    if bad or not ks:
        raise RecipeError(f"k: {bad or 'none'} given; cut-offs are whole numbers from 1 up, e.g. 1,5,10")
    return tuple(sorted({int(k) for k in ks}))


def per_query(
    q_P: np.ndarray, rank_P: np.ndarray, grade_P: np.ndarray, size: int, ks: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Metrics [size] of queries 0..size-1, each of which has a relevant candidate.

    P pairs (query, relevant candidate): q_P the query, rank_P its rank from 1, grade_P its grade > 0.
    """
    order = np.lexsort((rank_P, q_P))
    q, rank, grade = q_P[order], rank_P[order], grade_P[order]
    total = np.bincount(q, minlength=size)
    start = np.concatenate([[0], np.cumsum(total)[:-1]])
    nth = np.arange(len(q)) - start[q]
    ideal = grade_P[np.lexsort((-grade_P, q_P))]
    out = {}
    for k in ks:
        found = np.bincount(q, rank <= k, size)
        out[f"hit@{k}"] = (found > 0).astype(np.float64)
        out[f"recall@{k}"] = found / total
        out[f"precision@{k}"] = found / k
        gain = np.bincount(q, np.where(rank <= k, grade / np.log2(rank + 1.0), 0), size)
        out[f"ndcg@{k}"] = gain / np.bincount(q, np.where(nth < k, ideal / np.log2(nth + 2.0), 0), size)
    out["mrr"] = 1 / rank[start].astype(np.float64)
    out["map"] = np.bincount(q, (nth + 1) / rank, size) / total
    return {name: out[name] for name in names(ks)}
