"""The section on an evaluation task (zero_shot, knn, anomaly): its metrics before and after, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune.comparison.compare_tasks import TaskComparison, compare_task, resampled_units
from mmtune.comparison.paired_difference import PairedDifference
from mmtune.comparison.retention import RETENTION_METRIC
from mmtune.contracts import Embeddings
from mmtune.evaluation.tasks.anomaly_result import Anomalies

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@dataclass(frozen=True)
class ReportedTask:
    """A task of a report. name: "zero_shot", "knn", "anomaly", ...; options: as of `mmtune.evaluate`

    cluster: metadata column whose values the intervals resample; None means single rows
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    cluster: str | None = None


@dataclass(frozen=True)
class TaskSection:
    """resampled: what intervals resample, as text; rows: (modality, metric, difference); machines: (modality, machine, AUROC before, AUROC after), of anomaly detection"""

    task: str
    resampled: str
    rows: list[tuple[str, str, PairedDifference]]
    machines: list[tuple[str, str, float, float]]

    @property
    def intervals(self) -> bool:
        """Whether there are enough clusters for intervals."""
        return all(d.has_interval for _, _, d in self.rows)


def task_section(
    models: "Sequence[Model]",
    vectors: "Sequence[Mapping[str, Embeddings]]",
    data: "Data",
    task: ReportedTask,
    batch_size: int,
    quiet: bool,
    allow_trained: bool,
) -> TaskSection:
    """Evaluate both models by the task. Raises RecipeError and DataError as `compare_task` does.

    models, vectors: the base and the candidate, and their embeddings of all rows of `data`
    """
    compared = compare_task(
        models[0],
        models[1],
        data,
        task.name,
        task.options,
        cluster=task.cluster,
        batch_size=batch_size,
        quiet=quiet,
        allow_trained=allow_trained,
        vectors=vectors,
    )
    return section_of(compared)


def section_of(compared: TaskComparison) -> TaskSection:
    """The section on a comparison by a task."""
    rows = [(m, name, d) for m, by in compared.differences.items() for name, d in by.items()]
    rows += [(guard, RETENTION_METRIC, d) for guard, d in compared.guards.items()]
    machines = []
    for m in compared.differences:
        before, after = compared.base.results[m], compared.candidate.results[m]
        if isinstance(before, Anomalies) and isinstance(after, Anomalies):
            machines += [(m, n, d.auroc, after.machines[n].auroc) for n, d in before.machines.items() if n in after.machines]
    return TaskSection(compared.task, resampled_units(compared.cluster), rows, machines)
