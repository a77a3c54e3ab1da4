"""Mining in rounds: when the weights of an epoch are mined with, which table is already there, and what a fall means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.contracts import Embedded, Pair, direction
from mmtune.files import read_json
from mmtune.mining.config import MiningOptions
from mmtune.mining.mine import Mined, directions, mine, settings
from mmtune.mining.table import read_meta

if TYPE_CHECKING:
    from mmtune.data.shards import Data


def round_epochs(epochs: float, rounds: int) -> list[int]:
    """The epochs before which to mine: `rounds` of them, evenly spread; the first epochs run on random batches, because
    neighbours of an untrained model are noise (ANCE, arXiv 2007.00808, warms up for the same reason)."""
    whole = max(int(epochs), 1)
    return sorted({max(1, whole * (i + 1) // (rounds + 1)) for i in range(rounds)} - {whole})


def mine_round(
    directory: str | Path,
    number: int,
    embedded: Mapping[str, Embedded],
    data: "Data",
    options: MiningOptions,
    pairs: Sequence[Pair],
    quiet: bool = True,
    **more: Any,
) -> Mined:
    """The table of round `number` in `directory`; mined only when there is none of these weights and options yet, so a killed
    run goes on where it stopped. Further arguments go to `mine`."""
    path = Path(directory) / f"round-{number}.parquet"
    audit = path.with_name(path.name + ".audit.json")
    shown = path.with_name(path.name + ".audit.html")
    todo = [direction(a, b) for a, b in directions(list(embedded), options.directions, pairs)]
    if path.exists() and audit.exists() and shown.exists():
        meta, document = read_meta(path), read_json(audit)
        same = {e.fingerprint for e in embedded.values()} == {meta["fingerprint"]} == {document["fingerprint"]}
        if same and meta["settings"] == settings(options, todo):
            return Mined(path, audit, shown, sum(d["mined"] for d in document["directions"].values()), document)
    return mine(embedded, path, options, pairs=pairs, data=data, cache=directory, quiet=quiet, **more)


def fallen(name: str, before: float, after: float, mined: Mined, tolerance: float = 0.0) -> str | None:
    """A line for training to print first when a validation metric fell after a mined round; None when it did not."""
    if after >= before - tolerance:
        return None
    audit = mined.document["directions"]
    above = sum(d["mined_at_or_above_positive"] for d in audit.values())
    suspected = sum(d["suspected_false_negatives"] for d in audit.values())
    return (
        f"{name} fell from {before:.4f} to {after:.4f} after mining: a sign of false negatives. {above} of {mined.mined} mined "
        f"score as high as the query's own positive, {suspected} were dropped as suspects; look at {mined.page}"
    )
