"""Splits by a hash of a key: a row keeps its split while the corpus grows, and rows with one key are always together."""

import re
import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from mmtune.errors import DataError, DataWarning

SHARE = re.compile(r"([\w-]+)=([0-9.]+)")


def parse_shares(options: Sequence[str]) -> dict[str, float]:
    """Parse ["train=0.8", "val=0.2"] (also "train=0.8,val=0.2") to {split: share}. Raises DataError if they do not sum to 1."""
    shares: dict[str, float] = {}
    for option in (part.strip() for o in options for part in o.split(",")):
        match = SHARE.fullmatch(option)
        if match is None or match[1] in shares:
            raise DataError(f"--split {option}: give each split once, as NAME=SHARE, such as train=0.8")
        try:
            shares[match[1]] = float(match[2])
        except ValueError:
            raise DataError(f"--split {option}: {match[2]} is not a number") from None
    if abs(sum(shares.values()) - 1) > 1e-6 or len(shares) < 2 or min(shares.values()) <= 0:
        raise DataError(f"--split {', '.join(options)}: the shares of two or more splits must sum to 1")
    return shares


def hash_fraction(key: str, seed: int = 0) -> float:
    """A number from 0 to 1 (excluded) that looks random and depends on the key and the seed only."""
    digest = blake2b(f"{seed} {key}".encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def hash_split(key: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The split of a key."""
    at, fraction = 0.0, hash_fraction(key, seed)
    for name, share in shares.items():
        at += share
        if fraction < at:
            return name
    return list(shares)[-1]


def warn_empty(counts: Mapping[str, int], shares: Mapping[str, float], keys: int, what: str) -> None:
    """Issue a DataWarning if a split has no row, as happens with few keys.

    counts: split -> rows; keys: number of keys that were distributed; what: what a key is, for the message
    """
    if empty := [name for name in shares if not counts.get(name)]:
        warnings.warn(
            f"no row is in {' and '.join(empty)}: {keys} x {what} are few; try another --seed", DataWarning, stacklevel=3
        )
