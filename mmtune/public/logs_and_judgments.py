"""The public functions that make pairs of what a team has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.pairs.pairs_result import PairsResult


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
    """Make graded pairs of a click log.

    The log has a row for each item that was shown, or (`event`) for each impression, click, cart and order. It is read by DuckDB
    (extra `pairs`) in bounded memory. Writes pairs.parquet (query, item, grade, weight, split, counts), judgments.jsonl,
    dropped.json and pairs.json into `out`; with a catalog also evaluation.parquet. After an interruption the same call continues.

    log: CSV, TSV, JSONL or Parquet: a file, a folder, a glob pattern, or an fsspec URL
    out: directory to write
    query, item: columns of the queries and of the item ids
    position: column of the ranks in the result list, from 1 or from 0
    clicked, cart, order: columns that say whether the item was clicked, put into the cart, ordered
    event: column of the kind of event, if a row is an event: impression, click, cart or order
    time: column of the time: date and time, or a number of seconds, ms, us or ns since 1970
    session, user: columns of who searched; without one, bots and reformulations cannot be found
    search: column of the id of one displayed result list; default: equal query, session and time
    catalog: table of the items, whose contents join the pairs, ready for `pack`; all its other columns are carried along
    catalog_id: its column of item ids; None means the name of `item`
    candidate: its column of what is searched for, "COLUMN" or "COLUMN:MODALITY"; None means one with a usual name
    position_bias: "estimate" from the log, "none", or E: rank k is examined with probability 1 / k**E
    clip: smallest examination probability, which bounds the inverse-propensity weights
    min_impressions, min_clicks: fewest impressions of a pair that is graded, and fewest clicks of a positive one
    min_skips: fewest times that a negative was shown above a click and not clicked
    negatives: most negatives of a query
    min_reformulations: fewest sessions that had no click for a query, and then clicked the item for their next query
    prior: number of examinations that the mean rate counts in a pair's rate; None: estimated from the log by empirical Bayes
    remove_bots: leave out users who act like bots
    max_per_minute: most searches or clicks in a minute of a user who is no bot
    split_time: pairs of later rows get the split "eval", and only these are in judgments.jsonl; e.g. "2026-05-01"
    eval_fraction: the same, with the last fraction of the rows
    keep_case: queries that differ only in case are different queries
    encoding: encoding of a CSV log; default UTF-8, or UTF-16 where it begins with its mark
    memory, threads: limits of DuckDB; what does not fit goes to disk
    overwrite: replace a directory that was made with other arguments or of another log
    quiet: show no progress

    Raises DataError if the log or the catalog cannot be used, and MissingExtra without DuckDB.
    """
    from mmtune.pairs.logs import pairs_from_logs as pairs_from_logs_

    return pairs_from_logs_(
        log,
        out,
        query=query,
        item=item,
        position=position,
        clicked=clicked,
        cart=cart,
        order=order,
        event=event,
        time=time,
        session=session,
        user=user,
        search=search,
        catalog=catalog,
        catalog_id=catalog_id,
        candidate=candidate,
        position_bias=position_bias,
        clip=clip,
        min_impressions=min_impressions,
        min_clicks=min_clicks,
        min_skips=min_skips,
        negatives=negatives,
        min_reformulations=min_reformulations,
        prior=prior,
        remove_bots=remove_bots,
        max_per_minute=max_per_minute,
        split_time=split_time,
        eval_fraction=eval_fraction,
        keep_case=keep_case,
        encoding=encoding,
        memory=memory,
        threads=threads,
        overwrite=overwrite,
        quiet=quiet,
    )


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
    """Import human judgments as pairs and graded relevance, and measure how far the annotators agree.

    judgments.jsonl gets a line for each answer, with its annotator. pairs.parquet gets the pairs whose median grade is above 0; the
    weight is the share of annotators who called the pair positive. `measures["agreement"]` has Krippendorff's alpha (extra `pairs`).

    source: a CSV, TSV, JSONL or Parquet table, or Label Studio's export as JSON or JSON-MIN
    out: directory to write
    query, item: columns, or fields of a Label Studio task's data; None means usual names
    grade: column of the answers, or the name of a Label Studio control; None means usual names, or the first control
    annotator: column of who answered; None means usual names
    grades: "ANSWER=GRADE,..."; known without it are numbers, "match" and similar (1), "not" and similar (0), and "unsure", which is
        left out
    catalog, catalog_id, candidate: as in `pairs_from_logs`; catalog_id None means "id"
    overwrite: replace a directory that was made with other arguments or of another source

    Raises DataError if the source cannot be used.
    """
    from mmtune.pairs.import_judgments import pairs_from_judgments as pairs_from_judgments_

    return pairs_from_judgments_(
        source,
        out,
        query=query,
        item=item,
        grade=grade,
        annotator=annotator,
        grades=grades,
        catalog=catalog,
        catalog_id=catalog_id,
        candidate=candidate,
        overwrite=overwrite,
    )
