"""Old names of recipe keys and options: they work for some time, and the first use says the new name and when the old one goes."""

import warnings

REMOVED_IN = "0.3"
"""The version of mmtune that removes the old names that this version accepts."""


def renamed_message(old: str, new: str) -> str:
    """Return the notice for an old name, e.g. of the option --apart."""
    return f"{old} is called {new} now; the old name goes in mmtune {REMOVED_IN}"


def warn_renamed(old: str, new: str) -> None:
    """Warn by a FutureWarning that a name is an old one. Python's own filter shows equal warnings of one process once."""
    warnings.warn(renamed_message(old, new), FutureWarning, stacklevel=1)  # one place, so that the filter knows what was shown
