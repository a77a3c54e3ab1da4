"""Compare a new version with the live one offline: search held-out queries among the collection's items, and apply the gate.

The comparison is assembled by `mmtune.comparison.compare_models`, as for `mmtune compare`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.item_catalog import Catalog

if TYPE_CHECKING:
    from mmtune.comparison.compare_tasks import TaskComparison
    from mmtune.comparison.comparison_result import Comparison
    from mmtune.comparison.gate import Gate
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion

    GateSpec = Gate | Mapping[str, object] | None
    """A gate, the `gate` block of a recipe, or None for the default gate."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of the offline comparison.

    gate: conditions that the comparison must meet; None means the default gate.
    qrels: file of relevance judgments.
    retention: general data on which the new model must not lose quality.
    slices: metadata columns of the held-out rows; the gate is also evaluated for each value of these columns.
    allow_trained: only warn about rows that one of the models was trained on.
    cluster: metadata column of the held-out rows whose values the intervals resample; default: groups and equal content.
    """

    gate: "GateSpec" = None
    qrels: "str | Path | None" = None
    retention: "Data | None" = None
    slices: Sequence[str] = ()
    batch_size: int = 64
    allow_trained: bool = False
    cluster: str | None = None


def compare_held_out(
    layout: CollectionLayout,
    catalog: Catalog,
    live: "OpenVersion",
    new: "OpenVersion",
    data: "Data",
    options: EvaluationOptions,
) -> "tuple[Comparison | TaskComparison, str]":
    """Compare two versions on held-out queries; return (comparison, description of the queries and candidates).

    If the gate has a task, the models are compared by this task on the rows of `data`, without the collection's items.

    The queries are the rows of `data`, in each modality that both models have. The candidates are the stored vectors of the
    modalities that both versions index. The rows of `data` themselves are the candidates instead in two cases: when no item of
    the collection is relevant to any query (by row, group or judgment), and when queries and candidates have no two different
    modalities.

    Raises DataError when one of the models was trained on rows of `data`, unless `options.allow_trained`.
    """
    from mmtune.comparison.compare_models import ComparedModel, assemble_comparison
    from mmtune.comparison.compare_tasks import compare_task
    from mmtune.comparison.gate import Gate
    from mmtune.model.artifact.trained_rows import trained_on

    gate = Gate.read(options.gate)
    if gate is not None and gate.task is not None:
        by_task = compare_task(
            live.model,
            new.model,
            data,
            gate.task,
            gate.task_options,
            gate=gate,
            retention=options.retention,
            cluster=options.cluster,
            batch_size=options.batch_size,
            allow_trained=options.allow_trained,
        )
        return by_task, f"{len(data)} held-out rows, by {gate.task}"
    base, candidate = (
        ComparedModel(
            version.model,
            f"version {version.version}'s model",
            trained_on(layout.path / "models" / version.fingerprint),
            tuple(version.stores),
            partial(stored_embeddings, version, catalog),
        )
        for version in (live, new)
    )
    assembled = assemble_comparison(
        base,
        candidate,
        data,
        gate=options.gate,
        qrels=options.qrels,
        slices=options.slices,
        retention=options.retention,
        confusable=False,
        batch_size=options.batch_size,
        allow_trained=options.allow_trained,
        cluster=options.cluster,
    )
    candidates = f"against {len(catalog)} items of the collection" if assembled.against_index else "among themselves"
    return assembled.comparison, f"{len(data)} held-out rows {candidates}"


def stored_embeddings(version: "OpenVersion", catalog: Catalog, names: Sequence[str]) -> dict[str, Embeddings]:
    """Return {modality: stored vectors of a version}, with the ids, groups and hashes of their items."""
    out = {}
    for name in names:
        ids: list[str] = []
        groups: list[str | None] = []
        labels: dict[str, list[int]] = {"id": [], "group": [], name: []}
        for items in catalog.changed(0):
            for item in items:
                if name in item.contents:
                    ids.append(item.id)
                    groups.append(item.group)
                    for key, value in (("id", item.id_label), ("group", item.group_label), (name, item.contents[name][0])):
                        labels[key].append(value)
        arrays = {k: np.array(v, np.int64) for k, v in labels.items()}
        out[name] = Embeddings(ids, groups, arrays, version.stores[name].fetch(ids), version.fingerprint)
    return out
