"""Import faiss, an optional dependency, only when it is needed; write faiss index files atomically."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mmtune.runtime.files import atomic_open
from mmtune.search import faiss_library

if TYPE_CHECKING:
    from faiss import Index


def import_faiss() -> ModuleType:
    """Return the faiss module. Raises MissingExtra, with the install command, when faiss is not installed."""
    return faiss_library.import_faiss("this index")


def write_index(index: "Index", path: Path) -> None:
    """Write an index to `path` atomically."""
    faiss = import_faiss()
    with atomic_open(path) as f:
        faiss.write_index(index, faiss.PyCallbackIOWriter(f.write))
