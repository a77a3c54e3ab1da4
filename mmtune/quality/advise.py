"""`mmtune advise`: tune or not, with what, and what re-indexing will cost: measured here, on these data."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.paired_difference import DirectionPair, PairedDifference, paired_differences
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.quality.linear_probe import Probe, probe

if TYPE_CHECKING:
    import pandas

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

ANSWERS = ("off-the-shelf", "label more data", "head", "LoRA", "full")
FEW_SHOTS = 16  # SOURCES["few"]
NOTICEABLE = 0.05  # SOURCES["small"]
SOURCES = {
    "small": "Spärck Jones 1974, J. Documentation 30(4): a difference of less than 5 points between systems goes unnoticed",
    "few": "CLIP-LoRA, arXiv 2405.18541: with 1 to 16 examples a class, low-rank adapters beat other ways of tuning CLIP",
    "many": "LP-FT, arXiv 2202.10054: the head first, then everything; full tuning from a random head distorts good features",
    "forget": "LoRA Learns Less and Forgets Less, arXiv 2405.09673: with much data full tuning learns more and forgets more",
}


@dataclass
class Advice:
    """answer, one of ANSWERS, with why; baseline: the metric with its interval; probe: what a linear head gains on rows it
    did not see; rates: items a second on this machine; reindex: what N items cost after each kind of tuning."""

    answer: str
    why: str
    direction: str
    metric: str
    target: float | None
    baseline: PairedDifference
    probe: Probe | None
    rates: dict[str, float]
    reindex: dict[str, dict[str, float | None]]
    sources: list[str] = field(default_factory=list)
    corpus_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        base = {
            "value": self.baseline.base,
            "interval": list(self.baseline.interval),
            "queries": self.baseline.queries,
            "clusters": self.baseline.clusters,
        }
        head = None
        if (p := self.probe) is not None:
            head = {**p.change.to_dict(), "curve": [list(x) for x in p.curve], "unseen_groups": p.unseen}
        return {**asdict(self), "baseline": base, "probe": head}

    def to_pandas(self) -> "pandas.DataFrame":
        """What re-indexing costs, one line a kind of tuning."""
        import pandas

        return pandas.DataFrame.from_dict(self.reindex, orient="index")

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        names = [n for n, v in next(iter(self.reindex.values())).items() if v is not None]
        show = {"hours": duration, "price": lambda v: f"{v:,.2f}"}
        cell = [[k, *(show.get(n, "{:,.3g}".format)(v[n]) for n in names)] for k, v in self.reindex.items()]
        heads = {"hours": "time", "gb_float32": "GB in float32", "gb_float16": "GB in float16"}
        return [
            f"an index of {self.corpus_size:,} items ({self.direction.split('->')[1]}) after",
            *(heads.get(n, n) for n in names),
        ], cell

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        low, high = self.baseline.interval
        lines = [f"{self.answer.upper()}: {self.why}", ""]
        lines.append(f"baseline  {self.metric} of {self.direction}: {self.baseline.base:.4f} [{low:.4f}, {high:.4f}]")
        if self.probe:
            kind = "groups" if self.probe.unseen else "rows"
            c = self.probe.change
            lines.append(
                f"head      {c} on {kind} it did not see ({c.base:.4f} to {c.candidate:.4f} among half of the candidates)"
            )
            lines.append("          " + ", ".join(f"{v:.4f} with {s:.0%} of the training part" for s, v in self.probe.curve))
        lines.append("this machine embeds " + ", ".join(f"{v:,.1f} {m}/s" for m, v in self.rates.items()))
        return "\n".join([*lines, "", plain_table(*self._rows()), "", *(f"source: {s}" for s in self.sources)])

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._rows(), caption=f"{self.answer.upper()}: {self.why}")


def duration(hours: float | None) -> str:
    """For people: "2.5 hours", "17 minutes", "0.3 seconds"."""
    hours = hours or 0.0
    for unit, size in (("days", 48.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= size:
            return f"{hours / (24 if unit == 'days' else size):.3g} {unit}"
    return f"{hours * 3600:.2g} seconds"


def parse_target(given: str | None) -> tuple[str, float | None]:
    """ "ndcg@10=0.55" -> ("ndcg@10", 0.55)."""
    if not given:
        return "ndcg@10", None
    name, _, value = given.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise RecipeError(f"--target {given}: write METRIC=VALUE, e.g. ndcg@10=0.55") from None


def default_direction(pairs: Mapping[str, tuple[str, str]]) -> str:
    """The first search by what people type for what they cannot; else the first there is."""
    typed = [n for n, (a, b) in pairs.items() if modalities.get(a).language and not modalities.get(b).language]
    return next(iter([*typed, *pairs]))


def baseline(vectors: Mapping[str, Embeddings], pair: tuple[str, str], metric: str) -> PairedDifference:
    """The metric with an interval by cluster (as a PairedDifference from zero)."""
    ks = [int(metric.partition("@")[2])] if metric.partition("@")[2].isdigit() else [10]
    found = evaluate_vectors(vectors, ks=ks, pairs=[pair], per_query=True).directions.get("->".join(pair))
    if found is None:
        raise RecipeError(f"{'->'.join(pair)}: no query has a relevant candidate; ids or groups are missing")
    if metric not in found.metrics:
        raise RecipeError(f"--target: no metric {metric!r}; there are: {', '.join(found.metrics)}")
    assert found.values is not None
    zero = type(found)(**{**found.__dict__, "values": {m: np.zeros_like(v) for m, v in found.values.items()}})
    c = paired_differences([DirectionPair(zero, found)], [metric])[metric]
    return PairedDifference(c.candidate, c.candidate, 0.0, c.interval, 0, 0, c.queries, c.clusters)


def decide(base: PairedDifference, head: Probe | None, target: float | None, per_group: float) -> tuple[str, str, list[str]]:
    """(answer, why, sources) from what was measured. Pure, so that it can be argued with. Every number in it was measured here,
    or is quoted with its source."""
    if base.clusters < MIN_CLUSTERS or head is None:
        why = f"{base.clusters} independent things to ask about are too few to tell one model from another."
        return "label more data", why, []
    if target is not None and base.interval[0] >= target:
        why = f"the baseline's interval starts at {base.interval[0]:.4f}, at or above the target {target:g}."
        return "off-the-shelf", why, []
    change, (half, whole) = head.change, (head.curve[-2][1], head.curve[-1][1])
    wanted = NOTICEABLE if target is None else target - base.base
    gains, reached = change.interval[0] > 0, base.base + change.difference
    if gains and (target is None or reached >= target):
        reach = f" and so reaches {reached:.4f}" if target is not None else ""
        why = f"a linear head on the frozen features gains {change}{reach}; stored vectors can be mapped, not embedded anew."
        return "head", why, []
    few = per_group <= FEW_SHOTS
    sources = [SOURCES["few"]] if few else [SOURCES["many"], SOURCES["forget"]]
    tune, shots = "LoRA" if few else "full", f"{per_group:g} rows in the median group"
    if gains:
        why = f"a head gains {change}, but {reached:.4f} is short of {target:g}; with {shots}, tune the towers."
        return tune, why, sources
    if target is None and base.base > 1 - NOTICEABLE:
        why = (
            f"the baseline is {base.base:.4f}: less is left to gain than would be noticed, and a head gains nothing ({change})."
        )
        return "off-the-shelf", why, [SOURCES["small"]]
    rule = [SOURCES["small"]] if target is None else []
    if change.interval[1] >= wanted:
        why = (
            f"a head's gain of {change} may be nothing, or the {wanted:+.4f} that would be "
            f"{'noticed' if target is None else 'enough'}: {change.clusters} independent things cannot tell; more would."
        )
        return "label more data", why, rule
    if head.unseen and whole - half >= NOTICEABLE:
        why = f"a head gains {change}, but {whole - half:+.4f} by the last doubling of its data alone: it is still learning."
        return "label more data", why, [SOURCES["small"]]
    why = f"a head gains nothing sure ({change}): the frozen features do not hold what is asked; with {shots}, tune the towers."
    return tune, why, [*rule, *sources]


def reindex_cost(count: int, dim: int, rate: float, map_rate: float, price: float | None) -> dict[str, dict[str, float | None]]:
    """Hours, GB (float32 and float16) and price of a new index of `count` items after tuning a head, or the towers."""
    out = {}
    for name, speed in (("a head (stored vectors are mapped)", map_rate), ("LoRA or full (all is embedded anew)", rate)):
        hours = count / max(speed, 1e-9) / 3600
        size = {"gb_float32": count * dim * 4 / 1e9, "gb_float16": count * dim * 2 / 1e9}
        out[name] = {"hours": hours, **size, "price": None if price is None else hours * price}
    return out


def map_rate(dim: int, seconds: float = 0.2) -> float:
    """Vectors a second that this machine maps by a dim x dim head."""
    x, w = np.ones((4096, dim), np.float32), np.ones((dim, dim), np.float32)
    x @ w
    begin, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        x @ w
        done += len(x)
    return done / passed


def advise(
    model: "Model | str",
    data: "Data | str",
    *,
    corpus_size: int,
    target: str | None = None,
    direction: str | None = None,
    price_per_hour: float | None = None,
    limit: int = 5000,
    quiet: bool = True,
) -> Advice:
    """Measure the baseline, a head's gain and the embedding rate on at most `limit` rows of DATA, and answer.

    target: "METRIC=VALUE"; direction: "A->B", B is what the index holds (default: words that search for the other modality);
    price_per_hour of this machine.
    """
    from mmtune.data.shards.dataset import open_data
    from mmtune.embedding.embed_rows import embed_data, shared_modalities
    from mmtune.model.artifact import load

    metric, wanted = parse_target(target)
    found, rows = (load(model) if isinstance(model, str) else model), (open_data(data) if isinstance(data, str) else data)
    names = shared_modalities(found, rows)
    pairs = {f"{a}->{b}": (a, b) for a in names for b in names if a != b or len(names) == 1}
    name = direction or default_direction(pairs)
    if name not in pairs:
        raise RecipeError(f"--direction {name}: the model and the data share {', '.join(pairs)}")
    pair = pairs[name]
    step = -(-len(rows) // limit)
    some = rows.subset(range(0, len(rows), step)) if step > 1 else rows
    vectors: dict[str, Embeddings] = {}
    rates: dict[str, float] = {}
    for m in dict.fromkeys(pair):
        has = np.flatnonzero(some.present[m])
        embed_data(found, some.subset(has[:16]), [m])  # warm
        begin = time.perf_counter()
        vectors |= embed_data(found, some, [m], quiet=quiet)
        rates[m] = len(np.unique(some.labels[m][has])) / (time.perf_counter() - begin)
    base = baseline(vectors, pair, metric)
    head = probe(vectors, pair, metric) if base.clusters >= MIN_CLUSTERS else None
    there = rows.present[pair[1]]  # of all rows: `limit` may have thinned the groups
    thing = np.where(rows.labels["group"] != 0, rows.labels["group"], rows.labels["id"])[there]
    _, counts = np.unique(thing, return_counts=True)
    answer, why, sources = decide(base, head, wanted, float(np.median(counts)))
    costs = reindex_cost(corpus_size, found.dim, rates[pair[1]], map_rate(found.dim), price_per_hour)
    return Advice(answer, why, name, metric, wanted, base, head, rates, costs, sources, corpus_size)
