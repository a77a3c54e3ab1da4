"""Functions that register plugins. `register_*(name, target)` makes a plugin available by name.

Registration is optional: wherever a recipe or an option takes a plugin's name, it also takes "package.module:Attribute".

| plugin | what it does | base class, protocol or docs | where its name is used |
|---|---|---|---|
| loss | computes a training loss | `mmtune.losses` | `objective: [{loss: NAME}]` |
| batch plan | divides the rows of an epoch into batches | `mmtune.data.loader.EpochRows` | `data: {batches: NAME}` |
| miner source | proposes candidates for hard negatives | `mmtune.mining.MinerSource` | `mining: {sources: [NAME]}` |
| guard | drops likely false negatives | `mmtune.mining.Guard` | `mining: {guards: {extra: [NAME]}}` |
| modality | decodes and preprocesses a kind of signal | `mmtune.modalities.Modality` | column names |
| backbone | loads a family of pretrained towers | `mmtune.backbones` | `model: NAME:...` |
| scorer | scores pairs, as a teacher or verifier | `mmtune.contracts.Scorer` | `teachers: {x: {scorer: NAME}}` |
| store | stores and searches the vectors of an index | `mmtune.index.stores.Store` | `mmtune index build --store NAME` |
| metric | computes a retrieval metric | `mmtune.evaluation.metrics.Metric` | `train.metric`, `evaluate(metrics=...)` |
| task | evaluates a model on a task | `mmtune.evaluation.tasks.task.EvaluationTask` | `mmtune eval --task NAME` |
| anomaly scorer | rates how unlike normal rows others are | `mmtune.evaluation.AnomalyScorer` | `mmtune eval --scorer NAME` |
| vector source | reads vectors that other software stored | `mmtune.index.adopt.VectorSource` | `mmtune index adopt --from NAME` |
| optimizer | takes the steps of training | `torch.optim.Optimizer` | `train: {optimizer: NAME}` |
| callback | is called during a run | `mmtune.training.Callback` | `run: {callbacks: [NAME]}` |
| export format | writes a model for another library or runtime | `mmtune.exporting.ExportFormat` | `mmtune export --to NAME` |
| augmentation | augments signals of a modality | `mmtune.modalities` | `augment: {MODALITY: {custom: {NAME: {...}}}}` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.optim import Optimizer

    from mmtune.contracts import Augmentation, Scorer
    from mmtune.evaluation.metrics import Metric
    from mmtune.evaluation.tasks.anomaly_scorers import AnomalyScorer
    from mmtune.evaluation.tasks.task import EvaluationTask
    from mmtune.index.adopt import VectorSource
    from mmtune.index.stores.store_protocol import Store
    from mmtune.mining import Guard, MinerSource, MiningContext
    from mmtune.training import Callback


def register_loss(name: str, target: Callable[..., Tensor] | str) -> None:
    """Register a loss for the recipe block `objective`.

    target: a function decorated with `contrastive_loss`, `scored_pairs_loss` or `distillation_loss` of `mmtune.losses`, or
        "package.module:function"
    """
    from mmtune.losses import register as register

    register(name, target)


def register_batch_plan(name: str, target: Callable[..., Sequence[np.ndarray]] | str) -> None:
    """Register a batch plan for the recipe key `data.batches`.

    target: a function from `mmtune.data.loader.EpochRows` to batches of row numbers, whose keyword-only parameters are the plan's
        options, or "package.module:function"
    """
    from mmtune.data.loader import register_batch_plan as register

    register(name, target)


def register_modality(name: str, target: str) -> None:
    """Register a modality, i.e. a kind of signal.

    target: "package.module:Class", a subclass of `mmtune.modalities.Modality` whose attribute `name` equals `name`
    """
    from mmtune.modalities import register as register

    register(name, target)


def register_backbone(name: str, target: str) -> None:
    """Register a family of pretrained towers, for MODEL strings that start with `name:`.

    target: "package.module:Attribute"; see `mmtune.backbones` for what the attribute must provide
    """
    from mmtune.backbones import register as register

    register(name, target)


def register_store(name: str, target: type[Store] | str) -> None:
    """Register a vector store for `Collection.build(store=name)`.

    target: a class that implements the protocol `mmtune.index.stores.Store`, or "package.module:Class"
    """
    from mmtune.index.stores import register_store as register

    register(name, target)


def register_metric(name: str, target: Metric | type[Metric] | str) -> None:
    """Register a retrieval metric for `evaluate(metrics=...)`, the recipe key `train.metric`, and gates.

    target: a metric or its class (see `mmtune.evaluation.metrics`), or "package.module:Class"
    """
    from mmtune.evaluation.metrics import register_metric as register

    register(name, target)


def register_task(name: str, target: type[EvaluationTask] | str) -> None:
    """Register an evaluation task for `evaluate(task=name)`.

    target: a subclass of `mmtune.evaluation.tasks.task.EvaluationTask`, or "package.module:Class"
    """
    from mmtune.evaluation.tasks.task import register_task as register

    register(name, target)


def register_anomaly_scorer(name: str, target: type[AnomalyScorer] | str) -> None:
    """Register a scorer of anomalies for the option `scorer` of the task "anomaly".

    target: a class with the methods of `mmtune.evaluation.AnomalyScorer`, or "package.module:Class"
    """
    from mmtune.evaluation.tasks.anomaly_scorers import register_anomaly_scorer as register

    register(name, target)


def register_vector_source(name: str, target: type[VectorSource] | str) -> None:
    """Register a source of stored vectors for `mmtune index adopt --from name`.

    target: a class with the methods of `mmtune.index.adopt.VectorSource`, or "package.module:Class"
    """
    from mmtune.index.adopt import register_vector_source as register

    register(name, target)


def register_miner_source(name: str, target: Callable[[MiningContext], MinerSource] | str) -> None:
    """Register a source of candidates for the recipe key `mining.sources`.

    target: a class or function that takes a `MiningContext` and returns a `MinerSource` (see `mmtune.mining`), or
        "package.module:Attribute"
    """
    from mmtune.mining.sources import register_source as register

    register(name, target)


def register_guard(name: str, target: Callable[[MiningContext], Guard] | str) -> None:
    """Register a guard against false negatives for the recipe key `mining.guards.extra`.

    target: a class or function that takes a `MiningContext` and returns a `Guard` (see `mmtune.mining`), or
        "package.module:Attribute"
    """
    from mmtune.mining.guards import register_guard as register

    register(name, target)


def register_scorer(name: str, target: Callable[..., Scorer] | str) -> None:
    """Register a scorer of pairs for the recipe keys `teachers` and `mining.verifier`.

    target: a class with the method `score(pairs)` (see `mmtune.contracts.Scorer`), or "package.module:Class"
    """
    from mmtune.backbones.scorers import register

    register(name, target)


def register_augmentation(name: str, target: Callable[..., Augmentation] | str) -> None:
    """Register an augmentation for the recipe key `augment.MODALITY.custom`.

    target: a class whose instances are functions (signal, rng) -> augmented signal (see `mmtune.contracts.Augmentation`), or
        "package.module:Class"
    """
    from mmtune.modalities import register_augmentation as register

    register(name, target)


def register_optimizer(name: str, target: type[Optimizer] | str) -> None:
    """Register an optimizer for the recipe key `train.optimizer`.

    target: a subclass of `torch.optim.Optimizer`, or "package.module:Class"
    """
    from mmtune.recipe.optimizer_block import register_optimizer as register

    register(name, target)


def register_callback(name: str, target: type[Callback] | str) -> None:
    """Register callbacks for the recipe key `run.callbacks`.

    target: a subclass of `mmtune.training.Callback`, or "package.module:Class"
    """
    from mmtune.recipe.run_block import register_callback as register

    register(name, target)
