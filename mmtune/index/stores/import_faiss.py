"""faiss itself: an optional dependency, imported when it is needed; and its index files, published atomically."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mmtune.errors import MissingExtra
from mmtune.runtime.files import atomic_open

if TYPE_CHECKING:
    from faiss import Index


def import_faiss() -> ModuleType:
    """The module; MissingExtra with the command that installs it."""
    try:
        import faiss
    except ImportError:
        raise MissingExtra('this index needs faiss: pip install "mmtune[cpu]" (or "mmtune[gpu]")') from None
    return faiss


def write_index(index: "Index", path: Path) -> None:
    """Publish an index at `path`."""
    faiss = import_faiss()
    with atomic_open(path) as f:
        faiss.write_index(index, faiss.PyCallbackIOWriter(f.write))
