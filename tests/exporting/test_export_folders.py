"""Folders for transformers, open_clip and sentence-transformers: the real library gives the model's vectors, and mmtune reads them back."""

import json

import numpy as np
import pytest
import torch

import mmtune
from mmtune import modalities
from mmtune.errors import ModelError, RecipeError
from mmtune.exporting.export_result import ExportResult
from mmtune.model.heads import HeadKind
from tests.support import checkpoints, dual_checkpoints, single_checkpoints

TEXTS = modalities.get("text").examples()
PICTURES = modalities.get("image").examples()
SOUNDS = modalities.get("audio").examples()
DUAL = ["clip", "siglip", "clap"]


def checkpoint(kind, tmp_path):
    build = getattr(checkpoints, kind, None) or getattr(dual_checkpoints, kind)
    return f"hf:{build(tmp_path / kind)}"


def tuned(spec, tmp_path, seed=0):
    """The checkpoint with changed weights, as training leaves it, saved as an artifact."""
    model = mmtune.load(spec, "cpu", cpu_kernels="off")
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    model.invalidate_fingerprint()
    model.save(tmp_path / "artifact")
    return mmtune.load(tmp_path / "artifact", "cpu", cpu_kernels="off")


def signals(name):
    return modalities.get(name).examples()


def normalised(x):
    return torch.nn.functional.normalize(x, dim=-1).numpy()


@pytest.mark.parametrize("kind", DUAL)
def test_transformers_gives_the_vectors_and_mmtune_reads_them_back(kind, tmp_path):
    from transformers import AutoModel

    model = tuned(checkpoint(kind, tmp_path), tmp_path)
    done = mmtune.export(tmp_path / "artifact", tmp_path / "out", to="hf")
    assert set(done.towers) == set(model.towers) and not done.left_out and max(done.difference.values()) <= 1e-5
    assert done.same_fingerprint
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == torch.float32
    for m, tower in model.towers.items():
        inputs = tower.preprocess.collate([tower.preprocess(s) for s in signals(m)])
        with torch.no_grad():
            vectors = normalised(getattr(theirs, f"get_{m}_features")(**inputs).pooler_output)
        np.testing.assert_allclose(vectors, model.encode(**{m: signals(m)}), atol=1e-5)
    back = mmtune.load(f"hf:{tmp_path / 'out'}", "cpu", cpu_kernels="off")
    assert back.fingerprint == model.fingerprint
    np.testing.assert_allclose(back.encode(text=TEXTS), model.encode(text=TEXTS), atol=1e-5)


