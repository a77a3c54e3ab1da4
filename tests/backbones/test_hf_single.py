"""Single encoders of transformers: vectors equal upstream's on small random weights, whatever shares their batch."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.backbones.hf_single_types import VISION_TOWERS, modality_of
from mmtune.errors import ModelError
from mmtune.modalities.sound import Sound
from tests.support.single_checkpoints import (
    COMMON_IMAGES,
    IMAGES,
    PATCHES,
    SMALL,
    SOUNDS,
    decoder_folder,
    image_folder,
    slow_unless,
    small,
)


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x.detach().float(), dim=-1).numpy()


def pictures() -> list[PIL.Image.Image]:
    noise = np.random.default_rng(0)
    return [PIL.Image.fromarray(noise.integers(0, 256, s, dtype=np.uint8)) for s in ((40, 60, 3), (90, 33, 3), (32, 32, 3))]


def sounds() -> list[Sound]:
    noise = np.random.default_rng(1)
    return [Sound(noise.standard_normal(n).astype(np.float32) * 0.1, 16000) for n in (4000, 1500, 2900, 1500)]


def survives_saving(model: mmtune.Model, folder, artifact, **values) -> None:
    """The artifact holds all that is needed: vectors and fingerprint stay when the checkpoint is gone."""
    want = model.encode(**values)
    model.save(artifact)
    shutil.rmtree(folder)
    again = mmtune.load(str(artifact))
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode(**values), want)


def test_every_supported_image_encoder_has_a_test():
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    tested = {getattr(transformers, f"{cls}Config").model_type for cls, *_ in IMAGES.values()}
    assert tested == {*VISION_TOWERS, *(k for k in CLASSIFIERS if modality_of(k) == "image")}


@pytest.mark.parametrize("kind", slow_unless(IMAGES, COMMON_IMAGES))
def test_image_encoders_equal_transformers(tmp_path, kind):
    model, processor, pooling, prefix = image_folder(kind, tmp_path / "m")
    with torch.no_grad():
        output = model(**processor(images=pictures(), return_tensors="pt"))
    hidden = output.last_hidden_state
    grid = hidden.ndim == 4
    want = {
        "pooler": getattr(output, "pooler_output", None),
        "mean": hidden.mean((2, 3)) if grid else hidden[:, prefix:].mean(1),
    }
    if prefix:
        want["cls"] = output.cls_token_value[:, 0] if kind == "cvt" else hidden[:, 0]
    ours = mmtune.load(f"hf:{tmp_path / 'm'}?pooling={pooling}")
    np.testing.assert_allclose(ours.encode(image=pictures()), unit(want[pooling].flatten(1)), atol=1e-5)
    alone = np.stack([ours.encode(image=p) for p in pictures()])
    np.testing.assert_allclose(alone, ours.encode(image=pictures()), atol=2e-6)
    thin = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 400, 3), dtype=np.uint8))
    upstream, cropped = processor(images=thin, return_tensors="pt"), ours.towers["image"].preprocess(thin)
    torch.testing.assert_close(cropped["pixel_values"], upstream["pixel_values"][0], atol=0.05, rtol=0)
    default = mmtune.load(f"hf:{tmp_path / 'm'}")
    first = "pooler" if want["pooler"] is not None else "cls" if prefix else "mean"
    np.testing.assert_allclose(default.encode(image=pictures()), unit(want[first].flatten(1)), atol=1e-5)
    assert (default.fingerprint == ours.fingerprint) == (first == pooling)
    survives_saving(ours, tmp_path / "m", tmp_path / "artifact", image=pictures())


def test_levit_keeps_no_attention_biases_of_other_weights(tmp_path):
    """transformers stores them at the first evaluation, and would not notice that other weights are loaded."""
    image_folder("levit", tmp_path)
    model = mmtune.load(f"hf:{tmp_path}")
    before = model.encode(image=pictures())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "attention_biases" in name:
                p += torch.linspace(0, 30, p.numel()).view_as(p)
    assert np.abs(model.encode(image=pictures()) - before).max() > 1e-4


def test_dinov3_moves_no_positions_in_training(tmp_path):
    image_folder("dinov3_vit", tmp_path)
    model = mmtune.load(f"hf:{tmp_path}")
    preprocess = model.towers["image"].preprocess
    inputs = preprocess.collate([preprocess(p) for p in pictures()])
    with torch.no_grad():
        want = model.encode_inputs("image", inputs)
        torch.testing.assert_close(model.train().encode_inputs("image", inputs), want, atol=1e-6, rtol=0)


def test_images_of_varying_size_are_refused(tmp_path):
    from transformers import CLIPImageProcessor

    image_folder("vit", tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot share a batch; set size to .height, width., or do_center_crop") as e:
        mmtune.load(f"hf:{tmp_path}")
    assert "\n" not in str(e.value)


def test_an_image_classifier_has_no_trained_pooler(tmp_path):
    """transformers fills the missing layer with random weights; the class token is what the classifier was trained on."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**PATCHES)).eval()
    model.save_pretrained(tmp_path / "m")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "m")
    ours = mmtune.load(f"hf:{tmp_path / 'm'}")
    with torch.no_grad():
        want = model.vit(**processor(images=pictures(), return_tensors="pt")).last_hidden_state[:, 0]
    np.testing.assert_allclose(ours.encode(image=pictures()), unit(want), atol=1e-5)
    assert ours.fingerprint == mmtune.load(f"hf:{tmp_path / 'm'}").fingerprint
    with pytest.raises(ModelError, match="this model has cls, mean"):
        mmtune.load(f"hf:{tmp_path / 'm'}?pooling=pooler")
    survives_saving(ours, tmp_path / "m", tmp_path / "artifact", image=pictures())


