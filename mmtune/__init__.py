"""mmtune tunes CLIP/CLAP-type dual encoders on your own images, sounds and texts, tests whether the tuned model is better than the
base model, and serves a search index of its embeddings.

`import mmtune` is fast and has no side effects. The functions import torch and other large libraries when they are called; the
classes `Model`, `Recipe`, `Gate` and `Collection` are imported at first access.

The functions that import torch (`load`, `embed`, `train`, `mine`, `evaluate`, ...) and the command line set the environment
variables OMP_WAIT_POLICY and GOMP_SPINCOUNT, unless they are set already. This makes idle OpenMP threads sleep soon, which matters
on a machine shared with other programs. It has an effect only if torch is not imported yet, so a program that imports torch itself
sets them before; see `mmtune.runtime.openmp_policy`.
"""

from typing import TYPE_CHECKING

from mmtune.public.ask_people import label_budget, open_label_session
from mmtune.public.export_and_share import export, push_to_hub, register_export_format
from mmtune.public.extension_points import (
    register_anomaly_scorer,
    register_augmentation,
    register_backbone,
    register_batch_plan,
    register_callback,
    register_guard,
    register_loss,
    register_metric,
    register_miner_source,
    register_modality,
    register_optimizer,
    register_scorer,
    register_store,
    register_task,
    register_vector_source,
)
from mmtune.public.logs_and_judgments import pairs_from_judgments, pairs_from_logs
from mmtune.public.measure import advise, compare, doctor, evaluate, report
from mmtune.public.pairs_of_sources import (
    generate_pairs,
    group_duplicates,
    pairs_from_catalog,
    pairs_from_labels,
    pairs_from_segments,
    split_pairs,
)
from mmtune.public.predict_unlabelled import predict
from mmtune.public.prepare_and_train import bench, bench_quality, mine, open_data, pack, soup, sweep
from mmtune.public.train_by_recipe import train
from mmtune.public.use_models import embed, load, load_cross_encoder, save, similarity
from mmtune.runtime.version import __version__

if TYPE_CHECKING:
    from mmtune.index.collection import Collection
    from mmtune.model.dual_encoder import Model
    from mmtune.recipe.gate_block import Gate
    from mmtune.recipe.recipe import Recipe

__all__ = [
    "Collection",
    "Gate",
    "Model",
    "Recipe",
    "__version__",
    "advise",
    "bench",
    "bench_quality",
    "compare",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "generate_pairs",
    "group_duplicates",
    "label_budget",
    "load",
    "load_cross_encoder",
    "mine",
    "open_data",
    "open_label_session",
    "pack",
    "pairs_from_catalog",
    "pairs_from_judgments",
    "pairs_from_labels",
    "pairs_from_logs",
    "pairs_from_segments",
    "predict",
    "push_to_hub",
    "register_anomaly_scorer",
    "register_augmentation",
    "register_backbone",
    "register_batch_plan",
    "register_callback",
    "register_export_format",
    "register_guard",
    "register_loss",
    "register_metric",
    "register_miner_source",
    "register_modality",
    "register_optimizer",
    "register_scorer",
    "register_store",
    "register_task",
    "register_vector_source",
    "report",
    "save",
    "similarity",
    "soup",
    "split_pairs",
    "sweep",
    "train",
]

_CLASSES = {
    "Collection": "mmtune.index.collection",
    "Gate": "mmtune.recipe.gate_block",
    "Model": "mmtune.model.dual_encoder",
    "Recipe": "mmtune.recipe.recipe",
}


def __getattr__(name: str) -> type:
    """Import one of the public classes at first access (PEP 562)."""
    import importlib

    if name not in _CLASSES:
        raise AttributeError(f"module 'mmtune' has no attribute {name!r}")
    found: type = getattr(importlib.import_module(_CLASSES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
