"""The status of a collection and of its versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult, ShadowState
from mmtune.index.item_catalog import Catalog
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class VersionStatus(CollectionResult):
    """A version as its record describes it. behind: changes of the catalog that it has not applied (a writer was killed; the
    next write applies them); gate: the checks of its last promotion, as they are stored."""

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
    return [_version_status(layout, catalog.seq, name) for name in layout.versions()]


def _version_status(layout: CollectionLayout, seq: int, name: str) -> VersionStatus:
    record, live = layout.record(name), layout.live()
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
        items=record.get("items", 0),
        vectors=record.get("vectors", {}),
        behind=seq - layout.applied_seq(name),
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
