"""Checks of decoded contents: unreadable, silent, clipped, too small, mixed sample rates, and near-duplicates."""

from typing import NamedTuple

import numpy as np

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import DataError, Rejected
from mmtune.modalities.quality import Measure, measure
from mmtune.quality.findings import Finding, Split, finding
from mmtune.quality.row_checks import identifying_contents
from mmtune.runtime.progress import Progress
from mmtune.search.exact import topk
from mmtune.search.vectors import normalize_rows

FIXES = {
    "silent": "drop the clips, or check the recorder: a silent clip is similar to all others",
    "constant": "drop them: they carry no information",
    "clipped": "record again at a lower level; the clipped part sounds like a fault",
    "low resolution": "find a larger original; enlarging adds nothing",
}
DROP = "`doctor --out FILE` writes which, `pack --drop FILE` leaves them out"
NEIGHBOURS = 8  # nearest contents that are compared as possible near-duplicates
RESIZED = 3.0  # a smaller copy differs by up to this in a signature's entry, photos of different things by 6 and more
SKETCH_DIM = 96  # dimension of the random projection in `near_pairs`


class MeasuredValue(NamedTuple):
    """The content of one row in one modality, and its measurements."""

    split: Split
    row: int
    measure: Measure

    @property
    def id(self) -> str:
        return self.split.data.ids[self.row]


def check_values(splits: list[Split], limit: int, facts: JsonObject, quiet: bool) -> list[Finding]:
    """Check the contents of at most `limit` rows per split.

    facts: for each modality, ranges of sizes and counts of properties (e.g. sample rates) are added to this dict
    """
    out: list[Finding] = []
    for name in dict.fromkeys(m for s in splits for m in s.data.modalities):
        values, unreadable = _measure_values(name, splits, limit, quiet)
        if unreadable:
            message = f"values of {name} that do not decode"
            rows, ids = [f"{i}: {reason}" for i, reason in unreadable], [i for i, _ in unreadable]
            out.append(finding(f"unreadable-{name}", "error", rows, message, "pack the data again", ids=ids, drop=ids))
        if not values:
            continue
        quantiles = np.quantile([v.measure.size for v in values], [0, 0.5, 1])
        sizes = dict(zip(("min", "median", "max"), (round(float(x), 3) for x in quantiles), strict=True))
        facts[name] = {values[0].measure.unit: sizes}
        out += check_faults(name, values) + check_mixed(name, values, facts[name]) + check_near_duplicates(name, splits, values)
    return out


def _measure_values(
    name: str, splits: list[Split], limit: int, quiet: bool
) -> tuple[list[MeasuredValue], list[tuple[str, str]]]:
    """(measured values, (id, reason) of each that does not decode)."""
    values: list[MeasuredValue] = []
    unreadable: list[tuple[str, str]] = []
    chosen = [
        (s, i) for s in splits if name in s.data.present for i in s.rows[:: -(-len(s.rows) // limit)] if s.data.present[name][i]
    ]
    with Progress(f"measure {name}", len(chosen), quiet=quiet) as progress:
        for split, i in chosen:
            try:
                values.append(MeasuredValue(split, i, measure(name, split.data.read(i, name))))
            except (Rejected, DataError) as e:
                unreadable.append((split.data.ids[i], str(e)))
            progress.advance(1)
    return values, unreadable


def check_faults(name: str, values: list[MeasuredValue]) -> list[Finding]:
    """Faults of single values, e.g. silence or clipping."""
    rows_of: dict[str, list[tuple[str, str]]] = {}
    for v in values:
        for fault, detail in v.measure.faults.items():
            rows_of.setdefault(fault, []).append((v.id, detail))
    default = "look at them, and drop what is not meant"
    out = []
    for fault, rows in rows_of.items():
        code, fix, ids = f"{fault.replace(' ', '-')}-{name}", FIXES.get(fault, default), [i for i, _ in rows]
        examples, drop = [f"{i} ({detail})" for i, detail in rows], ids if fix.startswith("drop") else []
        out.append(finding(code, "warning", examples, f"{name}: {fault}", fix, ids=ids, drop=drop))
    return out


def check_mixed(name: str, values: list[MeasuredValue], facts: JsonObject) -> list[Finding]:
    """Report rows that differ from the rest in a property that should be the same in a corpus, e.g. the sample rate."""
    out = []
    for fact in dict.fromkeys(f for v in values for f in v.measure.facts):
        of_row = [v.measure.facts.get(fact) for v in values]
        common = max(set(of_row), key=lambda x: (of_row.count(x), str(x)))
        facts[fact] = {str(x): of_row.count(x) for x in sorted(set(of_row), key=str)}
        others = [f"{v.id} ({x})" for v, x in zip(values, of_row, strict=True) if x != common]
        ids = [v.id for v, x in zip(values, of_row, strict=True) if x != common]
        if others:
            message = f"{name}: rows whose {fact} differs from the usual {common}, which lets a model recognise their source"
            code = f"mixed-{fact.replace(' ', '-')}-{name}"
            out.append(finding(code, "warning", others, message, f"bring all to one {fact} before packing", ids=ids))
    return out


def near_pairs(signatures_NS: np.ndarray, sizes_N: np.ndarray) -> list[tuple[int, int]]:
    """Find pairs i < j of signatures whose entries all differ by at most 1, or by RESIZED between values of different sizes.

    Candidate pairs are neighbours in a random projection (Johnson-Lindenstrauss); they are then compared in full.
    """
    x = signatures_NS - signatures_NS.mean(0)
    sketch = x @ np.random.default_rng(0).standard_normal((x.shape[1], SKETCH_DIM)).astype(np.float32)
    sketch = normalize_rows(sketch)
    _, index = topk(sketch, sketch, NEIGHBOURS + 1)
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(index.tolist()) for j in row if i != j}
    return sorted(
        (i, j)
        for i, j in pairs
        if np.abs(signatures_NS[i] - signatures_NS[j]).max() <= (1 if sizes_N[i] == sizes_N[j] else RESIZED)
    )


def key_pairs(keys_N: np.ndarray, distance: int) -> list[tuple[int, int]]:
    """Find pairs i < j of 64-bit keys that differ in at most `distance` bits, at most NEIGHBOURS nearest ones per key."""
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(keys_N), 512):
        bits = np.bitwise_count(keys_N[start : start + 512, None] ^ keys_N[None, :])
        bits[np.arange(len(bits)), np.arange(start, start + len(bits))] = 65  # more than any distance: no key pairs with itself
        for i in np.flatnonzero(bits.min(1) <= distance).tolist():
            near = np.flatnonzero(bits[i] <= distance)
            near = near[np.argsort(bits[i, near], kind="stable")[:NEIGHBOURS]]
            pairs |= {(min(start + i, j), max(start + i, j)) for j in near.tolist()}
    return sorted(pairs)


