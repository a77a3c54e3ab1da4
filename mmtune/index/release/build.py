"""A new version: embed what the model has not embedded yet, fill new stores, keep canaries, publish. The pointer is not
touched.

Killed at any moment, the next build goes on: finished blocks of vectors are on disk, and a version exists only when its
version.json
does. While it embeds, items may be added and deleted; the last step, under the write lock, brings the version up to date.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities as kinds
from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.item_vectors import embed_missing, fill
from mmtune.index.layout import now
from mmtune.index.pinned_model import identity, kept, narrowed
from mmtune.index.release import canaries
from mmtune.index.stores import create_store, open_store
from mmtune.index.vector_cache import VectorCache
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.index.collection import Collection
    from mmtune.model.dual_encoder import Model


def pin(coll: "Collection", model: "Model | str | Path | Mapping[str, str]", dim: int | None) -> "Model":
    """The model as the collection keeps it: saved under its fingerprint, loaded from there."""
    found = narrowed(model, dim)
    mark = found.fingerprint
    if mark not in coll.models:
        coll.models[mark] = kept(coll.path, found)
    return coll.models[mark]


def indexed(coll: "Collection", model: "Model", wanted: Sequence[str] | None) -> list[str]:
    """The modalities that get a store: those wanted, else those that are not language, else all. DataError when none is
    there."""
    there = [m for m in kinds.names() if m in coll.catalog.counts() and m in model.towers]
    for m in wanted or ():
        if m not in there:
            raise DataError(f"{m}: the items have {', '.join(coll.catalog.counts())}, the model {', '.join(model.towers)}")
    names = [m for m in there if m in wanted] if wanted else kinds.non_language(there)
    if not names:
        raise DataError(
            f"nothing to index: the items have {', '.join(coll.catalog.counts())}, the model {', '.join(model.towers)}"
        )
    return names


def next_version(coll: "Collection") -> str:
    """A name that no version ever had."""
    said = {line["version"] for line in audit_log.read(coll.layout) if line["what"] in ("build", "drop")}
    return f"v{max([0, *(int(v[1:]) for v in {*said, *coll.layout.versions()} if v)]) + 1}"


def build(
    coll: "Collection",
    model: "Model | str | Path | Mapping[str, str]",
    data: Any = None,
    *,
    store: str | None = None,
    url: str | None = None,
    index: str = "auto",
    modalities: Sequence[str] | None = None,
    dim: int | None = None,
    short: int | None = None,
    memory_mb: int | None = None,
    prune: bool = False,
    batch_size: int = 64,
    quiet: bool = False,
) -> dict[str, Any]:
    """See `Collection.build`."""
    with coll.layout.lock("build", wait=0.5):
        begin = time.monotonic()
        loaded = coll.take(data, prune=prune, quiet=quiet) if data is not None else None
        if not len(coll.catalog):
            raise DataError(f"{coll.path}: the collection has no items; name them with --data DATA")
        found = pin(coll, model, dim)
        names = indexed(coll, found, modalities)
        held = coll.vector_cache(found.fingerprint, found.dim)
        until, counts = coll.catalog.seq, coll.catalog.counts()
        embedded = 0
        with Progress("embed", sum(counts[m] for m in names), "items", quiet) as progress:
            for m in names:
                chunks = coll.catalog.changed(0, until)
                embedded += embed_missing(found, coll.catalog, held, chunks, m, progress.advance, batch_size)
        for m in names:
            held.merge(m)
        version = next_version(coll)
        place = coll.store_of(store, url)
        options = {k: v for k, v in (("short", short), ("memory_mb", memory_mb)) if v is not None}
        built = _fill(coll, version, names, found, held, place, index, options, until)
        directory = coll.layout.directory(version)
        _compare(held, canaries.keep(found, coll.catalog, directory / "canaries.safetensors"))
        record: dict[str, Any] = {
            "version": version,
            "fingerprint": found.fingerprint,
            "dim": found.dim,
            "modalities": names,
            "store": place,
            "index": built,
            "seq": until,
            "created": now(),
            "model": _named(model, found),
            "prompts": found.prompts,
            "identity": identity(coll.path / "models" / found.fingerprint),
        }
        with coll.layout.lock():
            seq = coll.bring(version, record, found, built_until=until)
            record["items"], record["vectors"] = coll.catalog.count(names), {m: coll.count(record, m) for m in names}
            event = audit_log.event("build", version, fingerprint=found.fingerprint, items=record["items"])
            write_json(directory / "version.json", {**record, "seq": seq, "event": event})
            audit_log.append(coll.layout)
    live = coll.live
    judged = live is not None and coll.layout.record(live)["fingerprint"] != found.fingerprint
    return {
        "version": version,
        "fingerprint": found.fingerprint,
        "items": record["items"],
        "vectors": record["vectors"],
        "index": built,
        "store": place["kind"],
        "embedded": embedded,
        "reused": max(0, sum(counts[m] for m in names) - embedded),
        "loaded": loaded,
        "live": live,
        "next": f"mmtune index promote {coll.path} {version}" + " --queries DATA" * judged,
        "seconds": round(time.monotonic() - begin, 3),
    }


def _named(model: Any, found: "Model") -> str:
    """What the model was called when it was handed over."""
    return str(model) if isinstance(model, str | Path) else str(found.info.get("source", "a model in memory"))


def _fill(
    coll: "Collection",
    version: str,
    names: Sequence[str],
    model: "Model",
    held: VectorCache,
    place: Mapping[str, Any],
    index: str,
    options: Mapping[str, int],
    until: int,
) -> dict[str, Any]:
    """New stores for the items as of `until`. {modality: what was built}. One that a killed build has filled with the same is
    used as it is; all else that it left under that name goes."""
    if options and place["kind"] != "faiss":
        name = "--" + next(iter(options)).replace("_", "-")
        raise DataError(f"{name} is an option of the faiss store, not of {place['kind']}")
    directory, marks = coll.layout.directory(version), {m: f"{m}.filled.json" for m in names}
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name not in {*marks, *marks.values()}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    built = {}
    for m in names:
        at, mark = coll.layout.place(version, m, place["kind"], place["url"]), directory / marks[m]
        what = {"fingerprint": model.fingerprint, "dim": model.dim, "seq": until, "store": dict(place)}
        known = mark.exists() and read_json(mark) == what
        if not known:
            mark.unlink(missing_ok=True)
        store = open_store(at) if known else create_store(at, model.dim, model.fingerprint)
        try:
            if not known:
                fill(store, held, coll.catalog.changed(0, until), m)
                write_json(mark, what)
            built[m] = store.build(index, **options)
        finally:
            store.close()
    return built


def _compare(held: VectorCache, kept: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Canaries are embedded afresh: where a vector that was found on disk differs, those files are another model's."""
    for m, (labels, fresh) in kept.items():
        known = ~held.missing(m, labels)
        if known.any():
            cosines = (held.read(m, labels[known]).astype(np.float64) * fresh[known]).sum(1)
            bad = int(canaries.apart(held.read(m, labels[known]), fresh[known]).sum())
            if bad:
                raise ModelError(
                    f"{held.directory / m}: {bad} of {len(cosines)} vectors on disk are not what {held.fingerprint} makes of "
                    f"their content (the worst cosine is {cosines.min():.4f}): remove that directory"
                )
