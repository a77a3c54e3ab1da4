"""Partial tuning: train only some parameters of a model. Each tower has one of full, head, lora, qlora, partial or frozen.

`head` trains a linear layer after the frozen tower, initialised as the identity unless the model already has a head. Frozen
towers whose inputs do not change run only once, and their features are stored (`embedding.feature_cache`). With every method
the result is a plain model, because adapters are merged at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmtune.embedding.feature_cache import FeatureCache, FeaturePreprocess
from mmtune.errors import RecipeError, TrainingError
from mmtune.model.artifact.low_rank import LowRankDelta, round_to_4bit
from mmtune.model.tower_blocks import blocks
from mmtune.recipe.tune_block import LOW_RANK, AdapterTuning, AnyTuning, FullTuning, PartialTuning
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.tuning import lora
from mmtune.training.tuning.gradual_unfreezing import GradualUnfreezing, gradual_unfreezing
from mmtune.training.tuning.layers import (
    copy_state_to_cpu,
    layer_numbers,
    norm_parameters,
    recompute_fingerprint,
    set_frozen_to_eval,
)
from mmtune.training.tuning.lora_targets import find_targets
from mmtune.training.tuning.lp_ft import copy_heads
from mmtune.training.tuning.tower_rates import TowerRates, tower_rates
from mmtune.training.tuning.tune_spec import parse_tune

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

CHECK_AFTER_STEPS = 2
"""Number of steps after which every adapter must have had a gradient.

In the first step only the matrices b get one: they start at zero, and so the gradient of the matrices a is zero.
"""

LayerNumbers = tuple[dict[int, int], int]
"""The return value of `layer_numbers`."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of trainable parameters of one tower and its head.

    how: the tuning method
    trainable, total: number of trainable and of all parameters
    """

    how: str
    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """Share of trainable parameters, in percent."""
        return 100 * self.trainable / self.total

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields and the percentage as plain data, for the result file of the run."""
        return {"how": self.how, "trainable": self.trainable, "total": self.total, "percent": self.percent}


@dataclass
class TunedModel:
    """A model prepared by `tune`, and what the trainer and the end of the run need to know about it.

    model: the model
    towers: {modality: tuning method}
    counts: {trained modality: number of trainable parameters}
    lr_shares: {id of a parameter: factor on the learning rate}, for layer-wise decay
    rates: learning rates and weight decays of towers that have their own
    unfreezing: which layers do not train yet at a step, with `unfreeze_every`; else None
    features: stored outputs of frozen towers, or None
    start: copy of the weights before training, for interpolation; {} if not needed
    adapters: the adapters; set by `merge`
    learned: names of the other parameters that were trained; set by `merge`
    without_gradient: {name: adapter parameter} of those that have had no gradient so far
    """

    model: "Model"
    towers: dict[str, AnyTuning]
    counts: dict[str, ParameterCount]
    lr_shares: dict[int, float]
    features: FeatureCache | None
    start: dict[str, Tensor]
    adapters: list[LowRankDelta] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)
    without_gradient: dict[str, nn.Parameter] = field(default_factory=dict)
    rates: TowerRates = field(default_factory=TowerRates)
    unfreezing: GradualUnfreezing | None = None
    _steps: int = 0

    @property
    def feature_preprocess(self) -> dict[str, FeaturePreprocess]:
        """Preprocessing for the loader, for the towers whose features are stored."""
        return {m: FeaturePreprocess() for m in (self.features.towers if self.features else {})}

    def set_frozen_to_eval(self) -> None:
        """Set frozen modules to evaluation mode. Call it after `model.train()`."""
        if any(t.how != "full" for t in self.towers.values()):
            set_frozen_to_eval(self.model)

    def record_gradients(self, processes: Processes = SINGLE_PROCESS) -> None:
        """Record which adapters had a gradient on any process. Call it in each step before gradients are cleared."""
        if self.without_gradient:
            names, parameters = list(self.without_gradient), list(self.without_gradient.values())
            has_gradient = torch.tensor([float(p.grad is not None and bool(p.grad.any())) for p in parameters])
            has_gradient = has_gradient.to(self.model.device)
            processes.all_reduce([has_gradient])
            flags = zip(names, parameters, has_gradient.tolist(), strict=True)
            self.without_gradient = {n: p for n, p, has in flags if not has}
            self._steps += 1

    def check_gradients(self) -> None:
        """Raise TrainingError if some adapter never had a gradient, and so was not trained. Call it after each epoch."""
        if self.without_gradient and self._steps >= CHECK_AFTER_STEPS:
            raise TrainingError(
                f"tune: {len(self.without_gradient)} adapter tensors never had a gradient, the first is "
                f"{next(iter(self.without_gradient))}: they do not affect the embeddings; exclude them with `targets`"
            )

    def merge(self) -> None:
        """Merge adapters into the weights, so that the model is plain again. Stored features can still be used."""
        if any(t.how in LOW_RANK for t in self.towers.values()):
            named = [(n, p) for n, p in self.model.named_parameters() if ".lora_" not in n]
            # a head may have been initialised from the training pairs without being trained
            self.learned = [n for n, p in named if p.requires_grad or n.startswith("heads.")]
            self.adapters = lora.adapters(self.model)
            lora.merge(self.model)
        for p in self.model.parameters():
            p.requires_grad_(True)
        recompute_fingerprint(self.model)

    def close(self) -> None:
        """Free the stored features and the copy of the initial weights."""
        self.start = {}
        if self.features is not None:
            self.features.close()

    def summary(self) -> list[str]:
        """Text for the terminal: one line per tower that says what is trained."""
        return [
            f"{m}: {c.how}, {c.trainable:,} of {c.total:,} parameters are trained ({c.percent:.2f}%){self._runs(m)}"
            for m, c in self.counts.items()
        ]

    def _runs(self, m: str) -> str:
        """Text that says how often a frozen tower runs."""
        if self.towers[m].how not in ("head", "frozen"):
            return ""
        if self.features is not None and m in self.features.towers:
            return "; the tower runs once and its features are stored"
        return f"; the tower runs in every epoch, because its input varies (augment.{m}, or prompts), its rows are streamed, or its tokens are used"


