"""`timm:` gives timm's own features, after timm's own transform."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.errors import ModelError

MODELS = ["test_efficientnet", "test_vit", "test_convnext", "test_resnet", "test_mambaout", "test_byobnet", "test_vit3"]


def pictures() -> list[PIL.Image.Image]:
    noise = np.random.default_rng(0)
    shapes = ((140, 200, 3), (190, 133, 3), (32, 32, 3))
    return [PIL.Image.fromarray(noise.integers(0, 256, s, dtype=np.uint8)) for s in shapes]


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x.float(), dim=-1).detach().numpy()


def made(name: str, out, **arguments):
    """A seeded model of timm with its classifier, saved as a checkpoint file."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
    return model


def theirs(model, **options) -> np.ndarray:
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(model, options), is_training=False)
    with torch.no_grad():
        features = model.forward_features(torch.stack([transform(p) for p in pictures()]))
        return unit(model.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", MODELS)
def test_features_equal_timm(tmp_path, name):
    file = tmp_path / "weights.safetensors"
    want = theirs(made(name, file))
    ours = mmtune.load(f"timm:{name}@{file}")
    np.testing.assert_allclose(ours.encode(image=pictures()), want, atol=1e-5)
    alone = np.stack([ours.encode(image=p) for p in pictures()])
    np.testing.assert_allclose(alone, want, atol=1e-5)
    ours.save(tmp_path / "artifact")
    file.unlink()
    again = mmtune.load(str(tmp_path / "artifact"))
    assert again.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(again.encode(image=pictures()), ours.encode(image=pictures()))


def test_weights_in_torch_files_and_folders(tmp_path):
    from timm.models import save_for_hf

    model = made("test_vit", tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    save_for_hf(model, tmp_path / "folder", model_config={"num_classes": 1000}, safe_serialization=True)
    want = theirs(model)
    for spec in (f"test_vit@{tmp_path / 'w.pth'}", str(tmp_path / "folder")):
        np.testing.assert_allclose(mmtune.load(f"timm:{spec}").encode(image=pictures()), want, atol=1e-5)


def test_pooling_and_size(tmp_path):
    file = tmp_path / "w.safetensors"
    model = made("test_vit", file)
    ours = mmtune.load(f"timm:test_vit@{file}?pooling=avg")
    model.reset_classifier(0, "avg")
    np.testing.assert_allclose(ours.encode(image=pictures()), theirs(model), atol=1e-5)
    made("test_convnext", file)
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("test_convnext").eval()
    model.load_state_dict(load_file(file))
    small = mmtune.load(f"timm:test_convnext@{file}?size=96")
    np.testing.assert_allclose(small.encode(image=pictures()), theirs(model, input_size=(3, 96, 96)), atol=1e-5)
    model = made("test_vit", file)
    resized = mmtune.load(f"timm:test_vit@{file}?size=128")
    model.set_input_size(img_size=(128, 128))
    np.testing.assert_allclose(resized.encode(image=pictures()), theirs(model, input_size=(3, 128, 128)), atol=1e-5)
    resized.save(tmp_path / "artifact")
    again = mmtune.load(str(tmp_path / "artifact"))
    np.testing.assert_array_equal(again.encode(image=pictures()), resized.encode(image=pictures()))


def test_wrong_names_and_files_are_one_line(tmp_path):
    file = tmp_path / "w.safetensors"
    made("test_resnet", file)
    (tmp_path / "code.pth").write_bytes(b"\x80\x04\x95junk")
    torch.save({"a": object}, tmp_path / "pickled.pth")
    (tmp_path / "empty").mkdir()
    cases = {
        "no_such_model": "no such model",
        "test_vit@/no/such.safetensors": "no such file",
        f"test_vit@{file}": "does not hold the weights of this model",
        f"test_resnet@{tmp_path / 'code.pth'}": "cannot be read without running its code",
        f"test_resnet@{tmp_path / 'pickled.pth'}": "cannot be read without running its code",
        f"test_resnet@{file}?pooling=nonsense": "pooling 'nonsense': this model has avg, max, avgmax, catavgmax, fast",
        f"test_resnet@{file}?size=big": "size must be a number",
        f"test_resnet@{file}?crop=1": "unknown option 'crop'",
        str(tmp_path / "empty"): "no config.json",
        "/no/such/folder": "no config.json",
    }
    for spec, message in cases.items():
        with pytest.raises(ModelError, match=message) as e:
            mmtune.load(f"timm:{spec}")
        assert "\n" not in str(e.value)


def test_an_edited_configuration_is_another_artifact(tmp_path):
    made("test_resnet", tmp_path / "w.safetensors")
    ours = mmtune.load(f"timm:test_resnet@{tmp_path / 'w.safetensors'}")
    ours.save(tmp_path / "artifact")
    config = tmp_path / "artifact" / "parts" / "0" / "timm.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(ModelError, match="timm.json was edited"):
        mmtune.load(str(tmp_path / "artifact"))
    shutil.rmtree(tmp_path / "artifact")
