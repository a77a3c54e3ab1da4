"""Values that hold an encoded file: those of Hugging Face datasets, and files opened in binary mode."""

import io
from collections.abc import Mapping

from mmtune.errors import Rejected


def unwrap_encoded(value: object) -> object:
    """The bytes or the path inside a value: `{"bytes": ..., "path": ...}` of a Hugging Face dataset (bytes come first), an open
    binary file (a `BytesIO` as a whole, other files from their position on), a bytearray. Any other value is returned as it is.
    Raises Rejected for a dictionary that has neither, and for a file in text mode."""
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value) and "array" not in value:
        if value.get("bytes"):
            return bytes(value["bytes"])
        if value.get("path"):
            return str(value["path"])
        raise Rejected("a dictionary with neither bytes nor a path")
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    file = getattr(value, "file", value)  # tempfile wraps the file that it opens
    if isinstance(file, io.IOBase):
        data = file.read()
        if not isinstance(data, bytes):
            raise Rejected("a file in text mode; open it in binary mode")
        return data
    return value
