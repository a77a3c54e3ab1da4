"""`--skip-bad`: DATA without the values that cannot be decoded, which otherwise end `train` and `embed` at the first one.

Every value is decoded once beforehand, equal ones once; what was found is kept in the cache, so that a run that is resumed, and the
processes that share one, do not decode everything again. A file that crashes its decoder still ends the process: `mmtune pack`
checks in processes of its own.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences, stable_label
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.dataset import Data
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.progress import Progress
from mmtune.runtime.threads import data_thread_pool
from mmtune.runtime.work_lock import file_lock

CHUNK = 1024
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""An object's address in a reason."""
EXAMPLES = 3
MAX_WORKERS = 8


def without_undecodable(data: Data, modalities: Sequence[str] | None = None, quiet: bool = True) -> Data:
    """`data`, in which the rows whose value of a modality (default: of all) cannot be read or decoded lack that modality.

    Warns (DataWarning) of how many those are, with the first ids and reasons. Raises DataError when nothing is left.
    """
    bad_rows = {}
    for name in modalities or data.modalities:
        having = np.flatnonzero(data.present[name])
        reasons = _undecodable(data, name, having, quiet)
        if not reasons:
            continue
        rows = having[np.isin(data.labels[name][having], np.array(list(reasons), np.int64))]
        bad_rows[name] = rows
        examples = "; ".join(f"{data.ids[i]!r}: {reasons[int(data.labels[name][i])]}" for i in rows[:EXAMPLES].tolist())
        warnings.warn(
            f"{data.spec}: {len(rows)} of {len(having)} {name} values cannot be decoded and are skipped ({examples})",
            DataWarning,
            stacklevel=3,
        )
    left = data.without_values(bad_rows) if bad_rows else data
    if not left.modalities:
        raise DataError(f"{data.spec}: no value can be decoded")
    return left


def _undecodable(data: Data, name: str, rows: np.ndarray, quiet: bool) -> dict[int, str]:
    """Content label -> reason, of the values of `rows` that cannot be decoded."""
    first, _ = first_occurrences(data.labels[name][rows])
    key = stable_label(json.dumps([data.fingerprint, name, tar_index.signature()]).encode())
    stored = shard_cache.root() / "undecodable" / f"{key:016x}.json"
    with _lock(stored):
        with contextlib.suppress(DataError, OSError, ValueError):
            return {int(label): reason for label, reason in read_json(stored).items()}
        found = _decode_all(data, name, rows[first], quiet)
        with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
            write_json(stored, {str(label): reason for label, reason in found.items()})
    return found


@contextlib.contextmanager
def _lock(stored: Path) -> Iterator[None]:
    """Of several processes one decodes, and the others read what it found; without a writable cache each decodes."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stored.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(f"{stored}.lock"))
        yield


def _decode_all(data: Data, name: str, rows: np.ndarray, quiet: bool) -> dict[int, str]:
    def reason(row: int) -> str | None:
        try:
            decode_row(data, row, name)
        except DataError as e:
            return ADDRESS.sub("", str(e.__cause__ or e.__context__ or e))
        return None

    found = {}
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with data_thread_pool(workers) as pool, Progress(f"check {name}", len(rows), quiet=quiet) as progress:
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK].tolist()
            for row, why in zip(some, pool.map(reason, some), strict=True):
                if why is not None:
                    found[int(data.labels[name][row])] = why
            progress.advance(len(some))
    return found
