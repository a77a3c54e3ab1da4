"""Validation during training: compute a metric of the trained directions on data.val and data.retention."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from mmtune import modalities
from mmtune.contracts import Embeddings, Pair, direction
from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.metrics import metric_columns
from mmtune.evaluation.result import Direction
from mmtune.runtime.distributed import Processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

RETENTION_PREFIX = "retention "
"""Prefix of metric names on the retention data, in metrics.jsonl too."""

DROP = f"{RETENTION_PREFIX}drop"
"""Name of the loss of the metric on the retention data, base - model; with " low" and " high" the ends of its 95% interval."""
DROP_HIGH = f"{DROP} high"

SELECTION = "selection"
"""Name of the score that selects checkpoints, where it is not the metric on the validation data."""

Validate = Callable[["Model"], dict[str, float]]
"""Function of the model that returns {"a->b map": value, ..., "metric": mean of these values}."""


class Budget(Protocol):
    """A forgetting budget (`mmtune.training.retention_budget`)."""

    def scores(self, directions: Mapping[str, Direction], domain: float) -> dict[str, float]:
        """Return further scores, from the retention data's directions with per-query values and the metric on `val`."""
        ...


class Embed(Protocol):
    """Function that embeds data for validation: `embed_data`, or one that uses the cached features of frozen towers."""

    def __call__(
        self, model: "Model", data: "Data", wanted: Sequence[str], /, *, processes: Processes
    ) -> Mapping[str, Embeddings]: ...


def build_validation(
    val: "Data | None",
    retention: "Data | None",
    pairs: Sequence[Pair],
    metric: str,
    embed: Embed,
    processes: Processes,
    budget: Budget | None = None,
) -> Validate | None:
    """Return a function that validates on `val` and on `retention`, or None without `val`. `budget` adds its scores.

    Names of metrics on `retention` start with RETENTION_PREFIX. With several processes each embeds its share, and rank 0
    computes the metrics and broadcasts them.

    Raises RecipeError for `retention` without `val` and for an unknown metric. The returned function raises RecipeError if the
    data have no row for any trained direction.
    """
    if val is None:
        if retention is not None:
            raise RecipeError("data.retention needs data.val: set data.val too")
        return None
    on_val = _validation(val, pairs, metric, embed, "data.val", processes)
    if retention is None:
        return lambda model: processes.broadcast(on_val(model)[0])
    on_retention = _validation(retention, pairs, metric, embed, "data.retention", processes)

    def both(model: "Model") -> dict[str, float]:
        values, _ = on_val(model)
        kept, directions = on_retention(model)
        more = budget.scores(directions, values["metric"]) if budget is not None and processes.is_main_process else {}
        return processes.broadcast(values | {f"{RETENTION_PREFIX}{k}": v for k, v in kept.items()} | more)

    return both


def _validation(
    data: "Data", pairs: Sequence[Pair], metric: str, embed: Embed, key: str, processes: Processes
) -> Callable[["Model"], tuple[dict[str, float], dict[str, Direction]]]:
    metric_columns((1, 5, 10), [metric], "train.metric")  # only to raise RecipeError for an unknown metric
    wanted = [d for a, b in pairs for d in dict.fromkeys([direction(a, b), direction(b, a)])]
    trained = sorted({m for pair in pairs for m in pair}, key=modalities.names().index)

    def validate(model: "Model") -> tuple[dict[str, float], dict[str, Direction]]:
        vectors = embed(model, data, [m for m in trained if m in data.modalities], processes=processes)
        if not processes.is_main_process:
            return {}, {}
        directions = evaluate_vectors(dict(vectors), metrics=[metric], per_query=True).directions
        values = {f"{d} {metric}": directions[d].metrics[metric] for d in wanted if d in directions}
        if not values:
            raise RecipeError(f"{key}: {data.spec} has no row for the trained directions {', '.join(wanted)}")
        return values | {"metric": sum(values.values()) / len(values)}, directions

    return validate
