"""Datasets whose shards are only read from start to end: their rows are encoded while they are read, and no value is kept.

`open_streamed` returns a `Data` without random access. Its ids, groups, labels and metadata are a table that is mapped from disk, as
that of indexed data. `embed_data` encodes all its rows in one pass over the shards.
"""

import functools
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pyarrow as pa

from mmtune.data.identity_labels import first_occurrences
from mmtune.data.shards import combine_tables, shard_cache
from mmtune.data.shards.dataset import Data
from mmtune.data.shards.row_table import RowTable
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.tar_index import TableBuilder
from mmtune.embedding.stream_blocks import (
    BLOCK,
    Bad,
    HashedSignals,
    RowBlock,
    Wanted,
    distinct_signals,
    hash_arrays,
    pack_blocks,
    row_blocks,
    unpack_blocks,
)
from mmtune.embedding.vector_file import VectorFile
from mmtune.errors import DataError, DataWarning
from mmtune.model.encode import encode_batches
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

EXAMPLES = 3
"""Number of ids in the warning about values that cannot be decoded."""


@dataclass(frozen=True)
class _Pass:
    """One reading of all shards.

    model: encodes the values; None: the rows are only listed
    wanted: what is encoded
    checked: modalities whose values are decoded if nothing encodes them, to find those that cannot be
    listing: whether the columns of the rows are wanted
    hashed: modalities whose values are hashed for the search for near-duplicates
    """

    model: "Model | None"
    wanted: Sequence[Wanted]
    batch_size: int
    skip_bad: bool
    checked: Sequence[str] = ()
    listing: bool = False
    hashed: Sequence[str] = ()


