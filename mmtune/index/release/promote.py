"""Promote a version to live after a series of checks, and roll back to the previous one.

The checks of a promotion are:
    1. The version is complete, and its model and vectors are unchanged. `force` cannot override this check.
    2. The recall of the index against exact search is high enough.
    3. The version contains the same items as the live version.
    4. A search is not much slower than on the live version.
    5. The new model passes the gate of `mmtune compare` on held-out queries.
`force`, together with a reason, overrides checks 2 to 5. The live pointer is a single file, which is replaced atomically.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError, ModelError
from mmtune.index import audit_log
from mmtune.index.collection_layout import CollectionLayout, LivePointer, now
from mmtune.index.collection_results import GateCheck, ItemCheck, PromotionChecks, PromotionResult, RollbackResult
from mmtune.index.item_catalog import Catalog, ContentReplaced
from mmtune.index.monitoring.gate_queries import keep_gate_queries
from mmtune.index.release.index_quality import index_recall, search_latencies, stored_vectors
from mmtune.index.release.offline_eval import EvaluationOptions, compare_held_out
from mmtune.index.version_pool import VersionPool
from mmtune.index.version_updates import VersionUpdates
from mmtune.runtime.files import write_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.stores import Store

QUERIES = 64
"""Number of searches to measure recall and latency with."""
HISTORY = 50
"""Number of earlier live versions that are remembered for rollbacks."""
SLACK_MS = 5.0
"""A search may always be slower by this many milliseconds; smaller differences are measurement noise."""


@dataclass(frozen=True)
class PromotionOptions:
    """Options of a promotion.

    evaluation: how the new and the live version are compared.
    min_recall: smallest allowed recall@10 of the index against exact search.
    max_slowdown: largest allowed ratio of the median search latency to that of the live version.
    force: promote even if checks fail.
    why: the reason; recorded in the audit log. Required with `force`.
    """

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
        """Make `version` live if it passes all checks. Promotions and refusals are recorded in the audit log.

        queries: held-out data for the gate. Required when the live version has another model, unless options.force is set.

        Raises DataError when another process moves the live pointer during the checks.
        """
        force, why = options.force, options.why
        if force and not (why or "").strip():
            raise DataError("promote: --force needs --why REASON; the reason is recorded in the audit log")
        before = self.layout.live()
        record = self.layout.record(version)
        if before["version"] == version:
            for modality in record["modalities"] if record["store"].get("url") else ():
                with self.pool.store(record, modality) as store:  # its alias may have been moved, or the collection restored
                    publish_store(store)
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
        keep_gate_queries(self.layout, before["version"], new, queries)
        with self.layout.lock():
            current = self._unmoved(before)
            self.updates.update(new.record, new.model)
            gate = None if checks.gate is None else checks.gate.to_dict()
            history = [*current["history"], *([current["version"]] if current["version"] else [])]
            self._move_pointer(new, history, "promote", why, reasons=reasons, forced=bool(reasons), gate=gate)
        return replace(refusal, promoted=True, reasons=reasons, forced=bool(reasons))

    def rollback(self, why: str | None = None) -> RollbackResult:
        """Make the previously live version live again.

        The version has been kept up to date, so usually nothing is embedded. Only after a killed write, the missing changes
        are applied first.

        Raises DataError when no version was live before, and ModelError when that version fails verification.
        """
        before = self.layout.live()
        live, target = before["version"], before["previous"]
        if not live or not target:
            raise DataError(
                f"{self.layout.path}: nothing to roll back to; no earlier version was live (now: {live}). Any other version becomes live with "
                f"`mmtune index promote {self.layout.path} VERSION`"
            )
        opened = self.pool.open(target)
        with self.layout.lock():
            current = self._unmoved(before)
            self.updates.update(opened.record, opened.model)
            self._move_pointer(opened, current["history"][:-1], "rollback", why)
        return RollbackResult(target, live, current["generation"] + 1, why)

    def _unmoved(self, before: LivePointer) -> LivePointer:
        """Return the live pointer. The caller must hold the write lock.

        Raises DataError when the pointer was moved since `before` was read.
        """
        current = self.layout.live()
        if current["generation"] != before["generation"]:
            raise DataError(
                f"{self.layout.path}: {current['version']} was made live meanwhile by another process; check it with "
                "`mmtune index status`, then try again"
            )
        return current

    def _open_verified(self, version: str) -> "OpenVersion":
        """Reopen a version from its files, bring it up to date, and verify it: its canaries (stored inputs that are embedded again and
        must give their stored embeddings) and all its stored vectors (compared with the cached embeddings)."""
        self.updates.update_all()
        opened = self.pool.reopen(version)
        if self.catalog.seq > self.layout.applied_seq(version):
            with self.layout.lock():
                self.updates.update(opened.record, opened.model)
        self.pool.verify(opened, all_vectors=True)
        damaged = [f for store in opened.stores.values() for f in getattr(store, "damaged_files", list)()]
        if damaged:
            raise DataError(f"{damaged[0]}; run `mmtune index repair {self.layout.path}`")
        return opened

    def _check(
        self, before: LivePointer, new: "OpenVersion", data: "Data | None", options: PromotionOptions
    ) -> tuple[PromotionChecks, list[str]]:
        """Run checks 2 to 5; return (measurements, reasons against the promotion)."""
        recall = {m: index_recall(s, self._recall_queries(new, data, m)) for m, s in new.stores.items()}
        reasons = [
            f"the {m} index finds {value:.3f} of what exact search finds, {options.min_recall} is required; build it again with "
            "another --index, or lower --min-recall"
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
        if other_items:  # compare again under the lock: a concurrent write may have reached only one of them
            with self.layout.lock():
                for version in (live, new):
                    self.updates.update(version.record, version.model)
                items, other_items = compare_items(live, new)
        latency = dict(zip(("live", "new"), search_latencies([live, new], self._values(live, new, data)), strict=True))
        checks = replace(checks, items=items, latency_ms=latency)
        reasons += other_items
        new_ms, live_ms = (latency[k].get("p50", 0.0) for k in ("new", "live"))
        if new_ms > options.max_slowdown * live_ms + SLACK_MS:
            reasons.append(
                f"a search takes {new_ms:.1f} ms, and {live_ms:.1f} ms on {live.version}: more than {options.max_slowdown:g} "
                "times as long"
            )
        gate, refused = self._gate(live, new, data, options)
        return replace(checks, gate=gate), reasons + refused

    def _gate(
        self, live: "OpenVersion", new: "OpenVersion", data: "Data | None", options: PromotionOptions
    ) -> tuple[GateCheck | None, list[str]]:
        """Run the gate; return (its verdict, reasons against the promotion)."""
        if live.fingerprint == new.fingerprint:
            return GateCheck("same model", "both versions have the same model fingerprint; only the index is new"), []
        if data is None:
            return None, [
                "another model than the live version's, and no queries to compare them on; add held-out queries with "
                "--queries DATA"
            ]
        try:
            compared, scope = compare_held_out(self.layout, self.catalog, live, new, data, options.evaluation)
        except DataError as e:
            if not options.force:
                raise
            return None, [f"the gate could not be evaluated: {e}"]
        directions, slices = compared.changes
        gate = GateCheck(
            verdict=compared.verdict,
            reason=compared.reason,
            scope=scope,
            gate=compared.gate.to_dict(),
            directions={n: c.to_dict() for n, c in directions.items()},
            slices={n: c.to_dict() for n, c in slices.items()},
        )
        return gate, [] if compared.verdict == "pass" else [f"gate: {compared.verdict}: {compared.reason}"]

    def _recall_queries(self, new: "OpenVersion", data: "Data | None", name: str) -> np.ndarray:
        """Return query vectors [Q, D] to measure the recall of one index with: held-out rows if given, else stored items."""
        from mmtune.embedding.embed_rows import embed_data
        from mmtune.model.prompts import QUERY

        if data is not None:
            part = data.subset(range(min(len(data), QUERIES)))
            known = [m for m in part.modalities if m in new.model.towers]
            embeddings = embed_data(new.model, part, known, role=QUERY) if known else {}
            if embeddings:
                return np.concatenate([e.vectors for e in embeddings.values()])[:QUERIES]
        items = self.catalog.sample(name, QUERIES)
        return stored_vectors(new.stores[name], [i.id for i in items])

    def _values(self, live: "OpenVersion", new: "OpenVersion", data: "Data | None") -> list[tuple[str, bytes]]:
        """Return (modality, query value) pairs to measure latency with, in one modality that both models have.

        The values are held-out rows if given, else items of the collection.
        """
        names = [m for m in live.model.towers if m in new.model.towers]
        if data is not None:
            for m in [m for m in data.modalities if m in names]:
                rows = np.flatnonzero(data.present[m])[:QUERIES]
                return [(m, data.read(int(i), m)) for i in rows]
        for m in [m for m in self.catalog.counts() if m in names]:
            values = []
            for item in self.catalog.sample(m, QUERIES // 4):
                with contextlib.suppress(ContentReplaced):  # by a writer, meanwhile
                    values.append((m, self.catalog.read(item, m)))
            return values
        return []

    def _refuse(self, refusal: PromotionResult, reasons: Sequence[str]) -> PromotionResult:
        """Record a refusal in the audit log; return it with its reasons."""
        with self.layout.lock():
            event = audit_log.event("refused", refusal.version, refusal.why, reasons=list(reasons))
            audit_log.append(self.layout, event)
        return replace(refusal, reasons=reasons)

    def _move_pointer(self, opened: "OpenVersion", history: list[str], action: str, why: str | None, **extra: object) -> None:
        """Replace the live pointer, then append its event to the audit log. The caller must hold the write lock.

        Aliases in databases are moved first: after a kill in between, the command is repeated, and moves what is left.

        action, extra: see `audit_log.event`.
        """
        audit_log.append(self.layout)  # log a move that a killed writer left unlogged, before its event is overwritten
        current = self.layout.live()
        generation = current["generation"] + 1
        event = audit_log.event(action, opened.version, why, previous=current["version"], generation=generation, **extra)
        history = history[-HISTORY:]
        pointer: LivePointer = {
            "version": opened.version,
            "previous": history[-1] if history else None,
            "history": history,
            "generation": generation,
            "since": event["at"],
            "event": event,
        }
        for store in opened.stores.values():
            publish_store(store)
        self.layout.set_live(pointer)
        audit_log.append(self.layout)


def publish_store(store: "Store") -> None:
    """Let the alias of a store in its database name it, if it has one (see `Store`)."""
    getattr(store, "publish", lambda: None)()


def compare_items(live: "OpenVersion", new: "OpenVersion") -> tuple[ItemCheck, list[str]]:
    """Compare the ids in the indexes of two versions; return (comparison, reasons against the promotion).

    A difference is no reason if the versions index different modalities, because that explains it.
    """
    a, b = ({i for s in version.stores.values() for i in s.ids()} for version in (live, new))
    check = ItemCheck(len(a), len(b), len(a - b), len(b - a))
    if a == b:
        return check, []
    if set(live.stores) != set(new.stores):
        explained = f"{live.version} indexes {', '.join(live.stores)}; {new.version} {', '.join(new.stores)}"
        return replace(check, explained=explained), []
    example = min(a ^ b)
    return check, [
        f"different items: {check.only_live} only in {live.version}, {check.only_new} only in {new.version}, e.g. {example!r}"
    ]
