"""The optimizers of `train.optimizer` take the steps of their library, the schedules follow their formulas, towers have their own rates."""

import math
import sys

import pytest
import torch
from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.optimizer_block import TABLE
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.optimizer import build_optimizer, lr_factor


class MomentumSgd(torch.optim.SGD):
    """An optimizer of one's own."""


def upstream(name, parameters):
    lr, decay, betas = 1e-2, 0.1, (0.9, 0.98)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)
    if name == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, lr=lr, betas=betas, weight_decay=decay)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=lr, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=0.9)
    import timm.optim

    kind = {"lamb": timm.optim.Lamb, "lion": timm.optim.Lion}[name]
    return kind(parameters, lr=lr, betas=betas, weight_decay=decay, **({"max_grad_norm": None} if name == "lamb" else {}))


OPTIMIZERS = [*TABLE, "sgd"]


def configured(name, **changes):
    own = {"name": "tests.training.test_optimizer_choice:MomentumSgd", "momentum": 0.9}
    return check(TrainConfig, {"lr": 1e-2, "weight_decay": 0.1, "optimizer": own if name == "sgd" else name, **changes})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 3))  # 5,120 weights: more than bitsandbytes' 4,096


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_the_librarys_own_and_resume_to_the_same_bits(name):
    """Five steps of a plain loop; the third one continues from a saved state."""
    ours, theirs, config = network(), network(), configured(name)
    group = {"params": list(ours.parameters()), "lr": 1e-2, "base_lr": 1e-2, "weight_decay": 0.1}
    optimizer, peer = build_optimizer([group], config), upstream(name, theirs.parameters())
    for step in range(5):
        if step == 2:
            torch.save(optimizer.state_dict(), buffer := __import__("io").BytesIO())
            buffer.seek(0)
            optimizer = build_optimizer([group], config)
            optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        for model, own in ((ours, optimizer), (theirs, peer)):
            own.zero_grad()
            x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            own.step()
    for p, q, start in zip(ours.parameters(), theirs.parameters(), network().parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, start)


def test_8bit_moments_take_a_byte_each():
    model = network()
    group = {"params": list(model.parameters()), "lr": 1e-2, "base_lr": 1e-2, "weight_decay": 0.1}
    optimizer = build_optimizer([group], configured("adamw_8bit"))
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8 and state["state1"].numel() == 64 * 80
    assert optimizer.state[model[2].weight]["state1"].dtype == torch.float32


BAD = [
    ({"optimizer": "adamm"}, r"optimizer\.name: no optimizer 'adamm'; did you mean 'adamw'\?"),
    ({"optimizer": {"name": "lion", "epsilon": 1}}, r"optimizer\.epsilon: lion has no such option"),
    ({"optimizer": {"name": "adamw", "epss": 1}}, r"optimizer\.epss: adamw has no such option; did you mean 'eps'\?"),
    ({"optimizer": {"eps": 1}}, "optimizer: needs the key `name`, one of: adamw"),
    ({"optimizer": "adafactor", "betas": [0.9, 0.99]}, "betas: adafactor has no betas"),
    ({"optimizer": "lamb", "shard": True}, "shard: lamb needs whole weights"),
    ({"schedule": "constant", "min_lr": 0.1}, "min_lr: schedule: constant has no decay"),
    ({"schedule": "wds"}, "schedule: 'wds'; did you mean 'wsd'"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_what_does_not_fit_is_refused_with_the_recipe(change, message):
    with pytest.raises(RecipeError, match=message):
        check(TrainConfig, change, "train")


def test_options_of_an_own_optimizer_and_a_missing_library(monkeypatch):
    target = "tests.training.test_optimizer_choice:MomentumSgd"
    with pytest.raises(RecipeError, match=r"train\.optimizer\.momentun: .* has no such option; did you mean 'momentum'"):
        build_optimizer([], check(TrainConfig, {"optimizer": {"name": target, "momentun": 0.9}}))
    with pytest.raises(RecipeError, match="is a Linear, not a torch.optim.Optimizer"):
        own = check(TrainConfig, {"optimizer": {"name": "tests.training.test_optimizer_choice:not_an_optimizer"}})
        build_optimizer([], own)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'adamw_8bit needs bitsandbytes: pip install "mmtune\[optimizers\]"'):
        build_optimizer([], configured("adamw_8bit"))


def not_an_optimizer(parameters, lr):
    return nn.Linear(1, 1)


# --- schedules -----------------------------------------------------------------------------------------------------------


def factors(total, **config):
    return [lr_factor(s, total, check(TrainConfig, config)) for s in range(total + 1)]


def library(make, **options):
    """Factors of a schedule of transformers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, **options)
    return [schedule.lr_lambdas[0](s) for s in range(41)]


def test_schedules_equal_transformers_after_the_warmup():
    from transformers import optimization as upstream_schedules

    steps = {"num_warmup_steps": 4, "num_training_steps": 40}
    assert factors(40, schedule="linear", warmup=4)[4:] == pytest.approx(
        library(upstream_schedules.get_linear_schedule_with_warmup, **steps)[4:]
    )
    cosine = library(upstream_schedules.get_cosine_with_min_lr_schedule_with_warmup, **steps, min_lr_rate=0.1)
    assert factors(40, schedule="cosine", warmup=4, min_lr=0.1)[4:] == pytest.approx(cosine[4:])
    for shape in ("linear", "cosine", "1-sqrt"):
        wsd = library(upstream_schedules.get_wsd_schedule, **steps, num_decay_steps=10, decay_type=shape, min_lr_ratio=0.2)
        ours = factors(40, schedule="wsd", warmup=0.1, decay=0.25, decay_shape=shape, min_lr=0.2)
        assert ours[4:] == pytest.approx(wsd[4:])
        assert ours[29] == ours[30] == 1.0 and ours[40] == pytest.approx(0.2)


def test_schedules_of_few_steps_are_finite_and_warm_up_linearly():
    assert factors(10, warmup=3, schedule="linear")[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    for schedule in ("cosine", "linear", "constant", "wsd"):
        for total in (1, 2, 3):
            for value in factors(total, schedule=schedule, warmup=2, decay=5):
                assert 0 <= value <= 1 and math.isfinite(value)
            assert factors(total, schedule=schedule, warmup=2, decay=5)[0] > 0