class StreamReader:
    """The shards of a dataset that is streamed, and the vectors of its rows.

    sets: the dataset
    skip_bad: leave out values that cannot be decoded
    """

    def __init__(self, sets: StreamedSets, skip_bad: bool = False):
        self.sets, self.files, self.skip_bad = sets, sets.sets[0], skip_bad
        self.start_of_shard = np.zeros(len(self.files) + 1, np.int64)
        self.labels: Mapping[str, np.ndarray] = {}
        self.bad: dict[str, np.ndarray] = {}
        self._hashes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._fingerprint = ""
        self._vectors: dict[Wanted, np.ndarray] = {}
        self._rows: dict[Wanted, np.ndarray] = {}

    def read(self, shard: int, offset: int, size: int) -> NoReturn:
        """Raise DataError: single values cannot be read."""
        raise DataError(
            f"{self.files[shard].url}: this needs single values, and a streamed shard is only read from start to end; "
            "read it with an index (--read index)"
        )

    # --- vectors -------------------------------------------------------------------------------------------------

    def embed(
        self,
        model: "Model",
        wanted: Sequence[Wanted],
        batch_size: int = 64,
        quiet: bool = True,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        """Encode in one pass what of `wanted` the model has not encoded before. The vectors of another model are dropped.

        Raises DataError if a shard cannot be read, or has other rows than before.
        """
        if model.fingerprint != self._fingerprint:
            self._fingerprint, self._vectors, self._rows = model.fingerprint, {}, {}
        missing = [w for w in wanted if w not in self._vectors]
        if missing:
            self._read_all(_Pass(model, missing, batch_size, False), quiet, processes)

    def vectors(self, modality: str, rows: np.ndarray, role: str | None = None) -> np.ndarray:
        """The vectors of rows that were encoded, float32 [n, D]; of all rows they are mapped from disk if they are many.

        rows: int64 [n], numbers of rows of the whole dataset
        """
        known, vectors = self._rows[modality, role], self._vectors[modality, role]
        if np.array_equal(known, rows):
            return vectors
        return vectors[np.searchsorted(known, rows)]

    def hashes(self, modality: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the values of rows for the search for near-duplicates: (uint64 [n], bool [n] whether there is one).

        rows: int64 [n], numbers of rows of the whole dataset

        The modality must be one of `hashed` of `open_streamed`.
        """
        hashes, known = self._hashes[modality]
        return hashes[rows], known[rows]

    # --- passes --------------------------------------------------------------------------------------------------

    def list_rows(
        self,
        model: "Model | None" = None,
        wanted: Sequence[Wanted] = (),
        batch_size: int = 64,
        quiet: bool = True,
        processes: Processes = SINGLE_PROCESS,
        checked: Sequence[str] = (),
        hashed: Sequence[str] = (),
    ) -> tuple[pa.Table, Bad]:
        """Read all shards once: list their rows, and encode `wanted` with `model` at the same time.

        checked: modalities of which every value is decoded, if `skip_bad` and they are not encoded
        hashed: modalities whose values are hashed for the search for near-duplicates (see `hashes`)

        Returns the table of rows (see `combine_tables`), mapped from disk, and modality -> {row: (its id, why its value cannot be
        decoded)}. Raises DataError if a shard cannot be read, or as `combine_tables.combine`.
        """
        if model is not None:
            self._fingerprint = model.fingerprint
        folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=combine_tables.writable_folder(shard_cache.root() / "rows")))
        try:
            reading = _Pass(model, wanted, batch_size, self.skip_bad, checked, True, hashed)
            bad = self._read_all(reading, quiet, processes, folder)
            tables = [folder / f"{i}.arrow" for i in range(len(self.files))]
            table = combine_tables.combine(self.files, lambda: map(_read_table, tables), self.sets.spec, folder / "rows.arrow")
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until it is unmapped
        self.bad = {m: np.array(sorted(of_rows), np.int64) for m, of_rows in bad.items()}
        rows = RowTable(table)
        self.labels = {n.removesuffix(".label"): rows.numbers(n) for n in rows.names if n.endswith(".label")}
        return table, bad

    def _read_all(self, reading: _Pass, quiet: bool, processes: Processes, folder: Path | None = None) -> Bad:
        """Read all shards, each in one process. Every process stores the vectors of all; with `folder` also the tables of all shards.

        Returns modality -> {row: (id, why its value cannot be decoded)}.
        """
        stored = {w: VectorFile(reading.model.dim) for w in reading.wanted if reading.model is not None}
        rows: dict[str, list[np.ndarray]] = {
            m: [] for m in (*reading.checked, *reading.hashed, *(m for m, _ in reading.wanted))
        }
        hashes: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {m: [] for m in reading.hashed}
        bad: Bad = {}
        known, total = self.start_of_shard[-1], self.sets.rows
        with Progress("embed" if reading.model else "read", total or int(known), quiet=quiet) as progress:
            for number, blocks in self._shards(reading, processes):
                start, count = int(self.start_of_shard[number]), 0
                for block in blocks:
                    count += block.rows
                    progress.advance(block.rows)
                    for w, vectors in block.vectors.items():
                        stored[w].append(vectors)
                    for m, in_shard in block.at.items():
                        if known:
                            self._check_unchanged(number, m, in_shard + start, block.labels[m])
                        rows[m].append(in_shard + start)
                    for m, pair in block.hashes.items():
                        hashes[m].append(pair)
                    for m, of_rows in block.bad.items():
                        bad.setdefault(m, {}).update({start + r: why for r, why in of_rows.items()})
                    if folder is not None and block.table is not None:
                        _write_table(block.table, folder / f"{number}.arrow")
                if known and start + count != self.start_of_shard[number + 1]:
                    self._refuse_changed(number)
                self.start_of_shard[number + 1] = start + count
        for m, pairs in hashes.items():
            of_all = np.zeros(self.start_of_shard[-1], np.uint64), np.zeros(self.start_of_shard[-1], bool)
            for whole, parts in zip(of_all, zip(*pairs, strict=True), strict=False):
                whole[np.concatenate(rows[m])] = np.concatenate(parts)
            self._hashes[m] = of_all
        for w, vector_file in stored.items():
            self._vectors[w], self._rows[w] = vector_file.array(), np.concatenate([np.zeros(0, np.int64), *rows[w[0]]])
        return bad

    def _shards(self, reading: _Pass, processes: Processes) -> Iterator[tuple[int, Iterator[RowBlock]]]:
        """Yield the blocks of each shard, in order. With several processes each reads every n-th shard, and all get all blocks."""
        if processes.is_single:
            for number in range(len(self.files)):
                yield number, self._blocks(number, reading)
            return
        for first in range(0, len(self.files), processes.world_size):
            own = first + processes.rank
            blocks = list(self._blocks(own, reading)) if own < len(self.files) else []
            parts = processes.gather_bytes(pack_blocks(blocks))
            for number, part in enumerate(parts, first):
                if number < len(self.files):
                    yield number, unpack_blocks(part)

    def _blocks(self, number: int, reading: _Pass) -> Iterator[RowBlock]:
        """Read one shard."""
        file, notes, done = self.files[number], Counter[str](), 0
        table = TableBuilder() if reading.listing else None
        for rows in row_blocks(self.sets.read(file, notes, table), BLOCK * reading.batch_size):
            block = RowBlock(len(rows))
            roles: dict[str, list[str | None]] = {m: [] for m in (*reading.checked, *reading.hashed)}
            for m, role in reading.wanted:
                roles.setdefault(m, []).append(role)
            for m, of_modality in roles.items():
                left_out = set((self.bad[m] - self.start_of_shard[number]).tolist()) if m in self.bad else set()
                having = [(done + i, row) for i, row in enumerate(rows) if m in row.values and done + i not in left_out]
                signals, kept, reasons = distinct_signals(m, [row for _, row in having], file.url, reading.skip_bad)
                block.bad[m] = {i: (row.id, reasons[row.labels[m]]) for i, row in having if row.labels[m] in reasons}
                block.at[m] = np.array([i for i, _ in having if i not in block.bad[m]], np.int64)
                block.labels[m] = np.array([row.labels[m] for row in kept], np.int64)
                _, inverse = first_occurrences(block.labels[m])
                keyed = HashedSignals(m, signals) if m in reading.hashed else None
                if keyed is not None:
                    signals = [functools.partial(keyed.decode, i) for i in range(len(signals))]
                for role in of_modality:
                    assert reading.model is not None
                    made = [*encode_batches(reading.model, m, signals, reading.batch_size, lambda n: None, role)]
                    block.vectors[m, role] = np.concatenate([np.zeros((0, reading.model.dim), np.float32), *made])[inverse]
                if keyed is not None:
                    if not of_modality:
                        for signal in signals:
                            signal()
                    keys, known = hash_arrays(keyed.keys)
                    block.hashes[m] = keys[inverse], known[inverse]
            done += len(rows)
            yield block
        if table is not None:
            table.notes = notes
            yield RowBlock(table=table.finish([], []))

    def _check_unchanged(self, number: int, modality: str, at: np.ndarray, labels: np.ndarray) -> None:
        """Raise DataError if rows of a shard have other contents than in an earlier pass."""
        known = self.labels[modality]
        if len(at) and (at[-1] >= len(known) or not np.array_equal(known[at], labels)):
            self._refuse_changed(number)

    def _refuse_changed(self, number: int) -> NoReturn:
        raise DataError(f"{self.files[number].url}: has other rows than when it was read first; start again")


def open_streamed(
    sets: StreamedSets,
    model: "Model | None" = None,
    wanted: Sequence[Wanted] = (),
    *,
    batch_size: int = 64,
    quiet: bool = True,
    skip_bad: bool = False,
    checked: Sequence[str] = (),
    hashed: Sequence[str] = (),
    processes: Processes = SINGLE_PROCESS,
) -> Data:
    """Read a dataset from start to end once, and return its rows as a `Data` without random access: reading a value raises DataError.

    sets: the dataset (a single one, with weight 1)
    model, wanted: encode these modalities with these prompt roles in the same pass; `embed_data` then reads nothing
    batch_size: values in one forward pass
    skip_bad: leave out values that cannot be decoded, with a DataWarning
    checked: with `skip_bad`, modalities whose values are decoded for that, though they are not in `wanted`
    hashed: modalities whose values are hashed for the search for near-duplicates (`StreamReader.hashes`)
    processes: the processes that call this function together; each reads a share of the shards, and each gets all rows

    Memory holds some blocks of rows. Vectors of more than 256 MB and the table of rows are mapped from files, which need no removal.
    """
    reader = StreamReader(sets, skip_bad)
    table, bad = reader.list_rows(model, wanted, batch_size, quiet, processes, checked if skip_bad else (), hashed)
    for note in combine_tables.notes_of(table):
        warnings.warn(note, DataWarning, stacklevel=2)
    data = Data(sets.spec, reader, RowTable(table), sets.aliases)
    for m, of_rows in bad.items():
        if of_rows:
            examples = "; ".join(f"{id!r}: {why}" for id, why in list(of_rows.values())[:EXAMPLES])
            total = int(data.present[m].sum())
            warnings.warn(
                f"{data.spec}: {len(of_rows)} of {total} {m} values cannot be decoded and are skipped ({examples})",
                DataWarning,
                stacklevel=2,
            )
    left = data.without_values({m: rows for m, rows in reader.bad.items() if len(rows)})
    if not left.modalities:
        raise DataError(f"{data.spec}: no value can be decoded")
    return left


def stream_of(data: object) -> StreamReader | None:
    """The reader of data that `open_streamed` returned, or of a view of them; None for other data."""
    reader = getattr(data, "reader", None)
    return reader if isinstance(reader, StreamReader) else None


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
