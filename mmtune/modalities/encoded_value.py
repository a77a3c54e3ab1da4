"""Unwrap values that contain an encoded file: dictionaries of Hugging Face datasets, and files opened in binary mode."""

import io
from collections.abc import Mapping

from mmtune.errors import Rejected


def unwrap_encoded(value: object) -> object:
    """Return the bytes or the path that a value contains; any other value is returned unchanged.

    value: a dictionary {"bytes", "path"} of a Hugging Face dataset (the bytes are used if there are any), an open binary file
        (read from its current position; a `BytesIO` is read as a whole), or a bytearray

    Raises Rejected for a dictionary with neither bytes nor a path, and for a file in text mode.
    """
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
    file = getattr(value, "file", value)  # the files of the module tempfile are wrappers
    if isinstance(file, io.IOBase):
        data = file.read()
        if not isinstance(data, bytes):
            raise Rejected("a file in text mode; open it in binary mode")
        return data
    return value
