"""Offline evaluation of a new index version against the live one: held-out queries, judged by the gate.

The comparison itself is assembled by `mmtune.comparison.compare_models`, as for `mmtune compare`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings

if TYPE_CHECKING:
    from mmtune.comparison.comparison_result import Comparison
    from mmtune.comparison.gate import Gate
    from mmtune.data.shards.dataset import Data
    from mmtune.index.catalog import Catalog
    from mmtune.index.collection import Collection
    from mmtune.index.open_version import OpenVersion


def compare_held_out(
    coll: "Collection",
    live: "OpenVersion",
    new: "OpenVersion",
    data: "Data",
    gate: "Gate | Mapping[str, object] | None",
    *,
    qrels: "str | Path | None" = None,
    retention: "Data | None" = None,
    slices: Sequence[str] = (),
    batch_size: int = 64,
) -> "tuple[Comparison, str]":
    """(comparison, what was searched, in one phrase).

    Queries are the rows of `data` in every modality that both models have; candidates the stored vectors of the modalities
    that both versions index. Where no item of the collection answers a query of `data` (by row, group or judgment), or there
    is no direction between two modalities, the rows of `data` are the candidates.

    Raises DataError when either model was trained on rows of `data`.
    """
    from mmtune.comparison.compare_models import ComparedModel, assemble_comparison
    from mmtune.model.artifact.trained_rows import trained_on

    base, candidate = (
        ComparedModel(
            version.model,
            f"version {version.version}'s model",
            trained_on(coll.path / "models" / version.fingerprint),
            tuple(version.stores),
            partial(stored, version, coll.catalog),
        )
        for version in (live, new)
    )
    found = assemble_comparison(
        base,
        candidate,
        data,
        gate=gate,
        qrels=qrels,
        slices=slices,
        retention=retention,
        confusable=False,
        batch_size=batch_size,
    )
    if found.against_index:
        return found.comparison, f"{len(data)} held-out rows against {len(coll.catalog)} items of the collection"
    return found.comparison, f"{len(data)} held-out rows among themselves"


def stored(opened: "OpenVersion", catalog: "Catalog", names: Sequence[str]) -> dict[str, Embeddings]:
    """A version's stored vectors with the identity of their items."""
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
        out[name] = Embeddings(ids, groups, arrays, opened.stores[name].fetch(ids), opened.fingerprint)
    return out
