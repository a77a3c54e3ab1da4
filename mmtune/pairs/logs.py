"""Make graded pairs of a click log: `mmtune pairs logs`, `mmtune.pairs_from_logs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mmtune.contracts import JsonObject
from mmtune.pairs.catalog_join import CatalogJoin
from mmtune.pairs.click_grades import add_reformulations, judgment_sql, pair_sql, position_bias, rate_pairs
from mmtune.pairs.log_options import LogColumns, LogSettings
from mmtune.pairs.log_reader import connect, log_files, log_identity, parse_log
from mmtune.pairs.log_tables import (
    has_table,
    make_bots,
    make_counts,
    make_kept,
    make_names,
    make_reformulations,
    make_shown,
    make_skips,
)
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COLUMNS = {
    "split": pa.string(),
    "impressions": pa.int64(),
    "clicks": pa.int64(),
    "carts": pa.int64(),
    "orders": pa.int64(),
    "examinations": pa.float64(),
    "source": pa.string(),
}
NEGATIVES = {"negative_items": pa.list_(pa.string())}
"""Further columns of pairs.parquet. negative_items (without a catalog): ids of the items that were skipped above a click of the query, most often first."""
STAGES = 9
BATCH = 20_000


def pairs_from_logs(
    log: str | Path,
    out: str | Path,
    *,
    query: str,
    item: str,
    position: str | None = None,
    clicked: str | None = None,
    cart: str | None = None,
    order: str | None = None,
    event: str | None = None,
    time: str | None = None,
    session: str | None = None,
    user: str | None = None,
    search: str | None = None,
    catalog: str | Path | None = None,
    catalog_id: str | None = None,
    candidate: str | None = None,
    position_bias: str | float = "estimate",
    clip: float = 0.02,
    min_impressions: int = 5,
    min_clicks: int = 2,
    min_skips: int = 3,
    negatives: int = 8,
    min_reformulations: int = 3,
    prior: float | None = None,
    remove_bots: bool = True,
    max_per_minute: int = 60,
    split_time: str | None = None,
    eval_fraction: float = 0.0,
    keep_case: bool = False,
    encoding: str | None = None,
    memory: str = "700MB",
    threads: int | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Make graded pairs of a click log; see `mmtune.pairs_from_logs` for the parameters."""
    columns = LogColumns(query, item, position, clicked, cart, order, event, time, session, user, search)
    columns.check()
    settings = LogSettings(
        position_bias,
        clip,
        min_impressions,
        min_clicks,
        min_skips,
        negatives,
        min_reformulations,
        prior,
        remove_bots,
        max_per_minute,
        split_time,
        eval_fraction,
        keep_case,
        encoding,
        memory,
        threads,
    )
    files = log_files(log)
    join = CatalogJoin.open(catalog, catalog_id or item, candidate) if catalog is not None else None
    arguments = {"columns": columns.named(), "settings": settings.identity(), "catalog": join.identity() if join else None}
    carried = join.columns() if join else NEGATIVES
    with PairsWriter(
        out, "logs", arguments, log_identity(files), columns={**COLUMNS, **carried}, overwrite=overwrite
    ) as writer:
        if writer.finished is not None:
            return writer.finished
        con = connect(writer.work / "log.duckdb", settings)
        try:
            with Progress("pairs logs", STAGES, "stages", quiet) as progress:
                return _LogJob(con, writer, columns, settings, progress).run(files, join)
        finally:
            con.close()


