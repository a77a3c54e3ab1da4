"""The objective of a run: a weighted sum of losses over the pairs of modalities, computed from the embeddings of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, Pair, second_view
from mmtune.errors import DataError
from mmtune.losses.contrastive import (
    ContrastiveBlock,
    GuideVectors,
    PerQueryLoss,
    QueryCandidateBatch,
    RowPairs,
    contrastive_masks,
    dense_loss,
)
from mmtune.losses.distillation import DistillationBlock
from mmtune.losses.families import check_output
from mmtune.losses.gather_rows import rows_at
from mmtune.losses.graded import SCORE_RANGES, ScoredPairs
from mmtune.losses.tiled import tiled_loss
from mmtune.model.truncate import truncate
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.additional_candidates import mined_negatives, with_queue
from mmtune.training.class_label_loss import ClassLabelLoss, ClassLabelLosses
from mmtune.training.large_batch.cross_batch_memory import CrossBatchMemory
from mmtune.training.objective_spec import AUTO, LossTerm, find_loss, loss_options
from mmtune.training.score_columns import numeric_column
from mmtune.training.teacher_outputs import Teacher, TeacherScores, TeacherVectors
from mmtune.training.tiled_both_directions import tiled_info_nce_both_directions
from mmtune.training.two_views import view_batches
from mmtune.training.unique_items import PairItems, pair_items

ScaleFunction: TypeAlias = Callable[[str, str], tuple[Tensor, Tensor | None]]
"""Maps (query modality, candidate modality) to the model's (exponential of the logit scale, logit bias or None)."""

TILE_ABOVE = 1 << 23
"""Number of logits, those of queued candidates included, above which a contrastive loss is computed in tiles.

This many float32 logits take 32 MiB, and a loss that is not tiled holds about eight tensors of this size.
"""


