"""Vectors -> a negatives table and its audit: every direction, block by block, streamed to disk."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import Embeddings, Pair, Scorer, direction
from mmtune.errors import DataError, RecipeError
from mmtune.mining.audit import Audit
from mmtune.mining.audit_page import page
from mmtune.mining.candidates import SOURCES, Block, Sources
from mmtune.mining.guard_calibration import FALLBACK, Margin, calibrate, measure, precision
from mmtune.mining.guards import ORDER, Guard, first_reason
from mmtune.mining.hash_draws import id_hashes
from mmtune.mining.near_duplicates import Near, Signatures, signatures
from mmtune.mining.negatives_table import DROPPED, MINED, TableWriter
from mmtune.mining.positive_scores import PositiveScores, positive_scores
from mmtune.mining.selection import Sampler, preference
from mmtune.mining.verifier import Verifier
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items, check_unit_vectors, unite
from mmtune.relevance.judgments import JudgedPairs, judged_pairs, read_verdicts
from mmtune.relevance.positives import Positives
from mmtune.runtime.files import sha256_file, write_json, write_text
from mmtune.runtime.progress import Progress
from mmtune.search.parallel import ordered_map

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

RowOf = Callable[[list[str]], np.ndarray]


@dataclass
class Mined:
    """Where the results are and what they say. `mined` negatives in all; `document` is the audit."""

    table: Path
    audit: Path
    page: Path
    mined: int
    document: dict[str, Any]


def directions(names: Sequence[str], asked: Sequence[str] | None, pairs: Sequence[Pair] | None = None) -> list[Pair]:
    """The directed pairs to mine: those asked for ("a->b"), else both ways of every pair. RecipeError names a wrong one."""
    if asked is None:
        chosen: list[Pair] = list(pairs) if pairs else list(itertools.combinations(names, 2))
        return [d for a, b in chosen for d in dict.fromkeys(((a, b), (b, a)))] or [(n, n) for n in names]
    known = [direction(a, b) for a in names for b in names]
    for wanted in asked:
        if wanted not in known:
            raise RecipeError(f"mining direction {wanted!r}: there are vectors for {', '.join(names)}, so: {', '.join(known)}")
    return [(a, b) for wanted in dict.fromkeys(asked) for a, _, b in [wanted.partition("->")]]


def settings(options: MiningOptions, todo: list[str]) -> dict[str, Any]:
    """What decides a table beside vectors and labels; sizes, devices and use do not change a byte of it."""
    document = options.model_dump(mode="json", exclude={"rounds", "use", "table", "allow_stale"})
    for name in ("memory_mb", "device"):
        document["search"].pop(name)
    if options.judgments:
        document["judgments"] = sha256_file(options.judgments)
    return {"options": document, "directions": todo}


def row_finder(data: "Data | WeightedConcat") -> RowOf:
    """Row ids -> row numbers of `data`, -1 where it has none."""
    number = {row_id: i for i, row_id in enumerate(data.ids)}
    return lambda ids: np.array([number.get(i, -1) for i in ids], np.int64)


def mine(
    embedded: Mapping[str, Embeddings],
    out: str | Path,
    options: MiningOptions | None = None,
    *,
    pairs: Sequence[Pair] | None = None,
    data: "Data | WeightedConcat | None" = None,
    verifier: "Callable[[str, str], Scorer] | Scorer | None" = None,
    truth: Sequence[str | None] | None = None,
    cache: str | Path | None = None,
    quiet: bool = True,
) -> Mined:
    """Mine negatives into the Parquet file `out`, its audit beside it (`<out>.audit.json`, `<out>.audit.html`).

    embedded: one Embeddings a modality, of one model (DataError when fingerprints differ). pairs: the trained pairs, mined both
    ways unless options.directions says otherwise. data: for near duplicates, other sources, the verifier and the page;
    without it those guards are off, and the audit says so. verifier: a Scorer, or a call (a, b) -> Scorer. truth: the group of
    every row of `data` to measure guards by, where the labels are incomplete. cache: a directory for what does not depend on
    the weights. The table's bytes depend on vectors, labels and options, not on row order, blocks, memory or threads.
    """
    options = options or MiningOptions()
    out = Path(out)
    marks = sorted({e.fingerprint for e in embedded.values()})
    if len(marks) != 1:
        raise DataError(f"vectors of different models cannot be searched together: {', '.join(marks) or 'no vectors'}")
    todo = directions(list(embedded), options.directions, pairs)
    judged = read_verdicts(options.judgments) if options.judgments else []
    row_of = row_finder(data) if data is not None else None
    warnings: list[str] = []
    near = _signatures(options, data, {m for d in todo for m in d}, cache, quiet, warnings)
    items = {m: _items(m, embedded[m]) for m in dict.fromkeys(m for d in todo for m in d)}
    for m in items:
        if not len(items[m]):
            raise DataError(f"{m}: no rows with it, nothing to mine")
    document: dict[str, Any] = {"fingerprint": marks[0], "directions": {}, "warnings": warnings}
    with TableWriter(out, marks[0], settings(options, [direction(a, b) for a, b in todo])) as table:
        for a, b in todo:
            name = direction(a, b)
            known = judged_pairs(judged, name, items[a], items[b])
            if known.unused:
                warnings.append(f"{name}: {known.unused} judgments name rows that are not there; not used")
            own = options.for_direction(name)
            queries = items[a] if a == b else items[a].as_queries()
            job = _Direction(name, queries, items[b], own, known, data, row_of)
            document["directions"][name] = job.run(table, near, verifier, truth, quiet, warnings)
        mined = sum(d["mined"] for d in document["directions"].values())
    if not mined:
        why = "; ".join(f"{n}: {_why_none(d)}" for n, d in document["directions"].items())
        warnings.insert(0, f"no negatives at all: {why}")
    found = Mined(out, out.with_name(out.name + ".audit.json"), out.with_name(out.name + ".audit.html"), mined, document)
    write_json(found.audit, document)
    write_text(found.page, page(document, data, row_of))
    return found


def _signatures(
    options: MiningOptions,
    data: "Data | WeightedConcat | None",
    names: set[str],
    cache: "str | Path | None",
    quiet: bool,
    warnings: list[str],
) -> dict[str, Signatures]:
    wanted = options.guards.near_duplicates or any(o.guards.given.get("near_duplicates") for o in options.per_direction)
    if not wanted:
        return {}
    if data is None:
        warnings.append("near duplicates were not looked for: only vectors were given, not the data")
        return {}
    found = {m: signatures(data, m, Path(cache) if cache else None, quiet) for m in modalities.names() if m in names}
    return {m: s for m, s in found.items() if s is not None}


def _why_none(d: dict[str, Any]) -> str:
    if not d["looked_at"]:
        return f"every one of {d['candidates']} candidates is a known positive of every query (one group?)"
    dropped = {n: c for n, c in d["dropped"].items() if c}
    most = max(dropped, key=dropped.__getitem__) if dropped else "nothing"
    shares = ", ".join(f"{n} {c / d['looked_at']:.0%}" for n, c in dropped.items())
    return f"all {d['looked_at']} candidates were guarded away ({shares}); relax {most} first"


class _Direction:
    """One direction's parts, and the loop over its queries."""

    def __init__(
        self,
        name: str,
        a: Items,
        b: Items,
        options: MiningOptions,
        judged: JudgedPairs,
        data: "Data | WeightedConcat | None",
        row_of: RowOf | None,
    ):
        self.name, self.a, self.b, self.options = name, a, b, options
        self.judged, self.data, self.row_of = judged, data, row_of
        if a.dim != b.dim:
            raise DataError(f"{name}: vectors of {a.dim} and of {b.dim} dimensions; vectors of one model share one space")
        kinds = None if options.guards.groups else ("id",)
        self.positives = Positives(a, b, kinds, judged=judged.positive)
        self.sources = Sources(a, b, self.positives, options, data, row_of)

    def run(
        self, table: TableWriter, near: dict[str, Signatures], verifier: Any, truth: Any, quiet: bool, warnings: list[str]
    ) -> dict[str, Any]:
        """Mine the direction into `table`; returns its part of the audit."""
        o, a, b = self.options, self.a, self.b
        scores = positive_scores(self.positives, o.positive)
        self._remarks(scores, warnings)
        likeness = Near(a, b, near, self.row_of) if near and self.row_of and o.guards.near_duplicates else None
        guard = Guard(o.guards, None, a.labelled, b.labelled, likeness, self.judged.negative)
        margin, measured, by_truth = self._measure(guard, scores, truth)
        sampler = Sampler(np.minimum(o.negatives * a.rows.counts, o.window), len(b), o.guards.hub_cap)
        hashes = (id_hashes(a.ids), id_hashes(b.ids)) if o.sampling != "top" else (np.zeros(0, np.uint64),) * 2
        check = self._verifier(verifier)
        audit, writer = Audit(a, b), _Rows(self.name, a, b)

        def look(start: int) -> tuple[Block, dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
            q = np.arange(start, min(len(a), start + self.sources.block))
            block = self.sources.top(q, scores.score[q])
            masks, trusted = guard.masks(block), guard.trusted(block)
            preferred = preference(block, o.sampling, o.temperature, o.seed, *hashes)
            return block, masks, trusted, first_reason(masks, trusted), preferred

        with Progress(f"mine {self.name}", len(a), unit="queries", quiet=quiet) as progress:
            blocks = ordered_map(look, range(0, len(a), self.sources.block), self.sources.threads)
            for block, masks, trusted, reason, preferred in blocks:
                if check is not None:
                    dropped, unverified = check.drops(block, block.there & (reason == 0), preferred)
                    masks["verifier"] = dropped
                    reason[dropped] = ORDER.index("verifier") + 1
                    reason[unverified] = ORDER.index("unverified") + 1
                chosen, wanted = sampler.pick(block, reason, preferred), sampler.wanted[block.q]
                audit.add(block, masks, trusted, reason, chosen, wanted)
                table.write(writer.columns(block, reason, chosen, wanted, o.record == "all"))
                progress.advance(len(block.q))
        part = audit.document(sampler.served, sampler.cap)
        part["relative_margin"] = vars(margin)
        part["measured"], part["measured_by_truth"] = measured, by_truth
        part["positives"] = {k: int((scores.kind == i).sum()) for i, k in enumerate(("own_rows", "mates", "median", "none"))}
        part["search"] = {"method": self.sources.search.name if self.sources.search else None, "sources": list(o.sources)}
        part["search"]["recall"] = self._recall()
        part["examples"] = audit.shown()
        return part

    def _remarks(self, positives: PositiveScores, warnings: list[str]) -> None:
        if len(self.b) < 2:
            warnings.append(f"{self.name}: only {len(self.b)} distinct candidate; there is nothing to be told apart")
        alone = int((positives.kind >= 2).sum())
        if self.positives.within and alone == len(self.a):
            warnings.append(f"{self.name}: every group holds one item, so margins compare with the item itself (score 1)")
        elif self.positives.within and alone:
            warnings.append(f"{self.name}: {alone} of {len(self.a)} items have no mate; the median positive stands in")
        elif not self.positives.within and alone == len(self.a):
            warnings.append(f"{self.name}: no row has both, and no group links them: margins are off")

    def _measure(
        self, guard: Guard, positives: PositiveScores, truth: Sequence[str | None] | None
    ) -> tuple[Margin, dict[str, Any] | None, dict[str, Any] | None]:
        """(the relative margin, every guard on labelled rows with the labels hidden, every guard judged by `truth`)."""
        wanted, a, b = self.options.guards.relative_margin, self.a, self.b
        margin = Margin(FALLBACK, f"{FALLBACK:g}: no labelled rows to calibrate on")
        measured = by_truth = None
        if a.labelled.any() and b.labelled.any():
            hidden = Positives(a, b, ("id",), judged=self.judged.positive, first_row_only=True)
            score = positives.score if hidden.within else positive_scores(hidden, self.options.positive, own_only=True).score
            only = self.options.model_copy(update={"sources": ["nearest"]})
            known = Positives(a, b, judged=self.judged.positive)
            found = measure(Sources(a, b, hidden, only, None, None, self.sources.search), known, a.labelled, b.labelled, score)
            if wanted == "calibrated":
                margin = calibrate(found)
            guard.relative = margin.value if wanted == "calibrated" else wanted
            measured = precision(found, guard)
        if wanted != "calibrated":
            margin = Margin(wanted, "given")
        guard.relative = margin.value
        if truth is not None and self.row_of is not None:
            right_a = _relabelled(a, truth, self.row_of)
            right_b = right_a if a is b else _relabelled(b, truth, self.row_of)
            found = measure(self.sources, Positives(right_a, right_b), right_a.labelled, right_b.labelled, positives.score)
            for block, decided in zip(found.blocks, found.known, strict=True):
                decided &= ~guard.trusted(block)  # what labels settle is no work for a guess
            by_truth = precision(found, guard)
        return margin, measured, by_truth

    def _verifier(self, verifier: Any) -> Verifier | None:
        if verifier is None:
            return None
        if self.data is None or self.row_of is None:
            raise DataError("a verifier looks at the content of pairs, and only vectors were given; give the data too")
        scorer = verifier if hasattr(verifier, "score") else verifier(self.a.name, self.b.name)
        g = self.options.guards
        return Verifier(scorer, self.data, self.a, self.b, self.positives, self.row_of, g.verify_margin, g.verify_top)

    def _recall(self) -> float:
        """Share of the exact window that the search found, on some queries; 1 when it is the exact scan itself."""
        from mmtune.search.blocked import ExactSearch

        search = self.sources.search
        if search is None or isinstance(search, ExactSearch):
            return 1.0
        q = np.unique(np.linspace(0, len(self.a) - 1, 200).astype(np.int64))
        scan = ExactSearch(self.b.vectors, self.options.search.memory_mb, "cpu", self.options.window)
        vectors, excluded = self.a.vectors[q], self.positives.of(q)
        exact, found = scan.top(vectors, excluded)[0], search.top(vectors, excluded)[0]
        hits = sum(len(np.intersect1d(e[e >= 0], f[f >= 0])) for e, f in zip(exact, found, strict=True))
        return hits / max(int((exact >= 0).sum()), 1)


def _items(name: str, e: Embeddings) -> Items:
    check_unit_vectors(name, e)
    return unite(name, e, repeated_ids=True)


def _relabelled(items: Items, truth: Sequence[str | None], row_of: RowOf) -> Items:
    names = [truth[i] if i >= 0 else None for i in row_of(items.row_ids)]
    codes = {n: i for i, n in enumerate(sorted({n for n in truth if n is not None}, key=str), 1)}
    return items.regrouped(np.array([codes[n] if n is not None else 0 for n in names], np.int64))


class _Rows:
    """Blocks -> the table's columns."""

    def __init__(self, name: str, a: Items, b: Items):
        self.name, self.ids_a, self.ids_b = name, pa.array(a.ids, pa.string()), pa.array(b.ids, pa.string())
        self.reasons = pa.array([*SOURCES, *ORDER], pa.string())

    def columns(
        self, block: Block, reason: np.ndarray, chosen: np.ndarray, wanted: np.ndarray, everything: bool
    ) -> dict[str, Any]:
        """Mined pairs; with `everything` also those dropped that score at least as high as the last one mined."""
        keep = chosen
        if everything:
            lowest = np.where(chosen, block.scores, np.inf).min(1, initial=np.inf)
            lowest[chosen.sum(1) < wanted] = -np.inf
            keep = chosen | ((reason > 0) & block.there & (block.scores >= lowest[:, None]))
        i, w = np.nonzero(keep)
        mined = chosen[i, w]
        why = np.where(mined, block.source[i, w], len(SOURCES) + reason[i, w].astype(np.int64) - 1)
        positive = block.positive[i].astype(np.float32)
        return {
            "direction": pa.repeat(self.name, len(i)),
            "query_id": self.ids_a.take(pa.array(block.q[i])),
            "negative_id": self.ids_b.take(pa.array(block.items[i, w])),
            "rank": pa.array(block.rank[i, w]),
            "score": pa.array(block.scores[i, w]),
            "positive_score": pa.array(positive, mask=np.isnan(positive)),
            "verdict": pa.array([DROPPED, MINED]).take(pa.array(mined.astype(np.int8))),
            "reason": self.reasons.take(pa.array(why)),
        }
