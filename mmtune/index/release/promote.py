"""Which version answers: checked, judged, switched in one step, and back in another.

A promotion asks, in this order: is the version whole and its model the one that embedded it (never forced); does the index
find what
exact search finds; is the new model better on held-out queries, by the gate of `mmtune compare`; is it not much slower.
`force` with a reason overrides all but the first. The pointer is one file that is replaced.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.layout import now
from mmtune.index.release.index_quality import latencies, recall
from mmtune.index.release.offline_eval import compare_held_out
from mmtune.runtime.files import write_json

if TYPE_CHECKING:
    from mmtune.comparison.gate import Gate
    from mmtune.data.shards.dataset import Data
    from mmtune.index.collection import Collection
    from mmtune.index.open_version import OpenVersion

QUERIES = 64  # searches that recall and latency are measured with
HISTORY = 50  # versions that one can roll back through
SLACK_MS = 5.0  # a difference of so few milliseconds is nobody's


def promote(
    coll: "Collection",
    version: str,
    *,
    gate: "Gate | Mapping[str, Any] | None" = None,
    queries: "Data | str | None" = None,
    force: bool = False,
    why: str | None = None,
    qrels: Any = None,
    retention: "Data | str | None" = None,
    slices: Sequence[str] = (),
    min_recall: float = 0.95,
    max_slowdown: float = 2.0,
    batch_size: int = 64,
) -> dict[str, Any]:
    """{"promoted", "version", "previous", "reasons", "checks"}: reasons are why not, or what was overridden.

    queries: held-out DATA; without it nothing can be promoted over a live version of another model, except by `force`. A
    refusal is written to the journal, too. DataError when somebody else moved the pointer meanwhile.
    """
    from mmtune.data.shards.dataset import open_data

    if force and not (why or "").strip():
        raise DataError("promote: --force needs --why: the journal keeps the reason")
    before = coll.layout.live()
    coll.layout.record(version)
    if before["version"] == version:
        return {
            "promoted": False,
            "version": version,
            "previous": before["previous"],
            "reasons": [f"{version} is live already"],
        }
    data = open_data(queries) if isinstance(queries, str) else queries
    other = open_data(retention) if isinstance(retention, str) else retention
    document: dict[str, Any] = {"promoted": False, "version": version, "previous": before["version"], "checks": {}}
    try:
        new = whole(coll, version)
    except (ModelError, DataError) as e:
        return _refuse(coll, document, [str(e)], why)
    options = {"qrels": qrels, "retention": other, "slices": slices, "batch_size": batch_size}
    reasons = _judge(coll, document, before, new, data, gate, min_recall, max_slowdown, force, options)
    checks = document["checks"]
    write_json(
        coll.layout.directory(version) / "gate.json", {"at": now(), "against": before["version"], "reasons": reasons, **checks}
    )
    if reasons and not force:
        return _refuse(coll, document, reasons, why)
    with coll.layout.lock():
        current = coll.layout.live()
        if current["generation"] != before["generation"]:
            raise DataError(f"{coll.path}: {current['version']} was made live meanwhile; look at it, and promote again")
        coll.bring(version, new.record, new.model)
        said = {"reasons": reasons, "forced": bool(reasons), "gate": checks.get("gate")}
        _point(
            coll, version, [*current["history"], *([current["version"]] if current["version"] else [])], "promote", why, said
        )
    return {**document, "promoted": True, "forced": bool(reasons), "reasons": reasons, "why": why}


def whole(coll: "Collection", version: str) -> "OpenVersion":
    """The version opened from its files as for the first time, brought up to date, its canaries and every stored vector
    checked."""
    coll.update_all_versions()
    opened = coll.reopen(version)
    behind = coll.catalog.seq - coll.layout.applied(version)
    if behind:
        with coll.layout.lock():
            coll.bring(version, opened.record, opened.model)
    return coll.check(opened, every=True)


def _judge(
    coll: "Collection",
    document: dict[str, Any],
    before: Mapping[str, Any],
    new: "OpenVersion",
    data: "Data | None",
    gate: "Gate | Mapping[str, Any] | None",
    min_recall: float,
    max_slowdown: float,
    force: bool,
    options: dict[str, Any],
) -> list[str]:
    """Fill document["checks"]; return the reasons against."""
    checks, reasons = document["checks"], []
    checks["recall"] = {m: recall(s, _queries(coll, new, data, m)) for m, s in new.stores.items()}
    for m, value in checks["recall"].items():
        if value < min_recall:
            reasons.append(f"the {m} index finds {value:.3f} of what exact search finds, {min_recall} is asked")
    if before["version"] is None:
        return reasons
    try:
        live = coll.open(before["version"])
    except (ModelError, DataError) as e:
        return [*reasons, f"the live version cannot be compared with: {e}"]
    reasons += _same_items(live, new, checks)
    checks["latency_ms"] = dict(zip(("live", "new"), latencies([live, new], _signals(coll, live, new, data)), strict=True))
    slow, quick = (checks["latency_ms"][k].get("p50", 0.0) for k in ("new", "live"))
    if slow > max_slowdown * quick + SLACK_MS:
        reasons.append(
            f"a search takes {slow:.1f} ms, {quick:.1f} ms on {live.version}: more than {max_slowdown:g} times as long"
        )
    if live.fingerprint == new.fingerprint:
        checks["gate"] = {"verdict": "same model", "reason": "the same fingerprint: only the index is new"}
    elif data is None:
        reasons.append("another model, and nothing to judge it by: name held-out queries with --queries DATA")
    else:
        try:
            found, scope = compare_held_out(coll, live, new, data, gate, **options)
        except DataError as e:
            if not force:
                raise
            return [*reasons, f"the gate could not judge: {e}"]
        checks["gate"] = {"verdict": found.verdict, "reason": found.reason, "scope": scope, "gate": found.gate.to_dict()}
        checks["gate"]["directions"] = {n: c.to_dict() for n, c in found.directions.items()}
        checks["gate"]["slices"] = {n: c.to_dict() for n, c in found.slices.items()}
        if found.verdict != "pass":
            reasons.append(f"gate: {found.verdict}: {found.reason}")
    return reasons


def _same_items(live: "OpenVersion", new: "OpenVersion", checks: dict[str, Any]) -> list[str]:
    """The sets of ids that the two can find; a difference is a reason unless other modalities are indexed, which explains
    it."""
    a, b = ({i for s in o.stores.values() for i in s.ids()} for o in (live, new))
    checks["items"] = {"live": len(a), "new": len(b), "only_live": len(a - b), "only_new": len(b - a)}
    if a == b:
        return []
    if set(live.stores) != set(new.stores):
        checks["items"]["explained"] = f"{live.version} indexes {', '.join(live.stores)}; {new.version} {', '.join(new.stores)}"
        return []
    name = min(a ^ b)
    return [f"other items: {len(a - b)} only in {live.version}, {len(b - a)} only in {new.version}, e.g. {name!r}"]


def _queries(coll: "Collection", new: "OpenVersion", data: "Data | None", name: str) -> np.ndarray:
    """Vectors to measure recall with: held-out rows, else stored items."""
    from mmtune.embedding.embed_rows import embed_data
    from mmtune.model.prompts import QUERY

    if data is not None:
        part = data.subset(range(min(len(data), QUERIES)))
        known = [m for m in part.modalities if m in new.model.towers]
        found = embed_data(new.model, part, known, role=QUERY) if known else {}
        if found:
            return np.concatenate([e.vectors for e in found.values()])[:QUERIES]
    items = coll.catalog.sample(name, QUERIES)
    return new.stores[name].fetch([i.id for i in items])


def _signals(coll: "Collection", live: "OpenVersion", new: "OpenVersion", data: "Data | None") -> list[tuple[str, bytes]]:
    """Contents to time searches with: held-out rows, else items, of one modality that both models have."""
    names = [m for m in live.model.towers if m in new.model.towers]
    if data is not None:
        for m in [m for m in data.modalities if m in names]:
            rows = np.flatnonzero(data.present[m])[:QUERIES]
            return [(m, data.read(int(i), m)) for i in rows]
    for m in [m for m in coll.catalog.counts() if m in names]:
        return [(m, coll.catalog.read(i, m)) for i in coll.catalog.sample(m, QUERIES // 4)]
    return []


def _refuse(coll: "Collection", document: dict[str, Any], reasons: list[str], why: str | None) -> dict[str, Any]:
    with coll.layout.lock():
        audit_log.append(coll.layout, audit_log.event("refused", document["version"], why, reasons=reasons))
    return {**document, "reasons": reasons}


def _point(
    coll: "Collection", version: str, history: list[str], what: str, why: str | None, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Under the write lock: replace the pointer, then the journal's line."""
    audit_log.append(coll.layout)  # first what a killed writer moved without saying: this move replaces its event
    current = coll.layout.live()
    generation = current["generation"] + 1
    event = audit_log.event(what, version, why, previous=current["version"], generation=generation, **said)
    history = history[-HISTORY:]
    pointer = {"version": version, "previous": history[-1] if history else None, "history": history}
    coll.layout.point({**pointer, "generation": generation, "since": event["at"], "event": event})
    audit_log.append(coll.layout)
    return event


def rollback(coll: "Collection", why: str | None = None) -> dict[str, Any]:
    """{"version", "rolled_back": from}. Nothing is embedded: the version was kept up to date (if a writer was killed, what it
    left undone is done first). DataError when nothing was live before; ModelError when that version cannot be trusted."""
    before = coll.layout.live()
    if not before["previous"]:
        raise DataError(f"{coll.path}: nothing to roll back to; no version was live before {before['version']}")
    target = before["previous"]
    opened = coll.open(target)
    with coll.layout.lock():
        current = coll.layout.live()
        if current["generation"] != before["generation"]:
            raise DataError(f"{coll.path}: {current['version']} was made live meanwhile; look at it first")
        coll.bring(target, opened.record, opened.model)
        _point(coll, target, current["history"][:-1], "rollback", why, {})
    return {"version": target, "rolled_back": current["version"], "generation": current["generation"] + 1, "why": why}
