"""Count the classes of the rows of streamed training sets, before they are read for training.

Shards of `mmtune pack` have a table of their rows, which is read; other shards are read from start to end. What was counted in a
shard is kept in a file, so that a process that is killed need not count it again, and so that several processes divide the shards.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pyarrow as pa

from mmtune.data.shards.class_values import GROUP
from mmtune.data.shards.merge_classes import CountedClasses, merge_classes
from mmtune.data.shards.open_tables import stored_table
from mmtune.data.shards.shard_classes import ClassQuery, count_in_table, file_key, write_classes
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_index import TableBuilder
from mmtune.errors import DataError
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.plugins import nearest
from mmtune.runtime.progress import Progress

BLOCK_ROWS = 1 << 16
"""Rows of a shard of which ids and metadata are in memory at a time."""


def known_columns(sets: StreamedSets) -> list[str]:
    """The columns of the first rows of streamed sets that may name classes."""
    return sorted({*sets.columns, *sets.aliases, "id", GROUP})


def check_column(sets: StreamedSets, column: str, key: str) -> None:
    """Raise DataError, which names `key`, if none of the first rows has the column."""
    if column not in known_columns(sets):
        raise DataError(
            f"{key}: {sets.spec}: none of the first rows has the column {column!r}{nearest(column, known_columns(sets))}"
        )


def has_tables(sets: StreamedSets) -> bool:
    """Whether every shard has a table file according to its index.json, so that no shard need be read to count classes."""
    return all(shard.entry is not None and "table_sha256" in shard.entry for shard in _distinct_shards(sets))


def count_streamed_classes(
    sets: StreamedSets,
    queries: Sequence[ClassQuery],
    folder: Path,
    *,
    readers: int = 4,
    skip_damaged: bool = False,
    quiet: bool = True,
    processes: Processes = SINGLE_PROCESS,
) -> list[CountedClasses]:
    """Count the classes of each query in all shards. All processes must call this; rank 0 gets the result, the others [].

    folder: directory of the files of the shards, shared by all processes; what is in there is not counted again
    readers: number of shards that this process reads at once
    skip_damaged: of a damaged shard, count the rows before the damage

    Raises DataError if a shard cannot be read. Memory holds the classes, and the ids and metadata of BLOCK_ROWS rows of each
    shard that is read.
    """
    shards = _distinct_shards(sets)
    keys = [file_key(shard, queries) for shard in shards]
    left: list[int] = processes.broadcast([i for i, key in enumerate(keys) if not (folder / f"{key}.npz").exists()])
    own = left[processes.rank :: processes.world_size]
    rows = [entry["rows"] for i in own if (entry := shards[i].entry)]

    def count(i: int) -> int:
        """Count the classes of a shard. The file of its last block, which is written last, says that it is complete."""
        for stale in folder.glob(f"{keys[i]}-*.npz"):
            stale.unlink()
        number = counted = 0
        blocks = _blocks(sets, shards[i], skip_damaged)
        block: pa.Table | None = next(blocks)
        while block is not None:
            found = count_in_table(block, queries, sets.aliases_of(shards[i]))
            counted, number, following = counted + len(block), number + 1, next(blocks, None)
            write_classes(folder / (f"{keys[i]}.npz" if following is None else f"{keys[i]}-{number}.npz"), found)
            block = following
        return counted

    folder.mkdir(parents=True, exist_ok=True)
    with Progress("count classes", sum(rows) if len(rows) == len(own) else 0, quiet=quiet) as progress:
        with ThreadPoolExecutor(readers, thread_name_prefix="mmtune-classes") as pool:
            counting = [pool.submit(count, i) for i in own]
            try:
                for done in as_completed(counting):
                    progress.advance(done.result())
            finally:
                for future in counting:
                    future.cancel()
    processes.barrier()
    if not processes.is_main_process:
        return []
    with tempfile.TemporaryDirectory(prefix="pairs-", dir=folder) as temporary:
        files = [path for key in keys for path in [*sorted(folder.glob(f"{key}-*.npz")), folder / f"{key}.npz"]]
        return [merge_classes(files, i, query, Path(temporary)) for i, query in enumerate(queries)]


def _distinct_shards(sets: StreamedSets) -> list[ShardFile]:
    """The shards of all sets; one that is in several sets once."""
    return list({shard.remote or shard.url: shard for shards in sets.sets for shard in shards}.values())


def _blocks(sets: StreamedSets, shard: ShardFile, skip_damaged: bool) -> Iterator[pa.Table]:
    """Yield the table of a shard in blocks, at least one: from its table file, or else from the shard."""
    table = stored_table(shard)
    if table is not None:
        for start in range(0, max(1, len(table)), BLOCK_ROWS):
            yield table.slice(start, BLOCK_ROWS)
        return
    builder = TableBuilder()
    with contextlib.suppress(DataError) if skip_damaged else contextlib.nullcontext():
        for _ in sets.read(shard, Counter(), builder):
            if len(builder) == BLOCK_ROWS:
                yield builder.take_table()
    yield builder.take_table()
