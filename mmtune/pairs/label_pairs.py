"""Make groups, graded judgments and hard negatives from labels and taxonomies."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.data.identity_labels import splitmix64
from mmtune.data.pack.columns import PackRow
from mmtune.errors import DataError
from mmtune.mining.id_hashes import id_hashes
from mmtune.pairs.caption_template import CaptionTemplate
from mmtune.pairs.carried_columns import attribute_strings
from mmtune.pairs.label_levels import LabelLevels, LabelPath, group_names
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.pairs.source_rows import SourceRows
from mmtune.runtime.progress import Progress

MAX_JUDGMENTS = 20_000_000
"""Lines of judgments.jsonl above which a limit for each query is required: a file of about 1 GB."""
NEGATIVES = "negatives.parquet"
NEGATIVES_SCHEMA = pa.schema([("query_id", pa.string()), ("negative_id", pa.string()), ("common_levels", pa.int32())])


class LabelTree:
    """The rows of a source by their labels.

    ids: ids of the rows
    paths: the labels of each row
    """

    def __init__(self, ids: Sequence[str], paths: Sequence[LabelPath]):
        self.ids, self.paths = ids, paths
        under: dict[LabelPath, list[int]] = defaultdict(list)  # prefix of a path -> rows
        for row, path in enumerate(paths):
            for depth in range(1, len(path) + 1):
                if None in path[:depth]:
                    break
                under[path[:depth]].append(row)
        self._under = {prefix: np.array(rows, np.int64) for prefix, rows in under.items()}
        self._keys = id_hashes(ids)

    def judgments(self) -> int:
        """The number of pairs of rows that share a level, each row with itself included."""
        return sum(len(rows) ** 2 for prefix, rows in self._under.items() if len(prefix) == 1)

    def related(self, row: int, deepest: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (rows, number of common levels) for the rows that share labels with a row, the closest first; without the row itself.

        deepest: only rows with at most this many common levels
        """
        path = self.paths[row]
        inner = np.array([row], np.int64)
        for depth in range(len(path), 0, -1):
            members = self._under.get(path[:depth])
            if members is None:
                continue
            if deepest is None or depth <= deepest:
                yield np.setdiff1d(members, inner, assume_unique=True), depth
            inner = members

    def draw(self, row: int, others: np.ndarray, count: int) -> np.ndarray:
        """At most `count` of the other rows: a choice that looks random and is the same in each run."""
        if len(others) <= count:
            return others
        rank = splitmix64(self._keys[row] ^ splitmix64(self._keys[others]))
        return others[np.argsort(rank, kind="stable")[:count]]


def _write_negatives(path: Path, tree: LabelTree, per_query: int, progress: Progress) -> tuple[int, int]:
    """Write the siblings of each row: rows with another finest label, those that share most levels first.

    Returns (number of pairs, number of rows without any).
    """
    pairs = lonely = 0
    with pq.ParquetWriter(path, NEGATIVES_SCHEMA) as writer:
        rows: list[dict[str, object]] = []
        for row, id in enumerate(tree.ids):
            left = per_query
            for others, depth in tree.related(row, deepest=len(tree.paths[row]) - 1):
                drawn = tree.draw(row, others, left).tolist()
                rows += [{"query_id": id, "negative_id": tree.ids[other], "common_levels": depth} for other in drawn]
                left -= len(drawn)
                if not left:
                    break
            pairs, lonely = pairs + per_query - left, lonely + (left == per_query)
            if len(rows) >= 65536:
                writer.write_table(pa.Table.from_pylist(rows, NEGATIVES_SCHEMA))
                rows = []
            progress.advance(1)
        writer.write_table(pa.Table.from_pylist(rows, NEGATIVES_SCHEMA))
    return pairs, lonely


def _judge(writer: PairsWriter, tree: LabelTree, per_grade: int, progress: Progress) -> None:
    """Judge each row with itself and with all rows, or at most `per_grade` rows, of each number of common levels."""
    for row, id in enumerate(tree.ids):
        writer.judge(id, id, len(tree.paths[row]))
        for others, depth in tree.related(row):
            for other in (tree.draw(row, others, per_grade) if per_grade else others).tolist():
                writer.judge(id, tree.ids[other], depth)
        progress.advance(1)


def _caption(template: CaptionTemplate | None, row: PackRow, path: LabelPath) -> str | None:
    """The caption of a row without one: the filled template, or its finest label in words."""
    if template is None:
        return (path[-1] or "").replace("_", " ").replace("-", " ").strip() or None
    return template.fill(attribute_strings({**row.meta, "group": row.group}))


def pairs_from_labels(
    source: str | Path,
    out: str | Path,
    *,
    levels: Sequence[str] = (),
    taxonomy: str | None = None,
    columns: Mapping[str, str] | None = None,
    id: str | None = None,
    caption: str | None = None,
    negatives: int = 8,
    judgments_per_grade: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Make groups, graded judgments and hard negatives from labels; see `mmtune.pairs_from_labels`."""
    rows = SourceRows(source, columns, id)
    reader = LabelLevels.of(rows.source, levels, taxonomy)
    template = CaptionTemplate(caption) if caption else None
    if template is not None:
        template.check(rows.source.columns, str(rows.source.path))
    language = next(n for n in modalities.names() if modalities.get(n).language)
    types = {**rows.types, language: pa.string()}
    arguments = {
        "columns": rows.roles.by_role(),
        "levels": list(reader.columns),
        "taxonomy": reader.taxonomy,
        "caption": caption,
        "negatives": negatives,
        "judgments per grade": judgments_per_grade,
    }
    with PairsWriter(
        out, "labels", arguments, [source_identity(source)], columns=types, base=False, overwrite=overwrite
    ) as writer:
        if writer.finished is not None:
            return writer.finished
        media = rows.media(Path(out), writer.files, writer.drops)
        kept: list[tuple[dict[str, object], LabelPath]] = []
        with Progress("labels", rows.source.total, quiet=quiet) as progress:
            for row in rows.rows(writer.drops):
                progress.advance(1)
                path = reader.path(row)
                if not path:
                    writer.drops.add("no label", row.id)
                elif (cells := rows.cells(row, media)) is None:
                    writer.drops.add("its file does not exist", row.id)
                else:
                    if template is not None or cells.get(language) is None:
                        cells[language] = _caption(template, row, path)
                    kept.append((cells, path))
        if not kept:
            raise DataError(f"{source}: no row with a label ({writer.drops.reasons()})")
        names = group_names(path for _, path in kept)
        tree = LabelTree([str(cells["id"]) for cells, _ in kept], [path for _, path in kept])
        if not judgments_per_grade and tree.judgments() > MAX_JUDGMENTS:
            raise DataError(
                f"{source}: {tree.judgments():,} pairs of rows share a label of the first level; add a level above it, or "
                "--judgments-per-grade N to judge at most N items of each grade for a query"
            )
        for cells, path in kept:
            writer.add_row(**{**cells, "group": names[path]})
        with Progress("negatives", len(kept), quiet=quiet) as progress:
            pairs, lonely = _write_negatives(writer.files / NEGATIVES, tree, negatives, progress) if negatives else (0, 0)
        with Progress("judgments", len(kept), quiet=quiet) as progress:
            _judge(writer, tree, judgments_per_grade, progress)
        ambiguous = sum(1 for path, name in names.items() if name != path[-1])
        measures = {
            "groups": len(names),
            "negatives": pairs,
            "rows without a sibling": lonely,
            "labels with several parents": ambiguous,
            "most levels": max(len(path) for _, path in kept),
        }
        return writer.publish(rows.read, measures)
