"""Compare two models by an evaluation task (zero_shot, knn, anomaly), with intervals of the differences, and decide by the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mmtune.comparison.bootstrap_intervals import MIN_CLUSTERS
from mmtune.comparison.compare_seeds import combine_task_comparisons, made_once, model_pairs
from mmtune.comparison.comparison_result import GatedComparison, seeds_text
from mmtune.comparison.gate import MEAN, RETENTION, Gate, complete_gate, decide, refuse_unmeasured_retention
from mmtune.comparison.paired_difference import PairedDifference
from mmtune.comparison.retention import RETENTION_METRIC, refuse_trained_retention, retention_difference
from mmtune.comparison.task_intervals import metric_intervals, task_difference
from mmtune.contracts import Embeddings, JsonObject, direction
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.clusters import default_cluster
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.evaluation.tasks.anomaly_result import Anomalies
from mmtune.evaluation.tasks.evaluate_task import TaskResult, evaluate_task
from mmtune.evaluation.tasks.knn import source_of_rows
from mmtune.evaluation.tasks.task import RETRIEVAL, RowScores
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.recipe.block import check
from mmtune.recipe.gate_block import FIRST

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

Differences = dict[str, PairedDifference]


@dataclass
class TaskComparison(GatedComparison):
    """The result of comparing a candidate with a base model by a task.

    differences: {modality: {metric: difference}}
    guards: {"retention": difference of RETENTION_METRIC on the retention data}, if these were given
    cluster: metadata column whose values were resampled; None: single rows
    base, candidate: the results of the models; of several seeds those of the first
    seeds: the seeds, if several seeds of a recipe were compared (see `mmtune.comparison.compare_seeds`)
    """

    task: str
    differences: dict[str, Differences]
    cluster: str | None
    base: TaskResult = field(repr=False)
    candidate: TaskResult = field(repr=False)
    seeds: list[int] = field(default_factory=list)
    guards: Differences = field(default_factory=dict)

    @property
    def changes(self) -> tuple[Differences, Differences]:
        """The changes of the gate's metric by modality, and of the guards."""
        return {m: by[self.gate.metric] for m, by in self.differences.items() if self.gate.metric in by}, self.guards

    @property
    def deciding(self) -> PairedDifference:
        """The difference of the gate's metric in its modality."""
        return self.differences[self.gate.direction][self.gate.metric]

    @property
    def flat(self) -> Differences:
        """All differences: {"MODALITY METRIC": difference}, then those of the guards."""
        of_task = {f"{m} {name}": d for m, by in self.differences.items() for name, d in by.items()}
        return {**of_task, **{f"{name} {RETENTION_METRIC}": d for name, d in self.guards.items()}}

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune compare --task --json`."""
        return {
            **super().to_dict(),
            "task": self.task,
            "cluster": self.cluster,
            "differences": {m: {n: d.to_dict() for n, d in by.items()} for m, by in self.differences.items()},
            **({"guards": {n: d.to_dict() for n, d in self.guards.items()}} if self.guards else {}),
            "fingerprints": {"base": self.base.fingerprint, "candidate": self.candidate.fingerprint},
            **({"seeds": self.seeds} if self.seeds else {}),
        }

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        rows = [
            [name, f"{d.queries:,}", f"{d.clusters:,}", f"{d.base:.4f}", f"{d.candidate:.4f}", str(d)]
            for name, d in self.flat.items()
        ]
        table = plain_table([self.task, "rows", "clusters", "base", "candidate", "difference"], rows)
        text = f"{self.headline}\n\n{table}\n\nintervals resample {resampled_units(self.cluster)}"
        return f"{text}\n\n{seeds_text(self.seeds, self.flat, '')}" if self.seeds else text


class _Measured(NamedTuple):
    """One model's result of the task, and its vectors of the retention data, if there are any."""

    result: TaskResult
    retained: dict[str, Embeddings] | None


def compare_task(
    base: "Model | str | Path | Mapping[str, str]",
    candidate: "Model | str | Path | Mapping[str, str]",
    data: "Data | str",
    task: str,
    options: Mapping[str, object],
    *,
    gate: "Gate | Mapping[str, object] | None" = None,
    modalities: Sequence[str] | None = None,
    retention: "Data | str | None" = None,
    cluster: str | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    allow_trained: bool = False,
    vectors: "Sequence[Mapping[str, Embeddings]]" = (),
) -> TaskComparison:
    """Evaluate both models by `task` on the same rows, and let the gate decide.

    base, candidate: models, or directories of several seeds (`mmtune train --seeds`), see `compare_seeds`
    options: options of the task, as of `mmtune.evaluate`
    gate: `metric` is one of the task's (default: the first, accuracy or auroc), `direction` a modality (default: the only one);
        its only guard is retention. `task` and `task_options` of the gate are not read: the arguments are
    modalities: modalities to score
    retention: other data on which the candidate must not be worse at retrieval (ndcg@10); the gate's guard "retention"
    cluster: metadata column, e.g. the recording or machine, whose values the intervals resample; None: the gate's, else a column called
        recording, if several rows have one value of it, else single rows; "": single rows
    batch_size, quiet, allow_trained: as in `mmtune.evaluate`
    vectors: {modality: embeddings of all rows of `data`} by the base and by the candidate, if they were computed before; not for seeds

    Raises RecipeError for a gate that does not fit the task, and DataError if the models did not score the same rows.
    """
    if task == RETRIEVAL:
        raise RecipeError("compare_task: for retrieval use compare")
    given = task_gate(gate, task)
    rows, other = as_data(data), None if retention is None else as_data(retention)
    if other is None:
        refuse_unmeasured_retention(given)
    pairs, runs = model_pairs(base, candidate)
    cluster = default_cluster(rows, given.cluster if cluster is None else cluster)
    source = source_of_rows(rows, cluster)
    kept = None if other is None else source_of_rows(other, given.retention_cluster)

    def evaluated(model: "Model | str | Path | Mapping[str, str]", side: int) -> _Measured:
        loaded = as_model(model)
        retained = None
        if other is not None:
            wanted = [m for m in other.modalities if m in loaded.towers]
            refuse_trained_retention(other, wanted, trained_on(loaded), ("the base", "the candidate")[side], allow_trained)
            retained = embed_data(loaded, other, wanted, batch_size, quiet)
        result = evaluate_task(
            loaded,
            rows,
            task,
            options,
            trained=trained_on(loaded),
            modalities=modalities,
            batch_size=batch_size,
            quiet=quiet,
            allow_trained=allow_trained,
            vectors=vectors[side] if vectors else None,
        )
        return _Measured(result, retained)

    done = [_compare_results(b, c, given, rows.spec, source, cluster, kept) for b, c in made_once(pairs, evaluated)]
    return done[0] if runs is None else combine_task_comparisons(done, runs.seeds)


def task_gate(gate: "Gate | Mapping[str, object] | None", task: str) -> Gate:
    """Return the gate of a comparison by `task`. Raises RecipeError for keys that do not fit a task, or for another task in it."""
    given = Gate.read(gate) or Gate()
    if given.task is None:
        given = check(Gate, {**given.model_dump(exclude_unset=True), "task": task}, "gate")
    if given.task != task:
        raise RecipeError(f"gate.task: the gate compares by {given.task}, this comparison by {task}; leave one of them out")
    return given


def _compare_results(
    before: _Measured,
    after: _Measured,
    given: Gate,
    spec: str,
    source: Mapping[str, str | None] | None,
    cluster: str | None,
    retention_source: Mapping[str, str | None] | None,
) -> TaskComparison:
    """Compare the results of one base and one candidate by the given gate. See `compare_task` for the errors.

    spec: name of the data in messages
    source: {row id: value of the column `cluster`}
    retention_source: as `source`, for the rows of the retention data
    """
    (base, kept_base), (candidate, kept_candidate), task = before, after, before.result.task
    shared = [m for m in base.results if m in candidate.results]
    if not shared:
        raise DataError(f"{spec}: no modality that both models score")
    table = {m: task_difference(base.results[m], candidate.results[m], source, task) for m in shared}
    name = shared[0] if given.direction == MEAN else given.direction
    if name not in table or (len(shared) > 1 and given.direction == MEAN):
        raise RecipeError(f"gate.direction: name the modality that decides (--direction): {', '.join(shared)}")
    metrics = list(table[name])
    metric = metrics[0] if given.metric == FIRST else given.metric
    if metric not in metrics:
        raise RecipeError(f"gate.metric: {task} has no metric {metric!r}; name one of its own (--metric): {', '.join(metrics)}")
    guards: Differences = {}
    if kept_base is not None and kept_candidate is not None:
        both = [m for m in kept_base if m in kept_candidate]
        old, new = ({m: of[m] for m in both} for of in (kept_base, kept_candidate))
        alone = len(both) == 1
        searched = direction(both[0], both[0]) if alone else MEAN
        guards[RETENTION] = retention_difference(old, new, RETENTION_METRIC, searched, within=alone, source=retention_source)
    chosen = complete_gate(given.model_copy(update={"metric": metric, "direction": name}), [], list(guards))
    verdict = decide(chosen, table[name][metric], guards, RETENTION_METRIC)
    return TaskComparison(verdict.verdict, verdict.reason, chosen, task, table, cluster, base, candidate, guards=guards)


def task_intervals(result: TaskResult) -> dict[str, dict[str, list[float] | None]]:
    """Return {modality: {metric: 95% interval}}; None where fewer than five clusters (`TaskResult.clusters`) allow no interval.

    Results of tasks without `row_ids` (see `RowScores`) are left out.
    """
    return {
        m: metric_intervals(scores, result.clusters, result.task)
        for m, scores in result.results.items()
        if isinstance(scores, RowScores)
    }


def machine_intervals(result: TaskResult) -> dict[str, dict[str, dict[str, list[float] | None]]]:
    """Return {modality: {machine: {metric: 95% interval}}} of anomaly detection on several machines, as `task_intervals` does.

    The rows, or clusters, of each machine are resampled on their own.
    """
    return {
        m: {machine: metric_intervals(scores.of_machine(machine), result.clusters, result.task) for machine in scores.machines}
        for m, scores in result.results.items()
        if isinstance(scores, Anomalies) and len(scores.machines) > 1
    }


def machine_lines(intervals: Mapping[str, Mapping[str, Mapping[str, list[float] | None]]]) -> list[str]:
    """Return the intervals of machines as a table for each modality, e.g. of `machine_intervals`."""
    from mmtune.evaluation.result_tables import plain_table

    out = []
    for m, of in intervals.items():
        names = [n for n in dict.fromkeys(n for by in of.values() for n in by) if n != "dcase_score"]
        rows = [
            [machine, *(f"[{ends[0]:.4f}, {ends[1]:.4f}]" if (ends := by.get(n)) else "too few" for n in names)]
            for machine, by in of.items()
        ]
        out.append(plain_table([f"{m}: 95% intervals", *names], rows))
    return out


def resampled_units(cluster: str | None) -> str:
    """What intervals resample, as text: rows, or values of the column `cluster`."""
    return "rows" if cluster is None else f"values of {cluster}"


def interval_lines(intervals: Mapping[str, Mapping[str, list[float] | None]], cluster: str | None) -> list[str]:
    """Return the intervals as text, one line for each modality and metric."""
    by = resampled_units(cluster)
    return [
        f"{m} {name}: 95% interval [{ends[0]:.4f}, {ends[1]:.4f}], {by} resampled"
        if ends
        else f"{m} {name}: no interval is possible with fewer than {MIN_CLUSTERS} {by}; more rows of the same ones tell nothing"
        for m, of in intervals.items()
        for name, ends in of.items()
    ]
