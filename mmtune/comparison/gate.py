"""The gate decides whether the candidate may replace the base, by the size of the difference and its confidence interval."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError
from mmtune.recipe.gate_block import MEAN, RETENTION, Gate
from mmtune.recipe.retention_block import Retention

if TYPE_CHECKING:
    from mmtune.comparison.paired_difference import PairedDifference


def read_gate(path: str | Path) -> JsonObject | None:
    """Read the gate from a YAML file: the `gate:` block of a recipe, or a file with the gate's keys only.

    Returns None if there is no gate in it. Raises RecipeError if the file is missing, is not YAML, or is not a mapping.
    """
    import difflib

    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise RecipeError(f"{path}: this file does not exist") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"{path}: not valid YAML ({' '.join(str(e).split())})") from None
    if isinstance(document, dict) and "gate" not in document:
        for near in difflib.get_close_matches("gate", [str(k) for k in document], 1):
            raise RecipeError(f"{path}: no key {near!r} in a recipe; did you mean 'gate'?")
    if isinstance(document, dict) and ("gate" in document or "model" in document):
        document = _gate_of_recipe(document)
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a gate is a mapping, e.g. gate: {{metric: ndcg@10, min_gain: 0.01}}")
    return document or None


def _gate_of_recipe(document: JsonObject) -> object:
    """Return the gate of a recipe, with its forgetting budget, if it has one."""
    gate, retention = document.get("gate") or {}, document.get("retention")
    if not isinstance(retention, Mapping) or not isinstance(gate, Mapping):
        return gate
    at_most = float(retention.get("at_most", Retention.model_fields["at_most"].default))
    budget = {"retention_loss": at_most, "retention_cluster": retention.get("cluster")}
    # null is as good as no key, as in the recipe: a budget without its guard would guard nothing
    return {**gate, **{key: value for key, value in budget.items() if value is not None and gate.get(key) is None}}


def refuse_unmeasured_retention(gate: Gate | None) -> None:
    """Raise RecipeError for a gate that guards the retention slice, for a comparison without retention data."""
    if gate is not None and (gate.retention_loss is not None or RETENTION in (gate.guards or {})):
        raise RecipeError(
            "this gate guards the retention slice: give the retention data, too (--retention DATA), or another gate"
        )


def complete_gate(gate: Gate | None, directions: Iterable[str], slices: Iterable[str]) -> Gate:
    """Return the gate with everything that it leaves to the defaults.

    Without a gate, the mean over directions must rise. A gate without guards gets these: if it is about the mean, no direction may
    fall by more than 0.01; on the retention data (see `mmtune.comparison.retention`) the metric may not fall by more than 0.01, and
    on the confusable queries (see `mmtune.comparison.confusable`) not at all.
    """
    directions, slices = list(directions), list(slices)
    gate = gate or Gate()
    if gate.direction == MEAN and len(directions) == 1:
        gate = gate.model_copy(update={"direction": directions[0]})
    budget = {} if gate.retention_loss is None else {RETENTION: -gate.retention_loss}
    if gate.guards is not None:
        return gate.model_copy(update={"guards": {**budget, **gate.guards}})
    guards = dict.fromkeys(directions, -0.01) if gate.direction == MEAN and len(directions) > 1 else {}
    guards |= {s: bound for s, bound in ((RETENTION, -0.01), ("confusable", 0.0)) if s in slices} | budget
    return gate.model_copy(update={"guards": guards})


class GateVerdict(NamedTuple):
    """verdict: "pass", "fail", or "inconclusive" if the confidence interval allows both. reason: one sentence."""

    verdict: str
    reason: str

    def to_dict(self) -> JsonObject:
        return self._asdict()


def decide(
    gate: Gate, gain: "PairedDifference", guards: "Mapping[str, PairedDifference]", guard_metric: str | None = None
) -> GateVerdict:
    """Decide by the difference in the gate's direction (`gain`) and the differences of the guarded slices and directions.

    guard_metric: metric of the guards' differences; None: that of the gate
    """
    name, bounds, guarded = f"{gate.metric} of {gate.direction}", gate.guards or {}, guard_metric or gate.metric
    broken = {g: d for g, d in guards.items() if d.interval[1] < bounds[g]}
    unsure = {g: d for g, d in guards.items() if not d.interval[0] >= bounds[g] and g not in broken}
    if broken:
        g, d = min(broken.items(), key=lambda x: x[1].difference - bounds[x[0]])
        return GateVerdict("fail", f"{guarded} of the guard {g!r} changed by {d}, below its bound {bounds[g]:+g}.")
    if gain.interval[1] <= gate.min_gain:
        return GateVerdict("fail", f"{name} changed by {gain}, {_missed(gate)}.")
    if not gain.interval[0] > gate.min_gain:
        return GateVerdict(
            "inconclusive",
            f"{name} changed by {gain}: the interval ({gain.queries} queries, {gain.clusters} clusters) contains values on "
            f"both sides of {gate.min_gain:+g}; {_needed(gain)}."
            if gain.has_interval
            else f"{name} changed by {gain.difference:+.4f}; {_needed(gain)}.",
        )
    if unsure:
        g, d = min(unsure.items(), key=lambda x: x[1].interval[0] - bounds[x[0]])
        return GateVerdict(
            "inconclusive",
            f"{name} rose by {gain}, but {guarded} of the guard {g!r} changed by {d} and may lie below its bound "
            f"{bounds[g]:+g}; {_needed(d, 'retention rows' if g == RETENTION else 'test queries')}.",
        )
    kept = f" and {len(guards)} guard{'s' * (len(guards) > 1)} held" if guards else ""
    required = f", more than the required {gate.min_gain:+g}" if gate.min_gain else ""
    return GateVerdict("pass", f"{name} rose by {gain}{required}{kept}.")


def _needed(difference: "PairedDifference", queries: str = "test queries") -> str:
    """What would decide: more `queries`, or, where several of them are one cluster, only more clusters."""
    clusters = difference.clusters
    if not difference.has_interval:
        return (
            f"with {clusters} cluster{'s' * (clusters != 1)} no interval is possible: more queries of the same clusters tell nothing, only more clusters "
            f"(at least {MIN_CLUSTERS}) do; a cluster is a group, or a value of --cluster COLUMN such as the recording"
        )
    return f"more {queries} are needed" + (", of other clusters" if clusters < difference.queries else "")


def _missed(gate: Gate) -> str:
    return f"which is not more than the required {gate.min_gain:+g}" if gate.min_gain else "which is no gain"
