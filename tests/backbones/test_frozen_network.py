"""`tflite:` and `onnx:` files are executed by their own runtimes; the vectors are those of a numpy computation."""

import copy
import shutil

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.errors import ModelError, RecipeError
from mmtune.modalities.sound import Sound
from mmtune.training.tuning.tune import tune

WEIGHTS = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
MAPS = np.random.default_rng(1).standard_normal((5, 3, 1, 1)).astype(np.float32)


def onnx_file(out, shape, nodes, weights, output, constants=()):
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), *constants],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), out)
    return out


def sound_onnx(out, batch=1):
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["inner"]), helper.make_node("Tanh", ["inner"], ["scores"])]
    return onnx_file(out, [batch, 40], nodes, WEIGHTS.T.copy(), "scores")


def image_onnx(out):
    from onnx import helper

    return onnx_file(out, ["n", 3, "h", "w_"], [helper.make_node("Conv", ["x", "w"], ["map"])], MAPS, "map")


def sound_tflite(out):
    """x [1, 40] -> fully connected "inner" [1, 6] -> logistic "scores" [1, 6]."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    def tensor(name, shape, buffer):
        t = s.TensorT()
        t.name, t.shape, t.buffer, t.type = name, shape, buffer, s.TensorType.FLOAT32
        return t

    def operator(code, inputs, outputs, kind=0, options=None):
        o = s.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs, o.builtinOptionsType, o.builtinOptions = code, inputs, outputs, kind, options
        return o

    graph = s.SubGraphT()
    graph.tensors = [
        tensor("x", [1, 40], 0),
        tensor("w", [6, 40], 1),
        tensor("a;inner", [1, 6], 0),
        tensor("scores", [1, 6], 0),
    ]
    graph.inputs, graph.outputs = [0], [3]
    connected = operator(0, [0, 1, -1], [2], s.BuiltinOptions.FullyConnectedOptions, s.FullyConnectedOptionsT())
    graph.operators = [connected, operator(1, [2], [3])]
    model = s.ModelT()
    model.version, model.subgraphs, model.description = 3, [graph], "test"
    codes = []
    for code in (s.BuiltinOperator.FULLY_CONNECTED, s.BuiltinOperator.LOGISTIC):
        c = s.OperatorCodeT()
        c.builtinCode, c.deprecatedBuiltinCode, c.version = code, code, 1
        codes.append(c)
    empty, weights = s.BufferT(), s.BufferT()
    weights.data = list(WEIGHTS.tobytes())
    model.operatorCodes, model.buffers = codes, [empty, weights]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    out.write_bytes(bytes(builder.Output()))
    return out


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def sounds():
    noise = np.random.default_rng(2)
    return [(noise.standard_normal(n).astype(np.float32), 100) for n in (40, 25, 40)]


def padded(samples):
    return np.pad(samples, (0, 40 - len(samples)))


SOUND_FILES = [
    (sound_onnx, "a.onnx", "onnx:{}?rate=100", np.tanh),
    (sound_onnx, "a.onnx", "onnx:{}?rate=100&output=inner", lambda x: x),
    (sound_tflite, "a.tflite", "tflite:{}?rate=100", lambda x: 1 / (1 + np.exp(-x))),
    (sound_tflite, "a.tflite", "tflite:{}?rate=100&output=inner", lambda x: x),
]


@pytest.mark.parametrize("write, name, spec, function", SOUND_FILES, ids=["onnx", "onnx-inner", "tflite", "tflite-inner"])
def test_sounds(tmp_path, write, name, spec, function):
    ours = mmtune.load(spec.format(write(tmp_path / name)))
    want = unit(function(np.stack([padded(x) for x, _ in sounds()]) @ WEIGHTS.T))
    np.testing.assert_allclose(ours.encode(audio=sounds()), want, atol=1e-5)
    long = np.random.default_rng(3).standard_normal(100).astype(np.float32)
    windows = ours.encode(audio=[(long[s : s + 40], 100) for s in (0, 30, 60)])
    np.testing.assert_allclose(ours.encode(audio=[(long, 100)])[0], unit(windows.mean(0)), atol=1e-6)
    np.testing.assert_array_equal(copy.deepcopy(ours).encode(audio=sounds()), ours.encode(audio=sounds()))
    vectors, fingerprint = ours.encode(audio=sounds()), ours.fingerprint
    ours.save(tmp_path / "artifact")
    (tmp_path / name).unlink()
    again = mmtune.load(str(tmp_path / "artifact"))
    np.testing.assert_array_equal(again.encode(audio=sounds()), vectors)
    assert again.fingerprint == fingerprint


@pytest.mark.parametrize("batch", [1, "n"])
def test_several_frames_of_a_window_are_averaged(tmp_path, batch):
    """As YAMNet gives them: [frames, C] for one row of samples, here five frames of eight samples."""
    from onnx import helper, numpy_helper

    frames = np.random.default_rng(4).standard_normal((8, 6)).astype(np.float32)
    shape = numpy_helper.from_array(np.array([-1, 8]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    file = onnx_file(tmp_path / "a.onnx", [batch, 40], nodes, frames, "y", [shape])
    want = unit(np.stack([(padded(x).reshape(5, 8) @ frames).mean(0) for x, _ in sounds()]))
    ours = mmtune.load(f"onnx:{file}?rate=100")
    np.testing.assert_allclose(ours.encode(audio=sounds()), want, atol=1e-5)


def test_the_fingerprint_is_of_network_output_and_rate(tmp_path):
    file = sound_onnx(tmp_path / "a.onnx")
    shutil.copy(file, tmp_path / "b.onnx")
    prints = [mmtune.load(f"onnx:{f}").fingerprint for f in (f"{file}?rate=100", f"{tmp_path / 'b.onnx'}?rate=100")]
    assert prints[0] == prints[1]
    others = [mmtune.load(f"onnx:{file}?{o}").fingerprint for o in ("rate=200", "rate=100&output=inner")]
    assert len({*prints, *others}) == 3


def test_images_are_cropped_normalised_and_averaged_over_the_map(tmp_path):
    noise = np.random.default_rng(0)
    picture = PIL.Image.fromarray(noise.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    ours = mmtune.load(f"onnx:{image_onnx(tmp_path / 'a.onnx')}?mean=0.5:0.4:0.3&std=0.2&size=20")
    pixels = (np.asarray(picture.crop((5, 0, 25, 20)), np.float32) / 255 - [0.5, 0.4, 0.3]) / 0.2
    want = unit(pixels.mean((0, 1)) @ MAPS[:, :, 0, 0].T)
    np.testing.assert_allclose(ours.encode(image=[picture, picture]), np.stack([want, want]), atol=1e-5)


def test_only_a_head_can_be_trained_on_them(tmp_path):
    spec = {"audio": f"onnx:{sound_onnx(tmp_path / 'a.onnx')}?rate=100", "text": "tiny:text"}
    with pytest.raises(RecipeError, match="tune.audio: lora: this tower is a frozen network file; use how: head or frozen"):
        tune(mmtune.load(spec), {"audio": "lora", "text": "full"}, ["audio", "text"])
    model = mmtune.load(spec)
    tuned = tune(model, {"audio": "head", "text": "frozen"}, ["audio", "text"])
    preprocess = model.towers["audio"].preprocess
    inputs = preprocess.collate([preprocess(Sound(*x)) for x in sounds()])
    model.encode_inputs("audio", inputs)[:, 0].sum().backward()
    assert model.heads["audio"].weight.grad.abs().sum() > 0
    tuned.close()


def test_what_cannot_be_used_is_one_line(tmp_path):
    sound, image = sound_onnx(tmp_path / "a.onnx"), image_onnx(tmp_path / "i.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    (tmp_path / "junk.tflite").write_bytes(b"junk")
    cases = {
        f"onnx:{sound}": "needs the rate",
        f"onnx:{sound}?rate=fast": "rate must be a positive number",
        f"onnx:{sound}?rate=100&output=nothing": "no tensor 'nothing'; the last ones are inner, scores",
        f"onnx:{image}": "needs the mean and std",
        f"onnx:{image}?mean=0.5&std=0.5": "leaves the size of the image open",
        f"onnx:{tmp_path / 'junk.onnx'}": "not an ONNX network|cannot open",
        f"tflite:{tmp_path / 'junk.tflite'}": "not a TFLite network",
        "tflite:/no/such.tflite": "no such file",
        f"tflite:{sound_tflite(tmp_path / 't.tflite')}?rate=100&output=nothing": "no tensor 'nothing'; similar: .*; the last ones: [^,]+",
    }
    for spec, message in cases.items():
        with pytest.raises(ModelError, match=message) as e:
            mmtune.load(spec)
        assert "\n" not in str(e.value)
