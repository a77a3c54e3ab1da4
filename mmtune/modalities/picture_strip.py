"""Pictures for experiment trackers: values of a data set in a line, with coloured frames, and how each tracker takes a picture."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import PIL.Image

from mmtune import modalities
from mmtune.errors import Rejected

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Picture: TypeAlias = PIL.Image.Image
SIDE = 160
"""Pixels of a value."""
BORDER = 4


def picture_strip(values: Sequence[tuple[str, bytes]], colours: Sequence[tuple[int, int, int]], length: int) -> Picture:
    """Draw values in one line of `length` places.

    values: (modality, bytes) of each value; the place of one that cannot be drawn stays empty
    colours: colour of the frame of each value
    """
    cell = SIDE + 2 * BORDER
    strip = PIL.Image.new("RGB", (cell * length, cell), "white")
    for number, ((modality, data), colour) in enumerate(zip(values, colours, strict=True)):
        framed = PIL.Image.new("RGB", (cell, cell), colour)
        framed.paste((255, 255, 255), (BORDER, BORDER, cell - BORDER, cell - BORDER))
        with contextlib.suppress(Rejected, NotImplementedError):
            picture = modalities.get(modality).picture(data, SIDE)
            framed.paste(picture, ((cell - picture.width) // 2, (cell - picture.height) // 2))
        strip.paste(framed, (number * cell, 0))
    return strip


def log_pictures(tracker: "GeneralTracker", name: str, pictures: Sequence[Picture], step: int) -> None:
    """Send pictures to a tracker of accelerate, each under the name `name/NUMBER` (wandb: all under `name`)."""
    if tracker.name == "wandb":
        tracker.log_images({name: list(pictures)}, step=step)
    elif tracker.name == "tensorboard":
        import numpy as np

        for number, picture in enumerate(pictures):
            tracker.log_images({f"{name}/{number}": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "trackio":
        import trackio

        tracker.log({f"{name}/{number}": trackio.Image(picture) for number, picture in enumerate(pictures)}, step=step)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            for number, picture in enumerate(pictures):
                path = Path(scratch) / f"step-{step:07d}.png"
                picture.save(path)
                tracker.log_artifact(str(path), artifact_path=f"{name}/{number}")
