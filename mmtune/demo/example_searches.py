"""Run a few searches on the same validation rows with two models, for the demo page."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.data.shards.dataset import Data, open_data
from mmtune.demo.demo_page import SearchComparison, ShownItem
from mmtune.demo.release_story import GOLDEN_RATIO, VersionAnswers
from mmtune.embedding.embed_rows import embed_data
from mmtune.model.artifact import load
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order


class SearchKind(NamedTuple):
    """A kind of search to show: heading, corpus, modality of the query, modality of the candidates."""

    heading: str
    corpus: str
    query: str
    candidates: str


KINDS = (
    SearchKind("Photos for a description", "catalog", "text", "image"),
    SearchKind("Descriptions for a photo", "catalog", "image", "text"),
    SearchKind("Sounds for a description", "machines", "text", "audio"),
    SearchKind("Sounds like this one", "machines", "audio", "audio"),
)


def example_searches(
    data: Mapping[str, str], before: str, after: str, count: int, top: int = 5
) -> dict[str, list[SearchComparison]]:
    """Return {heading: `count` searches}. A fixed rule spreads the queries over the rows, so they are not picked by results.

    data: {corpus: DATA}
    before, after: MODELs
    top: number of results per search

    A result is relevant if it has the query's group. The query itself is never among its results.
    """
    models = [load(m) for m in (before, after)]
    corpora = {c: open_data(spec) for c, spec in data.items()}
    vectors = {c: [embed_data(model, rows) for model in models] for c, rows in corpora.items()}
    searches: dict[str, list[SearchComparison]] = {}
    for kind in KINDS:
        rows, by_model = corpora[kind.corpus], vectors[kind.corpus]
        candidates = _distinct_rows(by_model[0][kind.candidates], kind.candidates)
        queries = _distinct_rows(by_model[0][kind.query], kind.query)
        # steps by the golden ratio spread the queries evenly and do not follow the rows' order (by kind, by fault)
        chosen = [queries[int((i + 0.5) * GOLDEN_RATIO % 1 * len(queries))] for i in range(count)]
        searches[kind.heading] = [
            SearchComparison(
                _item(rows, query, kind.query, None),
                *(_results(rows, e, query, kind, candidates, top) for e in by_model),
            )
            for query in dict.fromkeys(chosen)
        ]
    return searches


def searches_of_versions(data: str, answers: Sequence[VersionAnswers]) -> list[SearchComparison]:
    """Convert the search results of index versions v1 and v2 to items that can be shown. data: DATA with these rows."""
    rows, searches = open_data(data), []
    row_of = {name: i for i, name in enumerate(rows.ids)}
    for answer in answers:
        group = rows.groups[answer["query"]]
        sides = (
            [_item(rows, row_of[i], "image", rows.groups[row_of[i]] == group) for i in ids]
            for ids in (answer["v1"], answer["v2"])
        )
        searches.append(SearchComparison(_item(rows, answer["query"], "text", None), *sides))
    return searches


def _distinct_rows(embeddings: Embeddings, modality: str) -> list[int]:
    """Return the first row of every distinct content."""
    _, first = np.unique(embeddings.labels[modality], return_index=True)
    return sorted(first.tolist())


def _results(
    rows: Data, embeddings: Mapping[str, Embeddings], query: int, kind: SearchKind, candidates: list[int], top: int
) -> list[ShownItem]:
    """Return the `top` candidates for a query row, best first."""
    others = [c for c in candidates if kind.query != kind.candidates or c != query]
    queried, searched = embeddings[kind.query], embeddings[kind.candidates]
    ids = [searched.ids[c] for c in others]
    _, best = topk(queried.vectors[[query]], searched.vectors[others], top, order=tie_order(ids))
    group = queried.groups[query]
    return [_item(rows, others[i], kind.candidates, rows.groups[others[i]] == group) for i in best[0]]


def _item(rows: Data, row: int, modality: str, relevant: bool | None) -> ShownItem:
    label = (rows.groups[row] or "") if modality == "text" else rows.read(row, "text").decode()
    return ShownItem(modality, rows.read(row, modality), label, relevant)
