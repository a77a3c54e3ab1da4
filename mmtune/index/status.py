"""What a collection looks like from outside."""

from typing import TYPE_CHECKING, Any

from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    from mmtune.index.collection import Collection

SHOWN = ("version", "fingerprint", "dim", "modalities", "store", "index", "created", "model", "items", "vectors")


def versions(coll: "Collection") -> list[dict[str, Any]]:
    """Oldest first. "behind": changes of the corpus that the version has not taken (a killed writer; the next write mends
    it)."""
    live, seq, out = coll.layout.live(), coll.catalog.seq, []
    for name in coll.layout.versions():
        record = coll.layout.record(name)
        gate = coll.layout.directory(name) / "gate.json"
        line = {k: record.get(k) for k in SHOWN}
        line["behind"] = seq - coll.layout.applied(name)
        line["gate"] = read_json(gate) if gate.exists() else None
        line["live"], line["can_roll_back_to"] = name == live["version"], name == live["previous"]
        out.append(line)
    return out


def status(coll: "Collection") -> dict[str, Any]:
    """The document of `mmtune index status --json`."""
    live = coll.layout.live()
    return {
        "collection": coll.layout.manifest["name"],
        "path": str(coll.path),
        "live": live["version"],
        "since": live["since"],
        "previous": live["previous"],
        "items": len(coll.catalog),
        "by_modality": coll.catalog.counts(),
        "versions": versions(coll),
        "shadow": coll.shadow_searches.active(),
    }
