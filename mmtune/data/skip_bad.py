"""The option `--skip-bad` of the verbs that encode data (train, embed, mine, eval, index): skip values that cannot be decoded, instead of stopping at the first one.

All values are decoded once beforehand, identical ones only once. The result is cached on disk, so that a resumed run and the other
processes of a distributed run need not decode everything again. A file that crashes its decoder still ends the process. Only
`mmtune pack` can handle such files, because it decodes in separate worker processes.
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
from mmtune.data.in_memory import DataLike, as_opened
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.dataset import Data
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.progress import Progress
from mmtune.runtime.threads import data_thread_pool
from mmtune.runtime.work_lock import file_lock

CHUNK = 1024
"""Number of rows that are decoded between two updates of the progress display."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The memory address in the repr of an object. It is removed from reasons, because it differs from run to run."""
EXAMPLES = 3
"""Number of ids that the warning shows."""
MAX_WORKERS = 8
"""Maximum number of threads that decode."""


def open_rows_to_encode(
    data: DataLike, modalities: Sequence[str] | None = None, skip_bad: bool = False, quiet: bool = True
) -> Data:
    """Open a dataset or rows in memory, unless it is open already, and with `skip_bad` leave out the values that cannot be decoded."""
    opened = as_opened(data)
    return without_undecodable(opened, modalities, quiet) if skip_bad else opened


def without_undecodable(data: Data, modalities: Sequence[str] | None = None, quiet: bool = True) -> Data:
    """Return a view of `data` in which values that cannot be read or decoded are missing.

    data: the dataset
    modalities: modalities to check; None means all
    quiet: show no progress

    Issues a DataWarning with the number of such values, and the first ids and reasons. Raises DataError if no value can be decoded.
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
    """Find the values of modality `name` in `rows` that cannot be decoded. Returns content label -> reason."""
    first, _ = first_occurrences(data.labels[name][rows])
    key = stable_label(json.dumps([data.fingerprint, name, tar_index.signature()]).encode())
    stored = shard_cache.root() / "undecodable" / f"{key:016x}.json"
    with _lock(stored):
        with contextlib.suppress(DataError, OSError, ValueError):
            return {int(label): reason for label, reason in read_json(stored).items()}
        found = _decode_all(data, name, rows[first], quiet)
        with contextlib.suppress(OSError):  # continue without the cache if it cannot be written
            write_json(stored, {str(label): reason for label, reason in found.items()})
    return found


@contextlib.contextmanager
def _lock(stored: Path) -> Iterator[None]:
    """Context manager with a lock on the cache file `stored`, so that one process decodes and the others read its result.

    Without a writable cache there is no lock, and each process decodes.
    """
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
