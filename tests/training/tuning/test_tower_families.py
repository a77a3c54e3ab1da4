"""Every family of `hf:` encoders of images and sounds can be tuned by each method; each moves the parameters that it names."""

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.errors import RecipeError
from mmtune.modalities.sound import Sound
from mmtune.model.tower_blocks import blocks
from mmtune.training.tuning.layers import BEFORE_BLOCKS
from mmtune.training.tuning.tune import tune
from tests.support.single_checkpoints import (
    COMMON_IMAGES,
    COMMON_SOUNDS,
    IMAGES,
    NETS,
    SOUNDS,
    extractor_of,
    image_folder,
    small,
    take_two_steps,
)

METHODS = {
    "lora": {"how": "lora", "rank": 2},
    "partial": {"how": "partial", "blocks": 1},
    "full-decay": {"how": "full", "layer_decay": 0.5},
    "head": {"how": "head"},
}


def folder(kind, out):
    if kind in IMAGES:
        image_folder(kind, out)
        return "image"
    small(*SOUNDS[kind], out)
    extractor_of(kind).save_pretrained(out)
    return "audio"


def values(modality):
    noise = np.random.default_rng(0)
    if modality == "image":
        return [PIL.Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(4)]
    return [Sound(noise.standard_normal(n).astype(np.float32), 16000) for n in (4000, 3500, 4000, 3000)]


def train_two_steps(model, tuned, modality):
    """Return the parameters that moved, and check that merged adapters give the embeddings of the tuned model."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tower = model.towers[modality]
    inputs = tower.preprocess.collate([tower.preprocess(v) for v in values(modality)])
    model.encode(**{modality: values(modality)})  # in inference mode, as an evaluation before the first step
    # its steps do not depend on the size of gradients, which is tiny in some deep random networks
    optimizer = torch.optim.Rprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    take_two_steps(model, tuned, modality, inputs, optimizer)
    moved = {n for n, p in model.named_parameters() if n in before and not torch.equal(before[n], p)}
    assert not {n for n, p in model.named_parameters() if not p.requires_grad} & moved
    model.eval()
    with torch.no_grad():
        want = model.encode_inputs(modality, inputs)
        tuned.merge()
        torch.testing.assert_close(model.encode_inputs(modality, inputs), want, atol=1e-5, rtol=0)
    tuned.close()
    return moved


def cases():
    for kind in (*IMAGES, *SOUNDS):
        for method in METHODS:
            quick = method == "lora" and kind in (*COMMON_IMAGES, *COMMON_SOUNDS)
            yield pytest.param(kind, method, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize("kind, method", list(cases()))
def test_each_method_moves_what_it_names(tmp_path, kind, method):
    modality = folder(kind, tmp_path)
    model = mmtune.load(f"hf:{tmp_path}")
    stack = blocks(model.towers[modality].modules)
    assert len(stack) >= 2
    in_block = {id(p): i for i, block in enumerate(stack) for p in block.parameters()}
    names = {n: in_block.get(id(p)) for n, p in model.named_parameters()}
    tuned = tune(model, METHODS[method], [modality])
    if method == "full-decay":
        rates = [max([tuned.lr_shares[id(p)] for p in block.parameters()], default=None) for block in stack]
        assert all(r in (None, 0.5 ** (len(stack) - i)) for i, r in enumerate(rates))
    moved = train_two_steps(model, tuned, modality)
    if method == "lora":
        assert not {n for n in moved if ".lora_" not in n} and tuned.adapters
    elif method == "head":
        assert all(n.startswith("heads.") for n in moved)
    elif method == "partial":
        last = len(stack) - 1
        assert any(names[n] == last for n in moved)
        assert all(names[n] in (last, None) for n in moved)
        early = [n for n in moved if names[n] is None and any(part in n for part in BEFORE_BLOCKS)]
        assert not early
    else:
        assert any(names[n] == 0 for n in moved) and any(names[n] == len(stack) - 1 for n in moved)


def test_a_tower_of_3_x_3_convolutions_has_no_adapters(tmp_path):
    small("ResNet", NETS | {"embedding_size": 8, "layer_type": "basic"}, tmp_path)
    image_folder("resnet", tmp_path / "other")[1].save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="no blocks with layers for adapters; use how: full, partial or head") as e:
        tune(mmtune.load(f"hf:{tmp_path}"), METHODS["lora"], ["image"])
    assert "\n" not in str(e.value)
