"""What is not as usual, told from normal clips alone: a plant has few faults, and never all kinds of them.

The score of a row is its mean distance (1 - cosine) to the nearest normal references of its own machine, as in DCASE's task 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.tasks.knn import nearest
from mmtune.evaluation.tasks.roc import MAX_FPR, auroc, partial_auroc
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import unit

NEIGHBOURS = 1
ALL = "all"  # the machine of rows when no column names one


@dataclass
class Detected:
    """Of one machine, or the mean of all: rows judged, and how well their scores tell anomalous from normal."""

    normal: int
    anomalous: int
    auroc: float
    partial_auroc: float


@dataclass
class Anomalies:
    """machines: each one's areas; parts: by value of a column, the anomalous rows of that value against all normal ones,
    averaged over machines; skipped: machines left out, with the reason; scores: row id -> score."""

    direction: str
    machines: dict[str, Detected]
    parts: dict[str, Detected] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict, repr=False)
    max_fpr: float = MAX_FPR

    @property
    def mean(self) -> Detected:
        """Arithmetic mean of the areas over machines, counts added up."""
        return mean_of(list(self.machines.values()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction,
            "max_fpr": self.max_fpr,
            "mean": asdict(self.mean),
            "machines": {n: asdict(d) for n, d in self.machines.items()},
            "parts": {n: asdict(d) for n, d in self.parts.items()},
            "skipped": self.skipped,
            "scores": self.scores,
        }

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        lines = [*self.machines.items(), ("mean", self.mean), *((f"  {n}", d) for n, d in self.parts.items())]
        rows = [[n, f"{d.normal:,}", f"{d.anomalous:,}", f"{d.auroc:.4f}", f"{d.partial_auroc:.4f}"] for n, d in lines]
        notes = [f"{n} left out: {why}" for n, why in self.skipped.items()]
        return "\n".join(
            [plain_table([self.direction, "normal", "anomalous", "AUROC", f"pAUROC@{self.max_fpr:g}"], rows), *notes]
        )


def mean_of(found: Sequence[Detected]) -> Detected:
    """Means of the areas, sums of the counts."""
    areas = [float(np.mean([getattr(d, a) for d in found])) for a in ("auroc", "partial_auroc")]
    return Detected(sum(d.normal for d in found), sum(d.anomalous for d in found), areas[0], areas[1])


def distances(
    queries: Embeddings, reference: Embeddings, k: int = NEIGHBOURS, bars: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """[Q] mean of 1 - cosine to the `k` nearest allowed references (fewer where there are not as many); NaN without any."""
    q_QD, r_ND = unit(queries.vectors, "queries"), unit(reference.vectors, "references")
    score_QK, _ = nearest(q_QD, r_ND, k, bars, tie_order(reference.ids))
    heard = np.isfinite(score_QK)
    total = np.where(heard, 1 - np.where(heard, score_QK, 0.0), 0.0).sum(1)
    return np.where(heard.any(1), total / np.maximum(heard.sum(1), 1), np.nan)


def detect(
    name: str,
    rows: Embeddings,
    normal: Mapping[str, bool],
    machine: Mapping[str, str | None],
    *,
    reference: Embeddings | None = None,
    reference_machine: Mapping[str, str | None] | None = None,
    apart: Mapping[str, str | None] | None = None,
    parts: Mapping[str, frozenset[str]] | None = None,
    k: int = NEIGHBOURS,
    max_fpr: float = MAX_FPR,
) -> Anomalies:
    """Score `rows` of modality `name` (row id -> `normal`, `machine`) by normal rows of the same machine.

    reference: normal rows (with their machines); without it the normal ones among `rows` are each judged by the others, and
    never by the same content or by one that was cut from the same thing (`apart`, row id -> recording). parts: slices.
    """
    found: dict[str, Detected] = {}
    why: dict[str, str] = {}
    scores: dict[str, float] = {}
    sliced: dict[str, list[Detected]] = {p: [] for p in parts or {}}
    at_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows.ids):
        if row in normal and machine.get(row) is not None:
            at_of.setdefault(str(machine[row]), []).append(i)
    for m in sorted(at_of):
        at = np.array(at_of[m], np.int64)
        usual = np.array([normal[rows.ids[i]] for i in at], bool)
        if reference is None:
            score = distances(take_rows(rows, at), take_rows(rows, at[usual]), k, _bars(name, rows, at, usual, apart))
        else:
            mine = [i for i, r in enumerate(reference.ids) if (reference_machine or {}).get(r) == m]
            if not mine:
                why[m] = "no normal reference"
                continue
            score = distances(take_rows(rows, at), take_rows(reference, np.array(mine, np.int64)), k)
        judged = np.isfinite(score)
        if not judged[usual].any() or usual.all():
            why[m] = "no anomalous row" if usual.all() else "no normal row that another one could judge"
            continue
        at, usual, score = at[judged], usual[judged], score[judged]
        found[m] = _areas(score, ~usual, max_fpr)
        scores |= {rows.ids[i]: float(s) for i, s in zip(at, score, strict=True)}
        for part, ids in (parts or {}).items():
            inside = usual | np.array([rows.ids[i] in ids for i in at], bool)
            if not usual[inside].all():
                sliced[part].append(_areas(score[inside], ~usual[inside], max_fpr))
    if not found:
        raise DataError(f"{name}: nothing can be judged: " + "; ".join(f"{m}: {w}" for m, w in why.items()))
    return Anomalies(name, found, {p: mean_of(d) for p, d in sliced.items() if d}, why, scores, max_fpr)


def _areas(score: np.ndarray, anomalous: np.ndarray, max_fpr: float) -> Detected:
    return Detected(
        int((~anomalous).sum()), int(anomalous.sum()), auroc(score, anomalous), partial_auroc(score, anomalous, max_fpr)
    )


def _bars(
    name: str, rows: Embeddings, at: np.ndarray, usual: np.ndarray, apart: Mapping[str, str | None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the rows `at` and of the normal ones among them: what may not judge whom."""
    content = np.asarray(rows.labels.get(name, np.zeros(len(rows.ids))), np.int64)[at]
    bar = np.where(content == 0, np.arange(1, len(at) + 1), content)
    if apart is not None:
        origin = names_to_labels([apart.get(rows.ids[i]) for i in at])
        bar = np.where(origin == 0, bar, origin)
    return bar, bar[usual]
