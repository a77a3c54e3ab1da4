"""Model + rows -> vectors + ids: the only embedding path. Evaluation scores what mining searches and an index serves."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmtune.contracts import Embeddings
from mmtune.data.identity_labels import first_seen
from mmtune.data.loader.decode import decode_row
from mmtune.errors import DataError
from mmtune.model.encode import vectors
from mmtune.model.prompts import QUERY, ZERO_SHOT, asks_otherwise
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes, local_device
from mmtune.runtime.files import atomic_open, read_json, write_json
from mmtune.runtime.progress import Progress
from mmtune.runtime.work_lock import run_jobs_once

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data, Shard
    from mmtune.model.dual_encoder import Model


def _embed_rows(
    model: "Model",
    data: "Data",
    modality: str,
    rows: np.ndarray,
    batch_size: int,
    advance: Callable[[int], None],
    role: str | None,
    processes: Processes = SINGLE_PROCESS,
) -> np.ndarray:
    """Vectors of `rows` [n] of `data`; identical content is encoded once, in the shards' order on disk."""
    first, inverse = first_seen(data.labels[modality][rows])
    mine = rows[first][processes.local_slice(len(first))]
    items = (functools.partial(decode_row, data, i, modality) for i in mine.tolist())
    parts = list(vectors(model, modality, items, batch_size, advance, role))
    advance(len(rows) - len(mine))
    found = np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)
    return processes.gather(torch.from_numpy(found), len(first)).numpy()[inverse]


def shared_modalities(model: "Model", data: "Data", wanted: Sequence[str] | None = None) -> list[str]:
    """The modalities that both have, in order; DataError when `wanted` or nothing is there."""
    both = [m for m in data.modalities if m in model.towers]
    if wanted:
        missing = [m for m in wanted if m not in both]
        if missing:
            raise DataError(
                f"{data.spec}: {missing[0]} is not in both: the data have {data.modalities}, the model {list(model.towers)}"
            )
        both = [m for m in both if m in wanted]
    if not both:
        raise DataError(f"{data.spec} has {data.modalities}, the model has {list(model.towers)}: nothing in common to embed")
    return both


