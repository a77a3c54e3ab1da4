"""Options in a MODEL string: `family:CHECKPOINT?name=value&name=value`, e.g. `hf:facebook/dinov2-base?pooling=mean`."""

import re
from collections.abc import Iterable

from mmtune.errors import ModelError
from mmtune.runtime.plugins import nearest

_OPTIONS = re.compile(r"\w+=[^?&]*(&\w+=[^?&]*)*")


def split_options(family: str, checkpoint: str, known: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Split a checkpoint into its path or name and its options.

    family: the model family, for error messages
    checkpoint: what follows "family:" in the MODEL string
    known: names of the options of that family

    Raises ModelError for an unknown option.
    """
    path, mark, text = checkpoint.rpartition("?")
    if not mark or not _OPTIONS.fullmatch(text):
        return checkpoint, {}
    options = dict(entry.split("=", 1) for entry in text.split("&"))
    known = list(known)
    for name in options:
        if name not in known:
            why = nearest(name, known) if known else f"; {family}: takes no options, its files say all"
            raise ModelError(f"{family}:{checkpoint}: unknown option {name!r}{why}")
    return path, options
