"""The audits of a run's mined negatives: what was mined, what the guards dropped, and examples of both."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.errors import DataError
from mmtune.reporting.media import ValueCards
from mmtune.reporting.subject import Run

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

EXAMPLES, BUDGET = 4, 2_500_000
SAYS = {"mined": "Mined, the hardest", "dropped": "Dropped, suspected to be right answers"}


@dataclass
class Pair:
    """HTML of a query and of a candidate, and their score beside the query's own positive."""

    query: str
    candidate: str
    score: float
    positive: float | None


@dataclass
class Audit:
    """One round, one direction."""

    name: str
    direction: str
    numbers: dict[str, int]
    dropped: dict[str, int]
    scores: dict[str, dict[str, float]]
    warnings: list[str]
    examples: dict[str, list[Pair]]


def audits(run: Run | None) -> list[Audit]:
    """Every round's numbers; examples of the last round, shown when the training data are still where the recipe says."""
    if run is None or not run.audits:
        return []
    data = _data(run.recipe)
    cards = ValueCards(data, BUDGET, "n") if data is not None else None
    row = {i: n for n, i in enumerate(data.ids)} if data is not None else {}
    last = list(run.audits)[-1]
    out = []
    for name, document in run.audits.items():
        for direction, d in document["directions"].items():
            numbers = {k: d[k] for k in ("queries", "mined", "mined_at_or_above_positive", "suspected_false_negatives")}
            spread = {k: s for k, s in d["scores"].items() if s}
            dropped = {k.replace("_", " "): n for k, n in d["dropped"].items() if n}
            shown = _examples(d.get("examples", {}), direction, cards, row) if name == last and cards else {}
            out.append(Audit(name, direction, numbers, dropped, spread, document.get("warnings", []), shown))
    return out


def _data(recipe: dict[str, Any]) -> "Data | None":
    from mmtune.data.shards.dataset import open_data

    train = recipe["data"]["train"]
    first = train[0] if isinstance(train, list) and len(train) == 1 else train
    path = first.get("path") if isinstance(first, dict) else first
    try:
        return open_data(path) if isinstance(path, str) else None
    except DataError:
        return None


def _examples(found: dict[str, Any], direction: str, cards: ValueCards, row: dict[str, int]) -> dict[str, list[Pair]]:
    a, b = direction.split("->")
    kinds = {"mined": found.get("mined", []), "dropped": [e for k, v in found.items() if k != "mined" for e in v]}
    out = {}
    for kind, examples in kinds.items():
        known = [e for e in examples if e["query_id"] in row and e["negative_id"] in row][:EXAMPLES]
        if known:
            out[SAYS[kind]] = [
                Pair(cards.show(row[e["query_id"]], a), cards.show(row[e["negative_id"]], b), e["score"], e["positive_score"])
                for e in known
            ]
    return out
