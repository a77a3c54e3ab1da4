"""Every family of single towers can be tuned: adapters get gradients and are merged, blocks are found, layers have their rates."""

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.modalities.sound import Sound
from mmtune.model.tower_blocks import blocks
from mmtune.training.tuning.tune import tune
from tests.support import checkpoints
from tests.support.single_checkpoints import SMALL, SOUNDS, beats_file, decoder_folder, image_folder, small, take_two_steps


def waveform(out):
    from transformers import Wav2Vec2FeatureExtractor

    small("Wav2Vec2", SOUNDS["wav2vec2-layer"][1], out)
    Wav2Vec2FeatureExtractor().save_pretrained(out)


def spectrogram(out):
    from transformers import ASTFeatureExtractor

    small("AST", SMALL | {"patch_size": 4, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 4}, out)
    ASTFeatureExtractor(num_mel_bins=16, max_length=24).save_pretrained(out)


def timm_file(name):
    def write(out):
        import timm
        from safetensors.torch import save_file

        torch.manual_seed(0)
        save_file({k: v.contiguous() for k, v in timm.create_model(name).state_dict().items()}, f"{out}.safetensors")

    return write


def sentence_encoder(out):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    bert = checkpoints.text_encoder(out.parent / "bert")
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32), Dense(32, 16)], device="cpu").save(str(out))


TOWERS = {
    "hf-vit": (lambda out: image_folder("vit", out), "hf:{}", "image", 2),
    "hf-convnext": (lambda out: image_folder("convnext", out), "hf:{}", "image", 4),
    "hf-wav2vec2": (waveform, "hf:{}", "audio", None),
    "hf-ast": (spectrogram, "hf:{}", "audio", 2),
    "beats": (beats_file, "beats:{}.pt", "audio", 2),
    "hf-decoder": (decoder_folder, "hf:{}", "text", 2),
    "st": (sentence_encoder, "st:{}", "text", 2),
    "timm-vit": (timm_file("test_vit"), "timm:test_vit@{}.safetensors", "image", None),
    "timm-efficientnet": (timm_file("test_efficientnet"), "timm:test_efficientnet@{}.safetensors", "image", None),
}
METHODS = {
    "lora": {"how": "lora", "rank": 2},
    "lora-decay": {"how": "lora", "rank": 2, "layer_decay": 0.5},
    "qlora": {"how": "qlora", "rank": 2},
    "partial": {"how": "partial", "blocks": 1},
    "full-decay": {"how": "full", "layer_decay": 0.5},
    "head": {"how": "head"},
}


def cases():
    for tower in TOWERS:
        for method in METHODS:
            if method != "qlora" or tower in ("hf-decoder", "st", "hf-vit", "beats"):
                quick = method in ("lora", "partial", "full-decay") or (tower, method) == ("hf-decoder", "qlora")
                yield pytest.param(tower, method, id=f"{tower}-{method}", marks=[] if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("towers"), {}

    def spec(name):
        if name not in made:
            TOWERS[name][0](root / name)
            made[name] = TOWERS[name][1].format(root / name)
        return made[name]

    return spec


def values(modality):
    noise = np.random.default_rng(0)
    return {
        "image": [PIL.Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(4)],
        "audio": [Sound(noise.standard_normal(n).astype(np.float32), 16000) for n in (4000, 3500, 4000, 3000)],
        "text": ["a red bag", "blue", "a photo of a green dog", "red red red"],
    }[modality]


@pytest.mark.parametrize("name, method", list(cases()))
def test_two_steps_train_what_the_method_says(specs, name, method):
    _, _, modality, count = TOWERS[name]
    model = mmtune.load(specs(name))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    stack = blocks(model.towers[modality].modules)
    assert len(stack) == count if count else len(stack) >= 2
    tuned = tune(model, METHODS[method], [modality])
    if method == "full-decay":
        rates = [max(tuned.lr_shares[id(p)] for p in block.parameters()) for block in stack]
        assert rates == [0.5 ** (len(stack) - i) for i in range(len(stack))]
    tower = model.towers[modality]
    inputs = tower.preprocess.collate([tower.preprocess(v) for v in values(modality)])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    take_two_steps(model, tuned, modality, inputs, optimizer)
    model.eval()
    with torch.no_grad():
        want = model.encode_inputs(modality, inputs)
    tuned.merge()
    tuned.close()
    with torch.no_grad():
        merged = model.encode_inputs(modality, inputs)
    torch.testing.assert_close(merged, want, atol=1e-4 if method == "qlora" else 1e-5, rtol=0)
    after = dict(model.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    if method == "head":
        assert not moved and "heads" in " ".join(after)
    elif method == "partial":
        first = {n for n, p in after.items() if any(p is q for q in stack[0].parameters())}
        assert moved and not moved & first
    else:
        assert moved
