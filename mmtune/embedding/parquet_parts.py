"""The command `mmtune embed`: write the embeddings of a dataset as Parquet files, one file per shard and modality.

Any number of processes can share the work.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.embedding.embed_rows import embed_rows, shared_modalities
from mmtune.errors import DataError
from mmtune.modalities import names as modality_names
from mmtune.runtime.devices import local_device
from mmtune.runtime.files import atomic_open, read_json, refuse_url, write_json
from mmtune.runtime.format_number import check_format
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    import pyarrow as pa

    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data, Shard
    from mmtune.model.dual_encoder import Model


@dataclass
class EmbedCounts:
    """Counts of one modality.

    rows: rows that have the modality
    missing: rows that lack it
    parts: Parquet files
    """

    rows: int
    missing: int
    parts: int


META, FORMAT = "meta.json", 1
"""The file that says what a directory of embeddings is, and its format number; a file without one is of format 1."""


@dataclass
class EmbedResult:
    """The content of OUT/meta.json.

    fingerprint: fingerprint of the model
    dim: dimension of the embeddings
    counts: counts of each modality
    data: the dataset, as it was given
    data_fingerprint: fingerprint of the dataset
    role: prompt role of the texts; None means as candidates
    """

    fingerprint: str
    dim: int
    counts: dict[str, EmbedCounts]
    data: str
    data_fingerprint: str
    role: str | None = None

    def to_dict(self) -> JsonObject:
        """Convert the result to a JSON object; `role` is left out if it is None."""
        document = asdict(self)
        return document if self.role else {k: v for k, v in document.items() if k != "role"}


def embed(
    model: "Model | str",
    data: "DataLike",
    out: str | Path,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
    role: str | None = None,
    skip_bad: bool = False,
) -> EmbedResult:
    """Embed a dataset into OUT/<modality>/part-*.parquet (columns id, group, vector; one part per shard) and OUT/meta.json.

    Resumable: a part that exists for the same model and the same shard content is kept. Parts of other data, which an earlier
    run has left in OUT, are removed. Processes that run this at the same time share the parts (see `mmtune.runtime.work_lock`),
    and each returns when all parts are written. Rows that lack a modality are counted, but not written.

    model: a model, or a MODEL to load
    data: a dataset, or where to open it
    out: the directory OUT
    modalities: which modalities to embed; None means all that model and dataset have in common
    batch_size: values in one forward pass
    quiet: whether to hide the progress bar
    dim: truncate embeddings to this many dimensions (Matryoshka, see `Model.truncated`)
    role: selects the prompt template for texts; None means as candidates (see `mmtune.model.prompts`)
    skip_bad: count values that cannot be decoded as missing, with a DataWarning; by default the first one is a DataError

    Raises DataError if OUT contains embeddings of another model or another role.
    """
    from mmtune.data.in_memory import as_opened
    from mmtune.data.skip_bad import without_undecodable
    from mmtune.model.artifact import load

    model = load(model).to(local_device()) if isinstance(model, str) else model
    model = model if dim is None else model.truncated(dim)
    data = as_opened(data)
    names = shared_modalities(model, data, modalities)
    if skip_bad:
        data = without_undecodable(data, names, quiet)
        names = shared_modalities(model, data, modalities)
    out = Path(out)
    result = EmbedResult(model.fingerprint, model.dim, {}, data.spec, data.fingerprint, role)
    refuse_other_vectors(out, result)
    stamp = {"fingerprint": result.fingerprint} | ({"role": role} if role else {})
    parts = []
    for m in names:
        of_modality = _parts(data, m, out, stamp)
        result.counts[m] = _counts(of_modality)
        parts += of_modality
    with Progress("embed", sum(len(p.rows) for p in parts), quiet=quiet) as progress:

        def make(part: Part) -> None:
            made = embed_rows(model, data, part.modality, part.rows, batch_size=batch_size, advance=progress.advance, role=role)
            _write_part(part.path, data.ids.take(part.rows), data.groups.take(part.rows), made, part.stamp)

        run_jobs_once(parts, lambda p: p.path, lambda p: _is_written(p.path, p.stamp), make)
    _remove_parts_of_other_data(out, data, result, stamp)
    write_meta(out, result)
    return result


def _remove_parts_of_other_data(out: Path, data: "Data", result: EmbedResult, stamp: dict[str, str]) -> None:
    """Remove the parts in `out` that do not belong to `data`.

    If `out` has all parts of a further modality of `data`, from an earlier run with other `modalities`, they are kept and counted in
    `result`.

    stamp: what all parts have in common, see `Part.stamp`
    """
    for m in modality_names():
        parts = _parts(data, m, out, stamp) if m in data.present else []
        if m not in result.counts and parts and all(read_stamp(p.path) == p.stamp for p in parts):
            result.counts[m] = _counts(parts)
        keep = {p.path for p in parts} if m in result.counts else set()
        for path in set((out / m).glob("part-*.parquet")) - keep:
            path.unlink(missing_ok=True)


def write_meta(out: Path, result: EmbedResult) -> None:
    """Write OUT/meta.json, which completes a directory of embeddings."""
    write_json(out / META, {"format": FORMAT, **result.to_dict()})


def read_meta(out: Path) -> JsonObject:
    """Read OUT/meta.json. Raises DataError if it is damaged or of a newer format."""
    document = read_json(out / META)
    check_format(document.pop("format", None), FORMAT, out / META, DataError, missing=1)
    return document


def refuse_other_vectors(out: Path, result: EmbedResult) -> None:
    """Raise DataError if `out` contains embeddings of another model or of another prompt role, or is a URL."""
    refuse_url(out, "--out")
    if not (out / "meta.json").exists():
        return
    old = read_meta(out)
    if old.get("fingerprint") != result.fingerprint:
        other = f"{out} contains embeddings of another model ({old.get('fingerprint')})"
        raise DataError(f"{other}, which are not comparable with those of this one; use another --out")
    if old.get("role") != result.role:
        raise DataError(
            f"{out} contains embeddings of the prompt role {old.get('role')!r}, not {result.role!r}; use another --out"
        )


@dataclass
class Part:
    """One Parquet file to write: the rows of one shard that have a modality.

    path: where the file is written
    modality: the modality
    rows: row numbers in the dataset
    missing: number of rows of the shard that lack the modality
    stamp: model fingerprint, role, shard name and a hash of the shard's content, stored in the file to recognise it when
        resuming
    """

    path: Path
    modality: str
    rows: np.ndarray
    missing: int
    stamp: dict[str, str]


def _parts(data: "Data", modality: str, out: Path, stamp: dict[str, str]) -> list[Part]:
    """All parts of one modality: one for each shard."""
    folder = out / modality
    return [_part(data, shard, modality, folder / f"part-{i:05d}.parquet", stamp) for i, shard in enumerate(data.shards)]


def _counts(parts: list[Part]) -> EmbedCounts:
    return EmbedCounts(sum(len(p.rows) for p in parts), sum(p.missing for p in parts), len(parts))


def _part(data: "Data", shard: "Shard", modality: str, path: Path, stamp: dict[str, str]) -> Part:
    rows = np.arange(shard.start, shard.start + shard.count)
    having = rows[data.present[modality][rows]]
    content = np.ascontiguousarray(np.stack([data.labels["id"][having], data.labels[modality][having]]))
    digest = hashlib.sha256(content.tobytes()).hexdigest()[:32]
    return Part(path, modality, having, len(rows) - len(having), {**stamp, "shard": shard.name, "content": digest})


def _is_written(path: Path, stamp: dict[str, str]) -> bool:
    """Whether the part exists for the same content. Raises DataError if it has embeddings of another model."""
    if not path.exists():
        return False
    written = read_stamp(path)
    if written.get("fingerprint") != stamp["fingerprint"]:
        raise DataError(f"{path} contains embeddings of another model ({written.get('fingerprint')}); use another --out")
    return written == stamp


def read_stamp(path: Path) -> dict[str, str]:
    """The stamp that is stored in a Parquet file (see `Part.stamp`); empty if the file does not exist or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return json.loads((pq.read_metadata(path).metadata or {}).get(b"stamp", b"{}"))
    except (OSError, pa.ArrowException, ValueError):
        return {}


