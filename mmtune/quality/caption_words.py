"""Find captions with words that an augmentation can make wrong, such as "left" beside a horizontal flip."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.data.decode import decode_row
from mmtune.errors import DataError
from mmtune.modalities.label_words import LABEL_WORDS, destroyed_words, word_pattern
from mmtune.quality.findings import Finding, Split, finding

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

LIMIT = 20_000
"""Maximum number of captions that are read; of more, evenly spread ones are."""


@dataclass
class WordMatch:
    """Captions with words that one augmentation can make wrong.

    modality, option: the augmentation
    rows: numbers of the rows
    captions: their captions
    words: the words found, the most frequent first
    read: number of captions that were read
    """

    modality: str
    option: str
    rows: list[int]
    captions: list[str]
    words: list[str]
    read: int


def find_label_words(
    data: "Data | WeightedConcat", augment: Mapping[str, Mapping[str, object]], rows: Sequence[int] | np.ndarray | None = None
) -> list[WordMatch]:
    """Return, for every augmentation that is switched on, the captions with words that it can make wrong.

    augment: {modality: {option: value}}
    rows: numbers of the rows to look at; None: all
    """
    wanted = {m: found for m, options in augment.items() if m in data.modalities and (found := destroyed_words(m, options))}
    texts = [m for m in data.modalities if modalities.get(m).language]
    chosen = np.arange(len(data)) if rows is None else np.asarray(rows, np.int64)
    chosen = chosen[:: -(-len(chosen) // LIMIT) or 1]
    out = []
    for m, options in wanted.items():
        captions = _captions(data, texts, chosen[data.present[m][chosen]])
        for option, option_words in options.items():
            match = _match(m, option, captions, word_pattern(option_words))
            if match.rows:
                out.append(match)
    return out


def _captions(data: "Data | WeightedConcat", texts: Sequence[str], rows: np.ndarray) -> dict[int, str]:
    """{row: its caption}. Rows whose caption cannot be decoded are left out: other checks report them."""
    found: dict[int, str] = {}
    for i in rows.tolist():
        for m in texts:
            if data.present[m][i]:
                try:
                    found[i] = f"{found[i]} {decode_row(data, i, m)}" if i in found else str(decode_row(data, i, m))
                except DataError:
                    continue
    return found


def _match(modality: str, option: str, captions: Mapping[int, str], pattern: "re.Pattern[str]") -> WordMatch:
    words = {i: {w.lower() for w in pattern.findall(text)} for i, text in captions.items()}
    counts = Counter(w for found in words.values() for w in found)
    rows = [i for i, found in words.items() if found]
    return WordMatch(modality, option, rows, [captions[i] for i in rows], [w for w, _ in counts.most_common()], len(captions))


def describe(match: WordMatch, ids: Sequence[str]) -> str:
    """One line for the user: the augmentation, the number of captions, the words and an example row."""
    caption = match.captions[0] if len(match.captions[0]) <= 60 else f"{match.captions[0][:57]}..."
    return (
        f"augment.{match.modality}.{match.option} can make {len(match.rows)} of {match.read} captions wrong, which say "
        f"{', '.join(match.words[:5])} (row {ids[match.rows[0]]!r}: {caption!r}); switch it off if these words describe what is "
        "augmented"
    )


def check_label_words(splits: Sequence[Split]) -> list[Finding]:
    """Report, for every augmentation of the table, the captions that it could make wrong."""
    out = []
    for split in splits[:1]:
        every = {m: dict.fromkeys(options, True) for m, options in LABEL_WORDS.items()}
        merged: dict[tuple[str, tuple[int, ...]], list[WordMatch]] = {}
        for match in find_label_words(split.data, every, split.rows):
            merged.setdefault((match.modality, tuple(match.rows)), []).append(match)
        for (modality, rows), matches in merged.items():
            options, words = ", ".join(m.option for m in matches), ", ".join(matches[0].words[:5])
            ids = [split.data.ids[i] for i in rows]
            examples = [f"{i} ({text})" for i, text in zip(ids, matches[0].captions, strict=True)]
            message = f"captions that say {words}; augment.{modality}: {options} can make them wrong"
            code = f"augmentation-words-{matches[0].option}"
            out.append(finding(code, "note", examples, message, "leave these augmentations off when training", ids=ids))
    return out
