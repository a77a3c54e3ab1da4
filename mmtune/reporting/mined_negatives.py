"""The audits of a run's mined negatives: numbers, what the guards removed, and examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.reporting.subject import RunRecords
from mmtune.reporting.value_cards import ValueCards

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.data.shards.dataset import Data

MAX_EXAMPLES, BUDGET = 4, 2_500_000  # examples of each kind; characters of HTML for all their values
TITLES = {"mined": "Mined, the hardest", "dropped": "Dropped as suspected false negatives"}
COUNTS = ("queries", "mined", "mined_at_or_above_positive", "suspected_false_negatives")


@dataclass
class ExamplePair:
    """HTML of a query and a candidate, the score of this pair, and the score of the query's positive."""

    query: "Markup"
    candidate: "Markup"
    score: float
    positive_score: float | None


@dataclass
class MiningSection:
    """One round of mining in one direction.

    name: name of the round
    counts: numbers of queries and pairs
    dropped: {guard: number of candidates that it removed}
    scores: {kind of pair: quantiles of its scores}
    examples: {kind of example, as a heading: example pairs}
    """

    name: str
    direction: str
    counts: dict[str, int]
    dropped: dict[str, int]
    scores: dict[str, dict[str, float]]
    warnings: list[str]
    examples: dict[str, list[ExamplePair]]


def mining_sections(run: RunRecords | None) -> list[MiningSection]:
    """Return the numbers of every round, and examples from the last round.

    Examples are included only if the training data can still be opened at the path in the recipe.
    """
    if run is None or not run.audits:
        return []
    data = _training_data(run.recipe)
    cards = ValueCards(data, BUDGET, "n") if data is not None else None
    row_number = {i: n for n, i in enumerate(data.ids)} if data is not None else {}
    last = list(run.audits)[-1]
    out = []
    for name, document in run.audits.items():
        for direction, d in document["directions"].items():
            examples = _examples(d.get("examples", {}), direction, cards, row_number) if name == last and cards else {}
            out.append(
                MiningSection(
                    name,
                    direction,
                    {k: d[k] for k in COUNTS},
                    {k.replace("_", " "): n for k, n in d["dropped"].items() if n},
                    {k: s for k, s in d["scores"].items() if s},
                    document.get("warnings", []),
                    examples,
                )
            )
    return out


def _training_data(recipe: JsonObject) -> "Data | None":
    """Open the training data of a run. Returns None if there are several sets, or if they cannot be opened."""
    from mmtune.data.shards.dataset import open_data

    train = recipe["data"]["train"]
    first = train[0] if isinstance(train, list) and len(train) == 1 else train
    path = first.get("path") if isinstance(first, dict) else first
    try:
        return open_data(path) if isinstance(path, str) else None
    except DataError:
        return None


def _examples(
    examples: Mapping[str, list[JsonObject]], direction: str, cards: ValueCards, row_number: Mapping[str, int]
) -> dict[str, list[ExamplePair]]:
    a, b = direction.split("->")
    kinds = {"mined": examples.get("mined", []), "dropped": [e for k, v in examples.items() if k != "mined" for e in v]}
    out = {}
    for kind, pairs in kinds.items():
        known = [e for e in pairs if e["query_id"] in row_number and e["negative_id"] in row_number][:MAX_EXAMPLES]
        if known:
            out[TITLES[kind]] = [
                ExamplePair(
                    cards.show(row_number[e["query_id"]], a),
                    cards.show(row_number[e["negative_id"]], b),
                    e["score"],
                    e["positive_score"],
                )
                for e in known
            ]
    return out
