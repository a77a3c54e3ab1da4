"""The objective of a run: weighted losses over the pairs of modalities, as one callable on a batch's vectors."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, Pair, direction
from mmtune.errors import DataError, RecipeError
from mmtune.losses.contrast import Block, Guide, View, dense, masks, query_weights
from mmtune.losses.distill import Taught
from mmtune.losses.graded import RANGES, Scored
from mmtune.losses.info_nce import info_nce
from mmtune.losses.matryoshka import truncate
from mmtune.losses.relation import Relation
from mmtune.losses.tiled import related_pairs, tiled, tiled_info_nce
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.batch_views import Items, PairItems, column, kinds, pair_items
from mmtune.training.large_batch.cross_batch_memory import Memory, Stored
from mmtune.training.objective_spec import AUTO, Term, find_loss, nearest, own_options, parse_terms
from mmtune.training.teacher_outputs import Teacher, TeacherVectors

Scale = Callable[[str, str], tuple[Tensor, Tensor | None]]
"""Directed pair -> (exponentiated scale, bias or None): the model's."""

TILE_ABOVE = 1 << 23
"""Logits past which a contrastive loss works in tiles: 32 MiB of them, of which a dense loss keeps about eight."""


@dataclass(slots=True)
class Seen:
    """One pair of modalities in one batch, with the parts that several terms or dimensions share."""

    items: PairItems
    z: dict[str, Tensor] = field(default_factory=dict)
    related: Tensor | None = None
    sim: Tensor | None = None

    def with_vectors(self, z: Mapping[str, Tensor], batch: Batch) -> "Seen":
        """The same pair with each item's vector."""
        a, b = self.items.pair
        vectors = {m: z[m][batch.item_of_row[m][i.row]] for m, i in ((a, self.items.a), (b, self.items.b))}
        return Seen(self.items, vectors, self.related)

    def make_dense(self) -> tuple[Tensor, Tensor]:
        """(cosines, relation) of all items of the pair, made once."""
        a, b = self.items.pair
        if self.related is None:
            self.related = self.items.relation.block(0, len(self.items.a.row))
        if self.sim is None:
            self.sim = self.z[a] @ self.z[b].T
        return self.sim, self.related

    @property
    def size(self) -> int:
        return len(self.items.a.row) * len(self.items.b.row)


