"""Every family of encoders of waveforms in transformers: vectors equal upstream's for each sound alone, whatever shares its batch."""

import numpy as np
import pytest
import torch
import transformers

import mmtune
from mmtune.backbones.hf_audio_encoder import WaveformPreprocess, _mask_keeps_padding_out
from mmtune.backbones.hf_single_types import SOUND_MODELS
from mmtune.modalities.sound import Sound
from tests.backbones.test_hf_single import survives_saving, unit
from tests.support.single_checkpoints import COMMON_SOUNDS, SOUNDS, extractor_of, slow_unless, small


def sounds() -> list[Sound]:
    noise = np.random.default_rng(1)
    return [Sound(noise.standard_normal(n).astype(np.float32) * 0.1, 16000) for n in (4000, 1500, 2925, 1500, 6111)]


def upstream(model, extractor, samples: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and maximum of transformers' frames for each sound alone.

    Wav2Vec2-BERT stacks two frames of 10 ms; the extractor marks an odd last one, stacked with zeros, as padding. The model's
    attention does not see it, but its adapter's convolution would: it is cut off before that.
    """
    means, largest = [], []
    with torch.no_grad():
        for x in samples:
            inputs = extractor(x, sampling_rate=16000, return_tensors="pt")
            if "input_values" in inputs:
                hidden = model(input_values=inputs["input_values"])[0][0]
            elif model.config.add_adapter:
                hidden = model(inputs["input_features"][inputs["attention_mask"].bool()][None])[0][0]
            else:
                hidden = model(**inputs)[0][0][inputs["attention_mask"][0].bool()]
            means.append(hidden.mean(0))
            largest.append(hidden.amax(0))
    return torch.stack(means), torch.stack(largest)


def test_every_supported_sound_encoder_has_a_test():
    elsewhere = {"audio-spectrogram-transformer", "whisper"}  # in test_hf_single
    tested = {getattr(transformers, f"{cls}Config").model_type for cls, _ in SOUNDS.values()}
    assert tested | elsewhere == set(SOUND_MODELS)


@pytest.mark.parametrize("kind", slow_unless(SOUNDS, COMMON_SOUNDS))
def test_waveform_encoders_equal_transformers_for_each_sound_alone(tmp_path, kind):
    cls, config = SOUNDS[kind]
    model, extractor = small(cls, config, tmp_path / "m"), extractor_of(kind)
    extractor.save_pretrained(tmp_path / "m")
    want, largest = upstream(model, extractor, [s.samples for s in sounds()])
    ours = mmtune.load(f"hf:{tmp_path / 'm'}")
    assert ours.dim == want.shape[1]
    np.testing.assert_allclose(ours.encode(audio=sounds()), unit(want), atol=1e-5)
    np.testing.assert_allclose(np.stack([ours.encode(audio=s) for s in sounds()]), unit(want), atol=1e-5)
    maximum = mmtune.load(f"hf:{tmp_path / 'm'}?pooling=max")
    np.testing.assert_allclose(maximum.encode(audio=sounds()), unit(largest), atol=1e-5)
    assert np.isfinite(ours.encode(audio=Sound(np.ones(3, np.float32), 16000))).all()
    survives_saving(ours.eval(), tmp_path / "m", tmp_path / "artifact", audio=sounds())


@pytest.mark.parametrize("kind", slow_unless(SOUNDS, COMMON_SOUNDS))
def test_training_draws_from_no_global_generator(tmp_path, kind):
    """Without dropout a forward pass in training is the same each time: no masking of inputs, no skipped layers."""
    cls, config = SOUNDS[kind]
    off = {k: 0.0 for k in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")}
    off |= {"conformer_conv_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.5, "mask_time_prob": 0.5}
    small(cls, config | off, tmp_path / "m")
    extractor_of(kind).save_pretrained(tmp_path / "m")
    model = mmtune.load(f"hf:{tmp_path / 'm'}").train()
    preprocess = model.towers["audio"].preprocess
    inputs = preprocess.collate([preprocess(s) for s in sounds()])
    with torch.no_grad():
        outputs = [model.encode_inputs("audio", inputs) for _ in range(3)]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", slow_unless([k for k in SOUNDS if "adapter" not in k], COMMON_SOUNDS))
def test_only_masked_families_share_a_batch(tmp_path, kind):
    """Sounds share a batch exactly where transformers, given an attention mask, has the same frames as for a sound alone."""
    cls, config = SOUNDS[kind]
    model, extractor = small(cls, config, tmp_path), extractor_of(kind)
    samples = [s.samples for s in sounds()]
    inputs = extractor(samples, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="pt")
    name = "input_features" if "input_features" in inputs else "input_values"
    with torch.no_grad():
        batch = model(inputs[name], attention_mask=inputs["attention_mask"])[0]
        off = []
        for row, x in zip(batch, samples, strict=True):
            alone = extractor(x, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
            mask = {"attention_mask": alone["attention_mask"]} if name == "input_features" else {}
            hidden = model(alone[name], **mask)[0][0]
            count = int(alone["attention_mask"].sum()) if mask else len(hidden)
            off.append(float((row[:count] - hidden[:count]).abs().max()))
    assert (max(off) < 1e-5) == _mask_keeps_padding_out(model.config), max(off)


@pytest.mark.parametrize("normalise", [True, False])
def test_samples_are_normalised_as_the_extractor_says(tmp_path, normalise):
    small(*SOUNDS["wav2vec2-layer"], tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, sampling_rate=8000)
    extractor.save_pretrained(tmp_path)
    preprocess = mmtune.load(f"hf:{tmp_path}").towers["audio"].preprocess
    x = Sound(sounds()[0].samples + 0.3, 8000)
    want = extractor(x.samples, sampling_rate=8000, return_tensors="pt").input_values
    torch.testing.assert_close(preprocess(x)["input_values"], want, rtol=0, atol=1e-6)
    assert preprocess.rate == 8000 and (abs(float(want.mean())) < 1e-5) == normalise


TUNED = {"Wav2Vec2ForSequenceClassification": "wav2vec2-layer", "HubertForCTC": "hubert", "WavLMForXVector": "wavlm"}


@pytest.mark.parametrize("cls", TUNED)
def test_tuned_checkpoints_give_their_encoder(tmp_path, cls):
    """A recogniser, classifier or speaker model is loaded without its head."""
    torch.manual_seed(0)
    kind = TUNED[cls]
    config = getattr(transformers, f"{SOUNDS[kind][0]}Config")(**SOUNDS[kind][1])
    model = getattr(transformers, cls)(config).eval()
    model.save_pretrained(tmp_path)
    extractor = extractor_of(kind)
    extractor.save_pretrained(tmp_path)
    want, _ = upstream(model.base_model, extractor, [s.samples for s in sounds()])
    np.testing.assert_allclose(mmtune.load(f"hf:{tmp_path}").encode(audio=sounds()), unit(want), atol=1e-5)


@pytest.mark.parametrize("name", ["input_values", "input_features"])
def test_a_part_of_a_batch_is_cut_to_its_own_longest_window(name):
    extractor = {
        "input_values": transformers.Wav2Vec2FeatureExtractor,
        "input_features": transformers.SeamlessM4TFeatureExtractor,
    }
    preprocess = WaveformPreprocess(extractor[name](), 400, name)
    inputs = preprocess.collate([preprocess(s) for s in sounds()])
    lengths = preprocess.lengths(inputs)
    assert inputs[name].shape[1] == int(lengths.max()) > int(lengths[0])
    cut = preprocess.cut(inputs, int(lengths[0]))
    assert cut[name].shape[1] == int(lengths[0]) and torch.equal(cut["lengths"], lengths)