@dataclass(slots=True)
class PairVectors:
    """The items and embeddings of one pair of modalities (a, b), and matrices that several loss terms use.

    items: the unique items of the pair
    z: {modality: embeddings of its items}
    related: bool mask of positives [A, B], once it was needed
    similarity: cosines [A, B], once they were needed
    """

    items: PairItems
    z: dict[str, Tensor] = field(default_factory=dict)
    related: Tensor | None = None
    similarity: Tensor | None = None

    def with_vectors(self, z: Mapping[str, Tensor], batch: Batch) -> "PairVectors":
        """Return a copy with embeddings taken from z, where z[m] [U_m, D] has one row per encoded input of the batch."""
        a, b = self.items.pair
        vectors = {m: z[m][batch.item_of_row[m][i.first_row]] for m, i in ((a, self.items.a), (b, self.items.b))}
        return PairVectors(self.items, vectors, self.related)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return (cosines, mask of positives), both [A, B], of all items of a against all of b. They are computed once."""
        a, b = self.items.pair
        if self.related is None:
            self.related = self.items.positives.block(0, len(self.items.a))
        if self.similarity is None:
            self.similarity = self.z[a] @ self.z[b].T
        return self.similarity, self.related


class Objective(nn.Module):
    """Callable `objective(z, batch, scale)` that returns (loss, logs). Create it with `build_objective`.

    The loss is a float32 scalar: the weighted sum of the terms, where each term is averaged over the pairs of modalities that
    occur in the batch. Parameters that belong to a loss (a learned bias, a projection) are parameters of this module.

    z: {modality m: L2-normalised embeddings of the batch's unique inputs [U_m, D]}
    scale: returns the model's logit scale and bias for two modalities
    dims: {prefix dimension: weight} for Matryoshka training
    within_scores: {modality: scores of its pairs}, for losses on scores that are taken within one modality
    processes: all processes that compute this loss on the same embeddings; they share the work of a tiled loss
    """

    is_divided = False
    """Whether each process computes a part of the loss, so that the sum over processes is the loss; else each computes all of it."""

    def __init__(
        self,
        terms: Sequence[LossTerm],
        pairs: Sequence[Pair],
        dims: Mapping[int, float],
        memory: CrossBatchMemory | None,
        teachers: Mapping[str, Teacher],
        projections: Mapping[str, nn.Module],
        processes: Processes = SINGLE_PROCESS,
        class_losses: Mapping[str, ClassLabelLoss] | None = None,
        within_scores: Mapping[str, TeacherScores] | None = None,
    ) -> None:
        super().__init__()
        self.terms, self.pairs, self.processes = list(terms), [(a, b) for a, b in pairs], processes
        self.dims, self.memory, self.teachers = dict(dims), memory, dict(teachers)
        self.class_losses = ClassLabelLosses(class_losses or {})
        self.within_scores = dict(within_scores or {})
        self.biases, self.projections = nn.ParameterDict(), nn.ModuleDict(projections)
        for i, term in enumerate(self.terms):
            if term.loss == "sigmoid":
                self.biases[str(i)] = nn.Parameter(torch.tensor(term.options.get("bias", -10.0), dtype=torch.float32))
        self.columns: dict[str, str] = {c: key for t in self.terms for c, key in _columns(t, self.pairs).items()}
        """{numeric column that batches must contain: the recipe key that names it}."""
        self._checked: set[str] = set()  # recipe keys of the terms whose return value was checked

    def forward(self, z: Mapping[str, Tensor], batch: Batch, scale: ScaleFunction) -> tuple[Tensor, dict[str, float]]:
        z = {m: v.float() for m, v in z.items()}
        pairs = self._pairs_of(z, batch)
        width = next(iter(z.values())).shape[1]
        loss, logs = self._weighted_sum([p.with_vectors(z, batch) for p in pairs], batch, scale, z)
        if self.dims:
            weights = {width: self.dims.get(width, 1.0)} | {d: w for d, w in self.dims.items() if d < width}
            total = sum(weights.values())
            loss = loss * (weights[width] / total)
            for dim, weight in weights.items():
                if dim < width:
                    short = truncate(z, dim)
                    truncated = [p.with_vectors(short, batch) for p in pairs]
                    value, _ = self._weighted_sum(truncated, batch, scale, short, dim)
                    loss = loss + value * (weight / total)
                    logs[f"dim {dim}"] = float(value.detach())
        if self.memory is not None and self.training:
            self.memory.push(z, batch)
        return loss, logs

    def _pairs_of(self, z: Mapping[str, Tensor], batch: Batch) -> list[PairVectors]:
        """Return the pairs of modalities for which this batch has query rows. Raises DataError if there are none."""
        encoded = [p for p in self.pairs if p[0] in z and p[1] in z]
        pairs = [PairVectors(items) for p in encoded if (items := pair_items(batch, p)) is not None]
        if not pairs and not any(second_view(m) in z for t in self.terms for m in t.views):
            names = ", ".join(f"{a}-{b}" for a, b in self.pairs)
            shown = ", ".join(map(repr, batch.ids[:3])) + (", ..." if len(batch.ids) > 3 else "")
            raise DataError(
                f"objective: a batch has no positive pair: none of its rows ({shown}) has both sides of a pair ({names})"
            )
        return pairs

    def _weighted_sum(
        self, pairs: list[PairVectors], batch: Batch, scale: ScaleFunction, z: Mapping[str, Tensor], dim: int | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return (weighted sum of the terms, their values by name).

        z: the embeddings of which `pairs` has those of its items
        dim: the dimension of the embeddings if they are Matryoshka prefixes, None for full embeddings
        """
        loss, logs = next(iter(z.values())).new_zeros(()), {}
        names = [t.loss for t in self.terms]
        for number, term in enumerate(self.terms):
            if dim is not None and (term.loss == "feature" or self.class_losses.has_proxies(number)):
                continue  # the target (teacher's embedding, class proxies) has the full dimension; there is none for a prefix
            if term.views:
                present = {m: how for m, how in term.views.items() if second_view(m) in z}
                values = {(m, m): self._views(number, z, batch, m, how) for m, how in present.items()}
            else:
                wanted = {tuple(p) for p in term.pairs} if term.pairs else set(self.pairs)
                values = {p.items.pair: self._term(number, p, batch, scale, dim) for p in pairs if p.items.pair in wanted}
            if not values:
                continue
            value = torch.stack(list(values.values())).mean()
            loss = loss + term.weight * value
            name = term.loss if names.count(term.loss) == 1 else f"{term.loss}[{number}]"
            logs[name] = float(value.detach())
            if len(self.pairs) > 1:
                logs.update({f"{name} {a}-{b}": float(v.detach()) for (a, b), v in values.items()})
        return loss, logs

    def _views(self, number: int, z: Mapping[str, Tensor], batch: Batch, modality: str, how: str) -> Tensor:
        """Value of one term that compares two views of each item of `modality`, averaged over the term's directions."""
        term = self.terms[number]
        bias = self.biases[str(number)] if str(number) in self.biases else None
        inputs = view_batches(z, batch, modality, how, term.directions, term.scale, bias, self.training)
        losses = [dense_loss(x, self._per_query_loss(term, x)) for x in inputs]
        return torch.stack(losses).mean()

    def _term(self, number: int, pair: PairVectors, batch: Batch, scale: ScaleFunction, dim: int | None) -> Tensor:
        """Value of one term for one pair of modalities, averaged over the term's directions."""
        term, (a, b) = self.terms[number], pair.items.pair
        if term.family == "class_label":
            return self.class_losses[str(number)](pair.items, pair.z, batch)
        if term.family == "scored_pairs":
            return self._scored_pairs(term, pair, batch)
        weight = numeric_column(batch, term.weights, f"{term.key}.weights", pair.items.rows, 0.0) if term.weights else None
        directions = {"forward": [(a, b)], "backward": [(b, a)], "both": [(a, b), (b, a)]}[
            "forward" if a == b else term.directions
        ]
        inputs = {d: self._query_candidates(number, pair, d, weight, batch, scale, dim) for d in directions}
        if term.family == "distillation":
            return torch.stack([self._distillation(number, pair, d, x, batch) for d, x in inputs.items()]).mean()
        n_logits = max(len(x.queries) * len(x.candidates) for x in inputs.values())  # with the queue of the memory
        in_tiles = n_logits > TILE_ABOVE if term.tile == "auto" else term.tile == "always"
        if in_tiles and len(inputs) == 2:
            both = tiled_info_nce_both_directions(term, inputs[a, b], inputs[b, a], pair, self.processes)
            if both is not None:
                return both
        values = []
        for d, x in inputs.items():
            loss = self._per_query_loss(term, x)
            if in_tiles:
                values.append(tiled_loss(x, loss, self.processes))
            elif x.queue_start is not None:
                values.append(dense_loss(x, loss))
            else:
                similarity, related = pair.matrices()
                similarity, related = (similarity, related) if d == (a, b) else (similarity.T, related.T)
                values.append(dense_loss(x, loss, similarity[: len(x.queries)], related[: len(x.queries)]))
        return torch.stack(values).mean()

    def _query_candidates(
        self,
        number: int,
        pair: PairVectors,
        query_candidate: Pair,
        weight: Tensor | None,
        batch: Batch,
        scale: ScaleFunction,
        dim: int | None,
    ) -> QueryCandidateBatch:
        """Build the loss input for one direction, including candidates from the cross-batch memory.

        number: index of the term
        query_candidate: (query modality, candidate modality)
        weight: weights of the row pairs, or None for 1
        dim: as in `_weighted_sum`
        """
        term, items, (a, b) = self.terms[number], pair.items, query_candidate
        is_forward = query_candidate == items.pair
        query_items, candidate_items = (items.a, items.b) if is_forward else (items.b, items.a)
        row_pairs = items.row_pairs(weight)
        if not is_forward:
            row_pairs = RowPairs(row_pairs.candidate, row_pairs.query, row_pairs.weight)
        logit_scale, bias = self._scale(number, scale, a, b)
        queries, candidates = pair.z[a][: query_items.n_queries], pair.z[b]
        positives, queue_start = items.positives if is_forward else items.positives.transposed, None
        index = batch.index[candidate_items.first_row]
        if self.memory is not None and term.family == "contrastive":
            if (queued := self.memory.candidates(b, batch)) is not None:
                vectors = queued.z if dim is None else truncate({b: queued.z}, dim)[b]
                queue_start = len(candidates)
                candidates, index = torch.cat([candidates, vectors]), torch.cat([index, queued.index])
                positives = with_queue(positives, queued, batch, query_candidate)
        guide = None
        if term.guide:
            teacher = self.teachers[term.guide]
            assert isinstance(teacher, TeacherVectors)
            query_index = batch.index[query_items.first_row[: query_items.n_queries]]
            guide = GuideVectors(teacher.at(a, query_index), teacher.at(b, index), term.guide_margin)
        return QueryCandidateBatch(
            queries,
            candidates,
            positives,
            row_pairs,
            logit_scale,
            bias,
            guide,
            queue_start,
            same_modality=a == b,
            graded=term.weights is not None,
            weigh_items=term.queries == "items",
            mined=mined_negatives(batch, query_candidate, query_items, candidate_items),
        )

    def _scored_pairs(self, term: LossTerm, pair: PairVectors, batch: Batch) -> Tensor:
        """Value of a loss that compares cosines with scores: of row pairs with a column, within a modality of the scored pairs."""
        assert term.function is not None
        a, b = pair.items.pair
        if a == b:
            labels = batch.labels[a][pair.items.a.first_row]
            scores = self.within_scores[a].between((a, a), labels, labels)
            query, candidate = torch.nonzero(torch.isfinite(scores).triu(1)).unbind(1)
            if not len(query):
                return pair.z[a].sum() * 0.0
            similarity = (rows_at(pair.z[a], query) * rows_at(pair.z[a], candidate)).sum(1)
            value = term.function(ScoredPairs(similarity, scores[query, candidate]), **term.options)
            return self._first_checked(term, value, (), similarity)
        query, candidate, _ = pair.items.row_pairs()
        key, limits = f"{term.key}.column", SCORE_RANGES.get(term.loss, ())
        score = numeric_column(batch, str(term.options.get("column", "score")), key, pair.items.rows, *limits)
        similarity = (rows_at(pair.z[a], query) * rows_at(pair.z[b], candidate)).sum(1)
        return self._first_checked(term, term.function(ScoredPairs(similarity, score), **term.options), (), similarity)

    def _distillation(
        self, number: int, pair: PairVectors, query_candidate: Pair, inputs: QueryCandidateBatch, batch: Batch
    ) -> Tensor:
        """Value of a loss that compares the student's similarities with the teacher's, in the direction `query_candidate`."""
        term, items, (a, b) = self.terms[number], pair.items, query_candidate
        assert term.function is not None and term.teacher is not None
        teacher = self.teachers[term.teacher]
        query_items, candidate_items = (items.a, items.b) if query_candidate == items.pair else (items.b, items.a)
        query_rows, candidate_rows = query_items.first_row[: len(inputs.queries)], candidate_items.first_row
        features = None
        if isinstance(teacher, TeacherVectors):
            teacher_queries = teacher.at(a, batch.index[query_rows])
            teacher_candidates = teacher.at(b, batch.index[candidate_rows])
            scores = teacher_queries @ teacher_candidates.T
            if term.loss == "feature":
                name = projection_name(number, b)
                projection = self.projections[name] if name in self.projections else nn.Identity()
                features = projection(inputs.candidates), teacher_candidates
        else:
            scores = teacher.between(query_candidate, batch.labels[a][query_rows], batch.labels[b][candidate_rows])
        if a == b:  # query i and candidate i are the same item; its similarity with itself is no useful target
            itself = torch.arange(len(scores), device=scores.device)
            scores = scores.clone()
            scores[itself, itself] = torch.nan
        if term.loss == "score_mse" and bool((scores.abs() > 1.001).any()):
            worst = float(scores[scores.abs() > 1.001][0])
            raise DataError(
                f"{term.key}: teacher {term.teacher!r} gives a score of {worst:g}, outside the range [-1, 1] of a cosine; "
                "use margin_mse or kl"
            )
        positives, negatives = contrastive_masks(inputs, 0, len(inputs.queries))
        similarity = inputs.queries @ inputs.candidates.T
        block = DistillationBlock(similarity, scores, positives, negatives, inputs.scale, features)
        return self._first_checked(term, term.function(block, **term.options), (), similarity)

    def _per_query_loss(self, term: LossTerm, inputs: QueryCandidateBatch) -> PerQueryLoss:
        """Return the term's contrastive loss with its options bound. The first value that it returns is checked."""
        function = term.function
        if term.loss == AUTO:
            function, _ = find_loss("sigmoid" if inputs.bias is not None else "info_nce")
        assert function is not None

        def loss(block: ContrastiveBlock) -> Tensor:
            value = function(block, **term.options)
            return self._first_checked(term, value, (len(block.similarity),), block.similarity, block.positives.any(1))

        return loss

    def _first_checked(
        self, term: LossTerm, value: Tensor, shape: tuple[int, ...], similarity: Tensor, counted: Tensor | None = None
    ) -> Tensor:
        """Return `value`. The first value of each term is checked with `check_output`."""
        if term.key not in self._checked:
            check_output(f"{term.loss} ({term.key})", value, shape, similarity, counted)
            self._checked.add(term.key)
        return value

    def _scale(self, number: int, scale: ScaleFunction, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        """Return (logit scale, bias): the term's fixed scale or else the model's; the model's bias or else the term's own."""
        value, bias = scale(a, b)
        value, bias = value.float(), None if bias is None else bias.float()
        if (fixed := self.terms[number].scale) is not None:
            value = torch.full_like(value, fixed)
        if bias is None and str(number) in self.biases:
            bias = self.biases[str(number)].to(value.device)
        return value, bias


def projection_name(number: int, modality: str) -> str:
    """Name of the learned projection from the student's embeddings of `modality` to the teacher's dimension, for a term."""
    return f"{number}~{modality}"


def _columns(term: LossTerm, pairs: Sequence[Pair]) -> dict[str, str]:
    """{numeric column that a term reads: the recipe key that names it}. Within a modality scores are of pairs, not of rows."""
    columns = {term.weights: f"{term.key}.weights"} if term.weights else {}
    if all(a == b for a, b in term.pairs or pairs):
        return columns
    if term.function is not None and "column" in loss_options(term.function):
        columns[str(term.options.get("column", "score"))] = f"{term.key}.column"
    return columns
