"""sentence-transformers on the towers, rows and length of training that mmtune had, for `mmtune bench quality`.

A SentenceTransformer with a Router of two routes is trained by SentenceTransformerTrainer: MultipleNegativesRankingLoss in both
directions, batches without duplicates, the recipe's batch size, learning rate and warm-up, AdamW with a cosine schedule, bf16 where the
machine computes in it. It takes as many steps as show it the pairs of the recipe's epochs: a batch without duplicates holds at most one
pair of each caption, and its sampler ends an epoch after rows / batch size batches, whatever they hold. The parts of each tower that the
recipe trains are trained; a head starts at random, because sentence-transformers has no other start. It has no augmentation. Outputs of
frozen towers are stored as for mmtune, which sentence-transformers does not do, so that its seconds are lower than a user's.
"""

import importlib.util
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.benchmark.quality_features import QualityData
from mmtune.data.decode import decode_row
from mmtune.embedding.feature_cache import FeaturePreprocess
from mmtune.errors import MissingExtra
from mmtune.model.artifact import load
from mmtune.model.heads import linear_layer
from mmtune.recipe.recipe import Recipe
from mmtune.training.precision import resolve_precision
from mmtune.training.tuning.tune import TunedModel, tune

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from mmtune.model.dual_encoder import Model

TOWER = "tower_"
"""Prefix of a tower's inputs in a batch of the trainer, which takes some names for its own."""
QUERY, DOCUMENT = "query", "document"
"""Names of the routes, and of the columns of the training table."""


def train_peer(
    quality_data: QualityData, rows: np.ndarray, towers: Mapping[str, str], recipe: Recipe, seed: int
) -> tuple["Model", float, float, int]:
    """Train sentence-transformers on the training rows `rows`; returns (model, seconds, processor seconds, pairs in its steps).

    Raises MissingExtra if sentence-transformers is not installed.
    """
    if importlib.util.find_spec("sentence_transformers") is None or importlib.util.find_spec("datasets") is None:
        raise MissingExtra('bench quality: sentence-transformers and datasets are missing: pip install "mmtune[bench]"')
    sides, data = quality_data.sides, quality_data.train
    model = load(dict(towers), cpu_kernels="off")
    torch.manual_seed(seed)
    for head in model.heads.values():
        linear_layer(head).reset_parameters()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    tuned = tune(model, recipe.tune, list(sides), seed=seed)
    if tuned.features is not None:
        tuned.features.store(data.subset(rows), quiet=True)
    pairs_seen = _fit(tuned, quality_data, rows, recipe, seed)
    tuned.merge()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    tuned.close()
    return model, seconds, cpu, pairs_seen


def _fit(tuned: TunedModel, quality_data: QualityData, rows: np.ndarray, recipe: Recipe, seed: int) -> int:
    """Train; returns how many pairs the steps held."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    settings, device = recipe.train, tuned.model.device
    numbers = rows.tolist()
    caption = _caption_rows(quality_data, numbers)
    table = Dataset.from_dict({QUERY: [str(caption[i]) for i in numbers], DOCUMENT: [str(i) for i in numbers]})
    seen: list[int] = []
    peer = _router(tuned, quality_data, seen)
    loss = MultipleNegativesRankingLoss(peer, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    batch_size = min(settings.batch_size, len(rows))
    steps = max(1, round(settings.epochs * len(rows) / _pairs_of_a_step(table, batch_size)))
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * steps
    with tempfile.TemporaryDirectory() as scratch:
        options = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=settings.lr,
            weight_decay=settings.weight_decay,
            warmup_steps=int(warmup),
            lr_scheduler_type="cosine",
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            router_mapping={QUERY: QUERY, DOCUMENT: DOCUMENT},
            bf16=resolve_precision(settings.precision) == "bf16",
            use_cpu=device.type == "cpu",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        SentenceTransformerTrainer(model=peer, args=options, train_dataset=table, loss=loss).train()
    return sum(seen)


def _pairs_of_a_step(table: "Dataset", batch_size: int) -> float:
    """Mean number of pairs in the batches of an epoch of sentence-transformers' sampler."""
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    sampler = NoDuplicatesBatchSampler(table, batch_size, drop_last=False, generator=torch.Generator().manual_seed(0))
    sizes = [len(batch) for batch in itertools.islice(sampler, len(sampler))]
    return sum(sizes) / len(sizes)


def _router(tuned: TunedModel, quality_data: QualityData, seen: list[int]) -> "SentenceTransformer":
    """A SentenceTransformer whose routes encode row numbers: the query route those of the language, the other the signal.

    seen: gets the number of pairs of each step
    """
    from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
    from sentence_transformers.base.modules import InputModule, Router

    model, shared, data, sides = tuned.model, tuned.features, quality_data.train, quality_data.sides

    class RowEncoder(InputModule):
        """Encode the values of one modality in the rows whose numbers are given as strings."""

        def __init__(self, modality: str) -> None:
            super().__init__()
            self.modality, self.model = modality, model

        def train(self, mode: bool = True) -> "RowEncoder":
            super().train(mode)
            tuned.set_frozen_to_eval()  # else frozen BatchNorm layers would change
            return self

        def preprocess(self, inputs: Sequence[Untyped], prompt: str | None = None, **kwargs: Untyped) -> dict[str, Untyped]:
            numbers = [int(i) for i in inputs]
            stored = shared.items.get(self.modality) if shared is not None else None
            if stored is not None:
                items = [stored[int(data.labels[self.modality][i])] for i in numbers]
                tensors = FeaturePreprocess().collate(items)
            else:
                tower = model.towers[self.modality]
                tensors = tower.preprocess.collate([tower.preprocess(decode_row(data, i, self.modality)) for i in numbers])
            # the trainer takes a column for an input if it has one of the names it knows
            return {"input_ids": torch.tensor(numbers)} | {f"{TOWER}{k}": v for k, v in tensors.items()}

        def forward(self, features: dict[str, Untyped], **kwargs: Untyped) -> dict[str, Untyped]:
            inputs = {k.removeprefix(TOWER): v for k, v in features.items() if k.startswith(TOWER)}
            if self.training and self.modality == sides.language:
                seen.append(len(features["input_ids"]))
            features["sentence_embedding"] = model.encode_inputs(self.modality, inputs)
            return features

        def get_embedding_dimension(self) -> int:
            return model.dim

        def save(self, output_path: str, *args: object, **kwargs: object) -> None:
            raise NotImplementedError("the model is saved by mmtune")

    routes: dict[str, list[Untyped]] = {QUERY: [RowEncoder(sides.language)], DOCUMENT: [RowEncoder(sides.signal)]}
    card = SentenceTransformerModelCardData(generate_widget_examples=False)
    return SentenceTransformer(modules=[Router(routes, default_route=QUERY)], device=str(model.device), model_card_data=card)


def _caption_rows(quality_data: QualityData, rows: Sequence[int]) -> dict[int, int]:
    """Return {row: first row with the same caption}, by which the sampler keeps equal captions out of a batch."""
    labels = quality_data.train.labels[quality_data.sides.language]
    first: dict[int, int] = {}
    return {i: first.setdefault(int(labels[i]), i) for i in rows}