def test_long_waveforms_are_the_mean_of_windows_that_cover_them(tmp_path, monkeypatch):
    from transformers import Wav2Vec2FeatureExtractor

    from mmtune.backbones import hf_audio_encoder

    monkeypatch.setattr(hf_audio_encoder, "WINDOW_SECONDS", 1)
    small("Hubert", SOUNDS["hubert"][1], tmp_path / "m")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "m")
    ours = mmtune.load(f"hf:{tmp_path / 'm'}")
    x = np.random.default_rng(2).standard_normal(40000).astype(np.float32)
    windows = ours.encode(audio=[(x[s : s + 16000], 16000) for s in (0, 12000, 24000)])
    want = windows.mean(0) / np.linalg.norm(windows.mean(0))
    np.testing.assert_allclose(ours.encode(audio=[(x, 16000), sounds()[0]])[0], want, atol=1e-6)


def test_ast_equals_transformers(tmp_path):
    from transformers import ASTFeatureExtractor

    model = small("AST", SMALL | {"patch_size": 4, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 4}, tmp_path / "m")
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=24)
    extractor.save_pretrained(tmp_path / "m")
    with torch.no_grad():
        output = model(**extractor([s.samples for s in sounds()], sampling_rate=16000, return_tensors="pt"))
    hidden = output.last_hidden_state
    for pooling, want in {"pooler": output.pooler_output, "cls": hidden[:, 0], "mean": hidden[:, 2:].mean(1)}.items():
        ours = mmtune.load(f"hf:{tmp_path / 'm'}?pooling={pooling}")
        np.testing.assert_allclose(ours.encode(audio=sounds()[1:]), unit(want)[1:], atol=1e-5)
    window = ours.towers["audio"].preprocess.window
    assert window == 24 * 160 + 240  # 24 frames of 25 ms, each 10 ms after the last
    survives_saving(ours, tmp_path / "m", tmp_path / "artifact", audio=sounds())


def test_whisper_encoder_equals_transformers_without_the_padding(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_layers": 1}
    config |= {"decoder_attention_heads": 2, "decoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 50}
    config |= {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**config)).eval()
    model.save_pretrained(tmp_path / "m")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    extractor.save_pretrained(tmp_path / "m")
    with torch.no_grad():
        hidden = model.encoder(
            extractor([s.samples for s in sounds()], sampling_rate=16000, return_tensors="pt").input_features
        )[0]
    frames = [-(-len(s.samples) // 320) for s in sounds()]
    want = torch.stack([h[:n].mean(0) for h, n in zip(hidden, frames, strict=True)])
    ours = mmtune.load(f"hf:{tmp_path / 'm'}")
    np.testing.assert_allclose(ours.encode(audio=sounds()), unit(want), atol=1e-5)
    assert not any("decoder" in n for n, _ in ours.named_parameters())
    survives_saving(ours, tmp_path / "m", tmp_path / "artifact", audio=sounds())


WORDS = ["a red bag with a stitch", "blue", "a photo of a green dog", "red red red red red red red red red red red red"]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("cls", ["Qwen3", "Mistral", "Llama"])
def test_decoders_are_pooled_at_their_last_token(tmp_path, cls, padding):
    model, tokenizer = decoder_folder(tmp_path / "m", cls, padding)
    tokens = tokenizer(WORDS, padding=True, return_tensors="pt")
    assert (tokens["input_ids"] == 1).sum(1).tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    last = -1 if padding == "left" else tokens["attention_mask"].sum(1) - 1
    want = unit(hidden[torch.arange(4), last])
    ours = mmtune.load(f"hf:{tmp_path / 'm'}")
    assert ours.towers["text"].preprocess.tokenizer.padding_side == padding
    np.testing.assert_allclose(ours.encode(text=WORDS), want, atol=1e-5)
    np.testing.assert_allclose(np.stack([ours.encode(text=w) for w in WORDS]), want, atol=1e-5)
    survives_saving(ours, tmp_path / "m", tmp_path / "artifact", text=WORDS)


def test_instructions_of_an_embedding_decoder_are_prompts(tmp_path):
    """The layout of Qwen3-Embedding: modules.json with last-token pooling, and an instruction for queries."""
    from sentence_transformers import SentenceTransformer

    decoder_folder(tmp_path / "m")
    entries = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in entries]
    for entry, (number, (path, _)) in zip(types, enumerate(entries), strict=True):
        entry.update(idx=number, name=str(number))
        (tmp_path / "m" / path).mkdir(exist_ok=True)
    (tmp_path / "m" / "modules.json").write_text(json.dumps(types))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": "photo of ", "document": ""}, "default_prompt_name": None}
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    theirs, ours = SentenceTransformer(str(tmp_path / "m"), device="cpu"), mmtune.load(f"hf:{tmp_path / 'm'}")
    np.testing.assert_allclose(
        ours.encode(text=WORDS, role="query"), theirs.encode_query(WORDS, normalize_embeddings=True), atol=1e-5
    )
    np.testing.assert_allclose(ours.encode(text=WORDS), theirs.encode_document(WORDS, normalize_embeddings=True), atol=1e-5)


@pytest.mark.parametrize("kind, message", [("encodec", "'encodec'.*not supported"), ("sam", "'sam'.*not supported")])
def test_other_architectures_are_refused_by_name(tmp_path, kind, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": ["X"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=message) as e:
        mmtune.load(f"hf:{tmp_path}")
    assert "\n" not in str(e.value)
