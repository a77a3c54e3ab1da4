"""Find the directory of a transformers checkpoint: a local one, or that of a checkpoint of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from mmtune.errors import ModelError, first_line

NOT_NEEDED = ["*.msgpack", "*.h5", "*.onnx", "*.ot", "onnx/*", "openvino/*", "*.py"]


def silence_transformers() -> None:
    """Switch off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def checkpoint_directory(checkpoint: str, family: str, only: Sequence[str] | None = None) -> Path:
    """Return the directory of a checkpoint.

    Hub checkpoints are read through the cache of huggingface_hub; offline, they must already be in that cache. Raises
    ModelError if there is no such directory and the checkpoint cannot be downloaded.

    checkpoint: a directory, or a name on the hub
    family: the model family, for error messages
    only: names of the files to download; None means all that models of torch need
    """
    directory = Path(checkpoint).expanduser()
    if directory.is_dir():
        return directory
    if checkpoint.startswith((".", "/", "~")):
        raise ModelError(f"{family}:{checkpoint}: no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(checkpoint, allow_patterns=None if only is None else list(only), ignore_patterns=NOT_NEEDED)
        )
    except Exception as e:  # the hub's client raises many unrelated exception types
        first = first_line(e)
        raise ModelError(
            f"{family}:{checkpoint}: no such directory, and the checkpoint could not be downloaded from the hub ({first}); check "
            "the name, or download the checkpoint yourself and give its directory"
        ) from None