class _LogJob:
    """One run of `pairs_from_logs` on an open database."""

    def __init__(
        self, con: DuckDBPyConnection, writer: PairsWriter, columns: LogColumns, settings: LogSettings, progress: Progress
    ):
        self.con, self.writer, self.columns, self.settings, self.progress = con, writer, columns, settings, progress
        self.drops = writer.drops

    def run(self, files: list[str], join: CatalogJoin | None) -> PairsResult:
        """Reduce the log stage by stage, write the pairs and publish the directory."""
        con, columns, settings, drops = self.con, self.columns, self.settings, self.drops
        rows = self._parse(files)
        make_shown(con, columns, drops)
        self.progress.advance(1, "bots")
        make_bots(con, columns, settings, drops)
        border = make_kept(con, columns, settings)
        self.progress.advance(1, "counts by rank")
        make_counts(con)
        self.progress.advance(1, "skipped results")
        make_skips(con, columns)
        self.progress.advance(1, "reformulations")
        make_reformulations(con, columns)
        make_names(con)
        self.progress.advance(1, "position bias")
        bias = position_bias(con, columns, settings)
        self.progress.advance(1, "grades")
        priors = rate_pairs(con, columns, settings, bias, drops)
        add_reformulations(con, settings)
        self.progress.advance(1, "pairs")
        self._write_pairs(join)
        self.progress.advance(1, "judgments")
        judged = "eval" if border is not None else "train"
        queries = self._write_judgments(judged)
        measures = self._measures(border, judged, bias.to_dict() if columns.position else None)
        measures["rate_prior"] = {split: asdict(prior) for split, prior in sorted(priors.items())}
        if join is not None:
            measures["evaluation_rows"] = join.write_evaluation(self.writer.files, queries, drops)
        self.progress.advance(1)
        return self.writer.publish(rows, measures)

    def _parse(self, files: list[str]) -> int:
        """Read the log, or continue with what an interrupted command has read."""
        stamp = self.writer.work / "parsed.json"
        if stamp.is_file() and has_table(self.con, "parsed"):
            stored = read_json(stamp)
            for d in stored["dropped"]:
                self.drops.add(d["reason"], count=d["count"], unit=d["unit"])
                self.drops.examples[d["unit"], d["reason"]] = d["examples"]
            rows = int(stored["rows"])
        else:
            rows = parse_log(self.con, files, self.columns, self.settings, self.drops)
            write_json(stamp, {"rows": rows, "dropped": self.drops.to_list()})
        self.progress.advance(1, f"{rows:,} rows read")
        return rows

    def _write_pairs(self, join: CatalogJoin | None) -> None:
        if join is not None:
            ids = "SELECT DISTINCT item FROM items SEMI JOIN (SELECT ih FROM rated WHERE why = '' UNION ALL SELECT ih FROM found_later) USING (ih)"
            join.load({item for (item,) in self.con.execute(ids).fetchall()}, self.writer.files, self.drops)
        reader = self.con.sql(pair_sql(self.settings)).to_arrow_reader(BATCH)
        for batch in reader:
            table = pa.Table.from_batches([batch])
            self.writer.add_batch(join.add_columns(table, self.drops) if join else table)

    def _write_judgments(self, split: str) -> list[str]:
        """Write the judgments of one split and return its queries."""
        queries: dict[str, None] = {}
        cursor = self.con.execute(judgment_sql(split))
        while batch := cursor.fetchmany(BATCH):
            for query, item, grade in batch:
                self.writer.judge(query, item, grade)
                queries[query] = None
        return list(queries)

    def _measures(self, border: float | None, judged: str, bias: JsonObject | None) -> JsonObject:
        def counts(sql: str) -> dict[str, int]:
            return {str(k): int(n) for k, n in self.con.execute(sql).fetchall()}

        return {
            "split_time": border,
            "judgments_of": judged,
            "position_bias": bias,
            "used_impressions": counts("SELECT split, count(*) FROM kept GROUP BY 1 ORDER BY 1"),
            "used_clicks": counts("SELECT split, count(*) FILTER (clicked) FROM kept GROUP BY 1 ORDER BY 1"),
            "positives_from_clicks": counts(
                "SELECT split, count(*) FROM rated WHERE why = '' AND grade > 0 GROUP BY 1 ORDER BY 1"
            ),
            "positives_from_reformulations": counts("SELECT split, count(*) FROM found_later GROUP BY 1 ORDER BY 1"),
            "skipped_items": counts(
                f"SELECT split, count(*) FROM rated WHERE why = '' AND grade = 0 AND skips >= {self.settings.min_skips} GROUP BY 1 ORDER BY 1"
            ),
        }
