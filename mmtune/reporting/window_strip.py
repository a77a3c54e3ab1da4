"""Strips below players: the scores of a recording's windows by time, to say where in it something is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.data.decode import decode_row
from mmtune.errors import DataError, Rejected
from mmtune.model.encode import encode_values

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

MAX_WINDOWS = 256
"""Windows of one recording that are scored; of a longer one they are spread evenly."""


@dataclass(frozen=True)
class StripWindow:
    """One window of a strip.

    start, seconds: where it begins, and its length, in seconds
    opacity: 0.05 for the window that stands out least, 1 for the one that stands out most
    note: its score in words
    """

    start: float
    seconds: float
    opacity: float
    note: str


@dataclass(frozen=True)
class WindowStrip:
    """The windows of a recording in order of time. peak: start of the one that stands out most, in seconds"""

    windows: list[StripWindow]
    peak: float


def opacities(strengths: Sequence[float]) -> list[float]:
    """Return the opacity of each window by how much it stands out, from 0.05 to 1; 0.05 for all if they are equal."""
    low, span = min(strengths, default=0.0), max(strengths, default=0.0) - min(strengths, default=0.0)
    return [round(0.05 + 0.95 * (s - low) / span, 3) if span else 0.05 for s in strengths]


def strip(starts: Sequence[float], seconds: float, strengths: Sequence[float], notes: Sequence[str]) -> WindowStrip | None:
    """Return the strip of windows of this length, or None without windows. strengths: how much each stands out"""
    if not starts:
        return None
    windows = [
        StripWindow(start, seconds, opacity, note)
        for start, opacity, note in zip(starts, opacities(strengths), notes, strict=True)
    ]
    return WindowStrip(windows, starts[int(np.argmax(strengths))])


class LocatedRows:
    """Scores the windows of long recordings of the test data by each model, each recording once.

    A window is as long as the tower's; windows overlap by half. Shorter values, and those without a time axis, have no strip.

    models: {side: model}
    """

    def __init__(self, models: "Mapping[str, Model]", data: "Data", batch_size: int = 64):
        self.models, self.data, self.batch_size = models, data, batch_size
        self._vectors: dict[tuple[str, str, int], tuple[list[float], float, np.ndarray]] = {}

    def strip(self, side: str, modality: str, row: int, vector_D: np.ndarray) -> WindowStrip | None:
        """Return the strip of the cosines of a recording's windows with an L2-normalised vector; None if it has one window only."""
        key = side, modality, row
        if key not in self._vectors:
            self._vectors[key] = self._embed(side, modality, row)
        starts, seconds, vectors_WD = self._vectors[key]
        cosines = (vectors_WD @ vector_D).astype(float).tolist()
        return strip(starts, seconds, cosines, [f"cosine {c:.2f}" for c in cosines])

    def _embed(self, side: str, modality: str, row: int) -> tuple[list[float], float, np.ndarray]:
        """Return (starts, length, embeddings [W, D]) of the windows; none for a recording that is not longer than one."""
        model = self.models[side]
        seconds = getattr(model.towers[modality].preprocess, "window_seconds", None)
        none = np.zeros((0, model.dim), np.float32)
        if seconds is None:
            return [], 0.0, none
        try:
            parts = modalities.get(modality).cut(decode_row(self.data, row, modality), seconds)
        except (Rejected, DataError, OSError):
            return [], seconds, none
        if len(parts) > MAX_WINDOWS:
            parts = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, MAX_WINDOWS).astype(int))]
        if not parts:
            return [], seconds, none
        vectors = encode_values(model, modality, [window for _, window in parts], self.batch_size)
        return [start for start, _ in parts], seconds, vectors
