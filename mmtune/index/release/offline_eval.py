"""New against live as searchers would meet them: held-out queries among the collection's own items, judged by the gate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.model.prompts import QUERY

if TYPE_CHECKING:
    from mmtune.comparison.comparison import Comparison
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
    gate: "Gate | Mapping[str, Any] | None",
    *,
    qrels: "str | Path | None" = None,
    general: "Data | None" = None,
    slices: Sequence[str] = (),
    batch_size: int = 64,
) -> "tuple[Comparison, str]":
    """(comparison, its scope in words). Queries are the rows of `data` in every modality that both models have; candidates
    the stored
    vectors of the modalities that both versions index. Where no item of the collection answers a query of `data` (by row,
    group or judgment), or there is no direction between two modalities, `data` alone is the corpus.

    DataError when either model was trained on rows of `data`.
    """
    from mmtune.comparison.comparison import compare_vectors
    from mmtune.embedding.embed import embed_data
    from mmtune.evaluation.leakage import identity, refuse_trained
    from mmtune.evaluation.slices import named
    from mmtune.model.artifact.trained_rows import trained_on
    from mmtune.relevance.trec_files import read_qrels

    both = [m for m in data.modalities if m in live.model.towers and m in new.model.towers]
    judged = read_qrels(qrels) if isinstance(qrels, str | Path) else None
    rows = {m: identity(data, m) for m in both}
    for opened in (live, new):  # before anything is embedded
        refuse_trained(rows, trained_on(coll.path / "models" / opened.fingerprint), f"version {opened.version}'s model")
    extra = None
    if general is not None:
        shared = [m for m in general.modalities if m in live.model.towers and m in new.model.towers]
        sides = [embed_data(o.model, general, shared, batch_size) for o in (live, new)]
        extra = {"general": (sides[0], sides[1])}
    options: dict[str, Any] = {"gate": gate, "qrels": judged, "slices": named(data, slices), "extra": extra}
    found = [m for m in live.stores if m in new.stores]
    asking = [m for m in both if m not in found]
    if asking and found:
        items = [stored(o, coll.catalog, found) for o in (live, new)]
        if judged is not None or any(_answered(rows[q], items[0][m]) for q in both for m in found if q != m):
            asked = [embed_data(o.model, data, asking, batch_size, role=QUERY) for o in (live, new)]
            sides = [{**mine, **theirs} for mine, theirs in zip(asked, items, strict=True)]
            said = f"{len(data)} held-out rows against {len(coll.catalog)} items of the collection"
            return compare_vectors(sides[0], sides[1], pairs=[(q, m) for q in asking for m in found], **options), said
    sides = [embed_data(o.model, data, both, batch_size) for o in (live, new)]
    return compare_vectors(sides[0], sides[1], within=len(both) == 1, **options), f"{len(data)} held-out rows among themselves"


def _answered(queries: Embeddings, items: Embeddings) -> bool:
    """Whether any query shares a row or a group with an item."""
    for key in ("id", "group"):
        a, b = queries.labels[key], items.labels[key]
        if np.isin(a[a != 0], b[b != 0]).any():
            return True
    return False


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
