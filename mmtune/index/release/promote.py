"""Promote and roll back: which version is live, after checks, in one step.

A promotion checks, in this order: is the version complete and its model the one that embedded it (`force` does not override
this); does the index return what exact search returns; is the new model better on held-out queries, by the gate of
`mmtune compare`; is a search not much slower. `force` with a reason overrides all but the first. The live pointer is one file
that is replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout, LivePointer, now
from mmtune.index.collection_results import GateCheck, ItemCheck, PromotionChecks, PromotionResult, RollbackResult
from mmtune.index.item_catalog import Catalog
from mmtune.index.release.index_quality import index_recall, search_latencies
from mmtune.index.release.offline_eval import EvaluationOptions, compare_held_out
from mmtune.index.version_pool import VersionPool
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.files import write_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion

QUERIES = 64
"""Searches that recall and latency are measured with."""
HISTORY = 50
"""Versions that one can roll back through."""
SLACK_MS = 5.0
"""A difference of latency that never counts."""


@dataclass(frozen=True)
class PromotionOptions:
    """evaluation: how the gate compares; min_recall: of the index against exact search; max_slowdown: times the live version's
    median latency; force: promote in spite of reasons; why: kept in the audit log."""

    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    min_recall: float = 0.95
    max_slowdown: float = 2.0
    force: bool = False
    why: str | None = None


class Promoter:
    """Moves the live pointer of one collection."""

    def __init__(self, layout: CollectionLayout, catalog: Catalog, pool: VersionPool, updates: VersionUpdates):
        self.layout, self.catalog, self.pool, self.updates = layout, catalog, pool, updates

    def promote(self, version: str, queries: "Data | None", options: PromotionOptions) -> PromotionResult:
        """Make `version` live when it passes. queries: held-out data; without it nothing is promoted over a live version of
        another model, except by `force`. A refusal is logged too. DataError when another process moved the pointer
        meanwhile."""
        force, why = options.force, options.why
        if force and not (why or "").strip():
            raise DataError("promote: --force needs --why: the journal keeps the reason")
        before = self.layout.live()
        self.layout.record(version)
        if before["version"] == version:
            return PromotionResult(False, version, before["previous"], [f"{version} is live already"])
        refusal = PromotionResult(False, version, before["version"], why=why)
        try:
            new = self._open_verified(version)
        except (ModelError, DataError) as e:
            return self._refuse(refusal, [str(e)])
        checks, reasons = self._check(before, new, queries, options)
        refusal = replace(refusal, checks=checks)
        gate_file = {"at": now(), "against": before["version"], "reasons": reasons, **checks.to_dict()}
        write_json(self.layout.directory(version) / "gate.json", gate_file)
        if reasons and not force:
            return self._refuse(refusal, reasons)
        with self.layout.lock():
            current = self._unmoved(before)
            self.updates.update(new.record, new.model)
            gate = None if checks.gate is None else checks.gate.to_dict()
            history = [*current["history"], *([current["version"]] if current["version"] else [])]
            self._move_pointer(version, history, "promote", why, reasons=reasons, forced=bool(reasons), gate=gate)
        return replace(refusal, promoted=True, reasons=reasons, forced=bool(reasons))

    def rollback(self, why: str | None = None) -> RollbackResult:
        """Make the previous version live again. Nothing is embedded: the version was kept up to date (if a writer was killed,
        what it left undone is done first). DataError when there is none; ModelError when that version does not verify."""
        before = self.layout.live()
        live, target = before["version"], before["previous"]
        if not live or not target:
            raise DataError(f"{self.layout.path}: nothing to roll back to; no version was live before {live}")
        opened = self.pool.open(target)
        with self.layout.lock():
            current = self._unmoved(before)
            self.updates.update(opened.record, opened.model)
            self._move_pointer(target, current["history"][:-1], "rollback", why)
        return RollbackResult(target, live, current["generation"] + 1, why)

    def _unmoved(self, before: LivePointer) -> LivePointer:
        """Under the write lock: the pointer, which must not have moved since `before` was read."""
        current = self.layout.live()
        if current["generation"] != before["generation"]:
            raise DataError(f"{self.layout.path}: {current['version']} was made live meanwhile; look at it, and try again")
        return current

    def _open_verified(self, version: str) -> "OpenVersion":
        """The version, opened from its files as if for the first time and brought up to date; its canaries and every stored
        vector are verified."""
        self.updates.update_all()
        opened = self.pool.reopen(version)
        if self.catalog.seq > self.layout.applied_seq(version):
            with self.layout.lock():
                self.updates.update(opened.record, opened.model)
        self.pool.verify(opened, all_vectors=True)
        return opened

    def _check(
        self, before: LivePointer, new: "OpenVersion", data: "Data | None", options: PromotionOptions
    ) -> tuple[PromotionChecks, list[str]]:
        """(what was measured, the reasons against)."""
        recall = {m: index_recall(s, self._recall_queries(new, data, m)) for m, s in new.stores.items()}
        reasons = [
            f"the {m} index finds {value:.3f} of what exact search finds, {options.min_recall} is required"
            for m, value in recall.items()
            if value < options.min_recall
        ]
        checks = PromotionChecks(recall)
        if before["version"] is None:
            return checks, reasons
        try:
            live = self.pool.open(before["version"])
        except (ModelError, DataError) as e:
            return checks, [*reasons, f"the live version cannot be compared with: {e}"]
        items, other_items = compare_items(live, new)
        latency = dict(zip(("live", "new"), search_latencies([live, new], self._values(live, new, data)), strict=True))
        checks = replace(checks, items=items, latency_ms=latency)
        reasons += other_items
        new_ms, live_ms = (latency[k].get("p50", 0.0) for k in ("new", "live"))
        if new_ms > options.max_slowdown * live_ms + SLACK_MS:
            reasons.append(
                f"a search takes {new_ms:.1f} ms, {live_ms:.1f} ms on {live.version}: more than {options.max_slowdown:g} times "
                "as long"
            )
        gate, refused = self._gate(live, new, data, options)
        return replace(checks, gate=gate), reasons + refused

    def _gate(
        self, live: "OpenVersion", new: "OpenVersion", data: "Data | None", options: PromotionOptions
    ) -> tuple[GateCheck | None, list[str]]:
        """(the gate's verdict, the reasons against)."""
        if live.fingerprint == new.fingerprint:
            return GateCheck("same model", "the same fingerprint: only the index is new"), []
        if data is None:
            return None, ["another model, and nothing to judge it by: name held-out queries with --queries DATA"]
        try:
            compared, scope = compare_held_out(self.layout, self.catalog, live, new, data, options.evaluation)
        except DataError as e:
            if not options.force:
                raise
            return None, [f"the gate could not judge: {e}"]
        gate = GateCheck(
            verdict=compared.verdict,
            reason=compared.reason,
            scope=scope,
            gate=compared.gate.to_dict(),
            directions={n: c.to_dict() for n, c in compared.directions.items()},
            slices={n: c.to_dict() for n, c in compared.slices.items()},
        )
        return gate, [] if compared.verdict == "pass" else [f"gate: {compared.verdict}: {compared.reason}"]

    def _recall_queries(self, new: "OpenVersion", data: "Data | None", name: str) -> np.ndarray:
        """Vectors [Q, D] to measure the recall of one index with: held-out rows, else stored items."""
        from mmtune.embedding.embed_rows import embed_data
        from mmtune.model.prompts import QUERY

        if data is not None:
            part = data.subset(range(min(len(data), QUERIES)))
            known = [m for m in part.modalities if m in new.model.towers]
            embeddings = embed_data(new.model, part, known, role=QUERY) if known else {}
            if embeddings:
                return np.concatenate([e.vectors for e in embeddings.values()])[:QUERIES]
        items = self.catalog.sample(name, QUERIES)
        return new.stores[name].fetch([i.id for i in items])

    def _values(self, live: "OpenVersion", new: "OpenVersion", data: "Data | None") -> list[tuple[str, bytes]]:
        """Query values to measure latency with: held-out rows, else items, of one modality that both models have."""
        names = [m for m in live.model.towers if m in new.model.towers]
        if data is not None:
            for m in [m for m in data.modalities if m in names]:
                rows = np.flatnonzero(data.present[m])[:QUERIES]
                return [(m, data.read(int(i), m)) for i in rows]
        for m in [m for m in self.catalog.counts() if m in names]:
            return [(m, self.catalog.read(i, m)) for i in self.catalog.sample(m, QUERIES // 4)]
        return []

    def _refuse(self, refusal: PromotionResult, reasons: Sequence[str]) -> PromotionResult:
        """Log a refusal."""
        with self.layout.lock():
            event = audit_log.event("refused", refusal.version, refusal.why, reasons=list(reasons))
            audit_log.append(self.layout, event)
        return replace(refusal, reasons=reasons)

    def _move_pointer(self, version: str, history: list[str], what: str, why: str | None, **more: object) -> None:
        """Under the write lock: replace the pointer, then write the line of the audit log."""
        audit_log.append(self.layout)  # first the move that a killed writer did not log: this move replaces its event
        current = self.layout.live()
        generation = current["generation"] + 1
        event = audit_log.event(what, version, why, previous=current["version"], generation=generation, **more)
        history = history[-HISTORY:]
        pointer: LivePointer = {
            "version": version,
            "previous": history[-1] if history else None,
            "history": history,
            "generation": generation,
            "since": event["at"],
            "event": event,
        }
        self.layout.set_live(pointer)
        audit_log.append(self.layout)


def compare_items(live: "OpenVersion", new: "OpenVersion") -> tuple[ItemCheck, list[str]]:
    """The sets of ids that two versions hold, and the reason against where they differ; there is none when different modalities
    are indexed, which explains it."""
    a, b = ({i for s in version.stores.values() for i in s.ids()} for version in (live, new))
    check = ItemCheck(len(a), len(b), len(a - b), len(b - a))
    if a == b:
        return check, []
    if set(live.stores) != set(new.stores):
        explained = f"{live.version} indexes {', '.join(live.stores)}; {new.version} {', '.join(new.stores)}"
        return replace(check, explained=explained), []
    example = min(a ^ b)
    return check, [
        f"other items: {check.only_live} only in {live.version}, {check.only_new} only in {new.version}, e.g. {example!r}"
    ]
