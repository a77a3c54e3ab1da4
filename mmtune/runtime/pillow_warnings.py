"""Pillow's warnings about odd images, which the command line and the decode workers do not show."""

import warnings


def ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings in this process, from now on. Importing mmtune does not do this.

    `warnings.catch_warnings` around each call would not be thread-safe: two threads can leave all warnings of the process ignored.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
