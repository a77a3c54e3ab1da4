"""The gate: may the candidate replace the base? By effect size and its interval, never by a p-value alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmtune.errors import RecipeError

MEAN = "mean"
"""The name of the mean over all directions between different modalities."""


@dataclass(frozen=True)
class Gate:
    """`metric` of `direction` must gain at least `min_gain`; each guard (a slice or a direction) may change by no less than
    its bound: {general: -0.01} lets it lose one point at most. Both are asked of the 95% interval's lower end."""

    metric: str = "ndcg@10"
    direction: str = MEAN
    min_gain: float = 0.0
    guards: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def read(value: "Mapping[str, Any] | Gate | None") -> "Gate | None":
        """From the recipe's `gate:` mapping. Raises RecipeError for unknown keys and values that are no numbers."""
        if value is None or isinstance(value, Gate):
            return value
        import difflib

        known = list(Gate.__dataclass_fields__)
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise RecipeError(
                    f"gate.{key}: unknown; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
                )
        try:
            guards = {str(k): float(v) for k, v in dict(value.get("guards") or {}).items()}
            return Gate(**{**value, "min_gain": float(value.get("min_gain", 0.0)), "guards": guards})
        except (TypeError, ValueError) as e:
            raise RecipeError(f"gate: min_gain and guards are numbers, e.g. guards: {{general: -0.01}} ({e})") from None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "guards": dict(self.guards)}


def read_gate(path: str | Path) -> dict[str, Any] | None:
    """The gate of a YAML file: a recipe with a `gate:` key (None where it is empty), or the gate alone. RecipeError else."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file with a gate") from None
    except yaml.YAMLError as e:
        raise RecipeError(f"{path}: not valid YAML ({' '.join(str(e).split())})") from None
    if isinstance(found, dict) and ("gate" in found or "model" in found):
        found = found.get("gate") or {}
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: a gate is a mapping, e.g. gate: {{metric: ndcg@10, min_gain: 0.01}}")
    return found or None


def default_gate(directions: list[str], slices: list[str]) -> Gate:
    """Without a recipe: the mean over directions must rise, none of them and no `general` slice may lose a point, and the
    `confusable` slice may not fall."""
    guards = dict.fromkeys(directions, -0.01) if len(directions) > 1 else {}
    guards |= {s: b for s, b in (("general", -0.01), ("confusable", 0.0)) if s in slices}
    return Gate(direction=MEAN if len(directions) > 1 else next(iter(directions), MEAN), guards=guards)


@dataclass(frozen=True)
class Change:
    """Paired difference candidate - base of one metric over some queries, with its interval resampled by cluster."""

    base: float
    candidate: float
    difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    queries: int
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval)}

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.interval[0]:+.4f}, {self.interval[1]:+.4f}]"


def decide(gate: Gate, gain: Change, guards: Mapping[str, Change]) -> tuple[str, str]:
    """(verdict, reason in one sentence): pass, fail, or inconclusive when the interval allows either answer."""
    name = f"{gate.metric} of {gate.direction}"
    broken = {g: c for g, c in guards.items() if c.interval[1] < gate.guards[g]}
    unsure = {g: c for g, c in guards.items() if not c.interval[0] >= gate.guards[g] and g not in broken}
    if broken:
        g, c = min(broken.items(), key=lambda x: x[1].difference - gate.guards[x[0]])
        return "fail", f"{gate.metric} of the guard {g!r} changed by {c}, below its bound {gate.guards[g]:+g}."
    if gain.interval[1] <= gate.min_gain:
        return "fail", f"{name} changed by {gain}, {_missed(gate)}."
    if not gain.interval[0] > gate.min_gain:
        return "inconclusive", (
            f"{name} changed by {gain}: the interval ({gain.queries} queries, {gain.clusters} clusters) holds values on "
            f"both sides of {gate.min_gain:+g}; more test queries would tell."
        )
    if unsure:
        g, c = min(unsure.items(), key=lambda x: x[1].interval[0] - gate.guards[x[0]])
        return "inconclusive", (
            f"{name} rose by {gain}, but {gate.metric} of the guard {g!r} changed by {c} and may lie below its bound "
            f"{gate.guards[g]:+g}; more test queries would tell."
        )
    kept = f" and {len(guards)} guard{'s' * (len(guards) > 1)} held" if guards else ""
    asked = f", more than the {gate.min_gain:+g} asked for" if gate.min_gain else ""
    return "pass", f"{name} rose by {gain}{asked}{kept}."


def _missed(gate: Gate) -> str:
    return f"which is not more than the {gate.min_gain:+g} asked for" if gate.min_gain else "which is no gain"
