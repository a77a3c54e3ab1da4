"""Write a self-contained HTML page of predictions: each input with its picture or player, its class or alarm, its neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import DataError, Rejected
from mmtune.evaluation.model_and_data import as_data
from mmtune.html.render import render, trusted
from mmtune.prediction.predict_inputs import find_inputs
from mmtune.prediction.prediction_result import Prediction, Predictions
from mmtune.reporting.value_cards import BUDGET, ValueCards
from mmtune.reporting.window_strip import WindowStrip, strip
from mmtune.runtime.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.data.in_memory import DataLike
    from mmtune.model.dual_encoder import Model

NEIGHBOURS = 3
"""Number of neighbours that are shown."""


@dataclass
class PredictionRow:
    """A row of the page: the card of the input, the prediction, and the cards of its neighbours with their ids and cosines."""

    card: "Markup"
    prediction: Prediction
    neighbours: "list[tuple[Markup, str, float]]"

    @property
    def strip(self) -> WindowStrip | None:
        """The located windows of the recording."""
        windows = self.prediction.windows
        notes = [f"{w.predicted_class}, {w.score:.4f}" if w.predicted_class is not None else f"{w.score:.4f}" for w in windows]
        seconds = windows[0].seconds if windows else 0.0
        return strip([w.start for w in windows], seconds, self.prediction.strengths, notes)


def write_prediction_page(
    result: Predictions,
    inputs: object,
    reference: "DataLike | None",
    model: "Model",
    only: Sequence[str] | None,
    out: Path,
) -> None:
    """Write the page. Alarms come first, with the largest anomaly score first; other predictions with the least certain first.

    inputs: what was predicted, as given to `predict`
    reference: data whose rows are shown as neighbours; None shows their ids alone
    only: the modalities that were predicted, as given to `predict`
    """
    readers = {(i.name, i.modality): i.read for i in find_inputs(model, inputs, only).inputs}
    left, unshown = BUDGET // 2, 0
    cards = None if reference is None else ValueCards(as_data(reference), BUDGET // 2)
    row_of = {} if cards is None else {row: i for i, row in enumerate(cards.data.ids)}
    rows = []
    for p in sorted(result.predictions, key=_urgency):
        try:
            fragment = modalities.get(p.modality).thumbnail_html(readers[p.file, p.modality](), p.file)
        except (Rejected, NotImplementedError, DataError, OSError):
            fragment = None
        if fragment is None or len(fragment) > left:
            card, unshown = trusted(""), unshown + 1
        else:
            card, left = trusted(f'<div class="card">{fragment}</div>'), left - len(fragment)
        near = list(zip(p.nearest, p.cosines, strict=True))[:NEIGHBOURS]
        neighbours = [
            (cards.show(row_of[i], p.modality) if cards is not None and i in row_of else trusted(""), i, c) for i, c in near
        ]
        rows.append(PredictionRow(card, p, neighbours))
    page = render("predictions.html.j2", result=result, rows=rows, unshown=unshown + (cards.unshown if cards else 0))
    write_text(out, page)


def _urgency(p: Prediction) -> tuple[bool, float, str]:
    return not p.alarm, p.score if p.predicted_class is not None else -p.score, p.file
