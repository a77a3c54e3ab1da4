"""Find a file whose name is written in another Unicode form or encoding than the cell that names it."""

import os
import unicodedata


def existing_path(path: str) -> str:
    """Return the path under which a file exists, or `path` itself if there is no such file.

    Tried are composed and decomposed Unicode (macOS stores "ü" as "u" and a mark), and Windows-1252 bytes (names that old zip programs
    and Windows shares leave on Linux).
    """
    if "://" in path or path.isascii() or os.path.lexists(path):
        return path
    others = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    try:
        others.append(os.fsdecode(others[0].encode("cp1252")))
    except UnicodeError:
        pass
    return next((other for other in others if os.path.lexists(other)), path)
