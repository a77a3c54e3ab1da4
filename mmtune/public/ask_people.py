"""The public functions of labelling: `label` and `label_budget`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.labelling.budget import BudgetCurve
    from mmtune.labelling.label_session import LabelSession
    from mmtune.model.dual_encoder import Model


def open_label_session(
    data: DataLike,
    out: str | Path,
    *,
    model: Model | str | Path | None = None,
    tuned: Model | str | Path | None = None,
    direction: str | None = None,
    choose: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    quiet: bool = True,
) -> LabelSession:
    """Open or continue labelling pairs, as `mmtune label` does, for a program or a page of your own.

    `session.next(annotator)` is the next question, `session.answer(question, "match" | "not" | "unsure", annotator)` records an
    answer; OUT/judgments.jsonl is up to date after each.

    data: what `mmtune.open_data` accepts, a table (CSV, TSV, JSONL, Parquet), or the directory of a collection
    out: directory of the answers; an existing one is continued
    model: a `Model`, or what `mmtune.load` accepts, whose near candidates are asked; None means a collection's live model
    tuned: a second model; pairs that the two rank differently are asked, too
    direction: "a->b", modalities of query and candidate; None means from language to the first other modality, or within the only one
    choose: strategies, "unsure", "disagreement", "dense" and "random", joined by commas; None means all that apply
    seed: seed of the strategy "random"
    batch_size: values in one forward pass
    quiet: show no progress

    Raises DataError if data, direction or strategies cannot be used.
    """
    from mmtune.labelling.label import open_label_session as open_label_session_

    return open_label_session_(
        data, out, model=model, tuned=tuned, direction=direction, choose=choose, seed=seed, batch_size=batch_size, quiet=quiet
    )


def label_budget(
    data: DataLike,
    answers: int,
    *,
    model: Model | str | Path | None = None,
    direction: str | None = None,
    choose: str | None = None,
    truth: str = "group",
    seeds: int = 3,
    batch_size: int = 64,
    quiet: bool = True,
) -> BudgetCurve:
    """Simulate what a number of answers would buy, with chosen questions and with random ones, on data whose groups are known.

    Half of the groups are asked about, the other half is searched; the answers teach a metric on the model's frozen embeddings.

    data, model, direction, choose, batch_size, quiet: as in `open_label_session`
    answers: number of answers
    truth: metadata column of the true groups, or "group"
    seeds: number of repetitions, with other halves

    Raises DataError if fewer than 8 groups have several rows, or if half of the data has too few pairs to ask.
    """
    from mmtune.labelling.label import label_budget as label_budget_

    return label_budget_(
        data,
        answers,
        model=model,
        direction=direction,
        choose=choose,
        truth=truth,
        seeds=seeds,
        batch_size=batch_size,
        quiet=quiet,
    )
