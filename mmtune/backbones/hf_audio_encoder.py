"""Load single sound encoders of transformers: AST, Wav2Vec2, HuBERT, WavLM, Wav2Vec2-BERT and relatives, and the encoder of Whisper.

A vector depends neither on the other sounds of a batch nor on padding. Long sounds are cut into windows, whose embeddings the
model averages.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_source_files
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.backbones.sound_windows import VariableWindows, Windowed, collate_windows, encode_by_length, window_starts
from mmtune.backbones.token_pooling import pool, pool_all
from mmtune.errors import ModelError
from mmtune.modalities.sound import Sound

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WINDOW_SECONDS = 30
"""Longest window of models that take samples. Their attention costs the square of it."""
POOLINGS = ("pooler", "cls", "mean", "max")
SETTINGS = "pooling.json"


class WaveformPreprocess(VariableWindows):
    """Turn one sound into {NAME: [samples or frames]} or, if it is longer than WINDOW_SECONDS, into several windows.

    Each window goes through the checkpoint's feature extractor on its own: NAME is "input_values" for normalised samples [N], and
    "input_features" for the frames [T, C] of Wav2Vec2-BERT, without the frames that the extractor marks as padding.
    """

    def __init__(self, extractor: Untyped, shortest: int, name: str = "input_values"):
        """shortest: samples that give one frame; a shorter sound is padded with zeros"""
        rate = int(extractor.sampling_rate)
        super().__init__(name, rate, WINDOW_SECONDS * rate)
        self.extractor, self.shortest = extractor, shortest

    def _prepared(self, samples: np.ndarray) -> Tensor:
        missing = max(0, self.shortest - len(samples))
        if self.name == "input_values":
            values = self.extractor(samples, sampling_rate=self.rate, return_tensors="pt")[self.name][0].float()
            return torch.nn.functional.pad(values, (0, missing))
        padded = np.pad(samples, (0, missing))
        frames = self.extractor(padded, sampling_rate=self.rate, return_attention_mask=True, return_tensors="pt")
        return frames[self.name][0][frames["attention_mask"][0].bool()].float()


class SpectrogramPreprocess(Windowed):
    """Turn one sound into {NAME: [windows, ...]}, the spectrograms of its windows by the checkpoint's feature extractor.

    Every window is padded to the model's fixed length; "frames" [windows] is the number of the model's frames without padding.
    """

    def __init__(self, extractor: Untyped, kind: str):
        """kind: `model_type` of the checkpoint"""
        self.extractor, self.whisper = extractor, kind == "whisper"
        rate = int(extractor.sampling_rate)
        hop = int(extractor.hop_length) if self.whisper else rate // 100  # AST: frames of 25 ms each 10 ms
        self.hop = 2 * hop  # Whisper's second convolution halves the number of frames
        window = int(extractor.n_samples) if self.whisper else int(extractor.max_length) * hop + 15 * rate // 1000
        super().__init__("input_features" if self.whisper else "input_values", rate, window)

    def __call__(self, signal: Sound, rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(self.rate).samples
        samples = np.pad(samples, (0, max(0, self.rate // 40 - len(samples))))  # at least one frame
        parts = [samples[s : s + self.window] for s in window_starts(len(samples), self.window, rng)]
        features = [self.extractor(p, sampling_rate=self.rate, return_tensors="pt")[self.name][0] for p in parts]
        item = {self.name: torch.stack(features).float()}
        return item | {"frames": torch.tensor([-(-len(p) // self.hop) for p in parts])} if self.whisper else item

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return collate_windows(items)


def load_audio_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool, pooling: str | None = None) -> Backbone:
    """Build a sound encoder from a transformers model and its feature extractor.

    directory: the checkpoint
    config: its configuration
    load_weights: False means to build the architecture only, with uninitialised weights
    pooling: "mean" or "max" of the frames without padding, for AST also "pooler" (the mean of its two class tokens) and "cls";
        None means that of the checkpoint's files, without them "pooler" for AST, else "mean"

    Raises ModelError if the model does not have that pooling.
    """
    from transformers import AutoFeatureExtractor

    kind = config.model_type
    stored = json.loads((directory / SETTINGS).read_text()) if (directory / SETTINGS).is_file() else {}
    modes = POOLINGS if kind == "audio-spectrogram-transformer" else POOLINGS[2:]
    mode = pooling or stored.get("pooling") or modes[0]
    if mode not in modes:
        raise ModelError(f"hf:{directory}: pooling {mode!r}: this model has {', '.join(modes)}")
    extractor = AutoFeatureExtractor.from_pretrained(directory, trust_remote_code=False)
    module = _module(directory, config, load_weights)
    preprocess: SpectrogramPreprocess | WaveformPreprocess
    if kind in ("whisper", "audio-spectrogram-transformer"):
        preprocess = SpectrogramPreprocess(extractor, kind)
    elif kind == "wav2vec2-bert":
        preprocess = WaveformPreprocess(extractor, _samples_of_two_frames(extractor), "input_features")
    else:
        preprocess = WaveformPreprocess(extractor, _receptive_field(config))
    files = read_source_files(directory) | {SETTINGS: (json.dumps({"pooling": mode}) + "\n").encode()}
    adapted = getattr(config, "add_adapter", False)
    dim = int(config.output_hidden_size if adapted else config.hidden_size)
    encode = {"whisper": _encode_whisper, "audio-spectrogram-transformer": _encode_ast}.get(kind, _encode_waveform)
    return Backbone(
        "hf",
        module,
        {"audio": Tower("audio", dim, preprocess, lambda inputs: encode(module, inputs, mode), [module])},
        [],
        files,
        select_attention=attention_setter(module),
        use_cpu_kernels=True,
        info={"pooling": mode},
    )


def _module(directory: Path, config: "PretrainedConfig", load_weights: bool) -> Untyped:
    """Build the module. Masking and skipped layers in training are switched off: they would draw from global random generators."""
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    cls: Untyped = transformers.AutoModel
    if config.model_type == "whisper":
        cls = transformers.WhisperModel if load_weights else WhisperEncoder
    # an audio classifier made of Whisper is saved without a decoder
    module: Untyped = build(
        cls, directory, config, load_weights, unused=("decoder",) if cls is transformers.WhisperModel else ()
    )
    if isinstance(module, transformers.WhisperModel):
        module = module.encoder
    if config.model_type == "wavlm":
        from mmtune.backbones.hf_wavlm_attention import use_linear_layers

        use_linear_layers(module)
    module.config.apply_spec_augment = False
    module.config.layerdrop = 0.0
    for part in module.modules():
        if hasattr(part, "layerdrop"):
            part.layerdrop = 0.0
    return module


def _receptive_field(config: Untyped) -> int:
    """Return the number of samples that give one frame of output: for SEW, which pools its frames, `squeeze_factor` frames."""
    length = int(getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        length = (length - 1) * int(stride) + int(kernel)
    return length


def _samples_of_two_frames(extractor: Untyped) -> int:
    """Return the number of samples that give `stride` frames of 25 ms each 10 ms, which SeamlessM4T's extractor stacks."""
    return extractor.sampling_rate * (25 + 10 * (max(2, int(extractor.stride)) - 1)) // 1000


