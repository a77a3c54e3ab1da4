"""Checks of the explicit negatives of a dataset."""

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
    alone = given.only_negatives(split.data)
    return Split(split.name, split.data, [i for i in split.rows if not alone[i]])