def check_trainable(model: "Model", towers: Mapping[str, AnyTuning], trained: Sequence[str]) -> None:
    """Raise RecipeError if a tower without trainable weights, such as an ONNX file, is to be tuned in more than its head."""
    for m in trained:
        if towers[m].how not in ("head", "frozen") and not any(True for x in model.towers[m].modules for _ in x.parameters()):
            raise RecipeError(f"tune.{m}: {towers[m].how}: this tower is a frozen network file; use how: head or frozen")


def tune(
    model: "Model",
    given: object,
    trained: Sequence[str],
    augmented: Sequence[str] = (),
    seed: int = 0,
    keep_start: bool = False,
    heads: "Model | None" = None,
    trains_more: bool = False,
) -> TunedModel:
    """Apply the recipe's `tune` to `model` in place: freeze parameters, and add heads and adapters. `full` changes nothing.

    Raises RecipeError for settings that do not fit the model, and MissingExtra if a library is not installed.

    given: the recipe's `tune`, as parsed blocks or plain data
    trained: the modalities that are trained
    augmented: modalities with augmentation; frozen towers of all others use stored features
    seed: seed for initialising adapters
    keep_start: keep a copy of the weights before training, for interpolation
    heads: a model whose heads were trained in a first stage (LP-FT), or None
    trains_more: whether other layers are trained, so that all towers may be frozen
    """
    towers = parse_tune(given, list(model.towers), trained)
    if all(towers[m].how == "frozen" for m in trained) and not trains_more:
        raise RecipeError(f"tune: all towers are frozen ({', '.join(trained)}), so nothing would be trained")
    check_trainable(model, towers, trained)
    totals = {m: sum(p.numel() for p in _parameters_of(model, m)) for m in towers}
    for m, t in towers.items():
        if (t.how == "head" or t.head_first) and m not in model.heads:
            model.ensure_heads([m])
            totals[m] += model.width**2
        if isinstance(t, AdapterTuning) and t.how == "qlora":
            _round_to_4bit(model.towers[m].modules, t, f"tune.{m}")
    start = copy_state_to_cpu(model) if keep_start else {}
    if heads is not None:
        copy_heads(model, heads)
    numbers = {m: layer_numbers(model.towers[m].modules) for m in towers}
    lr_shares = {i: r for m, t in towers.items() for i, r in _layer_decay(numbers[m], t, f"tune.{m}").items()}
    for m, t in towers.items():
        if isinstance(t, AdapterTuning):
            lora.inject(model.towers[m].modules, t, f"tune.{m}", seed)
    if any(t != FullTuning() for t in towers.values()):
        lr_shares |= _layer_decay_of_adapters(model, towers)
        _set_requires_grad(model, towers, numbers)
    counts = {m: _count(model, m, towers[m], totals[m]) for m in trained}
    varying = {*augmented, *model.prompts}  # inputs that depend on epoch or role, so that no single feature can be stored
    stored = [m for m in trained if towers[m].how in ("head", "frozen") and m not in varying]
    features = FeatureCache(model, stored) if stored else None
    without_gradient = lora.adapter_parameters(model)
    tuned = TunedModel(model, towers, counts, lr_shares, features, start, without_gradient=without_gradient)
    tuned.rates = tower_rates(model, towers)
    if any(isinstance(t, FullTuning) and t.unfreeze_every for t in towers.values()):
        tuned.unfreezing = gradual_unfreezing(model, towers)
    return tuned


