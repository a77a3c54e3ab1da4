"""`mmtune advise`: recommend whether and how to tune, and estimate the cost of re-indexing, by measurements on this machine."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmtune import modalities
from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.paired_difference import DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.metrics import metric_columns, with_cutoffs
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.evaluation.trained_pairs import towers_apart
from mmtune.quality.linear_probe import Probe, probe
from mmtune.recipe.pretrained_plans import PlanChoice, PretrainedPlan, case_of, pretrained_plan

if TYPE_CHECKING:
    import pandas

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

ANY_TUNING = "head, LoRA or full (all is embedded anew)"
"""Key of the cost of a new index, in the results of `advise`: every tuned model is a new model to the index."""
ANSWERS = ("off-the-shelf", "label more data", "head", "LoRA", "full")  # full: tune all weights
FEW_SHOTS = 16  # from SOURCES["few"]
LEARNING_RATES = {"head": "5e-3", "LoRA": "2e-3", "full": "1e-5"}
"""Where to start, as measured in docs/benchmarks.md, How much to tune; full: of a pretrained checkpoint."""
NOTICEABLE = 0.05  # from SOURCES["small"]
SOURCES = {
    "small": "Spärck Jones 1974, J. Documentation 30(4): a difference of less than 5 points between systems goes unnoticed",
    "few": "CLIP-LoRA, arXiv 2405.18541: with 1 to 16 examples a class, low-rank adapters beat other ways of tuning CLIP",
    "many": "LP-FT, arXiv 2202.10054: the head first, then everything; full tuning from a random head distorts good features",
    "forget": "LoRA Learns Less and Forgets Less, arXiv 2405.09673: with much data full tuning learns more and forgets more",
}


@dataclass(frozen=True)
class ReindexCost:
    """The cost of a new index: hours on this machine, size of the vectors in GB, and the price if an hourly price is given."""

    hours: float
    gb_float32: float
    gb_float16: float
    price: float | None = None


class Recommendation(NamedTuple):
    """answer: one of ANSWERS. why: one sentence. sources: the papers from which its thresholds are taken."""

    answer: str
    why: str
    sources: list[str]


@dataclass
class Advice:
    """The recommendation and the measurements behind it.

    answer: one of ANSWERS
    why: the reason, in one sentence
    direction, metric, target: what was measured, and the value needed
    baseline: the metric of the model without tuning, with its confidence interval
    probe: the gain of a linear head on held-out rows; None if there are too few rows, or if the towers share no space yet
    rates: {modality: items embedded per second on this machine}
    reindex: {kind of tuning: cost of a new index of `corpus_size` items}
    sources: the papers from which thresholds are taken
    recipe: how to get the recipe for the answer; None if nothing is to be tuned
    """

    answer: str
    why: str
    direction: str
    metric: str
    target: float | None
    baseline: PairedDifference
    probe: Probe | None
    rates: dict[str, float]
    reindex: dict[str, ReindexCost]
    sources: list[str] = field(default_factory=list)
    corpus_size: int = 0
    recipe: str | None = None

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune advise --json`."""
        baseline = {
            "value": self.baseline.base,
            "interval": list(self.baseline.interval),
            "queries": self.baseline.queries,
            "clusters": self.baseline.clusters,
        }
        return {**asdict(self), "baseline": baseline, "probe": self.probe.to_dict() if self.probe else None}

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the re-indexing costs, one row per kind of tuning."""
        import pandas

        return pandas.DataFrame.from_dict({k: asdict(c) for k, c in self.reindex.items()}, orient="index")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        columns = [f"an index of {self.corpus_size:,} items ({self.direction.split('->')[1]}) after", "time"]
        columns += ["GB in float32", "GB in float16"]
        rows = [[k, duration(c.hours), f"{c.gb_float32:,.3g}", f"{c.gb_float16:,.3g}"] for k, c in self.reindex.items()]
        if all(c.price is not None for c in self.reindex.values()):
            columns.append("price")
            rows = [[*row, f"{c.price:,.2f}"] for row, c in zip(rows, self.reindex.values(), strict=True)]
        return columns, rows

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        lines = [f"{self.answer.upper()}: {self.why}", ""]
        lines.append(f"baseline  {self.metric} of {self.direction}: {self.baseline.base:.4f} {self.baseline.bounds('.4f')}")
        if self.probe:
            kind = "groups" if self.probe.held_out_groups else "rows"
            c = self.probe.change
            lines.append(f"head      {c} on held-out {kind} ({c.base:.4f} to {c.candidate:.4f} among half of the candidates)")
            lines.append("          " + ", ".join(f"{v:.4f} with {s:.0%} of the training part" for s, v in self.probe.curve))
        lines.append("this machine embeds " + ", ".join(f"{v:,.1f} {m}/s" for m, v in self.rates.items()))
        recipe = [f"recipe: {self.recipe}"] if self.recipe else []
        return "\n".join([*lines, "", plain_table(*self._table()), "", *recipe, *(f"source: {s}" for s in self.sources)])

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._table(), caption=f"{self.answer.upper()}: {self.why}")


def advise(
    model: "Model | str | Path | Mapping[str, str]",
    data: "Data | str",
    *,
    corpus_size: int,
    target: str | None = None,
    direction: str | None = None,
    price_per_hour: float | None = None,
    limit: int = 5000,
    quiet: bool = True,
) -> Advice:
    """Measure baseline, gain of a linear head and embedding speed on at most `limit` rows of DATA, and recommend what to do.

    corpus_size: number of items in the planned index
    target: "METRIC=VALUE", the value needed
    direction: "A->B", with B the modality in the index; default: text queries for the other modality
    price_per_hour: price of an hour of this machine
    """
    from mmtune.embedding.embed_rows import shared_modalities

    metric, wanted = parse_target(target)
    loaded, rows = as_model(model), as_data(data)
    names = shared_modalities(loaded, rows)
    pairs = {f"{a}->{b}": (a, b) for a in names for b in names if a != b or len(names) == 1}
    name = direction or default_direction(pairs)
    if name not in pairs:
        raise RecipeError(f"--direction {name}: not available; the model and the data have {', '.join(pairs)}")
    pair = pairs[name]
    step = -(-len(rows) // limit)
    some = rows.subset(range(0, len(rows), step)) if step > 1 else rows
    vectors, rates = _embed_and_time(loaded, some, pair, quiet)
    base = baseline(vectors, pair, metric)
    apart = towers_apart(loaded, pair)  # then a head on vectors of random heads would say nothing of the towers
    head = probe(vectors, pair, metric) if base.clusters >= MIN_CLUSTERS and not apart else None
    present = rows.present[pair[1]]  # of all rows, because the groups of the `limit` sampled rows are smaller
    group = np.where(rows.labels["group"] != 0, rows.labels["group"], rows.labels["id"])[present]
    _, counts = np.unique(group, return_counts=True)
    per_group, pairs_count = float(np.median(counts)), int(present.sum())
    plan = None
    if apart:
        choice = pretrained_plan(_case(pair), pairs_count, per_group)
        plan = choice.plan
        answer, why, sources = decide_apart(base, apart, choice)
    else:
        answer, why, sources = decide(base, head, wanted, per_group)
    costs = reindex_cost(corpus_size, loaded.dim, rates[pair[1]], price_per_hour)
    return Advice(
        answer,
        why,
        name,
        metric,
        wanted,
        base,
        head,
        rates,
        costs,
        sources,
        corpus_size,
        recipe_for(answer, plan, _case(pair), pairs_count, per_group),
    )


def _embed_and_time(
    model: "Model", data: "Data", pair: tuple[str, str], quiet: bool
) -> tuple[dict[str, Embeddings], dict[str, float]]:
    """Return (vectors, distinct items embedded per second), both by modality."""
    from mmtune.embedding.embed_rows import embed_data

    vectors: dict[str, Embeddings] = {}
    rates: dict[str, float] = {}
    for m in dict.fromkeys(pair):
        present = np.flatnonzero(data.present[m])
        embed_data(model, data.subset(present[:16]), [m])  # warm-up, because the first call is slower
        begin = time.perf_counter()
        vectors |= embed_data(model, data, [m], quiet=quiet)
        rates[m] = len(np.unique(data.labels[m][present])) / (time.perf_counter() - begin)
    return vectors, rates


def parse_target(given: str | None) -> tuple[str, float | None]:
    """Split "METRIC=VALUE", e.g. "ndcg@10=0.55", into ("ndcg@10", 0.55)."""
    if not given:
        return "ndcg@10", None
    name, _, value = given.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise RecipeError(f"--target {given}: write METRIC=VALUE, e.g. ndcg@10=0.55") from None


def default_direction(pairs: Mapping[str, tuple[str, str]]) -> str:
    """Return the first direction from text to another modality, or the first of all directions."""
    from_text = [n for n, (a, b) in pairs.items() if modalities.get(a).language and not modalities.get(b).language]
    return next(iter([*from_text, *pairs]))


def baseline(vectors: Mapping[str, Embeddings], pair: tuple[str, str], metric: str) -> PairedDifference:
    """Compute the metric with its bootstrap interval, as a PairedDifference.

    Its fields `base` and `candidate` are both the metric, and `interval` is the interval of the metric itself.
    """
    ks = with_cutoffs((), [metric]) or [10]
    metric_columns(ks, [metric], "--target")  # only to raise RecipeError for an unknown metric
    result = evaluate_vectors(vectors, ks=ks, metrics=[metric], pairs=[pair], per_query=True)
    direction = result.directions.get("->".join(pair))
    if direction is None:
        raise RecipeError(f"{'->'.join(pair)}: no query has a relevant candidate; ids or groups are missing")
    assert direction.values is not None
    zero = type(direction)(**{**direction.__dict__, "values": {m: np.zeros_like(v) for m, v in direction.values.items()}})
    d = paired_differences([DirectionPair(zero, direction)], [metric])[metric]
    return PairedDifference(d.candidate, d.candidate, 0.0, d.interval, 0, 0, d.queries, d.clusters)


def decide(base: PairedDifference, head: Probe | None, target: float | None, per_group: float) -> Recommendation:
    """Recommend what to do. A pure function of measurements, so that it can be tested.

    base: the baseline
    head: the linear probe; None if there are too few rows
    target: the value needed, or None
    per_group: number of rows in the median group
    """
    if base.clusters < MIN_CLUSTERS or head is None:
        why = f"{base.clusters} independent groups of queries are too few to tell one model from another."
        return Recommendation("label more data", why, [])
    if target is not None and base.interval[0] >= target:
        why = f"the baseline's interval starts at {base.interval[0]:.4f}, at or above the target {target:g}."
        return Recommendation("off-the-shelf", why, [])
    change, (half, whole) = head.change, (head.curve[-2][1], head.curve[-1][1])
    needed = NOTICEABLE if target is None else target - base.base
    gains, reached = change.interval[0] > 0, base.base + change.difference
    if gains and (target is None or reached >= target):
        reach = f" and so reaches {reached:.4f}" if target is not None else ""
        why = f"a linear head on the frozen features gains {change}{reach}; it is tuned in minutes, and a new index embeds all items with it."
        return Recommendation("head", why, [])
    few = per_group <= FEW_SHOTS
    sources = [SOURCES["few"]] if few else [SOURCES["many"], SOURCES["forget"]]
    method, shots = "LoRA" if few else "full", f"{per_group:g} rows in the median group"
    if gains:
        why = f"a head gains {change}, but reaches only {reached:.4f}, below the target {target:g}; with {shots}, tune the towers."
        return Recommendation(method, why, sources)
    if target is None and base.base > 1 - NOTICEABLE:
        why = f"the baseline is {base.base:.4f}: what is left to gain is too small to be noticed, and a head has no gain ({change})."
        return Recommendation("off-the-shelf", why, [SOURCES["small"]])
    rule = [SOURCES["small"]] if target is None else []
    if change.interval[1] >= needed:
        why = (
            f"a head's gain of {change} may be zero, or the {needed:+.4f} that would be "
            f"{'noticed' if target is None else 'enough'}: {change.clusters} independent groups are too few to decide."
        )
        return Recommendation("label more data", why, rule)
    if head.held_out_groups and whole - half >= NOTICEABLE:
        why = f"a head gains {change}, and the last doubling of its data alone gave {whole - half:+.4f}: more data would add more."
        return Recommendation("label more data", why, [SOURCES["small"]])
    why = (
        f"a head has no certain gain ({change}): the frozen features do not separate what is searched; with {shots}, tune the "
        "towers."
    )
    return Recommendation(method, why, [*rule, *sources])


def decide_apart(base: PairedDifference, apart: str, choice: PlanChoice) -> Recommendation:
    """Recommend what to do with towers that share no space yet, so that the baseline says nothing of them.

    base: the baseline, of which only the number of clusters is used
    apart: says why they share no space
    choice: the recipe for this many pairs and rows in the median group
    """
    if base.clusters < MIN_CLUSTERS:
        return Recommendation(
            "label more data", f"{apart}; {base.clusters} independent groups of queries are too few to align them.", []
        )
    why = f"{apart}. {choice.why} (measured: docs/benchmarks.md, Pretrained towers)."
    return Recommendation(choice.plan.tunes, why, [])


def _case(pair: tuple[str, str]) -> str:
    """The use case of `pretrained_plan` for the pair's modality that is not language."""
    signals = [m for m in pair if not modalities.get(m).language]
    return case_of(signals[0]) if signals else "catalog"


