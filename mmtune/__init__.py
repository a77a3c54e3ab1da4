"""mmtune: tune CLIP/CLAP-type dual encoders on your own pairs, prove it, and ship the new space. Imports nothing heavy."""

import os
from typing import Any

# libgomp's threads spin while they wait, by default for milliseconds; on a machine whose cores are shared that made a training
# step ten times longer, and sleeping at once a tenth longer. A tenth of a millisecond made it 3% shorter than a fifth of that
# on two quiet cores and 3% longer beside two other programs. Only a default, and only if torch is not loaded yet.
if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}

__version__ = "0.1.0"

_LAZY = {
    "load": "mmtune.model.artifact.load",
    "pack": "mmtune.data.pack.pack",
    "open_data": "mmtune.data.shards.dataset",
    "train": "mmtune.run",
    "embed": "mmtune.embedding.parquet_parts",
    "evaluate": "mmtune.evaluation.evaluate_model",
    "compare": "mmtune.comparison.compare_models",
    "report": "mmtune.reporting.report",
    "bench": "mmtune.benchmark.throughput",
    "mine": "mmtune.mining.mine_model",
    "soup": "mmtune.training.regularise.soup",
    "doctor": "mmtune.quality.doctor",
    "advise": "mmtune.quality.advise",
    "Collection": "mmtune.index.collection",
}
__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mmtune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
