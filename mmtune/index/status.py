"""Report the status of a collection and of its versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, LivePointer
from mmtune.index.collection_results import CollectionResult, ShadowState
from mmtune.index.item_catalog import Catalog
from mmtune.index.monitoring.probe_log import last_probe
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class VersionStatus(CollectionResult):
    """The status of one version.

    behind: number of catalog changes that the version has not applied yet. It is not 0 after a writer was killed; the next
        write applies the changes.
    gate: measurements of the last attempt to promote the version, as stored in gate.json; None if there was none.
    can_roll_back_to: whether `rollback` would make this version live.
    fault: why the version's record cannot be read. The other fields are then empty.
    """

    version: str
    fingerprint: str
    dim: int
    modalities: Sequence[str]
    store: Mapping[str, str | None]
    index: Mapping[str, Mapping[str, object]]
    created: str
    model: str
    items: int
    vectors: Mapping[str, int]
    behind: int
    gate: JsonObject | None
    live: bool
    can_roll_back_to: bool
    fault: str | None = None


@dataclass(frozen=True, eq=False)
class CollectionStatus(CollectionResult):
    """The status of a collection, as printed by `mmtune index status --json`.

    since: when the live version was made live.
    previous: the version that `rollback` would make live.
    by_modality: number of items that have each modality.
    shadow: the shadow traffic; None when there is none.
    probe: the last probe of the live version's recall, a line of COLL/history/probes.jsonl; None when there was none.
    """

    collection: str
    path: str
    live: str | None
    since: str | None
    previous: str | None
    items: int
    by_modality: Mapping[str, int]
    versions: Sequence[VersionStatus]
    shadow: ShadowState | None
    probe: JsonObject | None = None

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a DataFrame with one row per version."""
        import pandas

        return pandas.DataFrame([v.to_dict() for v in self.versions])


def version_statuses(layout: CollectionLayout, catalog: Catalog) -> list[VersionStatus]:
    """Return the status of every version, oldest first."""
    live, out = layout.live(), []
    for name in layout.versions():
        try:
            out.append(_version_status(layout, catalog, name, live))
        except DataError as e:
            out.append(_damaged(name, live, str(e)))
    return out


def _damaged(name: str, live: LivePointer, fault: str) -> VersionStatus:
    is_live, is_previous = name == live["version"], name == live["previous"]
    return VersionStatus(name, "", 0, [], {"kind": None}, {}, "", "", 0, {}, 0, None, is_live, is_previous, fault)


def _version_status(layout: CollectionLayout, catalog: Catalog, name: str, live: LivePointer) -> VersionStatus:
    record = layout.record(name)
    names, behind = record["modalities"], catalog.seq - layout.applied_seq(name)
    items, vectors = record.get("items", 0), record.get("vectors", {})
    if not behind:  # the stores match the catalog, so count there; the counts in the record are as old as the build
        counts = catalog.counts()
        items, vectors = catalog.count(names), {m: counts.get(m, 0) for m in names}
    gate = layout.directory(name) / "gate.json"
    return VersionStatus(
        version=record["version"],
        fingerprint=record["fingerprint"],
        dim=record["dim"],
        modalities=record["modalities"],
        store={"kind": record["store"]["kind"], "url": record["store"].get("url")},
        index=record["index"],
        created=record["created"],
        model=record["model"],
        items=items,
        vectors=vectors,
        behind=behind,
        gate=read_json(gate) if gate.exists() else None,
        live=name == live["version"],
        can_roll_back_to=name == live["previous"],
    )


def collection_status(layout: CollectionLayout, catalog: Catalog, shadow: ShadowState | None) -> CollectionStatus:
    """Return the status of the collection, its items and its versions. shadow: the current shadow traffic."""
    live = layout.live()
    return CollectionStatus(
        collection=layout.manifest["name"],
        path=str(layout.path),
        live=live["version"],
        since=live["since"],
        previous=live["previous"],
        items=len(catalog),
        by_modality=catalog.counts(),
        versions=version_statuses(layout, catalog),
        shadow=shadow,
        probe=last_probe(layout.path),
    )
