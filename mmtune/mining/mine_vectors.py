"""Mine hard negatives from vectors: for every direction, block by block, write a negatives table and its audit to disk."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import Embeddings, JsonObject, Pair, Scorer, direction
from mmtune.data.shards.weighted_concat import refuse_shared_ids
from mmtune.embedding.streamed_rows import stream_of
from mmtune.errors import DataError, RecipeError
from mmtune.mining.audit_page import page
from mmtune.mining.context import MiningContext, row_finder
from mmtune.mining.mine_direction import DirectionMiner
from mmtune.mining.mining_result import MiningResult
from mmtune.mining.near_duplicates import ContentHashes, hash_contents, looks_for_near_duplicates
from mmtune.mining.negatives_table import TableWriter
from mmtune.mining.verifier import ScorerOf
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items, check_unit_vectors, unique_items
from mmtune.relevance.judgments import Verdict, judged_pairs, read_verdicts
from mmtune.relevance.positives import Positives
from mmtune.relevance.ragged import Ragged
from mmtune.runtime.files import sha256_file, write_json, write_text

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


def mined_directions(names: Sequence[str], only: Sequence[str] | None, pairs: Sequence[Pair] | None = None) -> list[Pair]:
    """Return the directions to mine: those in `only` ("a->b"), or else both directions of every pair.

    names: the modalities that have vectors
    pairs: the trained pairs; default: every pair of `names`

    Raises RecipeError if `only` has an unknown direction.
    """
    if only is None:
        chosen: list[Pair] = list(pairs) if pairs else list(itertools.combinations(names, 2))
        return [d for a, b in chosen for d in dict.fromkeys(((a, b), (b, a)))] or [(n, n) for n in names]
    known = [direction(a, b) for a in names for b in names]
    for name in only:
        if name not in known:
            raise RecipeError(f"mining direction {name!r} does not exist; there are: {', '.join(known)}")
    return [(a, b) for name in dict.fromkeys(only) for a, _, b in [name.partition("->")]]


def table_settings(options: MiningOptions, directions: Iterable[str]) -> JsonObject:
    """Return everything but vectors and labels that determines the table's contents.

    Options for memory, devices and the use of the table in training are left out: they do not change the table.
    """
    document = options.model_dump(mode="json", exclude={"rounds", "use", "table", "allow_stale"})
    for name in ("memory_mb", "device"):
        document["search"].pop(name)
    if not document["guards"]["extra"]:  # leave the key out, so that tables made before `extra` existed still match
        document["guards"].pop("extra")
    if options.judgments:
        document["judgments"] = sha256_file(options.judgments)
    return {"options": document, "directions": list(directions)}


def mine_vectors(
    embedded: Mapping[str, Embeddings],
    out: str | Path,
    options: MiningOptions | None = None,
    *,
    pairs: Sequence[Pair] | None = None,
    data: "Data | WeightedConcat | None" = None,
    verifier: Scorer | ScorerOf | None = None,
    truth: Sequence[str | None] | None = None,
    cache: str | Path | None = None,
    quiet: bool = True,
    judged: Sequence[Verdict] = (),
) -> MiningResult:
    """Mine negatives into the Parquet file `out`. The audit is written next to it (`<out>.audit.json`, `<out>.audit.html`).

    embedded: one Embeddings per modality, all from one model
    pairs: the trained pairs; both directions of each are mined, unless options.directions lists directions
    data: the rows' contents and columns. Needed for near-duplicates, sources other than `nearest`, the verifier and the
        examples on the audit page. Without it near-duplicates are not looked for, and the audit says so.
    verifier: a Scorer, or a function (query modality, candidate modality) -> Scorer
    truth: the true group of every row of `data`, to measure the guards with if the labels are incomplete
    cache: a directory for content hashes, which do not depend on the weights
    judged: verdicts in addition to those of `options.judgments`, e.g. the negatives given with the data

    Deterministic: the bytes of the table depend on vectors, labels and options only, not on row order, block size, memory or
    threads. Raises DataError if the fingerprints in `embedded` differ.
    """
    options = options or MiningOptions()
    out = Path(out)
    fingerprints = sorted({e.fingerprint for e in embedded.values()})
    if len(fingerprints) != 1:
        raise DataError(f"vectors of different models cannot be searched together: {', '.join(fingerprints) or 'no vectors'}")
    directed = mined_directions(list(embedded), options.directions, pairs)
    verdicts = read_verdicts(options.judgments) if options.judgments else []
    if data is not None:
        refuse_shared_ids(data, [i for v in verdicts for i in (v.query, v.item)], options.judgments or "")
    verdicts = [*judged, *verdicts]
    names = list(dict.fromkeys(m for pair in directed for m in pair))
    warnings: list[str] = []
    hashes = _content_hashes(options, data, names, Path(cache) if cache else None, quiet, warnings)
    items = {m: _items(m, embedded[m]) for m in names}
    parts: JsonObject = {}
    settings = table_settings(options, [direction(a, b) for a, b in directed])
    with TableWriter(out, fingerprints[0], settings) as table:
        for a, b in directed:
            queries = items[a] if a == b else items[a].as_queries()
            context, negative = _context(queries, items[b], options, data, hashes, verdicts, warnings)
            miner = DirectionMiner(context, negative, verifier)
            parts[context.direction] = miner.run(table, truth, quiet, warnings)
    mined = sum(part["mined"] for part in parts.values())
    if not mined:
        why = "; ".join(f"{name}: {_why_none(part)}" for name, part in parts.items())
        warnings.insert(0, f"no negatives were mined: {why}")
    shown = None if stream_of(data) is not None else data
    if shown is not data:
        warnings.append("the audit page shows ids without their contents, because streamed shards give no single values")
    document: JsonObject = {"fingerprint": fingerprints[0], "directions": parts, "warnings": warnings}
    result = MiningResult.beside(out, mined, document)
    write_json(result.audit, document)
    write_text(result.page, page(document, shown, row_finder(shown) if shown is not None else None))
    return result


def _items(name: str, e: Embeddings) -> Items:
    check_unit_vectors(name, e)
    items = unique_items(name, e, repeated_ids=True)
    if not len(items):
        raise DataError(f"{name}: no row has this modality, so there is nothing to mine")
    return items


def _context(
    queries: Items,
    candidates: Items,
    options: MiningOptions,
    data: "Data | WeightedConcat | None",
    hashes: Mapping[str, ContentHashes],
    verdicts: Sequence[Verdict],
    warnings: list[str],
) -> tuple[MiningContext, Ragged]:
    """Return (the context of one direction, its negatives by human judgment)."""
    name = direction(queries.name, candidates.name)
    judged = judged_pairs(verdicts, name, queries, candidates)
    if judged.unused:
        warnings.append(f"{name}: {judged.unused} judgments are about rows that are not in the data; they are not used")
    own = options.for_direction(name)
    positives = Positives(queries, candidates, None if own.guards.groups else ("id",), judged=judged.positive)
    used = hashes if own.guards.near_duplicates else {}
    return MiningContext(name, queries, candidates, positives, own, data, used), judged.negative


def _content_hashes(
    options: MiningOptions,
    data: "Data | WeightedConcat | None",
    names: Sequence[str],
    cache: Path | None,
    quiet: bool,
    warnings: list[str],
) -> dict[str, ContentHashes]:
    """Hash the contents of every modality that supports it, if any direction looks for near-duplicates; else return {}."""
    if not looks_for_near_duplicates(options):
        return {}
    if data is None:
        warnings.append("near-duplicates were not looked for, because only vectors were given, not the data")
        return {}
    hashes = {m: hash_contents(data, m, cache, quiet) for m in modalities.names() if m in names}
    return {m: h for m, h in hashes.items() if h is not None}


def _why_none(part: JsonObject) -> str:
    """Explain why nothing was mined in a direction."""
    if not part["looked_at"]:
        return f"all {part['candidates']} candidates are known positives of every query; do all rows have one group?"
    dropped = {n: c for n, c in part["dropped"].items() if c}
    most = max(dropped, key=dropped.__getitem__) if dropped else "nothing"
    shares = ", ".join(f"{n} {c / part['looked_at']:.0%}" for n, c in dropped.items())
    return f"the guards dropped all {part['looked_at']} candidates ({shares}); relax {most} first"
