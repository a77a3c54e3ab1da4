"""Training steps on one device, ours and open_clip's own, on tensors that lie there: samples/s, memory, share of the peak.

Random weights, random pixels, random tokens: a step costs the same whatever it learns. open_clip's step is that of its
`open_clip_train.train`: amp, ClipLoss, AdamW, and for a batch in parts its accumulation (features first, without gradient;
then every part once more against all features), which like gradient caching runs every part's forward twice.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.backbones import open_clip as family
from mmtune.contracts import Batch
from mmtune.model.dual_encoder import Model
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.build_objective import build_objective
from mmtune.training.optimizer import build_optimizer, parameter_groups
from mmtune.training.step import forward_backward

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of the SXM cards, NVIDIA's data sheets; a name that is not here has no share of its peak."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak(where: torch.device) -> float | None:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else ""
    return next((v for k, v in PEAK.items() if k in name), None)


def picture_model(config: dict[str, Any]) -> Model:
    """A dual encoder of an open_clip configuration, with random weights."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    torch.manual_seed(0)
    module = open_clip.CLIP(**config)
    preprocess = {
        k: list(v) if isinstance(v, tuple) else v for k, v in asdict(PreprocessCfg(size=module.visual.image_size)).items()
    }
    written = {"model_cfg": config, "preprocess_cfg": preprocess}
    part = family._backbone(module, {family.CONFIG: json.dumps(written).encode()}, open_clip.SimpleTokenizer())
    model = Model([(part, ["image", "text"])], config["embed_dim"])
    model.ensure_logit_scales([("image", "text")])
    return model


def pictures(config: dict[str, Any], n: int, where: torch.device) -> dict[str, dict[str, Tensor]]:
    words, side = config["text_cfg"], config["vision_cfg"]["image_size"]
    tokens = torch.randint(1, words.get("vocab_size", 49408) - 2, (n, words.get("context_length", 77)), device=where)
    tokens[:, -1] = words.get("vocab_size", 49408) - 1  # the end, where the text's vector is read
    return {"image": {"image": torch.randn(n, 3, side, side, device=where)}, "text": {"text": tokens}}


def sound_model(out: Path, small: bool) -> Model:
    """A CLAP (HTSAT-tiny and RoBERTa-base, transformers' defaults; or a toy) with random weights."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    from mmtune.model.artifact import load
    from tests.support.checkpoints import clap, tokenizer_roberta

    clap(out)
    if not small:
        torch.manual_seed(0)
        config = ClapConfig()
        config.audio_config.enable_fusion = False
        ClapModel(config).save_pretrained(out)
        extractor = ClapFeatureExtractor(truncation="rand_trunc")
        ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer_roberta()[0]).save_pretrained(out)
    model = load(f"hf:{out}", device="cpu")
    model.ensure_logit_scales([("audio", "text")])
    return model


def sounds(n: int, small: bool, where: torch.device) -> dict[str, dict[str, Tensor]]:
    frames, bins, length, words = (65, 32, 40, 40) if small else (1001, 64, 77, 50_000)
    tokens = torch.randint(4, words, (n, length), device=where)
    return {
        "audio": {"input_features": torch.randn(n, 1, frames, bins, device=where)},
        "text": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
    }


def batch_of(inputs: dict[str, dict[str, Tensor]]) -> Batch:
    """Rows of one item each, none alike."""
    first = next(iter(next(iter(inputs.values())).values()))
    n, where = len(first), first.device
    at = torch.arange(n, device=where)
    labels = {name: at + 1 for name in ("id", *inputs)} | {"group": torch.zeros_like(at)}
    return Batch([str(i) for i in range(n)], at, torch.ones_like(at, dtype=torch.bool), inputs, {m: at for m in inputs}, labels)


def half(where: torch.device) -> Callable[[], Any]:
    return lambda: torch.autocast(where.type, torch.bfloat16)


def ours(model: Model, inputs: dict[str, dict[str, Tensor]], micro: int | None) -> Callable[[], float]:
    """One whole step, as the trainer takes it."""
    where = next(iter(next(iter(inputs.values())).values())).device
    model = model.to(where).train()
    names = list(inputs)
    objective = build_objective([{"loss": "info_nce"}], [(names[0], names[1])])
    optimizer = build_optimizer(parameter_groups(model, objective, TrainConfig(lr=1e-5)), TrainConfig(lr=1e-5))
    batch = batch_of(inputs)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = forward_backward(model, batch, objective, micro_batch_size=micro, autocast=half(where))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.clamp_logit_scales()
        return loss

    return step


def theirs(config: dict[str, Any], inputs: dict[str, dict[str, Tensor]], micro: int | None) -> Callable[[], float]:
    """open_clip's step on the same tensors."""
    import open_clip

    where = inputs["image"]["image"].device
    torch.manual_seed(0)
    model, loss_of = open_clip.CLIP(**config, output_dict=True).to(where).train(), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
    images, texts, context = inputs["image"]["image"], inputs["text"]["text"], half(where)
    parts = list(zip(images.split(micro or len(images)), texts.split(micro or len(texts)), strict=True))

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        if len(parts) == 1:
            with context():
                out = model(images, texts)
                loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"])
            loss.backward()
            total = float(loss.detach())
        else:
            known: dict[str, list[Tensor]] = {"image_features": [], "text_features": []}
            with torch.no_grad(), context():
                for a, b in parts:
                    out = model(a, b)
                    for name, list_ in known.items():
                        list_.append(out[name])
            for number, (a, b) in enumerate(parts):
                with context():
                    out = model(a, b)
                    every = {k: torch.cat([*v[:number], out[k], *v[number + 1 :]]) for k, v in known.items()}
                    loss = loss_of(**every, logit_scale=out["logit_scale"])
                loss.backward()
                total = float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return total

    return step


def flops(model: Model, inputs: dict[str, dict[str, Tensor]]) -> float:
    """Of one forward and backward of a sample, counted on two, as the model is written (attention without fused kernels)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    two = {m: {k: v[:2] for k, v in x.items()} for m, x in inputs.items()}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sum(z.sum() for z in model(two).values()).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2


def measured(steps: dict[str, Callable[[], float]], n: int, rounds: int, where: torch.device) -> dict[str, dict[str, float]]:
    """{name: samples/s (of the median of `rounds` steps taken in turn), peak memory in GB over what lay there}."""
    times: dict[str, list[float]] = {k: [] for k in steps}
    top: dict[str, float] = {}
    wait = torch.cuda.synchronize if where.type == "cuda" else (lambda: None)
    for number in range(rounds + 1):  # the first is not like the others
        for name, step in steps.items():
            if where.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            value = step()
            wait()
            if number:
                times[name].append(time.perf_counter() - begin)
            assert value == value, f"{name}: not a number"
            if where.type == "cuda":
                top[name] = torch.cuda.max_memory_allocated() / 1e9
    return {k: {"samples_per_s": n / sorted(v)[len(v) // 2], "peak_gb": top.get(k, 0.0)} for k, v in times.items()}
