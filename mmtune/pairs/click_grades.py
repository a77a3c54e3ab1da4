"""Turn the counts of a click log into grades, weights and negatives.

    examinations = sum over ranks of impressions * examination probability
    rate = (value + strength * mean) / (examinations + strength), value = clicks + CART * carts + ORDER * orders
    score = rate / the best rate among the query's items

The prior (mean, strength; see rate_prior) keeps pairs of few impressions from extreme rates. The grade is 0 to 3 by the score. The weight of a
training pair is the score with the lower confidence bound of the rate in its place, so that pairs that were clicked by chance count little: the bound
is the 0.1 quantile of the rate's Gamma distribution (Wilson and Hilferty's approximation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.log_options import BIAS_ESTIMATE, BIAS_NONE, LogColumns, LogSettings
from mmtune.pairs.log_tables import MAX_POSITION, examples
from mmtune.pairs.position_bias import PositionBias, estimate, power_law
from mmtune.pairs.rate_prior import UNITS, RatePrior, rate_priors

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CART_VALUE, ORDER_VALUE = 2.0, 4.0
"""Value of a cart and of an order, on top of the value 1 of the click."""
GRADES = (0.15, 0.4, 0.7)
"""Scores from which the grade is 1, 2 and 3."""
UNSURE = f"too few clicks to train on it (weight below {GRADES[0]}); the judgments have it"
CONFIDENCE_Z = 1.2816
"""Standard normal quantile of the lower confidence bound: the rate is higher with a probability of 0.9."""
HARVESTED_CELLS = 5_000_000
"""Most counts by rank from which the position bias is estimated; of more, a part of the pairs is drawn by their hash."""
REFORMULATION_WEIGHT = 0.3
"""Weight of a positive that is known only from the query that the user tried next."""


def position_bias(con: DuckDBPyConnection, columns: LogColumns, settings: LogSettings) -> PositionBias:
    """The position bias that the settings ask for, estimated from the training part of `cells` where they say so.

    Raises DataError if the log cannot tell: no pair was shown at two ranks.
    """
    if not columns.position:
        return power_law(0.0, 1, settings.clip)
    highest = con.execute("SELECT max(pos) FROM cells").fetchall()[0][0]
    positions = min(int(highest or 1), MAX_POSITION)
    if settings.bias == BIAS_NONE:
        return power_law(0.0, positions, settings.clip)
    if settings.bias != BIAS_ESTIMATE:
        return power_law(float(settings.bias), positions, settings.clip)
    moved = "(SELECT qh, ih FROM cells WHERE split = 'train' GROUP BY ALL HAVING count(*) > 1 AND sum(c) > 0)"
    size = con.execute(f"SELECT count(*) FROM cells JOIN {moved} USING (qh, ih) WHERE split = 'train'").fetchall()[0][0]
    part = f"AND hash(qh, ih) % {-(-size // HARVESTED_CELLS)} = 0" if size > HARVESTED_CELLS else ""
    sql = f"""SELECT dense_rank() OVER (ORDER BY qh, ih) - 1 AS pair, pos, n, c FROM cells JOIN {moved} USING (qh, ih)
        WHERE split = 'train' {part} ORDER BY 1, 2"""
    counts = con.execute(sql).fetchnumpy()
    pair, rank, n, c = (np.asarray(counts[name], np.int64) for name in ("pair", "pos", "n", "c"))
    bias = estimate(pair, rank, n, c, positions, settings.clip)
    if bias is None:
        raise DataError(
            "the position bias cannot be estimated: no clicked item of a query was shown at two ranks; "
            "give it by --position-bias E (examination 1 / rank**E, often 1), or --position-bias none"
        )
    return bias


def rate_pairs(
    con: DuckDBPyConnection, columns: LogColumns, settings: LogSettings, bias: PositionBias, drops: DropCounts
) -> dict[str, RatePrior]:
    """Make the table `rated` and return {split: the prior of its rates}.

    Its columns: split, qh, ih, n (impressions), c (clicks), carts, orders, e (examinations), score, weight, grade, skips, why.
    why: '' for a pair that is graded, else why it is not.
    """
    theta = bias.examination
    con.execute("CREATE OR REPLACE TEMP TABLE examination (pos UINTEGER, p BIGINT)")
    con.executemany("INSERT INTO examination VALUES (?, ?)", [(i + 1, round(float(p) * UNITS)) for i, p in enumerate(theta)])
    joined = "LEFT JOIN examination USING (pos)" if columns.position else ""
    # sums of whole numbers, which do not depend on the order in which threads add them
    seen = f"sum(n * coalesce(p, {UNITS}))" if columns.position else f"sum(n) * {UNITS}"
    low, middle, high = GRADES
    con.execute(
        f"""CREATE OR REPLACE TABLE valued AS
        WITH totals AS (
            SELECT split, qh, ih, CAST(sum(n) AS BIGINT) AS n, CAST(sum(c) AS BIGINT) AS c, CAST(sum(carts) AS BIGINT) AS carts,
                CAST(sum(orders) AS BIGINT) AS orders, {seen} AS units FROM cells {joined} GROUP BY ALL)
        SELECT *, CAST(units AS DOUBLE) / {UNITS} AS e, c + {CART_VALUE} * carts + {ORDER_VALUE} * orders AS value FROM totals"""
    )
    priors = rate_priors(con, settings)
    con.execute("CREATE OR REPLACE TEMP TABLE prior (split VARCHAR, mean DOUBLE, strength DOUBLE)")
    con.executemany("INSERT INTO prior VALUES (?, ?, ?)", [(split, p.mean, p.strength) for split, p in priors.items()])
    con.execute(
        f"""CREATE OR REPLACE TABLE rated AS
        WITH rates AS (
            SELECT valued.*, (value + strength * mean) / (e + strength) AS rate,
                greatest(value + strength * mean, 1e-9) AS shape, CASE
                WHEN n < {settings.min_impressions} THEN 'fewer impressions than --min-impressions {settings.min_impressions}'
                ELSE '' END AS few FROM valued JOIN prior USING (split)),
        scores AS (
            SELECT *, coalesce(rate / nullif(max(rate) FILTER (few = '') OVER (PARTITION BY split, qh), 0), 0) AS score FROM rates)
        SELECT split, qh, ih, n, c, carts, orders, e, coalesce(skips, 0) AS skips, least(score, 1) AS score,
            least(score, 1) * greatest(1 - 1 / (9 * shape) - {CONFIDENCE_Z} / (3 * sqrt(shape)), 0) ** 3 AS weight,
            CAST((score >= {low})::INT + (score >= {middle})::INT + (score >= {high})::INT AS INTEGER) AS level, CASE
            WHEN few != '' THEN few
            WHEN c < {settings.min_clicks} AND c > 0 THEN 'fewer clicks than --min-clicks {settings.min_clicks}'
            WHEN c = 0 AND coalesce(skips, 0) < {settings.min_skips}
                THEN 'not clicked, and skipped less often than --min-skips {settings.min_skips}'
            ELSE '' END AS why
        FROM scores LEFT JOIN skips USING (split, qh, ih)"""
    )
    con.execute("ALTER TABLE rated ADD COLUMN grade INTEGER")
    con.execute("UPDATE rated SET grade = CASE WHEN c = 0 THEN 0 ELSE level END")
    for why, n in con.execute("SELECT why, count(*) FROM rated WHERE why != '' GROUP BY 1 ORDER BY 1").fetchall():
        drops.add(why, count=n, unit="pairs")
        escaped = why.replace("'", "''")
        for example in examples(con, f"why = '{escaped}'"):
            drops.add_example(why, example, unit="pairs")
    unsure = f"why = '' AND grade > 0 AND weight < {low}"
    if n := con.execute(f"SELECT count(*) FROM rated WHERE {unsure}").fetchall()[0][0]:
        drops.add(UNSURE, count=n, unit="pairs")
        for example in examples(con, unsure):
            drops.add_example(UNSURE, example, unit="pairs")
    return priors


def add_reformulations(con: DuckDBPyConnection, settings: LogSettings) -> None:
    """Table `found_later`: positives of queries that the same sessions tried next; pairs that are graded already are left out."""
    con.execute(
        f"""CREATE OR REPLACE TABLE found_later AS
        SELECT reforms.split, reforms.qh, reforms.ih, sessions FROM reforms
            ANTI JOIN (SELECT * FROM rated WHERE why = '' AND grade > 0) AS known USING (split, qh, ih)
        WHERE sessions >= {settings.min_reformulations}"""
    )


def pair_sql(settings: LogSettings) -> str:
    """SELECT of all positive pairs in a fixed order, with the negatives of their query."""
    return f"""
        WITH skipped AS (
            SELECT split, qh, ih, skips FROM rated ANTI JOIN found_later USING (split, qh, ih)
            WHERE why = '' AND grade = 0 AND skips >= {settings.min_skips}),
        negative AS (
            SELECT split, qh, list(item ORDER BY skips DESC, item)[:{settings.negatives}] AS negative_items
            FROM skipped JOIN items USING (ih) GROUP BY ALL),
        positive AS (
            SELECT split, qh, ih, grade, weight, n, c, carts, orders, e, 'clicks' AS source FROM rated
            WHERE why = '' AND grade > 0 AND weight >= {GRADES[0]}
            UNION ALL
            SELECT split, qh, ih, 1, {REFORMULATION_WEIGHT}, NULL, NULL, NULL, NULL, NULL, 'reformulation' FROM found_later)
        SELECT q AS query, item, CAST(grade AS INTEGER) AS grade, CAST(weight AS FLOAT) AS weight, split, n AS impressions, c AS clicks,
            carts, orders, CAST(e AS DOUBLE) AS examinations, source, coalesce(negative_items, []) AS negative_items
        FROM positive JOIN queries USING (qh) JOIN items USING (ih) LEFT JOIN negative USING (split, qh)
        ORDER BY split DESC, query, grade DESC, weight DESC, item"""


def judgment_sql(split: str) -> str:
    """SELECT of (query, item, grade) of one split, grade 0 included, in a fixed order; queries without a positive are left out."""
    return f"""
        WITH judged AS (
            SELECT qh, ih, grade FROM rated ANTI JOIN found_later USING (split, qh, ih) WHERE why = '' AND split = '{split}'
            UNION ALL SELECT qh, ih, 1 FROM found_later WHERE split = '{split}')
        SELECT q, item, grade FROM judged SEMI JOIN (SELECT qh FROM judged GROUP BY 1 HAVING max(grade) > 0) USING (qh)
            JOIN queries USING (qh) JOIN items USING (ih) ORDER BY q, grade DESC, item"""