def recipe_for(answer: str, plan: PretrainedPlan | None, case: str, pairs: int, per_group: float) -> str | None:
    """Return how to get the recipe for an answer; None if nothing is to be tuned.

    plan: the recipe for towers that share no space yet; None if they do
    case: use case of that recipe
    pairs: number of rows of the searched modality
    per_group: number of rows in the median group
    """
    if answer not in ("head", "LoRA", "full"):
        return None
    if plan is not None:
        return (
            f"mmtune init DIR --case {case} --encoders --size {pairs} --per-group {max(1, round(per_group))}, which writes recipes/{plan.file}: "
            "heads are fitted to the pairs before the first step (the numbers are those of DATA: give those of the training pairs, if they are others)"
        )
    return (
        f"mmtune init DIR --case {case}, and train it with tune={answer.lower()} train.lr={LEARNING_RATES[answer]}, because the model's encoders "
        "share a space already"
    )


def reindex_cost(count: int, dim: int, rate: float, price: float | None) -> dict[str, ReindexCost]:
    """Return the cost of a new index of `count` items with `dim` dimensions, after tuning a head or the towers.

    rate: items embedded per second
    price: price per hour
    """
    hours = count / max(rate, 1e-9) / 3600
    cost = None if price is None else hours * price
    return {ANY_TUNING: ReindexCost(hours, count * dim * 4 / 1e9, count * dim * 2 / 1e9, cost)}


def duration(hours: float) -> str:
    """Format a duration, e.g. "2.5 hours", "17 minutes" or "0.3 seconds"."""
    for unit, size in (("days", 48.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= size:
            return f"{hours / (24 if unit == 'days' else size):.3g} {unit}"
    return f"{hours * 3600:.2g} seconds"
