"""Parse sizes and counts that are written with a unit, such as "256MB", "1.5 GiB" or "400M"."""

import re

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(size: str | int, minimum: int = 1) -> int:
    """Return the number of bytes of `size`: an int, or a string such as "256MB" (powers of 1000) or "1.5 GiB" (powers of 1024).

    Raises ValueError if `size` is malformed or below `minimum` bytes. The message does not name the option or recipe key; the
    caller adds it.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(size), re.I)
    if not match or match[2].upper() not in UNITS:
        raise ValueError(f"{size!r} is not a size; write for example 256MB or 1GiB")
    n_bytes = int(float(match[1]) * UNITS[match[2].upper()])
    if n_bytes < minimum:
        raise ValueError(f"{size!r} is not a size of at least {minimum} bytes; write for example 256MB or 1GiB")
    return n_bytes


COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def parse_count(count: str | int) -> int:
    """Return the number that `count` means: an int, or a string such as "400M" (million) or "1.5B" (billion).

    Raises ValueError if `count` is malformed or below 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmb]?)\s*", str(count), re.I)
    number = round(float(match[1]) * COUNT_UNITS[match[2].upper()]) if match else 0
    if number < 1:
        raise ValueError(f"{count!r} is not a positive number; write for example 500000, 400M or 1.5B")
    return number
