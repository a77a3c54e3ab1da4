"""Checks of every value: unreadable, silent, clipped, small, of another rate; near-duplicates within and between splits."""

from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.errors import DataError, Rejected
from mmtune.modalities.quality import Measure, measure
from mmtune.quality.findings import Finding, Split, finding
from mmtune.quality.row_checks import contents
from mmtune.runtime.progress import Progress
from mmtune.search.exact import topk
from mmtune.search.vectors import unit

FIXES = {
    "silent": "drop the clips, or look at the recorder: a silent clip answers everything alike",
    "constant": "drop them: they carry no signal",
    "clipped": "record again at a lower level; the clipped part sounds like a fault",
    "low resolution": "find a larger original; enlarging adds nothing",
}
NEIGHBOURS, SKETCH = 8, 96

Where = tuple[Split, int]


def check(splits: list[Split], limit: int, facts: dict[str, Any], quiet: bool) -> list[Finding]:
    """Measure at most `limit` rows a split. facts gets ranges of sizes and the values seen (e.g. rates) by modality."""
    out: list[Finding] = []
    for name in dict.fromkeys(m for s in splits for m in s.data.modalities):
        where, found, broken = _measure(name, splits, limit, quiet)
        if broken:
            out.append(
                finding(f"unreadable-{name}", "error", broken, f"values of {name} that do not decode", "pack the data again")
            )
        if not found:
            continue
        sizes = np.array([m.size for m in found])
        spread = dict(zip(("min", "median", "max"), (round(float(x), 3) for x in np.quantile(sizes, [0, 0.5, 1])), strict=True))
        facts[name] = {found[0].unit: spread}
        out += _faults(name, where, found) + _mixed(name, where, found, facts[name]) + _near(name, splits, where, found)
    return out


def _measure(name: str, splits: list[Split], limit: int, quiet: bool) -> tuple[list[Where], list[Measure], list[str]]:
    where: list[Where] = []
    found: list[Measure] = []
    broken: list[str] = []
    chosen = [
        (s, i) for s in splits if name in s.data.present for i in s.rows[:: -(-len(s.rows) // limit)] if s.data.present[name][i]
    ]
    with Progress(f"measure {name}", len(chosen), quiet=quiet) as progress:
        for split, i in chosen:
            try:
                found.append(measure(name, split.data.read(i, name)))
                where.append((split, i))
            except (Rejected, DataError) as e:
                broken.append(f"{split.data.ids[i]}: {e}")
            progress.advance(1)
    return where, found, broken


def _faults(name: str, where: list[Where], found: list[Measure]) -> list[Finding]:
    by: dict[str, list[str]] = {}
    for (split, i), m in zip(where, found, strict=True):
        for fault, detail in m.faults.items():
            by.setdefault(fault, []).append(f"{split.data.ids[i]} ({detail})")
    fix = "look at them, and drop what is not meant"
    return [
        finding(f"{fault.replace(' ', '-')}-{name}", "warning", rows, f"{name}: {fault}", FIXES.get(fault, fix))
        for fault, rows in by.items()
    ]


def _mixed(name: str, where: list[Where], found: list[Measure], facts: dict[str, Any]) -> list[Finding]:
    """Facts that a corpus should agree on: the rows outside the commonest value."""
    out = []
    for fact in dict.fromkeys(f for m in found for f in m.facts):
        values = [m.facts.get(fact) for m in found]
        common = max(set(values), key=lambda v: (values.count(v), str(v)))
        facts[fact] = {str(v): values.count(v) for v in sorted(set(values), key=str)}
        odd = [f"{s.data.ids[i]} ({v})" for (s, i), v in zip(where, values, strict=True) if v != common]
        if odd:
            what = f"{name}: another {fact} than the usual {common}: bands that only some rows have give their source away"
            out.append(
                finding(
                    f"mixed-{fact.replace(' ', '-')}-{name}", "warning", odd, what, f"bring all to one {fact} before packing"
                )
            )
    return out


def near_pairs(signatures_NS: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j with no entry further apart than 1: neighbours in a random sketch (Johnson-Lindenstrauss), verified."""
    x = signatures_NS - signatures_NS.mean(0)
    sketch = x @ np.random.default_rng(0).standard_normal((x.shape[1], SKETCH)).astype(np.float32)
    sketch = unit(sketch)
    _, index = topk(sketch, sketch, NEIGHBOURS + 1)
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(index.tolist()) for j in row if i != j}
    return sorted((i, j) for i, j in pairs if np.abs(signatures_NS[i] - signatures_NS[j]).max() <= 1)


def key_pairs(keys_N: np.ndarray, distance: int) -> list[tuple[int, int]]:
    """Pairs i < j of 64-bit keys that differ in at most `distance` bits; of a key that is like many, its NEIGHBOURS nearest."""
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(keys_N), 512):
        bits = np.bitwise_count(keys_N[start : start + 512, None] ^ keys_N[None, :])
        bits[np.arange(len(bits)), np.arange(start, start + len(bits))] = 65
        for i in np.flatnonzero(bits.min(1) <= distance).tolist():
            near = np.flatnonzero(bits[i] <= distance)
            near = near[np.argsort(bits[i, near], kind="stable")[:NEIGHBOURS]]
            pairs |= {(min(start + i, j), max(start + i, j)) for j in near.tolist()}
    return sorted(pairs)


def _near(name: str, splits: list[Split], where: list[Where], found: list[Measure]) -> list[Finding]:
    """Near-duplicates of different content: between splits a leak, in two groups a contradiction, else a copy."""
    pairs: list[tuple[int, int]] = []
    signed = [(i, m.signature) for i, m in enumerate(found) if m.signature is not None]
    if len(signed) > 1:
        pairs += [(signed[i][0], signed[j][0]) for i, j in near_pairs(np.stack([x for _, x in signed]))]
    keyed = [(i, m.key) for i, m in enumerate(found) if m.key is not None]
    if len(keyed) > 1:
        near = key_pairs(np.array([k for _, k in keyed], np.uint64), modalities.get(name).near_duplicate_distance)
        pairs += [(keyed[i][0], keyed[j][0]) for i, j in near]
    identifying = {s.name for s in splits if name in contents(s)}
    first: dict[str, int] = {}
    for i, m in enumerate(found):
        if m.exact is not None and where[i][0].name in identifying and first.setdefault(m.exact, i) != i:
            pairs.append((first[m.exact], i))
    kinds: dict[str, list[str]] = {"leak": [], "contradiction": [], "duplicate": []}
    for i, j in pairs:
        (a, x), (b, y) = where[i], where[j]
        if a.data.labels[name][x] == b.data.labels[name][y]:
            continue  # the same bytes: found without looking inside
        g, h = a.data.groups[x], b.data.groups[y]
        kind = "leak" if a is not b else "contradiction" if g is not None and h is not None and g != h else "duplicate"
        kinds[kind].append(f"{a.data.ids[x]} ~ {b.data.ids[y]}")
    detail = {
        "leak": ("error", f"{name}: near-duplicates in different splits", "take one of each pair out"),
        "contradiction": (
            "warning",
            f"{name}: near-duplicates in different groups",
            "look whether they are one thing, or labelled wrong",
        ),
        "duplicate": ("warning", f"{name}: near-duplicates (coded again, hardly changed)", "keep one of each"),
    }
    return [finding(f"near-{k}-{name}", detail[k][0], rows, detail[k][1], detail[k][2]) for k, rows in kinds.items() if rows]
