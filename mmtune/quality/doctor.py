"""`mmtune doctor`: find problems in a dataset, and of a model on this dataset, before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.evaluation.model_and_data import as_data, as_model
from mmtune.mining.given_negatives import load_given
from mmtune.quality import model_checks, negative_checks, row_checks, value_checks
from mmtune.quality.caption_words import check_label_words
from mmtune.quality.findings import SEVERITIES, SPACE, Diagnosis, Measurements, Split
from mmtune.quality.negative_checks import without_negatives

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


def doctor(
    data: "Data | str",
    model: "Model | str | Path | None" = None,
    *,
    against: Sequence["Data | str"] = (),
    split: str | None = None,
    limit: int = 50_000,
    quiet: bool = True,
) -> Diagnosis:
    """Check DATA: identities, duplicates, leaks between splits, and every content; with MODEL also its embedding space.

    against: other splits, e.g. the training shards
    split: the metadata column that names the splits; default: "split", if there is one
    limit: maximum number of rows per split that are decoded and embedded; of more, evenly spread ones are taken
    """
    main = as_data(data)
    others = [as_data(d) for d in against]
    splits = splits_of(main, others, split)
    facts: JsonObject = {"rows": {s.name: len(s.rows) for s in splits}, "modalities": main.modalities}
    facts["left out or re-encoded when opened"] = [note for opened in (main, *others) for note in opened.notes]
    given = {id(opened): load_given(opened) for opened in (main, *others)}
    findings = row_checks.check_rows([without_negatives(s, given[id(s.data)]) for s in splits])
    findings += [f for opened in (main, *others) for f in negative_checks.check_negatives(opened.spec, given[id(opened)])]
    if (negatives := given[id(main)]) is not None:
        facts["explicit negatives"] = negatives.counts
    findings += value_checks.check_values(splits, limit, facts, quiet)
    findings += check_label_words(splits)
    if model is not None:
        from mmtune.embedding.embed_rows import embed_data

        loaded, space = as_model(model), Measurements()
        some = main if len(main) <= limit else main.subset(range(0, len(main), -(-len(main) // limit)))
        findings += model_checks.check_truncated_inputs(some, loaded)
        scales = {d: loaded.logit_scale(*d.split("->"))[0].item() for d in loaded.scaled_directions}
        findings += model_checks.check_space(embed_data(loaded, some, quiet=quiet), space, scales)
        facts[SPACE] = space
    return Diagnosis(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.count, f.code)), facts)


def splits_of(data: "Data", against: Sequence["Data"], column: str | None) -> list[Split]:
    """Return the parts between which no row may leak: the values of the split column ("split" if there is one), and other DATA.

    If there is no such column, `data` is one split. Raises DataError if `column` is given and does not exist.
    """
    names = None
    try:
        names = data.column(column or "split")
    except DataError:
        if column:
            raise
    rows_of: dict[str, list[int]] = {}
    for i in range(len(data)):
        rows_of.setdefault(str(names[i]) if names is not None and names[i] is not None else data.spec, []).append(i)
    return [Split(n, data, rows) for n, rows in rows_of.items()] + [Split(d.spec, d, list(range(len(d)))) for d in against]