def test_transformers_own_processor_is_in_the_folder(tmp_path):
    from transformers import AutoModel, AutoProcessor

    model = tuned(checkpoint("clip", tmp_path), tmp_path)
    mmtune.export(model, tmp_path / "out", to="hf")
    processor, theirs = (x.from_pretrained(tmp_path / "out") for x in (AutoProcessor, AutoModel))
    inputs = processor(text=TEXTS, images=PICTURES, return_tensors="pt", padding=True, truncation=True, max_length=24)
    with torch.no_grad():
        out = theirs.eval()(**inputs)
    np.testing.assert_allclose(normalised(out.image_embeds), model.encode(image=PICTURES), atol=1e-5)
    np.testing.assert_allclose(normalised(out.text_embeds), model.encode(text=TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", ["align", "blip", "flava", "owlv2"])
def test_dual_encoders_whose_modules_mmtune_changes_are_read_back(kind, tmp_path):
    done = mmtune.export(checkpoint(kind, tmp_path), tmp_path / "out", to="hf")
    assert len(done.difference) == 2 and max(done.difference.values()) <= 1e-5 and done.same_fingerprint


@pytest.mark.parametrize("kind", DUAL)
def test_sentence_transformers_gives_the_vectors(kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = tuned(checkpoint(kind, tmp_path), tmp_path)
    done = mmtune.export(tmp_path / "artifact", tmp_path / "out", to="sentence-transformers")
    assert done.same_fingerprint and not done.left_out
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for m in model.towers:
        given = signals(m)
        if m == "audio":
            given = [{"array": s.resampled(8000).samples, "sampling_rate": 8000} for s in given]
        np.testing.assert_allclose(theirs.encode(given), model.encode(**{m: signals(m)}), atol=1e-5)


def test_sentence_transformers_gets_prompts_and_a_shorter_dimension(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = tuned(f"hf:{checkpoints.text_encoder(tmp_path / 'bert', 'mean')}", tmp_path)
    model = model.with_prompts({"text": {"default": ["passage: {}"], "query": ["query: {}"]}})
    done = mmtune.export(model.truncated(12), tmp_path / "out", to="sentence-transformers")
    assert max(done.difference.values()) <= 1e-5 and done.same_fingerprint is False
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(theirs.encode_document(TEXTS), model.truncated(12).encode(text=TEXTS), atol=1e-5)
    np.testing.assert_allclose(theirs.encode(TEXTS), model.truncated(12).encode(text=TEXTS), atol=1e-5)
    queries = model.truncated(12).encode(text=TEXTS, role="query")
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, atol=1e-5)
    back = mmtune.load(f"st:{tmp_path / 'out'}")
    np.testing.assert_allclose(back.encode(text=TEXTS, role="query"), queries, atol=1e-5)


def timm_tower(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    return f"timm:test_vit@{tmp_path / 'vit.safetensors'}"


def test_composed_towers_become_a_router(tmp_path):
    from sentence_transformers import SentenceTransformer

    bert = checkpoints.text_encoder(tmp_path / "bert", "mean")
    model = tuned({"image": timm_tower(tmp_path), "text": f"hf:{bert}"}, tmp_path)
    assert "image" in model.heads
    done = mmtune.export(model, tmp_path / "out", to="sentence-transformers")
    assert set(done.towers) == {"image", "text"} and any("does not read" in n for n in done.notes)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), model.encode(text=TEXTS), atol=1e-5)
    np.testing.assert_allclose(theirs.encode(PICTURES), model.encode(image=PICTURES), atol=1e-5)


def test_a_timm_tower_is_read_by_timm_transformers_and_mmtune(tmp_path):
    import timm
    from transformers import AutoModel

    model = tuned(timm_tower(tmp_path), tmp_path)
    done = mmtune.export(model, tmp_path / "out", to="hf")
    assert done.same_fingerprint
    pixels = torch.stack([model.towers["image"].preprocess(p)["image"] for p in PICTURES])
    with torch.no_grad():
        hugging = AutoModel.from_pretrained(tmp_path / "out").eval()(pixels).pooler_output
        own = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0).eval()(pixels)
    np.testing.assert_allclose(normalised(hugging), model.encode(image=PICTURES), atol=1e-5)
    np.testing.assert_allclose(normalised(own), model.encode(image=PICTURES), atol=1e-5)


def test_an_image_encoder_keeps_its_pooling(tmp_path):
    from sentence_transformers import SentenceTransformer

    single_checkpoints.image_folder("vit", tmp_path / "vit")
    model = tuned(f"hf:{tmp_path / 'vit'}?pooling=cls", tmp_path)
    assert mmtune.export(model, tmp_path / "hf", to="hf").same_fingerprint
    mmtune.export(model, tmp_path / "st", to="sentence-transformers")
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(PICTURES)
    np.testing.assert_allclose(theirs, model.encode(image=PICTURES), atol=1e-5)


def test_open_clip_gives_the_vectors(tmp_path):
    import open_clip

    model = tuned(f"open_clip:{checkpoints.open_clip_dir(tmp_path / 'oc')}", tmp_path)
    done = mmtune.export(tmp_path / "artifact", tmp_path / "out", to="open_clip")
    assert done.same_fingerprint and max(done.difference.values()) <= 1e-5
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    with torch.no_grad():
        texts = theirs.eval().encode_text(tokenize(TEXTS), normalize=True).numpy()
        pictures = theirs.encode_image(torch.stack([preprocess(p) for p in PICTURES]), normalize=True).numpy()
    np.testing.assert_allclose(texts, model.encode(text=TEXTS), atol=1e-5)
    np.testing.assert_allclose(pictures, model.encode(image=PICTURES), atol=1e-5)


def test_three_modalities_export_what_the_format_holds_and_say_what_not(tmp_path):
    spec = {
        "image": f"open_clip:{checkpoints.open_clip_dir(tmp_path / 'oc')}",
        "audio": checkpoint("clap", tmp_path),
        "text": f"hf:{checkpoints.text_encoder(tmp_path / 'bert', 'mean')}",
    }
    done = mmtune.export(spec, tmp_path / "out", to="hf")
    assert done.towers == {"text": "text"} and set(done.left_out) == {"image", "audio"}
    assert "open_clip" in done.left_out["image"] and "head" in done.left_out["audio"]
    assert "left out" in str(done) and (tmp_path / "out" / "text" / "config.json").is_file()
    assert json.loads((tmp_path / "out" / "mmtune_export.json").read_text())["left_out"] == done.left_out


def test_one_tower_of_clip_is_a_model_with_projection(tmp_path):
    from transformers import CLIPVisionModelWithProjection

    model = mmtune.load({"image": checkpoint("clip", tmp_path)}, cpu_kernels="off")
    mmtune.export(model, tmp_path / "out", to="hf")
    theirs = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out").eval()
    tower = model.towers["image"].preprocess
    with torch.no_grad():
        vectors = normalised(theirs(**tower.collate([tower(p) for p in PICTURES])).image_embeds)
    np.testing.assert_allclose(vectors, model.encode(image=PICTURES), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "to", "message"),
    [
        ("tiny:clip", "hf", "cannot hold towers of the family tiny"),
        ("tiny:clip", "open_clip", "cannot hold towers of the family tiny"),
        ("tiny:clip", "sentence-transformers", "no module for towers of the family tiny"),
        ("tiny:clip", "peft", "has no adapters"),
    ],
)
def test_a_format_that_holds_nothing_says_why(spec, to, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        mmtune.export(spec, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_an_mlp_head_is_named(tmp_path):
    model = mmtune.load(f"hf:{checkpoints.text_encoder(tmp_path / 'bert', 'mean')}")
    model.replace_head("text", HeadKind(bias=True, hidden=8))
    with pytest.raises(ModelError, match="its head is an MLP"):
        mmtune.export(model, tmp_path / "out", to="sentence-transformers")


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'onnx'"):
        mmtune.export("tiny:clip", tmp_path / "out", to="onx")
    with pytest.raises(RecipeError, match="has no 8-bit weights"):
        mmtune.export("tiny:clip", tmp_path / "out", to="torchscript", quantize="int8", data=[])
    with pytest.raises(RecipeError, match="needs --data"):
        mmtune.export("tiny:clip", tmp_path / "out", to="onnx", quantize="int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ModelError, match="notes.txt"):
        mmtune.export("tiny:clip", tmp_path / "mine", to="torchscript")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


class Numbers:
    """A format from outside: the first vectors of each tower as text."""

    quantizes, tolerance = False, 1e-5

    def write(self, model, directory, request):
        from mmtune.exporting import Written

        for m, values in request.signals.items():
            np.savetxt(directory / f"{m}.txt", model.encode(**{m: values}))
        return Written({m: f"{m}.txt" for m in request.signals})

    def reopen(self, model, directory, written):
        return None


def test_a_format_from_outside(tmp_path):
    from mmtune.exporting import format_table

    mmtune.register_export_format("numbers", Numbers)
    try:
        done = mmtune.export("tiny:clip", tmp_path / "out", to="numbers")
    finally:
        format_table.TABLE.pop("numbers")
    assert isinstance(done, ExportResult) and np.loadtxt(tmp_path / "out" / "text.txt").shape == (3, 64)