def _write_part(path: Path, ids: list[str], groups: list[str | None], vectors: np.ndarray, stamp: dict[str, str]) -> None:
    import pyarrow.parquet as pq

    table = _table(ids, groups, vectors).replace_schema_metadata(
        {"fingerprint": stamp["fingerprint"], "stamp": json.dumps(stamp)}
    )
    with atomic_open(path) as f:
        pq.write_table(table, f)


def _table(ids: list[str], groups: list[str | None], vectors: np.ndarray) -> "pa.Table":
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1])
    return pa.table({"id": pa.array(ids, pa.string()), "group": pa.array(groups, pa.string()), "vector": column})


class PartWriter:
    """Context manager that writes a part block by block. The file appears at the end of the context, unless there is an exception.

    path: the Parquet file
    dim: dimension of the embeddings
    stamp: see `Part.stamp`; the counts "rows" and "missing" are added to it
    """

    def __init__(self, path: Path, dim: int, stamp: dict[str, str]):
        self.dim, self.stamp = dim, stamp
        self.rows = self.missing = 0
        self._file = atomic_open(path)

    def __enter__(self) -> "PartWriter":
        import pyarrow.parquet as pq

        schema = _table([], [], np.zeros((0, self.dim), np.float32)).schema
        self._writer = pq.ParquetWriter(self._file.__enter__(), schema)
        return self

    def write(self, ids: list[str], groups: list[str | None], vectors: np.ndarray, missing: int = 0) -> None:
        """Append rows; `missing` rows beside them have no value."""
        self.rows, self.missing = self.rows + len(ids), self.missing + missing
        if ids:
            self._writer.write_table(_table(ids, groups, vectors))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            stamp = {**self.stamp, "rows": str(self.rows), "missing": str(self.missing)}
            self._writer.add_key_value_metadata({"fingerprint": stamp["fingerprint"], "stamp": json.dumps(stamp)})
        self._writer.close()  # also of a file that is thrown away: otherwise it is closed when the file is gone
        self._file.__exit__(kind, error, trace)
