"""The status of a collection and of its versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, LivePointer
from mmtune.index.collection_results import CollectionResult, ShadowState
from mmtune.index.item_catalog import Catalog
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class VersionStatus(CollectionResult):
    """A version as its record describes it. behind: changes of the catalog that it has not applied (a writer was killed; the
    next write applies them); gate: the checks of its last promotion, as they are stored;
    fault: why its record cannot be read (the other fields are empty then)."""

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
    """The document of `mmtune index status --json`."""

    collection: str
    path: str
    live: str | None
    since: str | None
    previous: str | None
    items: int
    by_modality: Mapping[str, int]
    versions: Sequence[VersionStatus]
    shadow: ShadowState | None

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per version."""
        import pandas

        return pandas.DataFrame([v.to_dict() for v in self.versions])


def version_statuses(layout: CollectionLayout, catalog: Catalog) -> list[VersionStatus]:
    """Every version, oldest first."""
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
    if not behind:  # its stores hold what the catalog has; the record's counts are those of the build
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
    """The pointer, the items, the versions, and the version that searches are shadowed on."""
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
    )
