"""Check a source and pack it into shards. Every row is either packed, or rejected and listed with the reason.

Packing the same source with the same options always gives the same bytes.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.pack.columns import ColumnRoles, PackRow
from mmtune.data.pack.decode_pool import DecodePool
from mmtune.data.pack.drop_list import read_drop_ids
from mmtune.data.pack.pair_rows import PairRows, assign_pair_columns
from mmtune.data.pack.pair_tables import NegativeCounts
from mmtune.data.pack.ray_pool import RayDecodePool
from mmtune.data.pack.resume_journal import PackJournal, RejectedRow
from mmtune.data.pack.split_writer import SplitWriter, rejected_row
from mmtune.data.shards.shard_index import FORMAT, KIND, SPLIT_KIND
from mmtune.data.sources.memory_rows import InMemory, memory_source
from mmtune.data.sources.row_source import RowSource, open_source
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import refuse_url, write_json, write_jsonl
from mmtune.runtime.ray_cluster import Engine
from mmtune.runtime.results import ResultFields
from mmtune.runtime.sizes import parse_size

ROW_RULES = 2
"""Version of the rules that make rows, ids and groups from a source. A pack that was started under other rules is not resumed."""
MAX_SPLITS = 64
"""Maximum number of values of the split column; more of them suggest that the wrong column was named."""
ProgressCallback = Callable[[int, int, int, int], None]
"""Function that is called with (rows done, packed, rejected, estimated total number of rows)."""


@dataclass(frozen=True)
class SplitCounts:
    """The counts of one split, i.e. one value of the split column. `out` is its directory."""

    out: str
    rows: int
    packed: int
    rejected: int
    shards: int
    dropped: int = 0


@dataclass(frozen=True)
class PackResult(ResultFields):
    """The result of `pack`.

    out: output directory
    rows: number of rows; the sum of packed, rejected and dropped
    shards: number of shards
    modalities: modalities of which at least one value was packed
    splits: split -> its counts; empty without a split column
    reasons: kind of reason -> number of rejected rows, most frequent first
    rejected_file: file that lists the rejected rows
    list_rows: number of rows made from list values other than the first of each list
    dropped: number of rows left out because their ids are listed in the file `drop`
    repeated: number of source rows that repeat an earlier row's query and positive, so that only their negatives were added
    negatives: counts of the explicit negatives and graded judgments of the source
    """

    out: str
    rows: int
    packed: int
    rejected: int
    shards: int
    modalities: list[str]
    splits: dict[str, SplitCounts]
    reasons: dict[str, int]
    rejected_file: str
    list_rows: int = 0
    dropped: int = 0
    repeated: int = 0
    negatives: NegativeCounts = field(default_factory=NegativeCounts)

    def to_dict(self) -> JsonObject:
        """The result as data that JSON can represent."""
        return asdict(self)


def _size(option: str, size: str | int) -> int:
    try:
        return parse_size(size)
    except ValueError as e:
        raise DataError(f"{option}: {e}") from None


def pack(
    source: "str | Path | InMemory",
    out: str | Path,
    *,
    columns: dict[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    split: str | None = None,
    query: str | None = None,
    positive: str | None = None,
    negatives: Sequence[str] = (),
    score: str | None = None,
    shard_size: str | int = "256MB",
    workers: int = 0,
    max_rejected: float = 0.05,
    options: JsonObject | None = None,
    max_bytes: str | int = "512MB",
    timeout: float = 60.0,
    overwrite: bool = False,
    drop: str | Path | None = None,
    engine: Engine = "here",
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Check a source and pack it into WebDataset shards; see `mmtune.pack` for the parameters.

    Resumable: call it again with the same arguments after an interruption. If the pack is complete, a further call checks that the
    source has not changed. Raises DataError if the source or `out` cannot be used. Also raises DataError if more than the fraction
    `max_rejected` of the rows was rejected; the shards are complete in this case.
    """
    drop_ids = read_drop_ids(Path(drop)) if drop is not None else frozenset[str]()
    opened = _open(source, out)
    source = opened.path
    roles = assign_pair_columns(
        opened, columns or {}, id, group, split, query=query, positive=positive, negatives=negatives, score=score
    )
    limits = _limits(roles, options or {})
    shard_bytes, value_bytes = _size("--shard-size", shard_size), _size("--max-bytes", max_bytes)
    identity: JsonObject = {
        "schema": FORMAT,
        "row rules": ROW_RULES,
        "source": opened.sha256,
        "columns": roles.by_role(),
        "shard size": shard_bytes,
        "options": {**limits, "max_bytes": value_bytes},
    }
    if roles.numbers:
        identity["numbers"] = sorted(roles.numbers)
    dropped = "\n".join(sorted(drop_ids)).encode("utf-8", "replace")
    identity["dropped ids"] = sha256(dropped).hexdigest() if drop_ids else None
    with PackJournal(Path(out), identity, overwrite) as journal:
        run = _PackRun(roles, journal, shard_bytes, drop_ids)
        pool_class: type[DecodePool] | type[RayDecodePool] = RayDecodePool if engine == "ray" else DecodePool
        with pool_class(workers, list(roles.modalities), limits, value_bytes, timeout) as pool:
            run.pack_rows(pool, progress)
        if not run.rows:
            journal.remove()
            raise DataError(f"{source}: no rows")
        result = run.publish(identity)
    unknown = sorted(drop_ids - run.dropped_ids)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        warnings.warn(f"{drop}: no row of {source} has the id {unknown[0]!r}{more}", DataWarning, stacklevel=2)
    for line in run.notes():
        warnings.warn(f"{source}: {line}", DataWarning, stacklevel=2)
    if run.rejected > max_rejected * run.rows:
        most_frequent = "; ".join(f"{n} x {r}" for r, n in list(result.reasons.items())[:3])
        raise DataError(
            f"{run.rejected} of {run.rows} rows rejected, more than --max-rejected {max_rejected:g} ({most_frequent}); "
            f"every one is listed in {result.rejected_file}"
        )
    return result