def _encode_ast(module: Untyped, inputs: dict[str, Tensor], mode: str) -> Tensor:
    output = module(input_values=inputs["input_values"])
    if mode == "pooler":
        return output.pooler_output
    hidden = output.last_hidden_state
    if mode == "cls":
        return hidden[:, 0]
    patches = hidden[:, 2:]  # after the class and the distillation token
    return pool_all(patches, mode)


def _encode_whisper(module: Untyped, inputs: dict[str, Tensor], mode: str) -> Tensor:
    hidden = module(input_features=inputs["input_features"]).last_hidden_state
    frames = torch.arange(hidden.shape[1], device=hidden.device)
    return pool(hidden, (frames < inputs["frames"][:, None]).to(hidden.dtype), [mode])


def _encode_waveform(module: Untyped, inputs: dict[str, Tensor], mode: str) -> Tensor:
    """Encode sounds of several lengths. Where a mask keeps padding out of all layers, they are one batch; elsewhere each length
    is encoded on its own."""
    name = "input_features" if "input_features" in inputs else "input_values"
    values, lengths = inputs[name], inputs["lengths"]
    if not _mask_keeps_padding_out(module.config):
        return encode_by_length(lambda x: pool_all(module(**{name: x}).last_hidden_state, mode), values, lengths)
    mask = (torch.arange(values.shape[1], device=values.device) < lengths[:, None]).long()
    hidden = module(**{name: values}, attention_mask=mask).last_hidden_state
    frames = mask if name == "input_features" else module._get_feature_vector_attention_mask(hidden.shape[1], mask)
    return pool(hidden, frames.to(hidden.dtype), [mode])


def _mask_keeps_padding_out(config: Untyped) -> bool:
    """Whether an attention mask makes the embedding of a padded sound that of the sound alone.

    It does not where padding changes the statistics of a group normalisation in the first convolutions (wav2vec2-base, HuBERT
    base, ...), nor in the convolutions of data2vec, Wav2Vec2-Conformer and SEW, of an adapter (`add_adapter`), and of a batch
    normalisation before the positions (`conv_pos_batch_norm`), which transformers does not mask.
    """
    if getattr(config, "add_adapter", False) or getattr(config, "conv_pos_batch_norm", False):
        return False
    masked = config.model_type in ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
    return config.model_type == "wav2vec2-bert" or masked and config.feat_extract_norm == "layer"
