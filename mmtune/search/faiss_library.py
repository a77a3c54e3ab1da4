"""Import faiss, an optional dependency, only where it is used."""

import importlib.util
from types import ModuleType

from mmtune.errors import MissingExtra


def faiss_installed() -> bool:
    """Whether faiss can be imported."""
    return importlib.util.find_spec("faiss") is not None


def import_faiss(purpose: str = "mining") -> ModuleType:
    """Import and return faiss. Raises MissingExtra, with `purpose` and the command that installs faiss, if it is missing."""
    try:
        import faiss
    except ImportError:
        raise MissingExtra(f'{purpose} needs faiss: pip install "mmtune[cpu]" (or "mmtune[gpu]")') from None
    return faiss
