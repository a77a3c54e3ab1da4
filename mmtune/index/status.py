"""The status of a collection and of its versions."""

from typing import TYPE_CHECKING

from mmtune.index.catalog import Catalog
from mmtune.index.layout import Layout
from mmtune.index.results import CollectionStatus, VersionStatus
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    from mmtune.index.results import ShadowState


def version_statuses(layout: Layout, catalog: Catalog) -> list[VersionStatus]:
    """Every version, oldest first."""
    return [_version_status(layout, catalog.seq, name) for name in layout.versions()]


def _version_status(layout: Layout, seq: int, name: str) -> VersionStatus:
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


def collection_status(layout: Layout, catalog: Catalog, shadow: "ShadowState | None") -> CollectionStatus:
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
