"""The format number that every file of ours carries, and the one line with which a newer one is refused.

A number is increased when files change so that an earlier mmtune would misread them. docs/formats.md lists all of them.
"""

from mmtune.errors import MmtuneError
from mmtune.runtime.version import __version__


def check_format(
    number: object, newest: int, where: object, error: type[MmtuneError], *, missing: int | None = None, oldest: int = 1
) -> int:
    """Return the format number of a file that was read, after checking that this version of mmtune reads it.

    number: what the file says; None if it says nothing
    newest, oldest: the formats that are read
    where: the file, for the message
    error: the kind of error to raise
    missing: number of files that say nothing, because they are older than the number; None if there are no such files
    """
    if number is None and missing is not None:
        number = missing
    if isinstance(number, int) and not isinstance(number, bool):
        if number > newest:
            raise error(
                f"{where}: format {number} is of a newer mmtune; this one ({__version__}) reads up to {newest}: update mmtune "
                "(pip install -U mmtune)"
            )
        if oldest <= number:
            return number
    raise error(f"{where}: format {number!r} is none that mmtune {__version__} reads ({oldest} to {newest}); restore the file")
