"""Search a collection for documents, as the retriever interfaces of other libraries want them: a text, metadata and a score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.backbones.checkpoint_files import Untyped
from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.index.collection import Collection


@dataclass(frozen=True)
class Retrieved:
    """One result.

    id: item id
    content: the item's caption, or "" if it has none
    metadata: its metadata, with "id", "group", "score", "modality" and "collection" added
    score: cosine similarity
    """

    id: str
    content: str
    metadata: dict[str, object]
    score: float


def opened(collection: "Collection | str | Path") -> "Collection":
    """Open a collection that is given by its directory."""
    from mmtune.index.collection import Collection

    return Collection(collection) if isinstance(collection, str | Path) else collection


def text_name() -> str:
    """Return the name of the first registered modality whose values are texts."""
    return next(m for m in modalities.names() if modalities.get(m).language)


def retrieve(
    collection: "Collection",
    query: object,
    *,
    k: int,
    where: str | None = None,
    target: Sequence[str] | None = None,
    modality: str = "",
) -> list[Retrieved]:
    """Search with a text, or with a value of another modality.

    modality: that of the query; "" means text
    where, target: as in `Collection.search`

    Raises DataError for an empty text.
    """
    name = modality or text_name()
    if isinstance(query, str) and not query.strip():
        raise DataError("the query is empty")
    given: dict[str, Untyped] = {name: query}
    response = collection.search(k=k, where=where, target=target, **given)
    found = []
    for result in response.results:
        data = collection.value(result.id, text_name())
        metadata = {
            **dict(result.meta),
            "id": result.id,
            "group": result.group,
            "score": result.score,
            "modality": result.modality,
            "collection": str(collection.path),
        }
        found.append(Retrieved(result.id, "" if data is None else data.decode(), metadata, result.score))
    return found