def _open(source: "str | Path | InMemory", out: str | Path) -> RowSource:
    """Open the source. Raises DataError if `out` is inside it, or a URL."""
    refuse_url(out, "--out")
    if not isinstance(source, str | Path):
        return memory_source(source)
    if Path(source).is_dir() and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise DataError(
            f"{out}: is inside the source {source}, so shards would become part of the source; choose another --out"
        )
    return open_source(source)


def _limits(roles: ColumnRoles, options: JsonObject) -> dict[str, JsonObject]:
    """Return modality -> the values of all its limits. Raises DataError for an option that no packed modality has."""
    declared = {n: modalities.get(n).options for n in roles.modalities}
    for name in options:
        if not any(name in o for o in declared.values()):
            raise DataError(
                f"{name}: no option of {', '.join(declared)}; they have {', '.join(k for o in declared.values() for k in o)}"
            )
    return {n: {k: options.get(k, o.default) for k, o in of_modality.items()} for n, of_modality in declared.items()}


def reason_kind(reason: str) -> str:
    """Strip the details from a reason of rejection, so that equal kinds of reasons can be counted."""
    parts = reason.split(": ")
    kind = ": ".join(parts[:2]) if parts[0] in modalities.TABLE else re.sub(r"^line \d+: ", "", reason).split(": ")[0]
    return re.split(r" \(| '", kind)[0]


def _reason_counts(rejected: list[RejectedRow]) -> dict[str, int]:
    return dict(Counter(reason_kind(r["reason"]) for r in rejected).most_common())


