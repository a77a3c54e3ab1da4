"""faiss itself: an optional dependency, imported when it is needed; and its index files, published atomically."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mmtune.runtime.files import atomic_open
from mmtune.search import faiss_library

if TYPE_CHECKING:
    from faiss import Index


def import_faiss() -> ModuleType:
    """The module; MissingExtra with the command that installs it."""
    return faiss_library.import_faiss("this index")


def write_index(index: "Index", path: Path) -> None:
    """Publish an index at `path`."""
    faiss = import_faiss()
    with atomic_open(path) as f:
        faiss.write_index(index, faiss.PyCallbackIOWriter(f.write))
