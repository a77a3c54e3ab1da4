"""Predict windows of a recording, to say where in it an anomaly or an event is."""

import math
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.errors import RecipeError
from mmtune.model.encode import encode_values
from mmtune.prediction.predict_inputs import PredictInput
from mmtune.prediction.prediction_result import LocatedWindow
from mmtune.prediction.predictors import Predictor

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def check_locate(seconds: float | None) -> None:
    """Raise RecipeError unless `seconds` is None or a positive length."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise RecipeError(f"locate: {seconds:g} is not a length of windows in seconds; write e.g. 1.0")


def locate_windows(
    model: "Model", predictor: Predictor, one: PredictInput, signal: Signal, seconds: float, batch_size: int
) -> tuple[LocatedWindow, ...]:
    """Predict the windows of a recording, which overlap by half.

    Returns () for a signal that has no time axis or is not longer than a window.
    """
    parts = modalities.get(str(one.modality)).cut(signal, seconds)
    if not parts:
        return ()
    vectors = encode_values(model, str(one.modality), [window for _, window in parts], batch_size)
    predicted = predictor.predict([one] * len(parts), vectors)
    return tuple(
        LocatedWindow(start, seconds, p.predicted_class, p.score) for (start, _), p in zip(parts, predicted, strict=True)
    )
