"""Checks of rows without decoding their contents: leaks between splits, duplicates, groups, missing modalities, balance."""

from collections import Counter

import numpy as np

from mmtune.evaluation.leakage import IDENTIFYING
from mmtune.quality.findings import Finding, Split, finding

NUMBERED = 0.5  # if more than this share of ids recur with other contents, ids are only row numbers, which is no problem
IMBALANCE = 20  # report if the largest group has more than this many times the rows of the median group


def check_rows(splits: list[Split]) -> list[Finding]:
    """Run all checks of this module on all splits."""
    return check_leaks(splits) + [
        f for s in splits for f in (*check_duplicates(s), *check_groups(s), *check_missing_modalities(s))
    ]


def identifying_contents(split: Split) -> dict[str, np.ndarray]:
    """Return {modality: content labels [rows]} for the modalities whose contents identify rows (see `leakage.IDENTIFYING`)."""
    out = {}
    for name in split.data.modalities:
        label = split.data.labels[name][split.rows]
        present = label[label != 0]
        if len(present) and len(np.unique(present)) >= IDENTIFYING * len(present):
            out[name] = label
    return out


def check_leaks(splits: list[Split]) -> list[Finding]:
    """Find rows, ids and contents that two splits share."""
    return [f for n, a in enumerate(splits) for b in splits[n + 1 :] for f in _leaks_between(a, b)]


def _leaks_between(a: Split, b: Split) -> list[Finding]:
    out = []
    where = f"both {a.name} and {b.name}"
    b_is_smaller = len(b.rows) < len(a.rows)
    fix = f"take the rows out of {b.name if b_is_smaller else a.name} and pack it again"
    row_of = {a.data.ids[i]: i for i in a.rows}
    same_id = [(row_of[b.data.ids[j]], j) for j in b.rows if b.data.ids[j] in row_of]
    same_row = [b.data.ids[j] for i, j in same_id if a.data.labels["id"][i] == b.data.labels["id"][j]]
    same_id_only = [b.data.ids[j] for i, j in same_id if a.data.labels["id"][i] != b.data.labels["id"][j]]
    if same_row:
        out.append(finding("leak-row", "error", same_row, f"the same rows are in {where}", fix, drop=same_row))
    if same_id_only and len(same_id_only) < NUMBERED * min(len(a.rows), len(b.rows)):
        message = f"ids that are in {where}, with other contents"
        out.append(finding("leak-id", "error", same_id_only, message, fix, drop=same_id_only))
    for name, label in identifying_contents(a).items():
        if name not in b.data.labels:
            continue
        other = b.data.labels[name][b.rows]
        hit = np.isin(other, label[label != 0]) & (other != 0)
        owner = {int(x): a.data.ids[i] for x, i in zip(label.tolist(), a.rows, strict=True)}
        pairs = [(owner[int(other[j])], b.data.ids[b.rows[j]]) for j in np.flatnonzero(hit)]
        known = set(same_row)
        pairs = [(x, y) for x, y in pairs if y not in known]
        if pairs and len(np.unique(other[hit])) >= IDENTIFYING * hit.sum():
            message = f"the same {name} is in {where} under other ids"
            rows, ids = [f"{x} = {y}" for x, y in pairs], [i for pair in pairs for i in pair]
            drop = [pair[b_is_smaller] for pair in pairs]
            out.append(finding(f"leak-{name}", "error", rows, message, fix, ids=ids, drop=drop))
    return out


def check_duplicates(split: Split) -> list[Finding]:
    """Find rows of one split with identical content. In different groups they are a contradiction, otherwise duplicates."""
    out, data = [], split.data
    for name, label in identifying_contents(split).items():
        _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
        rows_of: dict[int, list[int]] = {}
        for i in np.flatnonzero((counts[inverse] > 1) & (label != 0)).tolist():
            rows_of.setdefault(int(label[i]), []).append(split.rows[i])
        group = data.labels["group"]
        contradictions = [s for s in rows_of.values() if len({int(group[i]) for i in s if group[i]}) > 1]
        copies = [s for s in rows_of.values() if s not in contradictions]
        if contradictions:
            examples = [" = ".join(f"{data.ids[i]} ({data.groups[i]})" for i in s) for s in contradictions]
            message = f"{split.name}: the same {name} in several groups, so one of its labels is wrong"
            fix = "correct the group, or drop the copies"
            ids = [data.ids[i] for s in contradictions for i in s]
            out.append(finding(f"contradiction-{name}", "error", examples, message, fix, ids=ids, drop=ids))
        if copies:
            examples = [" = ".join(data.ids[i] for i in s) for s in copies]
            message = f"{split.name}: the same {name} more than once"
            fix = "drop the copies: they weigh double and add nothing to learn"
            ids, drop = [data.ids[i] for s in copies for i in s], [data.ids[i] for s in copies for i in s[1:]]
            out.append(finding(f"duplicate-{name}", "warning", examples, message, fix, ids=ids, drop=drop))
    return out


def check_groups(split: Split) -> list[Finding]:
    """Groups of one row, rows without a group, and groups that are far larger than the median.

    A group of one row that has several modalities is none to warn of (one photo and its caption a product: they match each other), nor
    are groups of one row where most groups are that.
    """
    count = Counter(g for i in split.rows if (g := split.data.groups[i]) is not None)
    if not count or max(count.values()) == 1:
        return []  # no groups, or a group is only another name for a row
    out, data = [], split.data
    alone = {
        g: i
        for i in split.rows
        if (g := data.groups[i]) is not None and count[g] == 1 and sum(bool(p[i]) for p in data.present.values()) == 1
    }
    if alone and 2 * len(alone) < len(count):
        message = f"{split.name}: groups of one row and one modality, for which no other row is relevant"
        ids = [data.ids[i] for _, i in sorted(alone.items())]
        out.append(
            finding("group-of-one", "warning", sorted(alone), message, "add a second example, or remove the group", ids=ids)
        )
    ungrouped = [split.data.ids[i] for i in split.rows if split.data.groups[i] is None]
    if ungrouped:
        message = f"{split.name}: rows without a group among rows that have one"
        fix = "fill the group column: no other row is relevant for a row without a group"
        out.append(finding("no-group", "warning", ungrouped, message, fix))
    largest, most = count.most_common(1)[0]
    median = float(np.median(list(count.values())))
    if most > IMBALANCE * median:
        message = f"{split.name}: the largest group has {most} rows, the median group {median:g}"
        fix = "thin out the large groups, or use data.batches: spread or {plan: balanced}"
        ids = [split.data.ids[i] for i in split.rows if split.data.groups[i] == largest]
        out.append(finding("imbalance", "warning", [largest], message, fix, ids=ids))
    return out


def check_missing_modalities(split: Split) -> list[Finding]:
    """Find rows without a modality that other rows of the split have."""
    out = []
    for name in split.data.modalities:
        without = [split.data.ids[i] for i in split.rows if not split.data.present[name][i]]
        if without and len(without) < len(split.rows):
            message = f"{split.name}: rows without {name}, which take no part in its pairs"
            fix = f"add the {name}, or leave the rows as they are"
            out.append(finding(f"missing-{name}", "warning", without, message, fix))
    return out
