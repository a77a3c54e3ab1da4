"""mmtune: tune CLIP/CLAP-type dual encoders on your own images, sounds and texts; prove it; ship the new embedding space.

Importing mmtune imports nothing heavy and changes nothing in the process. The functions here import their room when they are
called; the classes `Model`, `Recipe`, `Gate` and `Collection` are imported when they are first looked up.

OpenMP: on a shared machine threads should sleep soon after they have waited. The command line sets OMP_WAIT_POLICY and
GOMP_SPINCOUNT for that before torch is imported, and so does `train` where torch is not imported yet; see
`mmtune.runtime.threads`.
"""

from typing import TYPE_CHECKING

from mmtune.public.extension_points import (
    register_augmentation,
    register_backbone,
    register_guard,
    register_loss,
    register_metric,
    register_miner_source,
    register_modality,
    register_scorer,
    register_store,
    register_task,
)
from mmtune.public.measure import advise, compare, doctor, evaluate, report
from mmtune.public.prepare_and_train import bench, mine, open_data, pack, soup, train
from mmtune.public.use_models import embed, load, save, similarity
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
    "compare",
    "doctor",
    "embed",
    "evaluate",
    "load",
    "mine",
    "open_data",
    "pack",
    "register_augmentation",
    "register_backbone",
    "register_guard",
    "register_loss",
    "register_metric",
    "register_miner_source",
    "register_modality",
    "register_scorer",
    "register_store",
    "register_task",
    "report",
    "save",
    "similarity",
    "soup",
    "train",
]

_CLASSES = {
    "Collection": "mmtune.index.collection",
    "Gate": "mmtune.recipe.gate_block",
    "Model": "mmtune.model.dual_encoder",
    "Recipe": "mmtune.recipe.recipe",
}


def __getattr__(name: str) -> type:
    """The public classes, imported when they are first looked up (PEP 562)."""
    import importlib

    if name not in _CLASSES:
        raise AttributeError(f"module 'mmtune' has no attribute {name!r}")
    found: type = getattr(importlib.import_module(_CLASSES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
