"""`tune:` of a recipe -> a model of which only that much learns: surgery on parameters, before the one loop runs.

    tune: lora                                       every trained tower alike: full, head, lora, qlora, partial, frozen
    tune: {how: partial, blocks: 2}                  with options
    tune: {NAME: lora, OTHER: frozen}                a tower each

head: a linear map behind the frozen tower, the identity at first (or the head the model has); towers that do not change are run
once (see `tune_features`). Whatever the way, the model that comes out is a plain one: adapters are merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmtune.embedding.feature_cache import FeatureCache, FeaturePreprocess
from mmtune.errors import RecipeError, TrainingError
from mmtune.model.artifact.low_rank import Low, round_to_4bit
from mmtune.recipe.recipe import Tuning
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.plugins import nearest
from mmtune.training.tuning import lora
from mmtune.training.tuning.layers import blocks, depths, forget_fingerprint, norm_parameters, plain_copy, rest_in_eval
from mmtune.training.tuning.lp_ft import take_heads

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

WAYS = ("full", "head", "lora", "qlora", "partial", "frozen")
LOW_RANK = ("lora", "qlora")
GOES_WITH = {
    **dict.fromkeys(("rank", "alpha", "dropout", "targets"), LOW_RANK),
    **dict.fromkeys(("blocks", "norms"), ("partial",)),
    "layer_decay": ("full", "partial", *LOW_RANK),
}
"""Option -> the ways that it says something about (`head_first` and `head_lr`: see `stages`)."""
CHECK_AFTER = 2
"""Steps after which every adapter must have had a gradient: the first reaches only b, for b is zero."""


def parse_tune(given: "str | Mapping[str, Any]", towers: Sequence[str], trained: Sequence[str]) -> dict[str, Tuning]:
    """{modality: Tuning} of every tower of the model; those that no pair trains are frozen unless all is full.

    Raises RecipeError naming the key.
    """
    if isinstance(given, str) or "how" in given:
        one = _tuning(given, "tune")
        return {m: one if m in trained or one == Tuning() else Tuning(how="frozen") for m in towers}
    for name in given:
        if name not in towers:
            known = [*Tuning.model_fields, *towers]
            raise RecipeError(
                f"tune.{name}: neither an option beside `how` nor a tower of this model{nearest(str(name), known)}"
            )
    missing = [m for m in trained if m not in given]
    if missing:
        raise RecipeError(
            f"tune: says nothing about {missing[0]}, which the pairs train; add {missing[0]}: frozen, or what you want"
        )
    chosen = {m: _tuning(given.get(m, "frozen"), f"tune.{m}") for m in towers}
    for m, t in chosen.items():
        if m not in trained and t.how != "frozen":
            raise RecipeError(f"tune.{m}: {m} is not trained here; the pairs train {', '.join(trained)}")
    return chosen


def _tuning(given: Any, key: str) -> Tuning:
    if isinstance(given, str):
        if given not in WAYS:
            raise RecipeError(f"{key}: {given!r}{nearest(given, WAYS)}")
        return Tuning(how=given)
    if not isinstance(given, Mapping):
        raise RecipeError(f"{key}: {given!r} is none of {', '.join(WAYS)}")
    for option in given:
        if option not in Tuning.model_fields:
            raise RecipeError(f"{key}.{option}: unknown{nearest(str(option), list(Tuning.model_fields))}")
    try:
        tuning = Tuning.model_validate(dict(given))
    except ValidationError as e:
        problem = e.errors()[0]
        raise RecipeError(f"{key}.{problem['loc'][0]}: {problem['msg']} (got {problem['input']!r})") from None
    for option in given:
        if tuning.how not in GOES_WITH.get(option, WAYS):
            raise RecipeError(
                f"{key}.{option}: goes with {', '.join(GOES_WITH[option])}; it does nothing for how: {tuning.how}"
            )
    if tuning.head_lr and not tuning.head_first:
        raise RecipeError(f"{key}.head_lr: is the rate of the epochs of head_first; add that, or set train.lr")
    return tuning


@dataclass
class Tuned:
    """A model after surgery. `rates`: id of a parameter -> share of the learning rate; `counts`: what learns, by tower."""

    model: "Model"
    towers: dict[str, Tuning]
    counts: dict[str, dict[str, Any]]
    rates: dict[int, float]
    features: FeatureCache | None
    start: dict[str, Tensor]
    low: list[Low] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    _waiting: dict[str, nn.Parameter] = field(default_factory=dict)
    _steps: int = 0

    def rest(self) -> None:
        """Call after `model.train()`: what is frozen behaves as when it is served."""
        if any(t.how != "full" for t in self.towers.values()):
            rest_in_eval(self.model)

    def after_backward(self, processes: Processes = SINGLE_PROCESS) -> None:
        """Call each step before gradients are cleared: notes which adapters have had a gradient, in any of the processes."""
        if self._waiting:
            some = torch.tensor([float(p.grad is not None and bool(p.grad.any())) for p in self._waiting.values()])
            some = some.to(self.model.device)
            processes.all_reduce([some])
            self._waiting = {n: p for (n, p), got in zip(self._waiting.items(), some.tolist(), strict=True) if not got}
            self._steps += 1

    def check(self) -> None:
        """Call after an epoch. Raises TrainingError when an adapter never had a gradient: it only looks tuned."""
        if self._waiting and self._steps >= CHECK_AFTER:
            raise TrainingError(
                f"tune: {len(self._waiting)} adapter tensors never had a gradient, first {next(iter(self._waiting))}: they "
                "take no part in the vectors; leave them out with `targets`"
            )

    def finish(self) -> None:
        """Back to a plain model, its adapters merged, after the last step. Kept features can still be embedded from."""
        if any(t.how in LOW_RANK for t in self.towers.values()):
            self.learned = [n for n, p in self.model.named_parameters() if p.requires_grad and ".lora_" not in n]
            self.low = lora.adapters(self.model)
            lora.merge(self.model)
        for p in self.model.parameters():
            p.requires_grad_(True)
        forget_fingerprint(self.model)

    def close(self) -> None:
        """Let kept features and the start go."""
        self.start = {}
        if self.features is not None:
            self.features.close()

    @property
    def feature_preprocess(self) -> dict[str, FeaturePreprocess]:
        """Preprocessing of the towers whose features are stored, for the loader."""
        return {m: FeaturePreprocess() for m in (self.features.towers if self.features else {})}

    def lines(self) -> list[str]:
        """What learns, a tower a line, for people."""
        return [
            f"{m}: {c['how']}, {c['trainable']:,} of {c['total']:,} parameters learn ({c['percent']:.2f}%){self._run(m)}"
            for m, c in self.counts.items()
        ]

    def _run(self, m: str) -> str:
        if self.towers[m].how not in ("head", "frozen"):
            return ""
        if self.features is not None and m in self.features.towers:
            return "; the tower runs once, its features are kept"
        return f"; the tower runs every epoch, for its input varies (augment.{m}, or prompts)"


def tune(
    model: "Model",
    given: "str | Mapping[str, Any]",
    trained: Sequence[str],
    augmented: Sequence[str] = (),
    seed: int = 0,
    keep_start: bool = False,
    heads: "Model | None" = None,
) -> Tuned:
    """Make `model` learn as the recipe's `tune` says. With "full" nothing is touched.

    Frozen towers whose inputs are not `augmented` run on kept features. keep_start: remember the weights that training starts
    from (for interpolation). heads: the model whose heads were trained first. Raises RecipeError and MissingExtra.
    """
    towers = parse_tune(given, list(model.towers), trained)
    if all(towers[m].how == "frozen" for m in trained):
        raise RecipeError(f"tune: everything is frozen ({', '.join(trained)}): nothing would learn")
    totals = {m: sum(p.numel() for p in _owned(model, m)) for m in towers}
    for m, t in towers.items():
        if (t.how == "head" or t.head_first) and m not in model.heads:
            model.heads[m] = _identity(model.width).to(model.device)
            totals[m] += model.width**2
        if t.how == "qlora":
            _round(model.towers[m].modules, t, f"tune.{m}")
    start = plain_copy(model) if keep_start else {}
    if heads is not None:
        take_heads(model, heads)
    before = {m: depths(model.towers[m].modules) for m in towers}
    rates = {i: r for m, t in towers.items() for i, r in _rates(before[m], t, f"tune.{m}").items()}
    for m, t in towers.items():
        if t.how in LOW_RANK:
            lora.inject(model.towers[m].modules, t, f"tune.{m}", seed)
    if any(t != Tuning() for t in towers.values()):
        rates |= _adapter_rates(model, towers)
        _choose(model, towers, before)
    counts = {m: _count(model, m, towers[m], totals[m]) for m in trained}
    varied = {*augmented, *model.prompts}  # by epoch or by role: no one feature to keep
    cached = [m for m in trained if towers[m].how in ("head", "frozen") and m not in varied]
    tuned = Tuned(model, towers, counts, rates, FeatureCache(model, cached) if cached else None, start)
    tuned._waiting = lora.adapter_parameters(model)
    return tuned


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(layer.weight)
    return layer


@torch.no_grad()
def _round(tower: list[nn.Module], tuning: Tuning, key: str) -> None:
    """Weights as 4 bits will hold them, so that where training starts is known in plain numbers too."""
    for t in lora.find_targets(tower, tuning.targets, key):
        for name in t.layers:
            layer = t.module.get_submodule(name)
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(round_to_4bit(layer.weight, key))


def _owned(model: "Model", m: str) -> list[nn.Parameter]:
    return list({id(p): p for module in model.modules_of(m) for p in module.parameters()}.values())


def _choose(model: "Model", towers: Mapping[str, Tuning], before: Mapping[str, tuple[dict[int, int], int]]) -> None:
    """Set requires_grad of every parameter of every tower; temperatures go on learning."""
    for m, t in towers.items():
        head = {id(p) for p in model.heads[m].parameters()} if m in model.heads else set()
        names = {id(p): n for n, p in model.named_parameters()}
        layer, count = before[m]
        norms = {id(p) for p in norm_parameters(model.towers[m].modules)}
        last = _last_blocks(t, count, f"tune.{m}.blocks") if t.how == "partial" else 0
        for p in _owned(model, m):
            learns = {
                "full": True,
                "frozen": False,
                "head": False,
                "lora": ".lora_" in names.get(id(p), ""),
                "qlora": ".lora_" in names.get(id(p), ""),
                "partial": (last > 0 and layer.get(id(p), 0) > count - last) or (t.norms and id(p) in norms),
            }[t.how]
            learns = learns or (id(p) in head and t.how != "frozen")
            if learns or p.requires_grad:
                p.requires_grad_(learns)


def _last_blocks(tuning: Tuning, count: int, key: str) -> int:
    """How many of a tower's `count` blocks learn."""
    wanted = tuning.blocks if tuning.blocks is not None else 0 if tuning.norms else min(2, max(count - 1, 1))
    if wanted and not count:
        raise RecipeError(f"{key}: no blocks were found in this tower; use norms: true, or another way")
    if wanted > count:
        raise RecipeError(f"{key}: {wanted} is more than the {count} blocks of this tower")
    return wanted


def _rates(found: tuple[dict[int, int], int], tuning: Tuning, key: str) -> dict[int, float]:
    """Layer-wise decay (ELECTRA, arXiv 2003.10555; BEiT, 2106.08254): the layer k below the last has rate decay^k."""
    if tuning.layer_decay == 1:
        return {}
    layer, count = found
    if not count:
        raise RecipeError(f"{key}.layer_decay: no blocks were found in this tower")
    return {i: tuning.layer_decay ** (count + 1 - depth) for i, depth in layer.items()}


def _adapter_rates(model: "Model", towers: Mapping[str, Tuning]) -> dict[int, float]:
    """An adapter has the rate of the block it stands in."""
    rates = {}
    for m, t in towers.items():
        ordered = blocks(model.towers[m].modules)
        for i, block in enumerate(ordered):
            for n, p in block.named_parameters():
                if ".lora_" in n and t.layer_decay != 1:
                    rates[id(p)] = t.layer_decay ** (len(ordered) - i)
    return rates


def _count(model: "Model", m: str, tuning: Tuning, total: int) -> dict[str, Any]:
    learns = sum(p.numel() for p in _owned(model, m) if p.requires_grad)
    return {"how": tuning.how, "trainable": learns, "total": total, "percent": 100 * learns / total}
