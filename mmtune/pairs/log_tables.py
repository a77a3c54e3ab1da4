"""The tables that a click log is reduced to, in DuckDB: shown results, bots, counts by rank, skips and reformulations.

Each table is made by one statement, in one transaction, so that a command that was killed continues with the tables that exist.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from mmtune.errors import DataError
from mmtune.pairs.drop_counts import MAX_EXAMPLES, DropCounts
from mmtune.pairs.log_options import LogColumns, LogSettings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BOT_SHOWN, BOT_CLICKS = 50, 30
"""Fewest results shown to, and fewest clicks of, a user that is judged by how regular the clicks are."""
REFORMULATION_SECONDS = 300
MAX_POSITION = 1000
"""Results at higher ranks count as of this rank."""


def has_table(con: DuckDBPyConnection, name: str) -> bool:
    """Whether the database has the table."""
    return bool(con.execute("SELECT 1 FROM information_schema.tables WHERE table_name = ?", [name]).fetchall())


def _make(con: DuckDBPyConnection, name: str, sql: str) -> None:
    if not has_table(con, name):
        con.execute(f"CREATE TABLE {name} AS {sql}")


def _one(con: DuckDBPyConnection, sql: str) -> tuple[int, ...]:
    row = con.execute(sql).fetchone()
    return tuple(int(x or 0) for x in row) if row else ()


def make_shown(con: DuckDBPyConnection, columns: LogColumns, drops: DropCounts) -> None:
    """Table `shown`: one row for each item of each displayed list.

    qh, ih: UBIGINT hashes of query and item. list: UBIGINT. pos: UINTEGER. clicked, cart, ord: BOOLEAN. t: DOUBLE. who, person: UBIGINT.
    A list is named by its id, or else by query, session and time (of events: query and session). Without all of these, each row
    stands for itself.
    """
    by_list = bool(columns.search or columns.session or columns.user)
    if columns.search:
        name = "hash(list, q)"
    elif by_list:
        name = "hash(who, q)" if columns.event else "hash(who, q, t)"
    else:
        name = "hash(q, t)" if columns.time else "0::UBIGINT"
    # a list without a session's name may be several lists of one second: its rows are not merged
    key = f"{name} AS list, hash(q) AS qh, hash(item) AS ih"
    (lowest,) = _one(con, "SELECT min(pos) FROM parsed WHERE bad = 0") if columns.position else (1,)
    position = f"CAST(least(pos + {int(lowest == 0)}, {MAX_POSITION}) AS UINTEGER)"  # some logs count ranks from 0
    if by_list:
        _make(
            con,
            "shown",
            f"""SELECT {key}, min({position}) AS pos, bool_or(clicked) AS clicked, bool_or(cart) AS cart, bool_or(ord) AS ord,
                min(t) AS t, any_value(who) AS who, any_value(person) AS person, count(*) AS copies FROM parsed WHERE bad = 0 GROUP BY ALL""",
        )
    else:
        _make(
            con,
            "shown",
            f"SELECT {key}, {position} AS pos, clicked, cart, ord, t, who, person, 1 AS copies FROM parsed WHERE bad = 0",
        )
    if by_list and not columns.event:
        (copies,) = _one(con, "SELECT sum(copies - 1) FROM shown")
        drops.add("the same item again in one result list", count=copies)
    if columns.position:
        (lost,) = _one(con, "SELECT count(*) FROM shown WHERE pos IS NULL")
        drops.add("clicked, but no event says at which position", count=lost)


def make_bots(con: DuckDBPyConnection, columns: LogColumns, settings: LogSettings, drops: DropCounts) -> None:
    """Table `bots`: person and why; nobody if the log has neither users nor sessions."""
    if not settings.remove_bots or not (columns.user or columns.session):
        _make(con, "bots", "SELECT 0::UBIGINT AS person, '' AS reason WHERE false")
        return
    one_place = f"WHEN clicks >= {BOT_CLICKS} AND places = 1 AND place > 1 THEN 'all clicks at one rank below the first'"
    _make(
        con,
        "bots",
        f"""WITH minutes AS (
                SELECT person, max(n) AS rate FROM (
                    SELECT person, floor(t / 60) AS minute, greatest(count(DISTINCT list), count(*) FILTER (clicked)) AS n
                    FROM shown WHERE t IS NOT NULL GROUP BY ALL) GROUP BY 1),
            people AS (
                SELECT person, count(*) AS seen, count(*) FILTER (clicked) AS clicks, count(DISTINCT pos) FILTER (clicked) AS places,
                    min(pos) FILTER (clicked) AS place, count(DISTINCT ih) FILTER (clicked) AS things,
                    count(DISTINCT qh) FILTER (clicked) AS queries FROM shown GROUP BY 1)
            SELECT person, CASE WHEN rate > {settings.max_per_minute} THEN 'more than {settings.max_per_minute} searches or clicks in a minute'
                WHEN seen >= {BOT_SHOWN} AND clicks >= 0.95 * seen THEN 'clicked everything'
                {one_place if columns.position else ""}
                WHEN clicks >= {BOT_CLICKS} AND things = 1 AND queries > 1 THEN 'all clicks on one item' END AS reason
            FROM people LEFT JOIN minutes USING (person) WHERE reason IS NOT NULL AND person IS NOT NULL""",
    )
    counts = "SELECT reason, count(DISTINCT person), count(*) FROM bots JOIN shown USING (person) GROUP BY 1 ORDER BY 1"
    for reason, people, rows in con.execute(counts).fetchall():
        drops.add(f"a bot: {reason}", count=people, unit="users")
        drops.add(f"of a bot: {reason}", count=rows)


def make_kept(con: DuckDBPyConnection, columns: LogColumns, settings: LogSettings) -> float | None:
    """View `kept`: what is shown to people, with its split. Returns the time that divides the log, in seconds, or None."""
    people = "shown ANTI JOIN bots USING (person)"
    border = _border(con, people, columns, settings)
    split = "'train'" if border is None else f"CASE WHEN t < {border!r} THEN 'train' ELSE 'eval' END"
    place = "" if not columns.position else "WHERE pos IS NOT NULL"
    con.execute(f"CREATE OR REPLACE VIEW kept AS SELECT *, {split} AS split FROM {people} {place}")
    for name in ("train", "eval") if border is not None else ():
        if not con.execute(f"SELECT 1 FROM kept WHERE split = '{name}' LIMIT 1").fetchall():
            side = "before" if name == "train" else "after"
            raise DataError(f"--split-time {settings.split_time}: no row of the log is {side} it")
    return border


def _border(con: DuckDBPyConnection, people: str, columns: LogColumns, settings: LogSettings) -> float | None:
    if not settings.splits:
        return None
    if not columns.time:
        raise DataError("--split-time and --eval-fraction need --time COL")
    if settings.eval_fraction:
        return _quantile(con, people, 1 - settings.eval_fraction)
    text = str(settings.split_time)
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"--split-time {text}: not a time such as 2026-05-01 or 2026-05-01T12:00") from None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()


def _quantile(con: DuckDBPyConnection, people: str, fraction: float) -> float:
    """The time before which a fraction of the rows lies, to 1 / 100,000 of the log's duration; the same with any number of threads."""
    low, high = con.execute(f"SELECT min(t), max(t) FROM {people}").fetchall()[0]
    step = max((high - low) / 100_000, 1e-3)
    sql = f"SELECT CAST(floor((t - {low!r}) / {step!r}) AS BIGINT) AS bin, count(*) FROM {people} GROUP BY 1 ORDER BY 1"
    counts = con.execute(sql).fetchall()
    total, before = sum(n for _, n in counts), 0
    for bin, n in counts:
        if before >= fraction * total:
            return float(low + bin * step)
        before += n
    return float(high)