def check_near_duplicates(name: str, splits: list[Split], values: list[MeasuredValue]) -> list[Finding]:
    """Near-duplicates of different content: between splits a leak, in two groups a contradiction, else a copy."""
    pairs, ids, drop = (dict[str, list[str]](leak=[], contradiction=[], duplicate=[]) for _ in range(3))
    for i, j in _near_duplicate_pairs(name, splits, values):
        (a, x, _), (b, y, _) = values[i], values[j]
        if a.data.labels[name][x] == b.data.labels[name][y]:
            continue  # identical content is reported by `row_checks`
        g, h = a.data.groups[x], b.data.groups[y]
        kind = "leak" if a is not b else "contradiction" if g is not None and h is not None and g != h else "duplicate"
        both = (values[i], values[j])
        ids[kind] += [v.id for v in both]
        pairs[kind].append(" ~ ".join(f"{v.id} ({v.split.name})" if kind == "leak" else v.id for v in both))
        if kind != "contradiction":  # of a leak the row of the smaller split, of copies the later one
            drop[kind].append(values[i].id if kind == "leak" and len(a.rows) <= len(b.rows) else values[j].id)
    details = {
        "leak": ("error", "near-duplicates in different splits", f"take one of each pair out: {DROP}"),
        "contradiction": ("warning", "near-duplicates in different groups", "check whether one of the groups is wrong"),
        "duplicate": ("warning", "near-duplicates (e.g. encoded again)", f"keep one of each: {DROP}"),
    }
    out = []
    for kind, of_kind in pairs.items():
        if of_kind:
            severity, message, fix = details[kind]
            code = f"near-{kind}-{name}"
            out.append(finding(code, severity, of_kind, f"{name}: {message}", fix, ids=ids[kind], drop=drop[kind]))
    return out


def _near_duplicate_pairs(name: str, splits: list[Split], values: list[MeasuredValue]) -> list[tuple[int, int]]:
    """Find pairs of positions in `values` that are near-duplicates, by the measurements of their modality (see `Measure`)."""
    pairs: list[tuple[int, int]] = []
    signed = [(i, v.measure.signature) for i, v in enumerate(values) if v.measure.signature is not None]
    if len(signed) > 1:
        sizes = np.array([values[i].measure.size for i, _ in signed])
        pairs += [(signed[i][0], signed[j][0]) for i, j in near_pairs(np.stack([x for _, x in signed]), sizes)]
    keyed = [(i, v.measure.key) for i, v in enumerate(values) if v.measure.key is not None]
    if len(keyed) > 1:
        near = key_pairs(np.array([k for _, k in keyed], np.uint64), modalities.get(name).near_duplicate_distance)
        pairs += [(keyed[i][0], keyed[j][0]) for i, j in near]
    identifying = {s.name for s in splits if name in identifying_contents(s)}
    first: dict[str, int] = {}
    for i, v in enumerate(values):
        if v.measure.exact is not None and v.split.name in identifying and first.setdefault(v.measure.exact, i) != i:
            pairs.append((first[v.measure.exact], i))
    return pairs