class _PackRun:
    """One run of `pack`: passes the rows of the source, in order, to the writer of their split."""

    def __init__(self, roles: ColumnRoles, journal: PackJournal, shard_size: int, drop_ids: frozenset[str]):
        self.drop_ids, self.dropped_ids, self.dropped = drop_ids, set[str](), Counter[str]()
        self.roles, self.journal, self.shard_size = roles, journal, shard_size
        self.writers: dict[str, SplitWriter] = {} if roles.split else {"": SplitWriter(journal, "", shard_size)}
        self.without_split: list[RejectedRow] = []
        self.rows = self.packed = self.rejected = 0
        self.reencoded: Counter[str] = Counter()
        self.negatives = NegativeCounts()
        self.of_split: dict[str, NegativeCounts] = {}
        self._row_of_id: dict[bytes, int] = {}

    def _writer(self, split: str) -> SplitWriter:
        if split not in self.writers:
            if len(self.writers) == MAX_SPLITS:
                path, column = self.roles.source.path, self.roles.split
                raise DataError(f"{path}: --split {column} has more than {MAX_SPLITS} values; is it the right column?")
            self.writers[split] = SplitWriter(self.journal, split, self.shard_size)
        return self.writers[split]

    def _source_rows(self) -> Iterator[PackRow]:
        number = 1
        for source_row, cells in self.roles.source.rows(set(filter(None, self.roles.by_role().values()))):
            for row in self.roles.rows(source_row, cells, number):
                number += 1
                row.dropped = row.id in self.drop_ids
                row.settled = row.split is not None and self._writer(row.split).is_settled(row.number)
                yield row

    def pack_rows(self, pool: DecodePool | RayDecodePool, progress: ProgressCallback | None) -> None:
        """Check all rows and write them. On any exception, Ctrl-C included, unfinished shards are removed."""
        try:
            for row in pool.check(self._source_rows()):
                self._add(row)
                if progress:
                    progress(self.rows, self.packed, self.rejected, self.roles.source.total)
            for writer in self.writers.values():
                writer.finish()
        except BaseException:
            for writer in self.writers.values():
                writer.abort()
            raise

    def _add(self, row: PackRow) -> None:
        self.rows += 1
        assert self.rows == row.number, "rows must arrive in order and without gaps"
        if row.dropped:
            self.dropped[row.split or ""] += 1
            self.dropped_ids.add(row.id)
            return
        writer = self.writers[row.split] if row.split is not None else None
        if writer and row.settled:
            writer.restore_verdict(row)
        key = blake2b(row.id.encode(), digest_size=8).digest()
        if row.reason is None and not row.settled and key in self._row_of_id:
            row.reason = f"duplicate id {row.id!r} (row {self._row_of_id[key]} has it)"
        if writer:
            writer.add(row)
        else:
            self.without_split.append(rejected_row(row))
        if row.reason is not None:
            self.rejected += 1
        else:
            self._row_of_id[key] = row.source_row
            self.packed += 1
            self.reencoded.update(f"{name} values {changed}" for name, changed in row.reencoded.items())

    def notes(self) -> list[str]:
        """Messages for the user about what was changed or not used."""
        lost, names = self.negatives.lost, self.roles.media_names
        lines = [f"{count} {what}" for what, count in self.reencoded.items()]
        lines += [
            f"{count} rows have the name of a media file in the column {column!r}, which is packed as metadata; "
            f"name its modality, e.g. --{modalities.non_language(modalities.names())[0]} {column}"
            for column, count in names.items()
        ]
        if lost:
            first = self.negatives.first_lost
            lines.append(
                f"{lost} negatives are not used, because their row or their query's row was not packed (first: row {first})"
            )
        return lines

    def _write_pair_tables(self) -> None:
        """Write the explicit negatives and the judgments of every split beside its shards."""
        if isinstance(self.roles, PairRows):
            for name, writer in self.writers.items():
                counts = self.roles.tables.write(name, writer.folder, self._is_packed)
                self.of_split[name] = counts
            self.negatives = self.roles.tables.counts

    def _is_packed(self, id: str) -> bool:
        return blake2b(id.encode(), digest_size=8).digest() in self._row_of_id

    def publish(self, identity: JsonObject) -> PackResult:
        """Write rejected.jsonl and the index.json of each split. The top-level index.json is written last: it marks completion."""
        out, roles = self.journal.out, self.roles
        self._write_pair_tables()
        rejected = sorted(
            [*self.without_split, *(r for w in self.writers.values() for r in w.rejected)],
            key=lambda r: (r["row"], r.get("item", 0)),
        )
        assert self.rows == self.packed + self.rejected + self.dropped.total() and len(rejected) == self.rejected
        assert self.packed == sum(s["rows"] for w in self.writers.values() for s in w.shards)
        splits = (
            {n: _split_counts(w, str(out / n), self.dropped[n]) for n, w in sorted(self.writers.items())} if roles.split else {}
        )
        result = PackResult(
            str(out),
            self.rows,
            self.packed,
            self.rejected,
            shards=sum(len(w.shards) for w in self.writers.values()),
            modalities=[n for n in roles.modalities if any(w.modality_counts[n] for w in self.writers.values())],
            splits=splits,
            reasons=_reason_counts(rejected),
            rejected_file=os.path.join(out, "rejected.jsonl"),
            list_rows=roles.list_rows,
            dropped=self.dropped.total(),
            repeated=roles.repeated if isinstance(roles, PairRows) else 0,
            negatives=self.negatives,
        )
        if not (out / "index.json").exists():
            self.journal.rewrite_sorted([e for w in self.writers.values() for e in w.entries])
            write_jsonl(out / "rejected.jsonl", rejected)
            self._write_indexes(identity, result)
        return result

    def _write_indexes(self, identity: JsonObject, result: PackResult) -> None:
        out, roles = self.journal.out, self.roles
        source = {"name": roles.source.path.name, "kind": roles.source.kind, "sha256": roles.source.sha256}
        common = {"schema": FORMAT, "columns": roles.by_role(), "meta": roles.meta, "source": source}
        common |= {"numbers": sorted(roles.numbers)}
        common |= {"shard_size": self.shard_size, "options": identity["options"]}
        for name, writer in self.writers.items():
            packed = [n for n in roles.modalities if writer.modality_counts[n]]
            own = {"modalities": packed, "reasons": _reason_counts(writer.rejected), **writer.index()}
            own |= {"rows": writer.packed + len(writer.rejected) + self.dropped[name], "dropped": self.dropped[name]}
            if name in self.of_split:
                own["negatives"] = asdict(self.of_split[name])
            write_json(out / name / "index.json", {"kind": KIND, **common, **own})
        if roles.split:
            counts = {"rows": self.rows, "packed": self.packed, "rejected": self.rejected, "reasons": result.reasons}
            counts["dropped"] = result.dropped
            splits = {n: {"packed": s.packed, "rejected": s.rejected, "dropped": s.dropped} for n, s in result.splits.items()}
            document = {"kind": SPLIT_KIND, **common, "modalities": result.modalities, **counts, "splits": splits}
            write_json(out / "index.json", document)


def _split_counts(writer: SplitWriter, out: str, dropped: int) -> SplitCounts:
    rejected = len(writer.rejected)
    return SplitCounts(out, writer.packed + rejected + dropped, writer.packed, rejected, len(writer.shards), dropped)
