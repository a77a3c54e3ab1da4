"""SOURCE -> checked shards: every row is packed or listed with its reason, and the bytes depend on the source alone."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmtune import modalities
from mmtune.data.pack.columns import Job, Plan, make_plan
from mmtune.data.pack.decode_pool import Checkers
from mmtune.data.pack.resume_journal import Journal
from mmtune.data.pack.split_writer import Sink
from mmtune.data.shards.locate import KIND, SPLIT_KIND
from mmtune.data.sources.tables import open_source
from mmtune.errors import DataError
from mmtune.runtime.files import write_json, write_jsonl
from mmtune.runtime.sizes import parse_size

SCHEMA = 1
MAX_SPLITS = 64
Progress = Callable[[int, int, int, int], None]
"""Called with (rows done, packed, rejected, rows in all: an estimate)."""


def _size(option: str, size: str | int) -> int:
    try:
        return parse_size(size)
    except ValueError as e:
        raise DataError(f"{option}: {e}") from None


def pack(
    source: str | Path,
    out: str | Path,
    *,
    columns: dict[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    split: str | None = None,
    shard_size: str | int = "256MB",
    workers: int = 0,
    max_rejected: float = 0.05,
    options: dict[str, Any] | None = None,
    max_bytes: str | int = "512MB",
    timeout: float = 60.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack SOURCE into WebDataset shards in `out` (`out/<value>` for each value of the column `split`).

    `columns`: modality -> column; `id`, `group`, `split`: columns; what is not named is found by the usual names.
    `options`: limits by name as the modalities declare them. `workers`: checking processes; 0 or 1 is one, never none:
    a file that crashes its decoder, or takes longer than `timeout` seconds, costs its row and nothing else.
    A shard is closed before it would exceed `shard_size` (one larger row makes a larger shard). Killed and called again,
    it goes on; called again when finished, it checks that nothing has changed. `overwrite` starts anew where another
    pack wrote.

    Returns counts, reasons and paths. Raises DataError for an unusable source or `out`, and, after everything has been
    written, when more than the fraction `max_rejected` of the rows was rejected.
    """
    if Path(source).is_dir() and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{out}: lies inside {source}, so the shards would become a part of it; choose another --out")
    opened = open_source(source)
    plan = make_plan(opened, columns or {}, id, group, split)
    limits = _limits(plan, options or {})
    limit, most_bytes = _size("--shard-size", shard_size), _size("--max-bytes", max_bytes)
    identity = {
        "schema": SCHEMA,
        "source": opened.sha256,
        "columns": plan.columns(),
        "shard size": limit,
        "options": {**limits, "max_bytes": most_bytes},
    }
    with Journal(Path(out), identity, overwrite) as journal:
        packing = _Packing(plan, journal, limit)
        with Checkers(workers, list(plan.modalities), limits, most_bytes, timeout) as checkers:
            packing.run(checkers, progress)
        if not packing.rows:
            journal.remove()
            raise DataError(f"{source}: no rows")
        document = packing.publish(identity)
    if packing.rejected > max_rejected * packing.rows:
        worst = "; ".join(f"{n} x {r}" for r, n in list(document["reasons"].items())[:3])
        raise DataError(
            f"{packing.rejected} of {packing.rows} rows rejected, more than --max-rejected {max_rejected:g} ({worst}); "
            f"every one is listed in {document['rejected_file']}"
        )
    return document


