"""How a step uses an accelerator (`-m gpu`), and the same code at toy size on the CPU (`-m slow`): compiled blocks, layouts, fused kernels,
micro-batches by length. `-s` prints a JSON line a measurement, as tests/test_gpu.py does.
"""

import json
import time

import numpy as np
import pytest
import torch

import mmtune
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.build_objective import build_objective
from mmtune.training.compile_checkpoint import begin_step, channels_last_convolutions, compiled_or_checkpointed
from mmtune.training.optimizer import build_optimizer, parameter_groups
from mmtune.training.precision import autocast
from mmtune.training.step import forward_backward
from tests.support import gpu_steps
from tests.support.checkpoints import clip
from tests.test_gpu import WHERE, toy_or


def small_clip(where: str, n: int) -> tuple[torch.nn.Module, dict]:
    """A small CLIP without dropout and its inputs on the device: 9.9M parameters on a card, a toy on the CPU."""
    config = toy_or("ViT-B-32", "cpu")
    if where == "cuda":
        config["vision_cfg"] = config["vision_cfg"] | {"image_size": 192, "layers": 6, "width": 256, "patch_size": 16}
        config["text_cfg"] = config["text_cfg"] | {"vocab_size": 8000, "width": 256, "heads": 4, "layers": 4}
    return gpu_steps.picture_model(config), gpu_steps.pictures(config, n, torch.device(where))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mode", [True, "reduce-overhead"])
@pytest.mark.timeout(900)
def test_compiled_blocks_on_the_device(mode, where):
    """Whole steps with torch.compile: the losses of plain ones while both learn, and how much sooner. A small batch waits for launches."""
    n, steps, device = (64, 30, torch.device(where)) if where == "cuda" else (8, 4, torch.device(where))
    losses, rates = {}, {}
    for compiled in (False, mode):
        model, inputs = small_clip(where, n)
        step = gpu_steps.ours(model, inputs, None)
        with compiled_or_checkpointed(model, compiled, False):
            losses[compiled] = []
            for number in range(steps):
                if number == steps // 2:  # the graphs are recorded; a loss is a number, so the device has finished
                    begin = time.perf_counter()
                begin_step(compiled, device)
                losses[compiled].append(step())
            rates[str(compiled)] = round((steps - steps // 2) * n / (time.perf_counter() - begin), 1)
            model.eval()  # blocks of a model in eval mode, another batch size
            with torch.inference_mode():
                assert torch.isfinite(model.encode_inputs("image", {"image": inputs["image"]["image"][:3]})).all()
    print(json.dumps({"bench": "compile, small CLIP", "device": where, "batch": n, "samples_per_s": rates}), flush=True)
    np.testing.assert_allclose(losses[mode], losses[False], rtol=3e-2)
    assert losses[mode][-1] < losses[mode][0]


@pytest.mark.parametrize("where", WHERE)
def test_a_convolutional_tower_in_channels_last_on_the_device(where, tmp_path):
    """ResNet: a step with the images in channels_last has the gradient of one without."""
    name = "resnet50" if where == "cuda" else "resnet10t"
    model = mmtune.load(f"timm:{timm_weights(name, tmp_path)}", device=where).eval()
    n, size = (64, 224) if where == "cuda" else (4, 64)
    images = {"image": torch.randn(n, 3, size, size, device=where)}
    seconds, found = {}, {}
    for wanted in (False, True):
        with channels_last_convolutions(model, wanted):
            for round_ in range(4):
                model.zero_grad(set_to_none=True)
                begin = time.perf_counter()
                with autocast(torch.device(where), "bf16" if where == "cuda" and round_ else "fp32"):
                    z = model.encode_inputs("image", images)
                (z * torch.linspace(-1, 1, z.shape[1], device=where)).sum().backward()
                if round_ == 0:  # in float32
                    found[wanted] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
                seconds[wanted] = time.perf_counter() - begin
    print(json.dumps({"bench": f"channels_last {name}", "device": where, "seconds": seconds}), flush=True)
    assert float((found[True] - found[False]).norm() / found[False].norm()) < 5e-3


def timm_weights(name: str, root) -> str:
    """NAME@FILE with random weights."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False)
    save_file(module.state_dict(), str(root / f"{name}.safetensors"))
    return f"{name}@{root / name}.safetensors"


@pytest.mark.parametrize("where", WHERE)
def test_the_optimizer_and_attention_have_fused_kernels(where):
    """AdamW of torch is fused; images go through the flash kernel of scaled_dot_product_attention, which is the only one allowed here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, inputs = small_clip(where, 4)
    model.to(where).train()
    objective = torch.nn.Module()
    optimizer = build_optimizer(parameter_groups(model, objective, TrainConfig()), TrainConfig())
    assert optimizer.defaults["fused"] is True
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast(where, torch.bfloat16):
        z = model.encode_inputs("image", inputs["image"])
    z.sum().backward()
    optimizer.step()


@pytest.mark.parametrize("where", WHERE)
def test_micro_batches_by_length_on_the_device(where, tmp_path):
    """Texts of unlike length: the gradient of the whole batch for less memory, the inputs in pinned memory copied a part at a time."""
    n, budget, longest = (512, 4096, 24) if where == "cuda" else (16, 60, 24)
    model = mmtune.load(f"hf:{clip(tmp_path / 'clip')}", device=where).train()
    rng, preprocess = np.random.default_rng(0), model.towers["text"].preprocess
    ids = [torch.randint(0, 20, (int(k),)) for k in rng.integers(3, longest, n)]
    texts = preprocess.collate([{"input_ids": torch.cat([x, torch.tensor([preprocess.tokenizer.eos_token_id])])} for x in ids])
    image = {"pixel_values": torch.randn(n, 3, 32, 32)}
    waiting = {"image": image, "text": texts}
    if where == "cuda":
        waiting = {m: {k: v.pin_memory() for k, v in x.items()} for m, x in waiting.items()}
    batch = gpu_steps.batch_of(waiting).map_tensors(lambda x: x.to(where), inputs=False)
    objective = build_objective([{"loss": "info_nce"}], [("image", "text")])
    found, peaks = {}, {}
    for name, limits in {
        "plain": {},
        "tokens": {"micro_batch_tokens": budget, "micro_batch_size": n // 8},
        "buckets": {"length_buckets": 4},
    }.items():
        model.zero_grad(set_to_none=True)
        if where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        forward_backward(model, batch, objective, **limits)
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
        peaks[name] = torch.cuda.max_memory_allocated() if where == "cuda" else 0
    for name in ("tokens", "buckets"):
        assert float((found[name] - found["plain"]).norm() / found["plain"].norm()) < 2e-3, name
    print(json.dumps({"bench": "micro-batches by length", "device": where, "peaks": peaks}), flush=True)
    assert where == "cpu" or peaks["tokens"] < peaks["plain"]
