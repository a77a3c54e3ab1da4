"""Checks of the explicit negatives of a dataset."""

import numpy as np

from mmtune.mining.given_negatives import GivenNegatives
from mmtune.quality.findings import Finding, Split, finding


def check_negatives(name: str, given: GivenNegatives | None) -> list[Finding]:
    """Find negatives that are positives of their query, and pairs with unknown ids. name: of the dataset."""
    if given is None:
        return []
    out = []
    if given.unknown:
        message = f"{name}: explicit negatives with ids that are not in the data"
        fix = "correct the ids, or pack the missing rows too"
        out.append(finding("negative-unknown", "warning", given.first_unknown, message, fix, given.unknown, ids=[]))
    if given.positives:
        examples = [f"{n} in {direction}" for direction, n in given.positives.items()]
        message = (
            f"{name}: explicit negatives that are positives of their query (same row, group or content); training ignores them"
        )
        fix = "take them out of the negatives, or correct the groups"
        out.append(finding("negative-is-positive", "warning", examples, message, fix, given.positives.total(), ids=[]))
    return out


def without_negatives(split: Split, given: GivenNegatives | None) -> Split:
    """The split without rows that are only negatives: they have a single value and no group, which is no problem."""
    if given is None or not given.pairs:
        return split
    data = split.data
    negative = np.zeros(len(data), bool)
    negative[np.concatenate([pairs[:, 1] for pairs in given.pairs.values()])] = True
    values = sum(present.astype(int) for present in data.present.values())
    alone = negative & (data.labels["group"] == 0) & (values == 1)
    return Split(split.name, data, [i for i in split.rows if not alone[i]])