@torch.no_grad()
def _round_to_4bit(tower: list[nn.Module], tuning: AdapterTuning, key: str) -> None:
    """Round the weights to the values that 4-bit weights will have, so that they are known in float32 too."""
    for target in find_targets(tower, tuning.targets, key):
        for name in target.layers:
            layer = target.module.get_submodule(name)
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(round_to_4bit(layer.weight, key))


def _parameters_of(model: "Model", m: str) -> list[nn.Parameter]:
    """Return the parameters of one modality's tower and head, without duplicates."""
    return list({id(p): p for module in model.modules_of(m) for p in module.parameters()}.values())


def _set_requires_grad(model: "Model", towers: Mapping[str, AnyTuning], numbers: Mapping[str, LayerNumbers]) -> None:
    """Set `requires_grad` of every parameter of every tower and head. Logit scales stay trainable."""
    for m, t in towers.items():
        head = {id(p) for p in model.heads[m].parameters()} if m in model.heads else set()
        names = {id(p): n for n, p in model.named_parameters()}
        layer, count = numbers[m]
        norms = {id(p) for p in norm_parameters(model.towers[m].modules)}
        last = _number_of_last_blocks(t, count, f"tune.{m}.blocks") if isinstance(t, PartialTuning) else 0
        for p in _parameters_of(model, m):
            learns = {
                "full": p.requires_grad,
                "frozen": False,
                "head": False,
                "lora": ".lora_" in names.get(id(p), ""),
                "qlora": ".lora_" in names.get(id(p), ""),
                "partial": (last > 0 and layer.get(id(p), 0) > count - last)
                or (isinstance(t, PartialTuning) and t.norms and id(p) in norms),
            }[t.how]
            learns = learns or (id(p) in head and t.how != "frozen")
            if learns or p.requires_grad:
                p.requires_grad_(learns)


def _number_of_last_blocks(tuning: PartialTuning, count: int, key: str) -> int:
    """Return how many of the last blocks are trained. count: number of blocks of the tower."""
    wanted = tuning.blocks if tuning.blocks is not None else 0 if tuning.norms else min(2, max(count - 1, 1))
    if wanted and not count:
        raise RecipeError(f"{key}: no blocks were found in this tower; use norms: true, or another value of how")
    if wanted > count:
        raise RecipeError(f"{key}: this tower has only {count} blocks, fewer than {wanted}")
    return wanted


def _layer_decay(numbers: LayerNumbers, tuning: AnyTuning, key: str) -> dict[int, float]:
    """Layer-wise learning rate decay (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254).

    Returns {id of a parameter: factor}. The factor is decay^k for a layer k below the last.
    """
    if tuning.layer_decay == 1:
        return {}
    layer, count = numbers
    if not count:
        raise RecipeError(f"{key}.layer_decay: no blocks were found in this tower")
    return {i: tuning.layer_decay ** (count + 1 - number) for i, number in layer.items()}


def _layer_decay_of_adapters(model: "Model", towers: Mapping[str, AnyTuning]) -> dict[int, float]:
    """Return {id of an adapter parameter: factor on the learning rate}. Adapters get the factor of their block."""
    shares = {}
    for m, t in towers.items():
        ordered = blocks(model.towers[m].modules)
        for i, block in enumerate(ordered):
            for n, p in block.named_parameters():
                if ".lora_" in n and t.layer_decay != 1:
                    shares[id(p)] = t.layer_decay ** (len(ordered) - i)
    return shares


def _count(model: "Model", m: str, tuning: AnyTuning, total: int) -> ParameterCount:
    return ParameterCount(tuning.how, sum(p.numel() for p in _parameters_of(model, m) if p.requires_grad), total)