def embed_data(
    model: "Model",
    data: "Data",
    wanted: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    role: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> dict[str, Embeddings]:
    """Vectors of every row in memory: {modality: Embeddings}, rows in the data's order, rows that lack it left out.

    Without `role` the vectors are those of what is found, and where the model has a prompt of its own for queries
    `Embeddings.queries` are those of what asks (a second run of that tower). With `role` there are that role's vectors only.
    Several `processes` that all call this encode a share each and all get everything.
    """
    out = {}
    fingerprint = model.fingerprint
    for m in shared_modalities(model, data, wanted):
        rows = np.flatnonzero(data.present[m])
        roles = [role, QUERY] if role is None and asks_otherwise(model.prompts, m) else [role]
        with Progress(f"embed {m}", len(rows) * len(roles), quiet=quiet) as progress:
            found = [_embed_rows(model, data, m, rows, batch_size, progress.advance, r, processes) for r in roles]
        labels = {k: v[rows] for k, v in data.labels.items()}
        ids, groups = [data.ids[i] for i in rows], [data.groups[i] for i in rows]
        out[m] = Embeddings(ids, groups, labels, found[0], fingerprint, *found[1:])
    return out


def embed_classes(
    model: "Model", data: "Data", wanted: Sequence[str] | None = None, batch_size: int = 64, quiet: bool = True
) -> dict[str, Embeddings]:
    """Words as class names, where the model has a prompt `zero_shot` for them; {} where it has none."""
    names = [m for m in shared_modalities(model, data, wanted) if ZERO_SHOT in model.prompts.get(m, {})]
    return embed_data(model, data, names, batch_size, quiet, ZERO_SHOT) if names else {}


def embed(
    model: "Model | str",
    data: "Data | str",
    out: str | Path,
    wanted: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    *,
    dim: int | None = None,
    role: str | None = None,
) -> dict[str, Any]:
    """Write OUT/<modality>/part-*.parquet (id, group, vector), a part a shard, and OUT/meta.json; returns the latter.

    A part that is there with the same fingerprint and shard content is kept, so a killed run goes on where it stopped;
    another model's parts are refused. Processes that run this at the same time share the parts (see `claim`); each returns when
    all are there. Rows that lack a modality are counted, not written. dim: the first so many dimensions
    (`Model.prefix`); role: the prompt around words, by default what an index holds (see `mmtune.model.prompts`).
    """
    from mmtune.data.shards.dataset import open_data
    from mmtune.model.artifact import load

    model = load(model).to(local_device()) if isinstance(model, str) else model
    model = model if dim is None else model.prefix(dim)
    data = open_data(data) if isinstance(data, str) else data
    names = shared_modalities(model, data, wanted)
    out, mark, said = Path(out), model.fingerprint, {"role": role} if role else {}
    if (out / "meta.json").exists():
        old = read_json(out / "meta.json")
        if old.get("fingerprint") != mark:
            other = f"{out} holds vectors of another model ({old.get('fingerprint')})"
            raise DataError(f"{other}; a new model is a new space: use another --out")
        if old.get("role") != role:
            raise DataError(f"{out} holds vectors of role {old.get('role')!r}, not {role!r}; use another --out")
    counts: dict[str, Any] = {m: {"rows": 0, "missing": 0, "parts": len(data.shards)} for m in names}
    made_by = {"fingerprint": mark, **said}
    parts = [
        _part(data, shard, m, out / m / f"part-{i:05d}.parquet", made_by) for m in names for i, shard in enumerate(data.shards)
    ]
    with Progress("embed", sum(len(p.rows) for p in parts), quiet=quiet) as progress:

        def make(part: Part) -> None:
            found = _embed_rows(model, data, part.modality, part.rows, batch_size, progress.advance, role)
            _write_part(part.path, [data.ids[i] for i in part.rows], [data.groups[i] for i in part.rows], found, part.stamp)

        for part in parts:
            counts[part.modality]["rows"] += len(part.rows)
            counts[part.modality]["missing"] += part.missing
        run_jobs_once(parts, lambda p: p.path, lambda p: _written(p.path, p.stamp), make)
    meta = {"fingerprint": mark, "dim": model.dim, "counts": counts, "data": data.spec}
    meta |= {"data_fingerprint": data.fingerprint, **said}
    write_json(out / "meta.json", meta)
    return meta


@dataclass
class Part:
    """What one file holds: the rows of one shard that have a modality; `stamp` says of which rows and which model."""

    path: Path
    modality: str
    rows: np.ndarray
    missing: int
    stamp: dict[str, str]


def _part(data: "Data", shard: "Shard", modality: str, path: Path, made_by: dict[str, str]) -> Part:
    rows = np.arange(shard.start, shard.start + shard.count)
    here = rows[data.present[modality][rows]]
    content = np.ascontiguousarray(np.stack([data.labels["id"][here], data.labels[modality][here]]))
    stamp = {**made_by, "shard": shard.name, "content": _digest(content)}
    return Part(path, modality, here, len(rows) - len(here), stamp)


def _digest(array: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(array.tobytes()).hexdigest()[:32]


def _written(path: Path, stamp: dict[str, str]) -> bool:
    """Whether the part is there for the same rows; a part of another model is refused."""
    import pyarrow.parquet as pq

    if not path.exists():
        return False
    found = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()}
    if found.get("fingerprint") != stamp["fingerprint"]:
        raise DataError(f"{path} holds vectors of another model ({found.get('fingerprint')}); use another --out")
    return json.loads(found.get("stamp", "{}")) == stamp


def _write_part(path: Path, ids: list[str], groups: list[str | None], vectors: np.ndarray, stamp: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), dim)
    table = pa.table({"id": pa.array(ids, pa.string()), "group": pa.array(groups, pa.string()), "vector": column})
    table = table.replace_schema_metadata({"fingerprint": stamp["fingerprint"], "stamp": json.dumps(stamp)})
    with atomic_open(path) as f:
        pq.write_table(table, f)
