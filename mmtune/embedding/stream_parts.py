"""`mmtune embed --read stream`: embed shards while they are read from start to end, without an index of rows.

For data larger than the disk: memory holds one block of rows, and a Parquet file of each modality grows while its shard is read.
"""

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.data.identity_labels import first_occurrences
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets, is_streamed
from mmtune.embedding.embed_rows import shared_modalities
from mmtune.embedding.parquet_parts import (
    EmbedCounts,
    EmbedResult,
    PartWriter,
    read_stamp,
    refuse_other_vectors,
    write_meta,
)
from mmtune.embedding.stream_blocks import BLOCK, distinct_signals, row_blocks
from mmtune.errors import DataError, DataWarning
from mmtune.model.encode import encode_batches
from mmtune.runtime.devices import local_device
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


@dataclass
class _Shard:
    """A shard to embed.

    paths: modality -> Parquet file
    stamp: what the files store, to recognise them when resuming
    """

    file: ShardFile
    paths: dict[str, Path]
    stamp: dict[str, str]


def embed_stream(
    model: "Model | str",
    data: object,
    out: str | Path,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
    role: str | None = None,
    skip_bad: bool = False,
) -> EmbedResult:
    """Embed streamed shards into the files that `parquet_parts.embed` writes; the parameters are those of that function.

    A shard whose files exist for the same model and shard (its SHA-256 in index.json, else its name) is not read again. Processes
    that run this at the same time share the shards.

    data: what `data.read: stream` accepts: a directory, a brace pattern, a URL, or pipe:COMMAND; .tar.gz and .tar.zst too
    """
    from mmtune.model.artifact import load

    is_streamed(data, "stream")
    model = load(model).to(local_device()) if isinstance(model, str) else model
    model = model if dim is None else model.truncated(dim)
    sets, out = StreamedSets([str(data)], [1.0], ShardCache(0)), Path(out)
    names = shared_modalities(model, sets, modalities)
    result = EmbedResult(model.fingerprint, model.dim, {}, sets.spec, sets.fingerprint, role)
    refuse_other_vectors(out, result)
    stamp = {"fingerprint": result.fingerprint} | ({"role": role} if role else {})
    shards = [_shard(i, f, names, out, stamp) for i, f in enumerate(sets.sets[0])]
    with Progress("embed", sets.rows or 0, quiet=quiet) as progress:
        work = functools.partial(_embed_shard, model, sets, batch_size, role, skip_bad, progress)
        run_jobs_once(shards, lambda s: s.paths[names[0]], _is_written, work)
    for m in names:
        stamps = [read_stamp(s.paths[m]) for s in shards]
        rows, missing = (sum(int(s[k]) for s in stamps) for k in ("rows", "missing"))
        result.counts[m] = EmbedCounts(rows, missing, len(shards))
        for path in set((out / m).glob("part-*.parquet")) - {s.paths[m] for s in shards}:
            path.unlink(missing_ok=True)
    sets.warn()
    write_meta(out, result)
    return result


def _shard(number: int, file: ShardFile, names: Sequence[str], out: Path, stamp: dict[str, str]) -> _Shard:
    content = file.entry["sha256"] if file.entry else "unknown"
    paths = {m: out / m / f"part-{number:05d}.parquet" for m in names}
    return _Shard(file, paths, {**stamp, "shard": file.name, "stream": content})


def _is_written(shard: _Shard) -> bool:
    """Whether the files of all modalities exist. Raises DataError if they have embeddings of another model."""
    for path in shard.paths.values():
        found = read_stamp(path)
        if found and found.get("fingerprint") != shard.stamp["fingerprint"]:
            raise DataError(f"{path} contains embeddings of another model ({found.get('fingerprint')}); use another --out")
        if {k: v for k, v in found.items() if k not in ("rows", "missing")} != shard.stamp:
            return False
    return True


def _embed_shard(
    model: "Model",
    sets: StreamedSets,
    batch_size: int,
    role: str | None,
    skip_bad: bool,
    progress: Progress,
    shard: _Shard,
) -> None:
    """Read one shard and write the file of each modality; the files appear when the shard is complete."""
    undecodable: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        writers = {m: stack.enter_context(PartWriter(path, model.dim, shard.stamp)) for m, path in shard.paths.items()}
        for block in row_blocks(sets.read(shard.file, sets.notes), BLOCK * batch_size):
            for m, writer in writers.items():
                rows = [row for row in block if m in row.values]
                signals, kept, _ = distinct_signals(m, rows, shard.file.url, skip_bad)
                undecodable[m] += len(rows) - len(kept)
                vectors = [*encode_batches(model, m, signals, batch_size, lambda n: None, role)]
                encoded = np.concatenate(vectors) if vectors else np.zeros((0, model.dim), np.float32)
                _, inverse = first_occurrences(np.array([row.labels[m] for row in kept], np.int64))
                writer.write([r.id for r in kept], [r.group for r in kept], encoded[inverse], len(block) - len(kept))
            progress.advance(len(block))
    for m, n in undecodable.items():
        if n:
            warnings.warn(
                f"{shard.file.url}: {n} values of {m} cannot be decoded and count as missing", DataWarning, stacklevel=2
            )
