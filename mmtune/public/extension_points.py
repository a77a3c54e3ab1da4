"""Every extension point: `register_*` gives a part of your own a name; a `package.module:Attribute` string works without it.

| part | what it is | base class or protocol | named in |
|---|---|---|---|
| loss | a decorated function | `mmtune.losses` | `objective: [{loss: NAME}]` |
| miner source | proposes candidates | `mmtune.mining.MinerSource` | `mining: {sources: [NAME]}` |
| guard | drops candidates | `mmtune.mining.Guard` | `mining: {guards: {extra: [NAME]}}` |
| modality | decodes and preprocesses a kind of signal | `mmtune.modalities.Modality` | column names |
| backbone | a family of pretrained towers | `mmtune.backbones` | `model: NAME:...` |
| scorer | scores pairs: a teacher, a verifier | `mmtune.contracts.Scorer` | `teachers: {x: {scorer: NAME}}` |
| store | a vector store of an index | `mmtune.index.stores.Store` | `mmtune index build --store NAME` |
| metric | a retrieval metric | `mmtune.evaluation.metrics.Metric` | `train.metric`, `evaluate(metrics=...)` |
| task | an evaluation task | `mmtune.evaluation.tasks.task.EvaluationTask` | `mmtune eval --task NAME` |
| augmentation | changes a signal of a modality in training | `mmtune.modalities` | `augment: {MODALITY: {custom: {NAME: {...}}}}` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.contracts import Augmentation, Scorer
    from mmtune.evaluation.metrics import Metric
    from mmtune.evaluation.tasks.task import EvaluationTask
    from mmtune.index.stores.store_protocol import Store
    from mmtune.mining import Guard, MinerSource, MiningContext


def register_loss(name: str, target: Callable[..., Tensor] | str) -> None:
    """A loss for the `objective` of recipes: a function decorated with `contrastive_loss`, `scored_pairs_loss` or
    `distillation_loss` of `mmtune.losses`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.losses import register as register

    register(name, target)


def register_modality(name: str, target: str) -> None:
    """A kind of signal: a subclass of `mmtune.modalities.Modality` whose `name` is this name.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.modalities import register as register

    register(name, target)


def register_backbone(name: str, target: str) -> None:
    """A family of pretrained towers, for MODEL strings that begin with `name:`; see `mmtune.backbones`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.backbones import register as register

    register(name, target)


def register_store(name: str, target: type[Store] | str) -> None:
    """A vector store for `Collection.build(store=name)`: a class that fulfils `mmtune.index.stores.Store`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.index.stores import register_store as register

    register(name, target)


def register_metric(name: str, target: Metric | type[Metric] | str) -> None:
    """A retrieval metric for `evaluate(metrics=...)`, `train.metric` and gates; see `mmtune.evaluation.metrics`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.evaluation.metrics import register_metric as register

    register(name, target)


def register_task(name: str, target: type[EvaluationTask] | str) -> None:
    """An evaluation task for `evaluate(task=name)`: a subclass of `EvaluationTask`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.evaluation.tasks.task import register_task as register

    register(name, target)


def register_miner_source(name: str, target: Callable[[MiningContext], MinerSource] | str) -> None:
    """A source of candidates for `mining.sources` of recipes; see `mmtune.mining`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.mining.sources import register_source as register

    register(name, target)


def register_guard(name: str, target: Callable[[MiningContext], Guard] | str) -> None:
    """A guard against false negatives for `mining.guards.extra` of recipes; see `mmtune.mining`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.mining.guards import register_guard as register

    register(name, target)


def register_scorer(name: str, target: Callable[..., Scorer] | str) -> None:
    """A scorer of pairs for `teachers` and `mining.verifier`: a class with `score(pairs)`.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.backbones.scorers import register

    register(name, target)


def register_augmentation(name: str, target: Callable[..., Augmentation] | str) -> None:
    """An augmentation for `augment.MODALITY.custom` of recipes: a class whose instances are called as (signal, rng) -> signal.

    target: the part itself, or "package.module:Attribute".
    """
    from mmtune.modalities import register_augmentation as register

    register(name, target)
