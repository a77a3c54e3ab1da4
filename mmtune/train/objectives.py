"""The objective of a run: weighted losses over the pairs of modalities, as one callable on a batch's vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, Pair
from mmtune.errors import DataError
from mmtune.losses.contrast import Block, View, dense
from mmtune.losses.graded import RANGES, Scored
from mmtune.train.terms import AUTO, Term, find_loss, own_options, parse_terms
from mmtune.train.views import PairItems, column, pair_items

Scale = Callable[[str, str], tuple[Tensor, Tensor | None]]
"""Directed pair -> (exponentiated scale, bias or None): the model's."""


@dataclass(slots=True)
class Seen:
    """One pair of modalities in this batch: its items, their vectors, and the dense relation once somebody asked."""

    items: PairItems
    a: Tensor
    b: Tensor
    related: Tensor | None = None
    sim: Tensor | None = None


class Objective(nn.Module):
    """`objective(z, batch, scale) -> (loss, logs)`; built by `build_objective`.

    z[m] [U_m, D] unit vectors of the batch's unique items. The loss is a float32 scalar: the terms' weighted sum, each the
    mean over the pairs that the batch has rows for. Its own parameters (a learned bias, a projection) are a module's.
    """

    def __init__(self, terms: Sequence[Term], pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.terms = list(terms)
        self.pairs = [tuple(p) for p in pairs]
        self.biases = nn.ParameterDict()
        for i, term in enumerate(self.terms):
            if term.loss == "sigmoid":
                self.biases[str(i)] = nn.Parameter(torch.tensor(float(term.options.get("bias", -10.0))))
        self.columns: set[str] = {c for t in self.terms for c in _columns(t)}
        """Numeric columns that a batch must carry."""

    def forward(self, z: Mapping[str, Tensor], batch: Batch, scale: Scale) -> tuple[Tensor, dict[str, float]]:
        seen = self.see(z, batch)
        loss, logs = torch.zeros((), device=next(iter(z.values())).device), {}
        for number, term in enumerate(self.terms):
            wanted = {tuple(p) for p in term.pairs} if term.pairs else set(self.pairs)
            values = {s.items.pair: self.term(number, s, batch, scale) for s in seen if s.items.pair in wanted}
            if not values:
                continue
            value = torch.stack(list(values.values())).mean()
            loss = loss + term.weight * value
            name = term.loss if [t.loss for t in self.terms].count(term.loss) == 1 else f"{term.loss}[{number}]"
            logs[name] = float(value.detach())
            if len(self.pairs) > 1:
                logs.update({f"{name} {a}-{b}": float(v.detach()) for (a, b), v in values.items()})
        return loss, logs

    def see(self, z: Mapping[str, Tensor], batch: Batch) -> list[Seen]:
        """The pairs that this batch has rows for. Raises DataError when there is none."""
        seen = []
        for a, b in self.pairs:
            if a in z and b in z and (items := pair_items(batch, (a, b))) is not None:
                seen.append(Seen(items, z[a].float()[items.a.slot], z[b].float()[items.b.slot]))
        if not seen:
            names = ", ".join(f"{a}-{b}" for a, b in self.pairs)
            shown = ", ".join(map(repr, batch.ids[:3])) + (", ..." if len(batch.ids) > 3 else "")
            raise DataError(
                f"objective: a batch without a positive: none of its rows ({shown}) has both sides of a pair ({names})"
            )
        return seen

    def term(self, number: int, seen: Seen, batch: Batch, scale: Scale) -> Tensor:
        """One term's value on one pair."""
        term = self.terms[number]
        if term.family is Scored:
            return self._scored(term, seen, batch)
        return self._contrastive(number, term, seen, batch, scale)

    def _scored(self, term: Term, seen: Seen, batch: Batch) -> Tensor:
        assert term.function is not None
        i, j, _ = seen.items.own()
        name = term.options.get("column", "score")
        score = column(batch, name, f"{term.key}.column", seen.items.rows, *RANGES.get(term.loss, ()))
        return term.function(Scored((seen.a[i] * seen.b[j]).sum(1), score), **term.options)

    def _contrastive(self, number: int, term: Term, seen: Seen, batch: Batch, scale: Scale) -> Tensor:
        a, b = seen.items.pair
        weight = None
        if term.weights:
            weight = column(batch, term.weights, f"{term.key}.weights", seen.items.rows, 0.0)
        forward = View(
            seen.a, seen.b, seen.items.relation, seen.items.own(weight), *self._scale(number, term, scale, a, b),
            same=a == b, graded=term.weights is not None, by_item=term.queries == "items",
        )  # fmt: skip
        loss = _row_loss(term, forward)
        if seen.related is None:
            seen.related = seen.items.relation.block(0, len(seen.a))
            seen.sim = seen.a @ seen.b.T
        assert seen.sim is not None
        values = []
        if term.directions in ("both", "forward"):
            values.append(dense(forward, loss, seen.sim, seen.related))
        if a != b and term.directions in ("both", "backward"):
            backward = forward.reversed(*self._scale(number, term, scale, b, a))
            values.append(dense(backward, loss, seen.sim.T, seen.related.T))
        return torch.stack(values).mean()

    def _scale(self, number: int, term: Term, scale: Scale, a: str, b: str) -> tuple[Tensor, Tensor | None]:
        value, bias = scale(a, b)
        value, bias = value.float(), None if bias is None else bias.float()
        if term.scale is not None:
            value = torch.full_like(value, term.scale)
        if bias is None and str(number) in self.biases:
            bias = self.biases[str(number)].to(value.device)
        return value, bias


def _row_loss(term: Term, view: View) -> Callable[[Block], Tensor]:
    function, options = term.function, term.options
    if term.loss == AUTO:
        function, _ = find_loss("sigmoid" if view.bias is not None else "info_nce")
    assert function is not None
    return lambda block: function(block, **options)


def _columns(term: Term) -> list[str]:
    found = [term.weights] if term.weights else []
    if term.function is not None and "column" in (own := own_options(term.function)):
        assert own["column"] is str
        found.append(term.options.get("column", "score"))
    return found


def build_objective(terms: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> Objective:
    """A recipe's `objective` -> Objective. Raises RecipeError naming the key and the nearest valid one."""
    return Objective(parse_terms(terms, pairs), pairs)
