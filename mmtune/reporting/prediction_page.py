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
from mmtune.prediction.prediction_result import LocatedWindow, Prediction, Predictions
from mmtune.reporting.value_cards import BUDGET, ValueCards
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
    def strip(self) -> list[tuple[LocatedWindow, float]]:
        """Return (window, opacity) in order of time; the window that stands out least has the opacity 0.05, the most has 1."""
        scores = self.prediction.strengths
        low, span = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
        opacity = [round(0.05 + 0.95 * (s - low) / span, 3) if span else 0.05 for s in scores]
        return list(zip(self.prediction.windows, opacity, strict=True))


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
