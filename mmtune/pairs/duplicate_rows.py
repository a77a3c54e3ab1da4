"""Put duplicates and near-duplicates of a source into groups, or drop them, and drop what is also in other splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtune import modalities
from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.duplicate_search import Corpus, Decision, decide, link_rows, near_contents
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.pairs.source_rows import SourceRows
from mmtune.runtime.files import write_jsonl
from mmtune.runtime.progress import Progress

ACTIONS = ("group", "drop")
DUPLICATES = "duplicates.jsonl"


def group_duplicates(
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    group: str | None = None,
    action: str = "group",
    by: Sequence[str] = (),
    against: Sequence[str | Path] = (),
    threshold: float = 0.8,
    distance: int | None = None,
    workers: int = 2,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Group or drop duplicates and near-duplicates, and drop rows that other splits have; see `mmtune.group_duplicates`."""
    if action not in ACTIONS:
        raise DataError(f"--action {action}: one of {', '.join(ACTIONS)}")
    if not 0 < threshold <= 1:
        raise DataError(f"--threshold {threshold}: a share above 0, up to 1")
    rows = SourceRows(source, columns, id, group)
    others = [SourceRows(path, columns, id, group) for path in against]
    names = list(rows.roles.modalities)
    by = list(by) or modalities.non_language(names)
    for name in by:
        if name not in names:
            raise DataError(f"{source}: no values of {name} to compare (--by); it has {', '.join(names)}")
    arguments = {
        "columns": rows.roles.by_role(),
        "action": action,
        "by": by,
        "threshold": threshold,
        "distance": distance,
    }
    identities = [source_identity(path) for path in (source, *against)]
    with PairsWriter(out, "duplicates", arguments, identities, columns=rows.types, base=False, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        corpus = Corpus(names)
        for n, opened in enumerate((rows, *others), -1):
            drops = writer.drops if n < 0 else DropCounts()
            with Progress(f"hash {opened.source.path.name}", opened.source.total, quiet=quiet) as progress:
                corpus.add(opened, n, writer.work / f"hashes{n + 1}.jsonl", workers, drops, progress)
        if -1 not in corpus.other:
            raise DataError(f"{source}: no row to compare ({writer.drops.reasons()})")
        contents = {name: near_contents(corpus, name, threshold, distance, quiet) for name in names}
        decision = decide(corpus, contents, link_rows(corpus, contents, by), action)
        read = rows.read
        _write(writer, rows, corpus, decision, [str(path) for path in against])
        measures = {
            "rows in new groups": len(decision.groups),
            "copies": len(decision.copies),
            "leaks": len(decision.leaks),
            "contradictions": len(decision.contradictions),
        }
        return writer.publish(read, measures)


def _write(writer: PairsWriter, rows: SourceRows, corpus: Corpus, decision: Decision, against: Sequence[str]) -> None:
    """Write the rows that are kept, and duplicates.jsonl, a line for each set of duplicates, which `mmtune pack --drop` also reads."""
    media = rows.media(writer.out, writer.files, writer.drops)
    for row, packed in enumerate(rows.rows(DropCounts())):
        if packed.id != corpus.ids[row]:
            raise DataError(f"{rows.source.path}: changed while it was read; run the same command again")
        if row in decision.leaks:
            number, _ = decision.leaks[row]
            writer.drops.add(f"is in {against[number]}, too", packed.id)
        elif row in decision.copies:
            writer.drops.add("repeats an earlier row", f"{packed.id} repeats {corpus.ids[decision.copies[row]]}")
        elif (cells := rows.cells(packed, media)) is not None:
            writer.add_row(**{**cells, "group": decision.groups.get(row, packed.group)})
    lines: list[dict[str, object]] = []
    for row, (number, id) in decision.leaks.items():
        lines.append({"kind": "leak", "drop": [corpus.ids[row]], "same as": id, "in": against[number]})
    by_first: dict[int, list[int]] = defaultdict(list)
    for row, first in decision.copies.items():
        by_first[first].append(row)
    for first, copies in by_first.items():
        lines.append({"kind": "copies", "drop": [corpus.ids[r] for r in copies], "same as": corpus.ids[first]})
    grouped: dict[str, list[str]] = defaultdict(list)
    for row, name in decision.groups.items():
        grouped[name].append(corpus.ids[row])
    lines += [{"kind": "group", "drop": [], "group": name, "ids": ids} for name, ids in grouped.items()]
    for members in decision.contradictions:
        groups = [corpus.groups[r] for r in members]
        lines.append({"kind": "contradiction", "drop": [], "ids": [corpus.ids[r] for r in members], "groups": groups})
    write_jsonl(writer.files / DUPLICATES, lines)