class Objective(nn.Module):
    """`objective(z, batch, scale) -> (loss, logs)`; built by `build_objective`.

    z[m] [U_m, D] unit vectors of the batch's unique items. The loss is a float32 scalar: the terms' weighted sum, each the
    mean over the pairs that the batch has rows for. Its own parameters (a learned bias, a projection) are a module's.
    `processes`: who else takes this same loss on these same vectors, and so shares the work of a tiled one.
    """

    processes: Processes = SINGLE_PROCESS

    def __init__(
        self,
        terms: Sequence[Term],
        pairs: Sequence[Pair],
        dims: Mapping[int, float],
        memory: Memory | None,
        teachers: Mapping[str, Teacher],
    ) -> None:
        super().__init__()
        self.terms, self.pairs = list(terms), [(a, b) for a, b in pairs]
        self.dims, self.memory, self.teachers = dict(dims), memory, dict(teachers)
        self.biases, self.projections = nn.ParameterDict(), nn.ModuleDict()
        for i, term in enumerate(self.terms):
            if term.loss == "sigmoid":
                self.biases[str(i)] = nn.Parameter(torch.tensor(float(term.options.get("bias", -10.0))))
        self.columns: dict[str, str] = {c: key for t in self.terms for c, key in _columns(t).items()}
        """Numeric columns that a batch must carry -> the recipe key that asks for each."""

    def forward(self, z: Mapping[str, Tensor], batch: Batch, scale: Scale) -> tuple[Tensor, dict[str, float]]:
        z = {m: v.float() for m, v in z.items()}
        seen = self._see(z, batch)
        width = next(iter(z.values())).shape[1]
        loss, logs = self._terms([s.with_vectors(z, batch) for s in seen], batch, scale, whole=True)
        if self.dims:
            parts = {width: self.dims.get(width, 1.0)} | {d: w for d, w in self.dims.items() if d < width}
            total = sum(parts.values())
            loss = loss * (parts[width] / total)
            for dim, weight in parts.items():
                if dim < width:
                    short = [s.with_vectors(truncate(z, dim), batch) for s in seen]
                    value, _ = self._terms(short, batch, scale, whole=False, dim=dim)
                    loss = loss + value * (weight / total)
                    logs[f"dim {dim}"] = float(value.detach())
        if self.memory is not None and self.training:
            self.memory.push(z, batch)
        return loss, logs

    def _see(self, z: Mapping[str, Tensor], batch: Batch) -> list[Seen]:
        """The pairs that this batch has rows for. Raises DataError when there is none."""
        here = [p for p in self.pairs if p[0] in z and p[1] in z]
        seen = [Seen(items) for p in here if (items := pair_items(batch, p)) is not None]
        if not seen:
            names = ", ".join(f"{a}-{b}" for a, b in self.pairs)
            shown = ", ".join(map(repr, batch.ids[:3])) + (", ..." if len(batch.ids) > 3 else "")
            raise DataError(
                f"objective: a batch without a positive: none of its rows ({shown}) has both sides of a pair ({names})"
            )
        return seen

    def _terms(
        self, seen: list[Seen], batch: Batch, scale: Scale, whole: bool, dim: int | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        loss, logs = next(iter(seen[0].z.values())).new_zeros(()), {}
        names = [t.loss for t in self.terms]
        for number, term in enumerate(self.terms):
            if term.loss == "feature" and not whole:
                continue  # the teacher's vectors have no prefixes to follow
            wanted = {tuple(p) for p in term.pairs} if term.pairs else set(self.pairs)
            values = {s.items.pair: self._term(number, s, batch, scale, dim) for s in seen if s.items.pair in wanted}
            if not values:
                continue
            value = torch.stack(list(values.values())).mean()
            loss = loss + term.weight * value
            name = term.loss if names.count(term.loss) == 1 else f"{term.loss}[{number}]"
            logs[name] = float(value.detach())
            if len(self.pairs) > 1:
                logs.update({f"{name} {a}-{b}": float(v.detach()) for (a, b), v in values.items()})
        return loss, logs

    def _term(self, number: int, seen: Seen, batch: Batch, scale: Scale, dim: int | None) -> Tensor:
        term, (a, b) = self.terms[number], seen.items.pair
        if term.family is Scored:
            assert term.function is not None
            i, j, _ = seen.items.own()
            score = column(
                batch, term.options.get("column", "score"), f"{term.key}.column", seen.items.rows, *RANGES.get(term.loss, ())
            )
            return term.function(Scored((seen.z[a][i] * seen.z[b][j]).sum(1), score), **term.options)
        weight = column(batch, term.weights, f"{term.key}.weights", seen.items.rows, 0.0) if term.weights else None
        turns = (
            [(a, b)]
            if term.directions == "forward" or a == b
            else [(b, a)]
            if term.directions == "backward"
            else [(a, b), (b, a)]
        )
        views = {turn: self._view(number, seen, turn, weight, batch, scale, dim) for turn in turns}
        if term.family is Taught:
            return torch.stack([self._taught(number, seen, turn, view, batch) for turn, view in views.items()]).mean()
        large = seen.size > TILE_ABOVE if term.tile == "auto" else term.tile == "always"
        if large and len(views) == 2:
            both = _both_ways(term, views[turns[0]], views[turns[1]], seen, self.processes)
            if both is not None:
                return both
        values = []
        for turn, view in views.items():
            if large:
                values.append(tiled(view, _row_loss(term, view), self.processes))
            elif view.stale is not None:
                values.append(dense(view, _row_loss(term, view)))
            else:
                sim, related = seen.make_dense()
                sim, related = (sim, related) if turn == (a, b) else (sim.T, related.T)
                values.append(dense(view, _row_loss(term, view), sim[: len(view.q)], related[: len(view.q)]))
        return torch.stack(values).mean()

    def _view(
        self, number: int, seen: Seen, turn: Pair, weight: Tensor | None, batch: Batch, scale: Scale, dim: int | None
    ) -> View:
        """The pair as queries of turn[0] against candidates of turn[1], the memory's included."""
        term, items, (a, b) = self.terms[number], seen.items, turn
        forward = turn == items.pair
        q_items, c_items = (items.a, items.b) if forward else (items.b, items.a)
        i, j, w = items.own(weight)
        value, bias = self._scale(number, scale, a, b)
        q, c = seen.z[a][: q_items.n_queries], seen.z[b]
        relation, stale = items.relation if forward else items.relation.reversed, None
        index = batch.index[c_items.row]
        if self.memory is not None and term.family is Block and (stored := self.memory.beside(b, batch)) is not None:
            vectors = stored.z if dim is None else truncate({b: stored.z}, dim)[b]
            stale, c, index = len(c), torch.cat([c, vectors]), torch.cat([index, stored.index])
            relation = _with_memory(relation, stored, batch, turn)
        guide = None
        if term.guide:
            teacher = self.teachers[term.guide]
            assert isinstance(teacher, TeacherVectors)
            asked = batch.index[q_items.row[: q_items.n_queries]]
            guide = Guide(teacher.at(a, asked), teacher.at(b, index), term.guide_margin)
        own = (i, j, w) if forward else (j, i, w)
        hard = _hard(batch, turn, q_items, c_items)
        graded, by_item = term.weights is not None, term.queries == "items"
        return View(q, c, relation, own, value, bias, guide, stale, a == b, graded, by_item, hard)

    def _taught(self, number: int, seen: Seen, turn: Pair, view: View, batch: Batch) -> Tensor:
        term, items, (a, b) = self.terms[number], seen.items, turn
        assert term.function is not None and term.teacher is not None
        teacher = self.teachers[term.teacher]
        q_items, c_items = (items.a, items.b) if turn == items.pair else (items.b, items.a)
        q_rows, c_rows, features = q_items.row[: len(view.q)], c_items.row, None
        if isinstance(teacher, TeacherVectors):
            told = teacher.at(a, batch.index[q_rows]), teacher.at(b, batch.index[c_rows])
            scores = told[0] @ told[1].T
            projection = self.projections[f"{number}~{b}"] if f"{number}~{b}" in self.projections else nn.Identity()
            features = (projection(view.c), told[1]) if term.loss == "feature" else None
        else:
            scores = teacher.between(turn, batch.labels[a][q_rows], batch.labels[b][c_rows])
        if term.loss == "score_mse" and bool((scores.abs() > 1.001).any()):
            worst = float(scores[scores.abs() > 1.001][0])
            raise DataError(
                f"{term.key}: teacher {term.teacher!r} gives {worst:g}, outside a cosine's [-1, 1]; use margin_mse or kl"
            )
        pos, neg = masks(view, 0, len(view.q))
        return term.function(Taught(view.q @ view.c.T, scores, pos, neg, view.scale, features), **term.options)

    def _scale(self, number: int, scale: Scale, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        value, bias = scale(a, b)
        value, bias = value.float(), None if bias is None else bias.float()
        if (fixed := self.terms[number].scale) is not None:
            value = torch.full_like(value, fixed)
        if bias is None and str(number) in self.biases:
            bias = self.biases[str(number)].to(value.device)
        return value, bias


def _hard(batch: Batch, turn: Pair, queries: Items, candidates: Items) -> tuple[Tensor, Tensor, int] | None:
    """The batch's mined pairs in this direction as items; None when nothing was mined for it in any."""
    if not batch.hard_negatives:
        return None
    row = batch.hard_negatives.get(direction(*turn), batch.index.new_zeros(2, 0))
    i, j = queries.of_row[row[0]], candidates.of_row[row[1]]
    known = (i >= 0) & (j >= 0)
    return i[known], j[known], candidates.n_queries


def _with_memory(relation: Relation, stored: Stored, batch: Batch, turn: Pair) -> Relation:
    """The relation with the memory's items as further candidates."""
    queries, candidates = relation.labels
    n = relation.shape[1]
    joined = {}
    for kind in kinds(batch, *turn):
        item, label = candidates[kind]
        more_item, more_label = stored.labels.get(kind, (item[:0], label[:0]))
        joined[kind] = (torch.cat([item, more_item + n]), torch.cat([label, more_label]))
    return Relation(queries, joined, (relation.shape[0], n + len(stored.z)))


def _row_loss(term: Term, view: View) -> Callable[[Block], Tensor]:
    function, options = term.function, term.options
    if term.loss == AUTO:
        function, _ = find_loss("sigmoid" if view.bias is not None else "info_nce")
    assert function is not None
    return lambda block: function(block, **options)


def _both_ways(term: Term, forward: View, backward: View, seen: Seen, processes: Processes) -> Tensor | None:
    """Plain InfoNCE of both directions in shared tiles; None where the loss is another or something is masked."""
    plain = term.function is info_nce or (term.loss == AUTO and forward.bias is None)
    options = {"positives": default_positives()} | term.options
    positives = options.pop("positives")
    if not plain or positives == "sum" or any(options.values()):
        return None
    if any(v.guide is not None or v.stale is not None or v.graded or v.hard is not None for v in (forward, backward)):
        return None
    a, b = backward.c, forward.c
    related = related_pairs(View(a, b, seen.items.relation, forward.own, forward.scale))
    if related is None:
        return None
    pairs = related if positives == "mean" else forward.own[:2]
    shares = _shares(forward, pairs[0], len(a)), _shares(backward, pairs[1], len(b))
    left_out = None if positives == "mean" else related
    return tiled_info_nce(a, b, pairs, shares, (forward.scale, backward.scale), left_out, processes)


def _shares(view: View, query: Tensor, count: int) -> Tensor:
    """What each pair counts for in one direction: its query's weight, evenly among the query's pairs; half in all."""
    weight = query_weights(view)
    weight = torch.cat([weight, weight.new_zeros(count - len(weight))])
    pairs_of = torch.zeros(count, device=weight.device).index_add_(0, query, torch.ones_like(query, dtype=weight.dtype))
    return weight[query] / pairs_of[query] / weight.sum() / 2


def default_positives() -> str:
    """How InfoNCE takes several positives unless the recipe says."""
    return inspect.signature(info_nce).parameters["positives"].default


def _columns(term: Term) -> dict[str, str]:
    found = {term.weights: f"{term.key}.weights"} if term.weights else {}
    if term.function is not None and "column" in own_options(term.function):
        found[term.options.get("column", "score")] = f"{term.key}.column"
    return found


def build_objective(
    terms: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair],
    *,
    dim: int | None = None,
    matryoshka: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    seed: int = 0,
) -> Objective:
    """A recipe's `objective` -> Objective. Raises RecipeError naming the key and the nearest valid one.

    dim: the model's width. matryoshka: {dims: [64, 128], weights: [1, 1]}; the full width always trains, with weight 1 unless
    named. memory: {size, start}. teachers: name -> outputs, for the terms that name one. seed: of learned projections.
    """
    parsed, taught = parse_terms(terms, pairs), dict(teachers or {})
    for term in parsed:
        _check_teacher(term, taught)
    dims = _dims(matryoshka, dim) if matryoshka else {}
    size, start = int((memory or {}).get("size", 0)), int((memory or {}).get("start", 0))
    objective = Objective(parsed, pairs, dims, Memory(size, start) if size else None, taught)
    for number, term in enumerate(parsed):
        teacher = taught.get(term.teacher or "")
        if term.loss == "feature" and isinstance(teacher, TeacherVectors):
            if dim is None:
                raise RecipeError(f"{term.key}: the feature loss must know the model's width")
            if term.options.get("projection") or teacher.dim != dim:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    for m in sorted({m for pair in term.pairs or pairs for m in pair}):
                        objective.projections[f"{number}~{m}"] = nn.Linear(dim, teacher.dim, bias=False)
    return objective


def _check_teacher(term: Term, teachers: Mapping[str, Teacher]) -> None:
    for option, name in (("teacher", term.teacher), ("guide", term.guide)):
        if name is not None and name not in teachers:
            there = nearest(name, list(teachers)) if teachers else "; the recipe has no `teachers`"
            raise RecipeError(f"{term.key}.{option}: no teacher {name!r}{there}")
    if term.guide and not isinstance(teachers[term.guide], TeacherVectors):
        raise RecipeError(f"{term.key}.guide: {term.guide!r} only scores pairs; a guide needs vectors (`model:`)")
    if term.family is Taught and term.teacher is None:
        raise RecipeError(
            f"{term.key}.teacher: {term.loss} needs the name of a teacher{nearest('', list(teachers)) if teachers else ''}"
        )
    if term.loss == "feature" and not isinstance(teachers[term.teacher or ""], TeacherVectors):
        raise RecipeError(f"{term.key}.teacher: {term.teacher!r} only scores pairs; the feature loss needs vectors (`model:`)")


def _dims(matryoshka: Mapping[str, Any], width: int | None) -> dict[int, float]:
    for key in matryoshka:
        if key not in ("dims", "weights"):
            raise RecipeError(f"matryoshka.{key}: there is no such key{nearest(key, ['dims', 'weights'])}")
    dims = [int(d) for d in matryoshka.get("dims", [])]
    weights = [float(w) for w in matryoshka.get("weights") or [1.0] * len(dims)]
    if not dims or len(weights) != len(dims) or min(weights) < 0 or len(set(dims)) != len(dims):
        raise RecipeError("matryoshka: name different dims, and as many weights (0 or more) or none")
    if min(dims) < 1 or (width is not None and max(dims) > width):
        raise RecipeError(f"matryoshka.dims: {dims} must lie in 1 to the model's {width}")
    return dict(zip(dims, weights, strict=True))
