"""`mmtune index verify`: read every byte of a collection and compare it with its checksum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mmtune import modalities
from mmtune.data.identity_labels import stable_label
from mmtune.errors import MmtuneError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult
from mmtune.index.integrity import find_faults
from mmtune.index.item_catalog import Catalog
from mmtune.index.maintenance.mask_item import FEEDBACK, LOGS
from mmtune.index.maintenance.sweep import used_fingerprints
from mmtune.index.monitoring.probe_log import probe_log
from mmtune.index.monitoring.traffic_history import TrafficHistory
from mmtune.index.vector_cache import VectorCache
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.files import read_json
from mmtune.runtime.progress import Progress
from mmtune.runtime.segmented_log import read_segments


@dataclass(frozen=True, eq=False)
class VerifyResult(CollectionResult):
    """What was read, and what is wrong.

    contents, vectors: number of contents in the catalog and of cached vectors that were read.
    versions: versions whose model, canaries, files and stored vectors were compared.
    faults: one line per fault; [] means that everything is as it was written.
    damaged_stores: versions whose stores `repair` can write again.
    removable: damaged files of cached vectors, which `repair` removes.
    """

    contents: int
    vectors: int
    versions: Sequence[str]
    faults: Sequence[str]
    damaged_stores: Sequence[str] = ()
    removable: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class CompactResult(CollectionResult):
    """Bytes of each store before and after.

    behind: {version: why it was left out}.
    notes: {store: what was done, or why nothing was to be done}.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    behind: Mapping[str, str]
    notes: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class RepairResult(CollectionResult):
    """The faults before, what was done, and the faults that are left."""

    faults: Sequence[str]
    repaired: Sequence[str]
    left: Sequence[str]


def verify_collection(layout: CollectionLayout, catalog: Catalog, pool: VersionPool, quiet: bool = True) -> VerifyResult:
    """Read the logs, the catalog and its contents, the cached vectors, and of every version the model, canaries and stores."""
    faults = _logs(layout)
    contents, wrong = _contents(catalog, quiet)
    faults += wrong
    vectors, removable = 0, list[str]()
    for fingerprint, dim in used_fingerprints(layout).items():
        for directory in sorted((layout.path / "vectors" / fingerprint).glob("*")):
            cache = VectorCache(directory.parent, fingerprint, dim)
            for path in sorted(directory.glob("[!.]*.safetensors")):
                try:
                    count, bad = cache.check_block(path)
                except MmtuneError as e:
                    faults.append(str(e))
                    removable.append(str(path.relative_to(layout.path)))
                    continue
                vectors += count
                if bad:
                    faults.append(f"{path}: {bad} of {count} cached vectors are damaged; they are computed again when needed")
    damaged = list[str]()
    for version in layout.versions():
        Progress("verify", 0, quiet=quiet).print(f"verify: model and vectors of version {version}")
        try:
            opened = pool.reopen(version)
            wrong = [f for s in opened.stores.values() for f in getattr(s, "damaged_files", list)()]
            with layout.lock():
                cache = pool.vector_cache(opened.fingerprint, opened.dim)
                wrong += find_faults(opened, catalog, cache, layout.applied_seq(version), all_vectors=True)
        except Exception as e:  # damaged files can make libraries raise anything
            wrong = [str(e) or type(e).__name__]
        if wrong:
            damaged.append(version)
            faults += [w if version in w else f"version {version}: {w}" for w in wrong]
    return VerifyResult(contents, vectors, layout.versions(), faults, damaged, removable)


def _logs(layout: CollectionLayout) -> list[str]:
    faults = []
    reads: list[Callable[[], object]] = [
        partial(read_segments, layout.path / name) for name in (FEEDBACK, *(name for name in LOGS if name != audit_log.JOURNAL))
    ]
    reads += [partial(TrafficHistory(layout.path).read_file, p) for p in TrafficHistory(layout.path).files()]
    for read in [*reads, probe_log(layout.path).read]:
        try:
            read()
        except MmtuneError as e:
            faults.append(str(e))
    try:
        audit_log.read(layout)
        for path in layout.path.glob("[!.]*.json"):  # not the temporary file of a killed writer
            read_json(path)
    except MmtuneError as e:
        faults.append(str(e))
    return faults


def _contents(catalog: Catalog, quiet: bool) -> tuple[int, list[str]]:
    """Check the database's pages, and compare every stored content with its hash; returns (number of contents, faults)."""
    db, faults, count = catalog.connection(), list[str](), 0
    for (line,) in db.execute("pragma integrity_check(5)"):
        if line != "ok":
            faults.append(f"{catalog.path}: {line}")
    (total,) = db.execute("select count(*) from blobs").fetchone()
    with Progress("verify", total, "contents", quiet) as progress:
        for modality, label, data in db.execute("select modality, label, data from blobs"):
            count += 1
            progress.advance(1)
            try:
                same = stable_label(modalities.get(modality).content_key(bytes(data))) == label
            except Exception:  # content that cannot be decoded any more
                same = False
            if not same:
                ids = [r[0] for r in db.execute("select id from content where modality = ? and label = ?", (modality, label))]
                faults.append(
                    f"{catalog.path}: the stored {modality} of item {(ids or ['?'])[0]!r} is damaged; upsert it again"
                )
    return count, faults