def _limits(plan: Plan, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Modality -> all its options with their values. Raises DataError for one that no packed modality has."""
    known = {n: modalities.get(n).options for n in plan.modalities}
    for name in options:
        if not any(name in o for o in known.values()):
            raise DataError(
                f"{name}: no option of {', '.join(known)}; they have {', '.join(k for o in known.values() for k in o)}"
            )
    return {n: {k: options.get(k, o.default) for k, o in found.items()} for n, found in known.items()}


def reason_kind(reason: str) -> str:
    """A reason without its details, for counting."""
    parts = reason.split(": ")
    kind = ": ".join(parts[:2]) if parts[0] in modalities.TABLE else re.sub(r"^line \d+: ", "", reason).split(": ")[0]
    return re.split(r" \(| '", kind)[0]


class _Packing:
    """One run of `pack` over a source."""

    def __init__(self, plan: Plan, journal: Journal, limit: int):
        self.plan, self.journal, self.limit = plan, journal, limit
        self.sinks: dict[str, Sink] = {} if plan.split else {"": Sink(journal, "", limit)}
        self.nowhere: list[dict[str, Any]] = []  # rejected rows without a split
        self.seen: dict[bytes, int] = {}
        self.rows = self.packed = self.rejected = 0

    def _sink(self, split: str) -> Sink:
        if split not in self.sinks:
            if len(self.sinks) == MAX_SPLITS:
                path, column = self.plan.source.path, self.plan.split
                raise DataError(f"{path}: --split {column} has more than {MAX_SPLITS} values; is it the right column?")
            self.sinks[split] = Sink(self.journal, split, self.limit)
        return self.sinks[split]

    def _jobs(self) -> Iterator[Job]:
        for number, cells in self.plan.source.rows(set(filter(None, self.plan.columns().values()))):
            job = self.plan.job(number, cells)
            job.settled = job.split is not None and self._sink(job.split).settled(number)
            yield job

    def run(self, checkers: Checkers, progress: Progress | None) -> None:
        """All rows, in order, into their sinks."""
        try:
            for job in checkers.run(self._jobs()):
                self._account(job)
                if progress:
                    progress(self.rows, self.packed, self.rejected, self.plan.source.total)
            for sink in self.sinks.values():
                sink.finish()
        except BaseException:
            for sink in self.sinks.values():
                sink.abort()
            raise

    def _account(self, job: Job) -> None:
        self.rows += 1
        assert self.rows == job.row, "rows come in order and none is lost"
        sink = self.sinks[job.split] if job.split is not None else None
        if sink and job.settled:
            sink.recall(job)
        key = blake2b(job.id.encode(), digest_size=8).digest()
        if not job.reason and not job.settled and key in self.seen:
            job.reason = f"duplicate id {job.id!r} (row {self.seen[key]} has it)"
        if sink:
            sink.take(job)
        else:
            self.nowhere.append({"row": job.row, "file": job.file, "reason": job.reason})
        if job.reason:
            self.rejected += 1
        else:
            self.seen[key] = job.row
            self.packed += 1

    def publish(self, identity: dict[str, Any]) -> dict[str, Any]:
        """rejected.jsonl, then each index.json, the one at the top last. Returns pack's result."""
        out, plan = self.journal.out, self.plan
        rejected = sorted([*self.nowhere, *(r for s in self.sinks.values() for r in s.all_rejected)], key=lambda r: r["row"])
        shards = sum(len(s.shards) for s in self.sinks.values())
        assert self.rows == self.packed + self.rejected and len(rejected) == self.rejected
        assert self.packed == sum(s["rows"] for sink in self.sinks.values() for s in sink.shards)
        reasons = dict(Counter(reason_kind(r["reason"]) for r in rejected).most_common())
        present = [n for n in plan.modalities if any(s.present[n] for s in self.sinks.values())]
        if not (out / "index.json").exists():
            self.journal.tidy([e for s in self.sinks.values() for e in s.entries])
            source = {"name": plan.source.path.name, "kind": plan.source.kind, "sha256": plan.source.sha256}
            common = {"schema": SCHEMA, "columns": plan.columns(), "meta": plan.meta, "source": source}
            common |= {"shard_size": self.limit, "options": identity["options"]}
            write_jsonl(out / "rejected.jsonl", rejected)
            for name, sink in self.sinks.items():
                mine = dict(Counter(reason_kind(r["reason"]) for r in sink.all_rejected).most_common())
                found = {"modalities": [n for n in plan.modalities if sink.present[n]], "reasons": mine}
                write_json(out / name / "index.json", {"kind": KIND, **common, **found, **sink.describe()})
            if plan.split:
                counts = {"rows": self.rows, "packed": self.packed, "rejected": self.rejected, "reasons": reasons}
                splits = {n: {"packed": s.packed, "rejected": len(s.all_rejected)} for n, s in sorted(self.sinks.items())}
                write_json(
                    out / "index.json", {"kind": SPLIT_KIND, **common, "modalities": present, **counts, "splits": splits}
                )
        splits = {n: _counts(s, str(out / n)) for n, s in sorted(self.sinks.items())} if plan.split else {}
        return {
            "out": str(out),
            "rows": self.rows,
            "packed": self.packed,
            "rejected": self.rejected,
            "shards": shards,
            "modalities": present,
            "splits": splits,
            "reasons": reasons,
            "rejected_file": os.path.join(out, "rejected.jsonl"),
        }


def _counts(sink: Sink, out: str) -> dict[str, Any]:
    rejected = len(sink.all_rejected)
    return {"out": out, "rows": sink.packed + rejected, "packed": sink.packed, "rejected": rejected, "shards": len(sink.shards)}
