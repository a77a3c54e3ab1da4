"""Hash the values of rows: their bytes, and the perceptual hash of their modality (`Modality.near_duplicate_key`)."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from mmtune import modalities
from mmtune.data.pack.columns import PackRow, file_stamp
from mmtune.errors import Rejected
from mmtune.runtime.files import append_jsonl, read_jsonl_log
from mmtune.runtime.progress import Progress

CHUNK = 256
"""Rows that are hashed at once, and whose hashes are one line of the log."""


@dataclass(frozen=True)
class ValueHash:
    """The hashes of one value.

    exact: hash of its bytes; "" if they could not be read
    near: perceptual hash; None if it has none, e.g. a plain picture, or cannot be decoded
    problem: why the value was not hashed, or not decoded; "" if it was
    """

    exact: str
    near: int | None
    problem: str = ""


def hash_value(value: bytes | str, modality: str) -> ValueHash:
    """Hash one value, bytes or the path of a file."""
    kind = modalities.get(modality)
    if isinstance(value, str):
        if "://" in value:
            return ValueHash("", None, "is a URL; download the files to compare them")
        try:
            value = Path(value).read_bytes()
        except OSError as e:
            return ValueHash("", None, e.strerror or "cannot be read")
    try:
        exact = blake2b(kind.content_key(value), digest_size=16).hexdigest()
    except Rejected:
        exact = blake2b(value, digest_size=16).hexdigest()
    try:
        return ValueHash(exact, kind.near_duplicate_key(kind.decode(value)))
    except Rejected:
        return ValueHash(exact, None, "cannot be decoded; compared by its bytes only")


def hash_rows(
    rows: Iterable[PackRow], names: Sequence[str], log: Path, workers: int, progress: Progress
) -> Iterator[tuple[PackRow, dict[str, ValueHash]]]:
    """Yield each row with the hashes of its values: {modality: hashes}.

    names: the modalities whose values are hashed
    log: JSON-lines log of hashes; an interrupted run continues after what it has, unless the files have changed since
    workers: threads that read and decode
    """
    known: dict[str, list[list[object]]] = {}
    for line in read_jsonl_log(log):
        known |= line

    def hashes(row: PackRow) -> dict[str, ValueHash]:
        return {name: hash_value(row.values[name], name) for name in names if name in row.values}

    remaining = iter(rows)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            keys = [f"{row.number} {row.id} {file_stamp(row)}" for row in chunk]
            new = [row for row, key in zip(chunk, keys, strict=True) if key not in known]
            computed = dict(zip((row.number for row in new), pool.map(hashes, new), strict=True))
            if new:
                append_jsonl(
                    log,
                    {
                        key: [[n, h.exact, h.near, h.problem] for n, h in computed[row.number].items()]
                        for row, key in zip(chunk, keys, strict=True)
                        if row.number in computed
                    },
                )
            for row, key in zip(chunk, keys, strict=True):
                found = computed.get(row.number)
                if found is None:
                    found = {str(n): ValueHash(str(e), _whole(near), str(p)) for n, e, near, p in known.pop(key)}
                progress.advance(1)
                yield row, found


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
