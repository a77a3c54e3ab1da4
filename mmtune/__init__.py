"""mmtune: tune CLIP/CLAP-type dual encoders on your own pairs, prove it, and ship the new space. Imports nothing heavy."""

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "mmtune.artifact",
    "pack": "mmtune.data.pack",
    "open_data": "mmtune.data.shards",
    "train": "mmtune.run",
    "embed": "mmtune.embed",
    "evaluate": "mmtune.evaluate",
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mmtune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
