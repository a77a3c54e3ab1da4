"""The forgetting budget of the recipe block `retention`: measure the loss on the retention data, and preserve embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.paired_difference import DirectionPair, paired_differences
from mmtune.contracts import Embeddings, Pair
from mmtune.data.shards.dataset import open_data
from mmtune.data.skip_bad import open_rows_to_encode
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.evaluation.clusters import clusters_by_value, row_clusters
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.result import Direction
from mmtune.evaluation.tasks.knn import source_of_rows
from mmtune.evaluation.validation import DROP, DROP_HIGH, SELECTION
from mmtune.model.prompts import with_prompt
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import Processes
from mmtune.training.regularise.embedding_preservation import EmbeddingPreservation
from mmtune.training.training_inputs import TrainingInputs

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.training.tuning.tune import TunedModel


class RetentionBudget:
    """Measures how much of a metric is lost on the retention data, with a paired bootstrap interval resampled by cluster.

    base: the base model's embeddings of the retention data
    source: {row id: e.g. its recording}, whose values are resampled; None: groups, and rows of equal content
    """

    def __init__(
        self,
        base: Mapping[str, Embeddings],
        wanted: Sequence[str],
        metric: str,
        at_most: float,
        source: Mapping[str, str | None] | None = None,
    ):
        self.metric, self.at_most, self.source = metric, at_most, source
        directions = evaluate_vectors(dict(base), metrics=[metric], per_query=True).directions
        self.base = {d: directions[d] for d in wanted if d in directions}

    def scores(self, directions: Mapping[str, Direction], domain: float) -> dict[str, float]:
        """Return the loss, the ends of its interval, and the score that selects checkpoints.

        That is the domain's metric if the upper end is within the budget, else a negative number, the lower the more is lost.
        """
        pairs = [DirectionPair(self._clustered(self.base[d]), self._clustered(directions[d])) for d in self.base]
        difference = paired_differences(pairs, [self.metric])[self.metric]
        low, high = difference.interval
        return {
            DROP: -difference.difference,
            f"{DROP} low": -high,
            DROP_HIGH: -low,
            SELECTION: domain if -low <= self.at_most else low - 1,
        }

    def _clustered(self, direction: Direction) -> Direction:
        """Return the direction with the clusters of `source`."""
        if self.source is None:
            return direction
        return replace(direction, clusters=clusters_by_value(direction.query_rows, self.source))


@dataclass
class RetentionControl:
    """The budget of a run, and the base model's embeddings of the rows to preserve. All None without the block `retention`."""

    budget: RetentionBudget | None = None
    rows: "Data | None" = None
    base: Mapping[str, Embeddings] | None = None

    def preservation(
        self, recipe: Recipe, inputs: TrainingInputs, tuned: "TunedModel", processes: Processes
    ) -> EmbeddingPreservation | None:
        """Return the embedding-preservation loss, or None if there is none. Call it after `tune`."""
        if self.rows is None or self.base is None or recipe.retention is None:
            return None
        model = inputs.model
        if tuned.features is not None:
            tuned.features.store(self.rows, True)
        preprocess = {m: with_prompt(model.towers[m].preprocess, model.prompts, m) for m in self.base}
        return EmbeddingPreservation(
            self.rows,
            self.base,
            {**preprocess, **{m: p for m, p in tuned.feature_preprocess.items() if m in self.base}},
            weight=recipe.retention.weight,
            batch_size=recipe.retention.batch_size,
            seed=recipe.train.seed,
            stored=tuned.features.items if tuned.features else None,
            processes=processes,
        )


def build_retention(recipe: Recipe, inputs: TrainingInputs, processes: Processes) -> RetentionControl:
    """Embed the retention data with the base model, which `inputs.model` must still be.

    Raises DataError if the data have too few clusters for an interval, or nothing in the trained directions.
    """
    if recipe.retention is None or inputs.retention is None:
        return RetentionControl()
    options, data = recipe.retention, inputs.retention
    names = [m for m in inputs.trained if m in data.modalities]
    base = embed_data(inputs.model, data, names, processes=processes)
    try:
        source = source_of_rows(data, options.cluster)
    except DataError as e:
        raise DataError(f"retention.cluster: {e}") from None
    budget = RetentionBudget(base, _directions(inputs.pairs), recipe.train.metric, options.at_most, source)
    if not budget.base:
        raise DataError(
            f"retention.data: {data.spec} has no row for the trained directions {', '.join(_directions(inputs.pairs))}"
        )
    numbers = list(row_clusters(base).values()) if source is None else clusters_by_value([[row] for row in source], source)
    if (clusters := len(set(numbers))) < MIN_CLUSTERS:
        kind = f"values of {options.cluster}" if options.cluster else "groups, or rows of equal content"
        raise DataError(
            f"retention.data: {data.spec} has {clusters} clusters ({kind}); an interval of the loss needs "
            f"at least {MIN_CLUSTERS}"
        )
    if not options.weight:
        return RetentionControl(budget)
    if options.preserve is None:
        return RetentionControl(budget, data, base)
    rows = open_rows_to_encode(open_data(options.preserve), skip_bad=recipe.data.skip_bad)
    names = [m for m in inputs.trained if m in rows.modalities]
    if not names:
        raise DataError(f"retention.preserve: {rows.spec} has none of the trained modalities {', '.join(inputs.trained)}")
    return RetentionControl(budget, rows, embed_data(inputs.model, rows, names, processes=processes))


def _directions(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(f"{x}->{y}" for a, b in pairs for x, y in ((a, b), (b, a))))
