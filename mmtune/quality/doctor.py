"""`mmtune doctor`: what is wrong with the data, and with a model on them, before money is spent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtune.errors import DataError
from mmtune.quality import model_checks, row_checks, value_checks
from mmtune.quality.findings import SEVERITIES, Diagnosis, Split

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


def split_up(data: "Data", against: Sequence["Data"], column: str | None) -> list[Split]:
    """The parts between which nothing may leak: values of a metadata column ("split" if there is one), other DATA."""
    names = None
    try:
        names = data.column(column or "split")
    except DataError:
        if column:
            raise
    parts: dict[str, list[int]] = {}
    for i in range(len(data)):
        parts.setdefault(str(names[i]) if names is not None and names[i] is not None else data.spec, []).append(i)
    return [Split(n, data, rows) for n, rows in parts.items()] + [Split(d.spec, d, list(range(len(d)))) for d in against]


def doctor(
    data: "Data | str",
    model: "Model | str | None" = None,
    *,
    against: Sequence["Data | str"] = (),
    split: str | None = None,
    limit: int = 50_000,
    quiet: bool = True,
) -> Diagnosis:
    """Examine DATA: identity, duplicates and leaks, every value (at most `limit` rows a split, evenly spread); with MODEL also
    the space it makes of them. `against`: other splits, e.g. the training shards; `split`: the column that names splits."""
    from mmtune.data.shards.dataset import open_data
    from mmtune.model.artifact import load

    main = open_data(data) if isinstance(data, str) else data
    splits = split_up(main, [open_data(d) if isinstance(d, str) else d for d in against], split)
    facts: dict[str, Any] = {"rows": {s.name: len(s.rows) for s in splits}, "modalities": main.modalities}
    findings = row_checks.check(splits)
    findings += value_checks.check(splits, limit, facts, quiet)
    if model is not None:
        from mmtune.embedding.embed_rows import embed_data

        found = load(model) if isinstance(model, str) else model
        small = main if len(main) <= limit else main.subset(range(0, len(main), -(-len(main) // limit)))
        findings += model_checks.check_cut(small, found)
        scales = {f"{a}->{b}": found.logit_scale(a, b)[0].item() for a in found.towers for b in found.towers if a != b}
        findings += model_checks.check(embed_data(found, small, quiet=quiet), facts, scales)
    return Diagnosis(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.count, f.code)), facts)
