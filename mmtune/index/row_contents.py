"""Check a row before it is upserted, and hash its contents."""

from mmtune import modalities
from mmtune.contracts import Row
from mmtune.data.identity_labels import stable_label
from mmtune.errors import DataError, Rejected
from mmtune.index.stores.store_rows import check_id, plain_metadata


def content_labels(row: Row) -> dict[str, int]:
    """Return {modality: content hash} of a row.

    Raises Rejected for undecodable content, no content, and an id or metadata that a store cannot hold.
    """
    if not isinstance(row.id, str) or not row.id:
        raise Rejected("the row has no id")
    if not row.values:
        raise Rejected("the row has no content in any modality")
    try:
        check_id(row.id, "row")
        plain_metadata(row.meta, "row")
    except DataError as e:
        raise Rejected(str(e)) from None
    out = {}
    for name, value in row.values.items():
        kind = modalities.get(name)
        try:
            kind.check(value)
            out[name] = stable_label(kind.content_key(value))
        except Rejected as e:
            raise Rejected(f"{name}: {e}") from None
    return out