def make_counts(con: DuckDBPyConnection) -> None:
    """Table `cells`: impressions, clicks, carts and orders by split, query, item and rank."""
    _make(
        con,
        "cells",
        """SELECT split, qh, ih, pos, count(*) AS n, count(*) FILTER (clicked) AS c, count(*) FILTER (cart) AS carts,
            count(*) FILTER (ord) AS orders FROM kept GROUP BY ALL""",
    )


def make_skips(con: DuckDBPyConnection, columns: LogColumns) -> None:
    """Table `skips`: how often an item was shown above the last click of its list, and not clicked itself."""
    if not columns.position or not (columns.search or columns.session or columns.user or columns.time):
        _make(con, "skips", "SELECT '' AS split, 0::UBIGINT AS qh, 0::UBIGINT AS ih, 0::BIGINT AS skips WHERE false")
        return
    one_list = "" if columns.search or columns.session or columns.user else "HAVING count(*) = count(DISTINCT pos)"
    _make(
        con,
        "skips",
        f"""WITH lowest AS (SELECT list, max(pos) FILTER (clicked) AS last FROM kept GROUP BY 1 {one_list})
            SELECT split, qh, ih, count(*) AS skips FROM kept JOIN lowest USING (list)
            WHERE last IS NOT NULL AND pos < last AND NOT clicked GROUP BY ALL""",
    )


def make_reformulations(con: DuckDBPyConnection, columns: LogColumns) -> None:
    """Table `reforms`: a query without a click, and the item that the next query of the same session found, by number of sessions."""
    if not columns.time or not (columns.session or columns.user):
        _make(con, "reforms", "SELECT '' AS split, 0::UBIGINT AS qh, 0::UBIGINT AS ih, 0::BIGINT AS sessions WHERE false")
        return
    _make(
        con,
        "reforms",
        f"""WITH lists AS (
                SELECT split, who, list, any_value(qh) AS qh, min(t) AS t, bool_or(clicked) AS found FROM kept
                WHERE who IS NOT NULL GROUP BY ALL),
            ordered AS (
                SELECT *, lag(qh) OVER w AS before, lag(t) OVER w AS before_t, lag(found) OVER w AS before_found
                FROM lists WINDOW w AS (PARTITION BY who ORDER BY t, list)),
            changed AS (
                SELECT split, who, list, before FROM ordered
                WHERE found AND NOT before_found AND before != qh AND t - before_t <= {REFORMULATION_SECONDS})
            SELECT changed.split, before AS qh, ih, count(DISTINCT changed.who) AS sessions
            FROM changed JOIN kept ON kept.list = changed.list AND kept.who = changed.who WHERE clicked GROUP BY ALL""",
    )


def make_names(con: DuckDBPyConnection) -> None:
    """Tables `queries` and `items`: hash -> string."""
    _make(con, "queries", "SELECT hash(q) AS qh, min(q) AS q FROM parsed WHERE bad = 0 GROUP BY 1")
    _make(con, "items", "SELECT hash(item) AS ih, min(item) AS item FROM parsed WHERE bad = 0 GROUP BY 1")


def examples(con: DuckDBPyConnection, where: str) -> list[str]:
    """The first pairs of the table `rated` that fulfil a condition, as text."""
    sql = f"SELECT q || ' / ' || item FROM rated JOIN queries USING (qh) JOIN items USING (ih) WHERE {where} ORDER BY 1 LIMIT {MAX_EXAMPLES}"
    return [text for (text,) in con.execute(sql).fetchall()]
