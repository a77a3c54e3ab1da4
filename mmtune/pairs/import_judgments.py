"""Import human judgments: `mmtune pairs judgments`, `mmtune.pairs_from_judgments`."""

from pathlib import Path

import pyarrow as pa

from mmtune.errors import DataError
from mmtune.pairs.agreement import agreement, lower_median
from mmtune.pairs.catalog_join import CatalogJoin
from mmtune.pairs.judged_sources import JudgedColumns, grade_of, parse_grades, read_judged
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity

NEGATIVES = {"negative_items": pa.list_(pa.string())}
MAX_NEGATIVES = 32
"""Most judged negatives of a query that a pair carries."""


def pairs_from_judgments(
    source: str | Path,
    out: str | Path,
    *,
    query: str | None = None,
    item: str | None = None,
    grade: str | None = None,
    annotator: str | None = None,
    grades: str | None = None,
    catalog: str | Path | None = None,
    catalog_id: str | None = None,
    candidate: str | None = None,
    overwrite: bool = False,
) -> PairsResult:
    """Import human judgments; see `mmtune.pairs_from_judgments` for the parameters."""
    columns, words = JudgedColumns(query, item, grade, annotator), parse_grades(grades)
    join = CatalogJoin.open(catalog, catalog_id or "id", candidate) if catalog is not None else None
    names = {"query": query, "item": item, "grade": grade, "judge": annotator, "grades": words}
    arguments = {**names, "catalog": join.identity() if join else None}
    carried = join.columns() if join else NEGATIVES
    columns_of_pairs = {"annotators": pa.int32(), **carried}
    with PairsWriter(
        out, "judgments", arguments, [source_identity(source)], columns=columns_of_pairs, overwrite=overwrite
    ) as writer:
        if writer.finished is not None:
            return writer.finished
        judged: dict[tuple[str, str], dict[str, int]] = {}
        rows = 0
        for judgment in read_judged(source, columns, writer.drops):
            rows += 1
            value = grade_of(judgment.answer, words)
            if not isinstance(value, int):
                writer.drops.add(value or "the annotator was unsure", f"{judgment.where}: {judgment.answer!r}")
                continue
            of_pair = judged.setdefault((judgment.query, judgment.item), {})
            if judgment.judge in of_pair:
                writer.drops.add("an earlier answer of the same annotator on the same pair", judgment.where)
            of_pair[judgment.judge] = value
        if not judged:
            reasons = "; ".join(f"{d['count']:,} x {d['reason']}" for d in writer.drops.to_list()[:3])
            raise DataError(f"{source}: no judgment can be used: {reasons or 'it has none'}")
        for (q, i), of_pair in judged.items():
            for judge, value in of_pair.items():
                writer.judge(q, i, value, **({"judge": judge} if judge else {}))
        measures = {"agreement": agreement(judged).to_dict(), "read": rows}
        if join is not None:
            join.load({i for _, i in judged}, writer.files, writer.drops)
            queries = list(dict.fromkeys(q for q, _ in judged))
            measures["evaluation_rows"] = join.write_evaluation(writer.files, queries, writer.drops)
        table = _pairs(judged)
        writer.add_batch(join.add_columns(table, writer.drops) if join else table)
        dropped = writer.drops.total()
        return writer.publish(dropped + sum(map(len, judged.values())), measures)


def _pairs(judged: dict[tuple[str, str], dict[str, int]]) -> pa.Table:
    """The positive pairs: the median grade, and as weight the share of annotators who called the pair positive."""
    median = {pair: lower_median(list(of_pair.values())) for pair, of_pair in judged.items()}
    negatives: dict[str, list[str]] = {}
    for (q, i), value in median.items():
        if value <= 0:
            negatives.setdefault(q, []).append(i)
    rows = [
        {
            "query": q,
            "item": i,
            "grade": value,
            "weight": sum(g > 0 for g in judged[q, i].values()) / len(judged[q, i]),
            "annotators": len(judged[q, i]),
            "negative_items": negatives.get(q, [])[:MAX_NEGATIVES],
        }
        for (q, i), value in median.items()
        if value > 0
    ]
    fields = [("query", pa.string()), ("item", pa.string()), ("grade", pa.int32()), ("weight", pa.float32())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("annotators", pa.int32()), *NEGATIVES.items()]))
