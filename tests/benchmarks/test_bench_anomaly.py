"""Anomaly detection on recordings whose condition is known: every condition in turn is the normal one, all others are anomalies.

    ANOMALY_TRAIN=packed/train ANOMALY_VAL=packed/val ANOMALY_MODEL=audio=hf:DIR ANOMALY_CLASS=defect ANOMALY_MACHINE=end ANOMALY_DOMAIN=rpm \\
    python -m pytest tests/benchmarks/test_bench_anomaly.py -m bench -s

Packed rows with metadata columns of the condition, of the machine and of the domain (e.g. its speed). A row is scored by the normal rows of
its machine alone. One JSON line for each protocol and scorer: mean AUROC and partial AUROC (false positive rate up to 0.1) over the
conditions, with the 95% t-interval over them.

- `new domain`: references are all rows of the condition in train, val is scored
- `3 of the domain`: train alone; references are the condition's rows of all domains but the last, and 3 of the last, whose other rows are scored
- `new domain, known faults`: as the first, with one known row of every other condition of the machine
"""

import json
import os

import numpy as np
import pytest

import mmtune
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.evaluation.seed_statistics import spread_of
from mmtune.evaluation.tasks.anomaly import AnomalyScoring, detect
from mmtune.relevance.items import take_rows

NAMES = ("TRAIN", "VAL", "MODEL", "CLASS", "MACHINE", "DOMAIN")
GIVEN = {name: os.environ.get(f"ANOMALY_{name}") for name in NAMES}
FEW = 3
SCORERS = {
    "nearest": AnomalyScoring(),
    "mahalanobis": AnomalyScoring(scorer="mahalanobis"),
    "gmm": AnomalyScoring(scorer="gmm"),
}


class Part:
    """One part of the data, embedded: vectors, and condition, machine and domain of every row [N]."""

    def __init__(self, model, spec):
        data = mmtune.open_data(spec)
        (self.modality,) = [m for m in model.towers if m in data.modalities]
        self.vectors = embed_data(model, data, [self.modality])[self.modality]
        at = {row: i for i, row in enumerate(data.ids)}
        columns = [np.array([str(v) for v in data.column(GIVEN[c])], object) for c in ("CLASS", "MACHINE", "DOMAIN")]
        self.condition, self.machine, self.domain = (c[[at[row] for row in self.vectors.ids]] for c in columns)

    def rows(self, mask):
        return take_rows(self.vectors, np.flatnonzero(mask))


def areas(references, tested, condition, scoring, known=None):
    """(AUROC, partial AUROC) of one condition on one machine, or None if rows of one kind are missing."""
    part, mask = tested
    rows = part.rows(mask)
    normal = dict(zip(rows.ids, (part.condition[mask] == condition).tolist(), strict=True))
    machine = dict.fromkeys([*rows.ids, *references.ids, *([] if known is None else known.ids)], "m")
    try:
        found = detect(
            part.modality, rows, normal, machine, reference=references, reference_machine=machine, known=known, scoring=scoring
        )
    except DataError:
        return None
    return found.mean.auroc, found.mean.partial_auroc


def first_of_each(labels, mask):
    """bool [N]: the first row of each label within the mask."""
    chosen = np.zeros(len(labels), bool)
    for value in set(labels[mask].tolist()):
        chosen[np.flatnonzero(mask & (labels == value))[0]] = True
    return chosen


def few(mask):
    """bool [N]: the first FEW rows of the mask."""
    chosen = np.zeros(len(mask), bool)
    chosen[np.flatnonzero(mask)[:FEW]] = True
    return chosen


@pytest.mark.bench
@pytest.mark.skipif(not all(GIVEN.values()), reason=f"needs ANOMALY_{', ANOMALY_'.join(NAMES)}")
def test_anomalies():
    name, _, spec = GIVEN["MODEL"].partition("=")
    model = mmtune.load({name: spec})
    train, val = Part(model, GIVEN["TRAIN"]), Part(model, GIVEN["VAL"])
    target = sorted(set(train.domain.tolist()))[-1]
    domains = dict(zip(train.vectors.ids, train.domain.tolist(), strict=True))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def add(protocol, scorer, result):
        if result is not None:
            found.setdefault((protocol, scorer), []).append(result)

    for machine, condition in sorted({*zip(train.machine.tolist(), train.condition.tolist(), strict=True)}):
        own, here = train.machine == machine, val.machine == machine
        normal = own & (train.condition == condition)
        for scorer, scoring in SCORERS.items():
            add("new domain", scorer, areas(train.rows(normal), (val, here), condition, scoring))
        others = train.rows(first_of_each(train.condition, own & ~normal))
        add("new domain, known faults", "nearest", areas(train.rows(normal), (val, here), condition, AnomalyScoring(), others))
        given = (normal & (train.domain != target)) | few(normal & (train.domain == target))
        tested = own & (train.domain == target) & ~given
        for scorer in SCORERS:
            for balance in (None, "smote", "mixup"):
                scoring = AnomalyScoring(scorer=scorer, balance=balance, domain=domains)
                add(
                    f"{FEW} of the domain",
                    f"{scorer}{f', {balance}' if balance else ''}",
                    areas(train.rows(given), (train, tested), condition, scoring),
                )
    assert found, "no condition has normal and anomalous rows"
    for (protocol, scorer), values in found.items():
        spreads = [spread_of([v[i] for v in values]) for i in (0, 1)]
        line = {"bench": "anomaly", "protocol": protocol, "scorer": scorer, "conditions": len(values)}
        for label, s in zip(("auroc", "partial_auroc"), spreads, strict=True):
            line[label] = [round(v, 3) for v in (s["mean"], s["low"], s["high"]) if v is not None]
        print(json.dumps(line))
