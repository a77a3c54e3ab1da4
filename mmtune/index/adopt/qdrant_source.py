"""Read ids, vectors and payloads of a Qdrant collection that other software wrote."""

from collections.abc import Iterator

from mmtune.errors import DataError, MissingExtra, StoreUnavailable, first_line
from mmtune.index.adopt.vector_sources import BATCH, VectorRows, usable_rows
from mmtune.index.stores.qdrant_connections import parse_options, server_client


class QdrantSource:
    """Implements `VectorSource`.

    url: http(s) URL of a server, whose API key is read from QDRANT_API_KEY, or directory of a local Qdrant
    table: name of the collection, or an alias of it
    vector: name of the vectors, for a collection with named vectors
    id: payload field with the ids; default: the ids of the points
    """

    kind = "qdrant"

    def __init__(self, url: str, table: str, vector: str | None, id: str | None):
        try:
            import qdrant_client
        except ImportError:
            raise MissingExtra('adopting from qdrant needs qdrant-client: pip install "mmtune[qdrant]"') from None
        self._module, self._table, self._vector, self._id = qdrant_client, table, vector, id
        self._url = parse_options(url).url
        self.label, self.skipped = f"Qdrant collection {table}", dict[str, int]()

    def rows(self) -> Iterator[VectorRows]:
        self.skipped.clear()
        server = self._url.startswith(("http://", "https://"))
        try:
            client = server_client(self._url) if server else self._module.QdrantClient(path=self._url)
        except (RuntimeError, ValueError, OSError) as e:
            raise StoreUnavailable(f"{self.label}: {first_line(e)}") from None
        try:
            offset, dim = None, None
            while True:
                try:
                    points, offset = client.scroll(
                        self._table,
                        limit=BATCH,
                        offset=offset,
                        with_payload=True,
                        with_vectors=[self._vector] if self._vector else True,
                    )
                except Exception as e:  # the client raises ValueError, UnexpectedResponse, ResponseHandlingException, ...
                    raise _error(self.label, e) from None
                vectors = [self._vector_of(p.vector) for p in points]
                payloads = [dict(p.payload or {}) for p in points]
                ids = [p.id if self._id is None else d.get(self._id) for p, d in zip(points, payloads, strict=True)]
                rows = usable_rows(ids, vectors, payloads, dim, self.skipped)
                dim = rows.vectors.shape[1] or dim
                yield rows
                if offset is None:
                    return
        finally:
            client.close()

    def _vector_of(self, vector: object) -> object:
        if not isinstance(vector, dict):
            return vector
        if self._vector is None and len(vector) > 1:
            raise DataError(f"{self.label}: it has several vectors; name one with --vector: {', '.join(vector)}")
        return vector.get(self._vector) if self._vector else next(iter(vector.values()), None)


def _error(label: str, error: Exception) -> Exception:
    first = first_line(error)
    away = type(error).__name__ in ("ResponseHandlingException", "ConnectError", "ConnectionError")
    return StoreUnavailable(f"{label}: {first}") if away else DataError(f"{label}: {first}")
