"""faiss itself: an extra, found when it is needed; and its files, published whole."""

from pathlib import Path
from typing import Any

from mmtune.errors import MissingExtra
from mmtune.runtime.files import atomic_open


def faiss() -> Any:
    """The module; MissingExtra with the command that installs it."""
    try:
        import faiss as module
    except ImportError:
        raise MissingExtra('this index needs faiss: pip install "mmtune[cpu]" (or "mmtune[gpu]")') from None
    return module


def write_index(index: Any, path: Path) -> None:
    """Publish an index at `path`."""
    with atomic_open(path) as f:
        faiss().write_index(index, faiss().PyCallbackIOWriter(f.write))
