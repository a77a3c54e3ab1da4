"""Checks of identity: leaks between splits, duplicates, groups, missing modalities, balance. No value is read."""

from collections import Counter

import numpy as np

from mmtune.evaluation.leakage import IDENTIFYING
from mmtune.quality.findings import Finding, Split, finding

NUMBERING = 0.5  # if more ids than this meet under other contents, ids are mere numbers and say nothing
LOPSIDED = 20  # the largest group holds so many times the median group


def check(splits: list[Split]) -> list[Finding]:
    return leaks(splits) + [f for s in splits for f in (*duplicates(s), *groups(s), *missing(s))]


def contents(split: Split) -> dict[str, np.ndarray]:
    """Content labels by modality, for those whose contents identify rows (`overlap.IDENTIFYING`)."""
    out = {}
    for name in split.data.modalities:
        label = split.data.labels[name][split.rows]
        there = label[label != 0]
        if len(there) and len(np.unique(there)) >= IDENTIFYING * len(there):
            out[name] = label
    return out


def leaks(splits: list[Split]) -> list[Finding]:
    out = []
    for n, a in enumerate(splits):
        for b in splits[n + 1 :]:
            where = f"both {a.name} and {b.name}"
            fix = f"take the rows out of {b.name if len(b.rows) < len(a.rows) else a.name} and pack it again"
            left = {a.data.ids[i]: i for i in a.rows}
            same = [(left[b.data.ids[j]], j) for j in b.rows if b.data.ids[j] in left]
            whole = [b.data.ids[j] for i, j in same if a.data.labels["id"][i] == b.data.labels["id"][j]]
            other = [b.data.ids[j] for i, j in same if a.data.labels["id"][i] != b.data.labels["id"][j]]
            if whole:
                out.append(finding("leak-row", "error", whole, f"the same rows are in {where}", fix))
            if other and len(other) < NUMBERING * min(len(a.rows), len(b.rows)):
                out.append(finding("leak-id", "error", other, f"ids that are in {where}, with other contents", fix))
            for name, label in contents(a).items():
                theirs = b.data.labels.get(name)
                if theirs is None:
                    continue
                hit = np.isin(theirs[b.rows], label[label != 0]) & (theirs[b.rows] != 0)
                owner = {int(x): a.data.ids[i] for x, i in zip(label.tolist(), a.rows, strict=True)}
                both = [(owner[int(theirs[b.rows[j]])], b.data.ids[b.rows[j]]) for j in np.flatnonzero(hit)]
                rows = [f"{x} = {y}" for x, y in both if y not in set(whole)]
                if rows and len(np.unique(theirs[b.rows][hit])) >= IDENTIFYING * hit.sum():
                    out.append(finding(f"leak-{name}", "error", rows, f"the same {name} is in {where} under other ids", fix))
    return out


def duplicates(split: Split) -> list[Finding]:
    out, data = [], split.data
    for name, label in contents(split).items():
        _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
        twice = np.flatnonzero((counts[inverse] > 1) & (label != 0))
        sets: dict[int, list[int]] = {}
        for i in twice.tolist():
            sets.setdefault(int(label[i]), []).append(split.rows[i])
        groups = data.labels["group"]
        torn = [s for s in sets.values() if len({int(groups[i]) for i in s if groups[i]}) > 1]
        rest = [s for s in sets.values() if s not in torn]
        if torn:
            shown = [" = ".join(f"{data.ids[i]} ({data.groups[i]})" for i in s) for s in torn]
            what = f"{split.name}: the same {name} in several groups, so one of its labels is wrong"
            out.append(finding(f"contradiction-{name}", "error", shown, what, "correct the group, or drop the copies"))
        if rest:
            shown = [" = ".join(data.ids[i] for i in s) for s in rest]
            what = f"{split.name}: the same {name} more than once"
            out.append(
                finding(f"duplicate-{name}", "warning", shown, what, "drop the copies: they weigh double and teach nothing")
            )
    return out


def groups(split: Split) -> list[Finding]:
    count = Counter(g for i in split.rows if (g := split.data.groups[i]) is not None)
    if not count or max(count.values()) == 1:
        return []  # no groups, or a group is only another name for a row
    out, single = [], sorted(g for g, n in count.items() if n == 1)
    if single:
        what = f"{split.name}: groups of one row, which no other row can answer"
        out.append(finding("group-of-one", "warning", single, what, "add a second example, or leave the group away"))
    bare = [split.data.ids[i] for i in split.rows if split.data.groups[i] is None]
    if bare:
        what = f"{split.name}: rows without a group among rows that have one"
        out.append(finding("no-group", "warning", bare, what, "fill the group column: rows without one are nobody's like"))
    top, most = count.most_common(1)[0]
    median = float(np.median(list(count.values())))
    if most > LOPSIDED * median:
        what = f"{split.name}: the largest group has {most} rows, the median group {median:g}"
        out.append(finding("imbalance", "warning", [top], what, "thin out the large groups, or use data.batches: spread"))
    return out


def missing(split: Split) -> list[Finding]:
    out = []
    for name in split.data.modalities:
        lack = [split.data.ids[i] for i in split.rows if not split.data.present[name][i]]
        if lack and len(lack) < len(split.rows):
            what = f"{split.name}: rows without {name}, which take no part in its pairs"
            out.append(finding(f"missing-{name}", "warning", lack, what, f"add the {name}, or take the rows as they are"))
    return out
