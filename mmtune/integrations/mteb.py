"""Evaluate a model on the tasks of MTEB and MIEB, and evaluate any model of mteb on packed data: `pip install mteb`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, MissingExtra
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.model.encode import encode_values
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.positives import relevant_blocks

try:
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError:
    raise MissingExtra("mmtune.integrations.mteb needs mteb 2: pip install mteb") from None

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


class MtebEncoder(AbsEncoder):
    """A model for `mteb.evaluate(MtebEncoder(model), tasks)`.

    Queries get the model's query prompt. A value with several modalities gets the normalised mean of their vectors. An empty text
    is embedded as ".".
    """

    def __init__(self, model: "Model | str | Path", name: str = "mmtune/model", *, batch_size: int = 64):
        """model: a `Model`, or what `mmtune.load` accepts; name: "ORG/NAME", under which mteb stores results"""
        self.model, self.batch_size = as_model(model), batch_size
        meta = {
            "name": name,
            "revision": self.model.fingerprint,
            "embed_dim": self.model.dim,
            "modalities": list(self.model.towers),
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
        }
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=meta)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        **kwargs: object,
    ) -> np.ndarray:
        """Embed the batches of a data loader: float32 [N, D]. Raises DataError if they have no modality of the model."""
        role = "query" if prompt_type == PromptType.query else None
        parts = [self._batch(batch, role) for batch in inputs]
        return np.concatenate(parts) if parts else np.zeros((0, self.model.dim), np.float32)

    def _batch(self, batch: dict[str, list[Any]], role: str | None) -> np.ndarray:
        names = [m for m in self.model.towers if m in batch]
        if not names:
            raise DataError(f"mteb gives {', '.join(batch)}; the model has {', '.join(self.model.towers)}")
        vectors = []
        for m in names:
            values = list(batch[m])
            if modalities.get(m).language:
                values = [v if str(v).strip() else "." for v in values]
            vectors.append(encode_values(self.model, m, values, self.batch_size, role))
        mean = np.mean(vectors, axis=0)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True) if len(vectors) > 1 else mean


def retrieval_task(data: "DataLike", name: str, query: str, candidate: str) -> AbsTaskRetrieval:
    """Return packed data as a retrieval task of mteb: values of one modality search those of another.

    Queries, candidates and what is relevant are those of `mmtune.evaluate`: equal contents are one item, and rows with the same id
    or group are relevant for each other.

    data: what `mmtune.open_data` accepts
    name: name of the task
    query, candidate: the modalities

    Raises DataError if the data lack a modality, or if no query has a relevant candidate.
    """
    rows = as_data(data)
    for m in (query, candidate):
        if m not in rows.modalities:
            raise DataError(f"{rows.spec}: no {m}; it has {', '.join(rows.modalities)}")
    sides = {m: _items(rows, m) for m in dict.fromkeys((query, candidate))}
    names = dict.fromkeys((query, candidate))
    relevant = _relevant(sides[query], sides[candidate])
    if not relevant:
        raise DataError(f"{rows.spec}: no {query} has a relevant {candidate}; within one modality, rows need groups (--group)")
    metadata = TaskMetadata(
        name=name,
        description=f"{query} to {candidate} retrieval on {rows.spec}",
        dataset={"path": "mmtune", "revision": rows.fingerprint},
        type="Any2AnyRetrieval" if any(not modalities.get(m).language for m in names) else "Retrieval",
        category=f"{query[0]}2{candidate[0]}",
        modalities=list(names),
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    task: _PackedTask = type(name, (_PackedTask,), {"metadata": metadata})()
    task.rows, task.sides, task.ends, task.relevant = rows, sides, (query, candidate), relevant
    return task


def _relevant(queries: Items, candidates: Items) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for block in relevant_blocks(queries, candidates, 1024):
        for i in range(block.stop - block.start):
            if len(items := block.items[i]):
                found[f"q-{queries.ids[block.start + i]}"] = {candidates.ids[c]: 1 for c in items}
    return found


class _PackedTask(AbsTaskRetrieval):
    """A retrieval task whose data set is packed data."""

    rows: "Data"
    sides: dict[str, Items]
    ends: tuple[str, str]
    relevant: dict[str, dict[str, int]]

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Read the values; called by mteb."""
        queries, candidates = (self.sides[m] for m in self.ends)
        corpus = _table(self.rows, candidates, candidates.ids)
        asked = _table(self.rows, queries, [f"q-{i}" for i in queries.ids])
        asked = asked.filter(lambda row: row["id"] in self.relevant)
        self.dataset = {
            "default": {"test": {"corpus": corpus, "queries": asked, "relevant_docs": self.relevant, "top_ranked": None}}
        }
        self.data_loaded = True


def _items(rows: "Data", modality: str) -> Items:
    index = np.flatnonzero(rows.present[modality])
    labels = {k: v[index] for k, v in rows.labels.items()}
    vectors = np.ones((len(index), 1), np.float32)  # relevance does not depend on vectors
    return unique_items(modality, Embeddings(rows.ids.take(index), rows.groups.take(index), labels, vectors))


def _table(rows: "Data", items: Items, ids: list[str]) -> Any:
    """Return the items as a data set with the columns id and the modality."""
    import datasets

    index = np.flatnonzero(rows.present[items.name])[items.head]
    values = [rows.read(int(row), items.name) for row in index]
    if modalities.get(items.name).language:
        decode = modalities.get(items.name).decode
        return datasets.Dataset.from_dict({"id": ids, items.name: [decode(v) for v in values]})
    feature = getattr(datasets, items.name.capitalize(), None)
    if feature is None:
        raise DataError(f"the library datasets has no feature for {items.name}")
    table = datasets.Dataset.from_dict({"id": ids, items.name: [{"bytes": v, "path": None} for v in values]})
    return table.cast_column(items.name, feature())
