"""Offline evaluation of a new version against the live one: held-out queries, the collection's items as candidates, the gate.

The comparison itself is assembled by `mmtune.comparison.compare_models`, as for `mmtune compare`.
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
    from mmtune.comparison.comparison_result import Comparison
    from mmtune.comparison.gate import Gate
    from mmtune.data.shards.dataset import Data
    from mmtune.index.open_version import OpenVersion

    GateSpec = Gate | Mapping[str, object] | None
    """A gate, its recipe block, or None for the default gate."""


@dataclass(frozen=True)
class EvaluationOptions:
    """gate: None for the default; qrels: a file of judgments; retention: data on which nothing may be lost; slices: metadata
    columns of the held-out rows, whose values are slices."""

    gate: "GateSpec" = None
    qrels: "str | Path | None" = None
    retention: "Data | None" = None
    slices: Sequence[str] = ()
    batch_size: int = 64


def compare_held_out(
    layout: CollectionLayout,
    catalog: Catalog,
    live: "OpenVersion",
    new: "OpenVersion",
    data: "Data",
    options: EvaluationOptions,
) -> "tuple[Comparison, str]":
    """(comparison, what was searched, in one phrase).

    Queries are the rows of `data` in every modality that both models have; candidates the stored vectors of the modalities
    that both versions index. Where no item of the collection is relevant to a query of `data` (by row, group or judgment), or
    there is no direction between two modalities, the rows of `data` are the candidates.

    Raises DataError when either model was trained on rows of `data`.
    """
    from mmtune.comparison.compare_models import ComparedModel, assemble_comparison
    from mmtune.model.artifact.trained_rows import trained_on

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
    )
    candidates = f"against {len(catalog)} items of the collection" if assembled.against_index else "among themselves"
    return assembled.comparison, f"{len(data)} held-out rows {candidates}"


def stored_embeddings(version: "OpenVersion", catalog: Catalog, names: Sequence[str]) -> dict[str, Embeddings]:
    """A version's stored vectors by modality, with the identity of their items."""
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
