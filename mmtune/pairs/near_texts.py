"""Find near-duplicate texts by MinHash and locality-sensitive hashing (Broder 1997; the library datasketch)."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from mmtune.errors import MissingExtra
from mmtune.runtime.progress import Progress

WORDS = 3
"""Words of a shingle; texts with fewer words are one shingle."""
PERMUTATIONS = 128
WORD = re.compile(r"\w+")


def shingles(text: str) -> set[str]:
    """All runs of three words of a text; case, punctuation, white space and Unicode composition make no difference."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {" ".join(words[i : i + WORDS]) for i in range(max(len(words) - WORDS + 1, 1))} if words else set()


def jaccard(a: set[str], b: set[str]) -> float:
    """The share of the shingles of two texts that both have; 0 for texts without words."""
    return len(a & b) / len(a | b) if a or b else 0.0


def text_pairs(texts: Sequence[str], threshold: float, progress: Progress) -> np.ndarray:
    """Find pairs (i, j), i < j, of texts whose shingles have a Jaccard similarity of at least `threshold`.

    LSH proposes candidates, which are then compared exactly. A pair whose similarity is near the threshold is missed with a small
    probability; the result is the same in each run. Returns int64 [P, 2]. Raises MissingExtra without datasketch.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError:
        raise MissingExtra('comparing texts needs datasketch: pip install "mmtune[pairs]"') from None
    # a lower threshold than that of the result: candidates are compared exactly, and a pair that is never proposed is lost
    lsh = MinHashLSH(threshold=max(threshold - 0.2, 0.05), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    generator = MinHash.generator if hasattr(MinHash, "generator") else MinHash.bulk
    encoded = ([s.encode() for s in sorted(shingles(text))] for text in texts)
    pairs: list[tuple[int, int]] = []
    for j, sketch in enumerate(generator(encoded, num_perm=PERMUTATIONS, seed=1)):
        progress.advance(1)
        own = shingles(texts[j])
        if not own:
            continue
        for i in sorted(lsh.query(sketch)):
            if jaccard(shingles(texts[i]), own) >= threshold:
                pairs.append((i, j))
        lsh.insert(j, sketch, check_duplication=False)
    return np.array(pairs, np.int64).reshape(-1, 2)
