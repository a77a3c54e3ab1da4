"""Human verdicts read back: a JSONL of {"query_id", "negative_id", "verdict": "positive" | "negative"}, a verdict a line.

`candidate_id` and `item_id` also name the other row; `grade` (above 0: positive) also gives the verdict; `direction` limits a
line to one direction. The last line about a pair counts. Lines whose rows are not in the data are counted, not used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.errors import DataError
from mmtune.relevance.mining_items import Items, Ragged
from mmtune.runtime.files import read_jsonl_log

OTHER = ("negative_id", "candidate_id", "item_id")


@dataclass
class Judged:
    """Pairs int64 [J, 2] (item of a, item of b) that people called positive, and those called negative; lines not used."""

    positive: np.ndarray
    negative: Ragged
    unused: int


def read_judgments(path: str | Path) -> list[dict[str, Any]]:
    """The lines, checked: {"query", "other", "direction" or None, "positive"}. DataError names file and line."""
    if not Path(path).exists():
        raise DataError(f"{path}: no such file of judgments")
    out = []
    for number, row in enumerate(read_jsonl_log(path), 1):
        other = next((str(row[k]) for k in OTHER if k in row), None) if isinstance(row, dict) else None
        verdict = row.get("verdict") if isinstance(row, dict) else None
        if verdict is None and isinstance(row, dict) and isinstance(row.get("grade"), int | float):
            verdict = "positive" if row["grade"] > 0 else "negative"
        if other is None or "query_id" not in row or verdict not in ("positive", "negative"):
            raise DataError(f'{path} line {number}: needs query_id, negative_id and verdict "positive" or "negative"')
        line = {"query": str(row["query_id"]), "other": other, "direction": row.get("direction")}
        out.append({**line, "positive": verdict == "positive"})
    return out


def judge(lines: list[dict[str, Any]], name: str, a: Items, b: Items) -> Judged:
    """The verdicts on one direction; a verdict about two rows holds both ways."""
    item_a = dict(zip(a.row_ids, a.of_row.tolist(), strict=True))
    item_b = item_a if a is b else dict(zip(b.row_ids, b.of_row.tolist(), strict=True))
    last: dict[tuple[int, int], bool] = {}
    unused = 0
    for line in lines:
        if line["direction"] not in (None, name):
            continue
        pairs = [(item_a.get(x), item_b.get(y)) for x, y in ((line["query"], line["other"]), (line["other"], line["query"]))]
        pairs = pairs if line["direction"] is None or a is b else pairs[:1]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        unused += not known
        for pair in known:
            last.pop(pair, None)
            last[pair] = line["positive"]
    positive = np.array([p for p, v in last.items() if v], np.int64).reshape(-1, 2)
    negative = np.array([p for p, v in last.items() if not v], np.int64).reshape(-1, 2)
    return Judged(positive, Ragged.of(negative[:, 0], negative[:, 1], len(a)), unused)


def contains(pairs: Ragged, q: np.ndarray, items: np.ndarray) -> np.ndarray:
    """bool [B, W]: whether items [B, W] are in the lists of queries q [B]."""
    out = np.zeros(items.shape, bool)
    if len(pairs.values):
        for i in np.flatnonzero(pairs.counts[q]):
            out[i] = np.isin(items[i], pairs[int(q[i])])
    return out
