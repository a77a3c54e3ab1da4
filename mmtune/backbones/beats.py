"""Load sound encoders of the BEATs family (arXiv 2212.09058): `beats:FILE`.

FILE is a checkpoint as Microsoft publishes them (github.com/microsoft/unilm, directory beats): a .pt file with "cfg" and "model",
pretrained or fine-tuned; the classifier of a fine-tuned one is left out. The layers are those of speechbrain. Option: `?pooling=`
mean (default) or max of the patches. Longer sounds than WINDOW_SECONDS are cut into windows, whose embeddings are averaged.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.sound_windows import VariableWindows, encode_by_length
from mmtune.backbones.token_pooling import pool_all
from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, ModelError, first_line

CONFIG = "beats.json"
POOLINGS = ("mean", "max")
RATE = 16000
WINDOW_SECONDS = 10
"""Length of the sounds that the published checkpoints were trained on."""
BINS = 128
"""Mel bins of a frame."""
MEAN, DEVIATION = 15.41663, 6.55582
"""Of the mel bins of AudioSet, by which they are normalised to (x - MEAN) / (2 * DEVIATION)."""


class FbankPreprocess(VariableWindows):
    """Turn one sound into {"fbank": [windows, frames, 128]}: Kaldi's log-mel filter banks, frames of 25 ms each 10 ms, normalised."""

    def __init__(self, patch: int):
        """patch: frames of one patch; a sound that is shorter than them is padded with zeros"""
        super().__init__("fbank", RATE, WINDOW_SECONDS * RATE)
        self.shortest = RATE * (25 + 10 * (patch - 1)) // 1000

    def _prepared(self, samples: np.ndarray) -> Tensor:
        from torchaudio.compliance.kaldi import fbank

        padded = np.pad(samples, (0, max(0, self.shortest - len(samples)))).astype(np.float32)
        frames = fbank(torch.from_numpy(padded)[None] * 2**15, num_mel_bins=BINS, sample_frequency=RATE)
        return (frames - MEAN) / (2 * DEVIATION)


def _answer_for_missing_files() -> None:
    """Give the redirects that speechbrain puts into sys.modules a `__file__`.

    Asked for one, they import what they redirect to, which raises ImportError where that is not installed (k2, spacy, ...): every
    library that looks through sys.modules for files failed after speechbrain was imported.
    """
    from speechbrain.utils.importutils import LazyModule

    for module in [m for m in list(sys.modules.values()) if isinstance(m, LazyModule)]:
        vars(module).setdefault("__file__", None)


class _Network(nn.Module):
    """BEATs from filter banks [B, frames, 128] to patches [B, patches, C], without classifier; weights are named as in the checkpoints."""

    def __init__(self, settings: JsonObject):
        super().__init__()
        from speechbrain.lobes.models.beats import BEATsConfig, TransformerEncoder

        _answer_for_missing_files()
        config: Untyped = BEATsConfig(settings)
        config.encoder_layerdrop = 0.0  # would draw from numpy's global generator
        width, patch = config.encoder_embed_dim, config.input_patch_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else nn.Identity()
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.encoder = TransformerEncoder(config)
        self.width, self.patch = int(width), int(patch)

    def forward(self, fbank: Tensor) -> Tensor:
        patches = self.layer_norm(self.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2))
        hidden: Tensor = self.encoder(self.dropout_input(self.post_extract_proj(patches)))[0]
        return hidden


def load(checkpoint: str) -> Backbone:
    """Load a checkpoint with its weights.

    Raises ModelError if the file is missing, damaged, would have to run code, or is no encoder of this family; MissingExtra without
    speechbrain.
    """
    path, options = split_options("beats", checkpoint, ["pooling"])
    pooling = options.get("pooling", POOLINGS[0])
    if pooling not in POOLINGS:
        raise ModelError(f"beats:{checkpoint}: pooling {pooling!r}: this model has {', '.join(POOLINGS)}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"beats:{path}: no such file; it is a .pt checkpoint of github.com/microsoft/unilm, directory beats")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # zip and the restricted unpickler of torch raise unrelated exception types
        raise ModelError(
            f"beats:{path}: the file cannot be read without running its code, or is damaged ({type(e).__name__})"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("cfg"), dict) or not isinstance(content.get("model"), dict):
        raise ModelError(f'beats:{path}: this is no BEATs checkpoint: it has no "cfg" and "model"')
    try:
        config = json.dumps({"cfg": content["cfg"], "pooling": pooling}, indent=2, sort_keys=True) + "\n"
        backbone = _backbone(config)
        state = {k: v for k, v in content["model"].items() if not k.startswith("predictor.")}
        wrong = backbone.module.load_state_dict(state, strict=False)
    except (TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as e:
        raise ModelError(f"beats:{path}: its weights are not those that its settings describe: {first_line(e)}") from None
    if names := [*wrong.missing_keys, *wrong.unexpected_keys]:
        raise ModelError(
            f"beats:{path}: this is no encoder of the BEATs family: {len(names)} weights differ, first {names[0]!r}"
        )
    return backbone


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    return _backbone((directory / CONFIG).read_text())


def _backbone(config: str) -> Backbone:
    document = json.loads(config)
    pooling = document["pooling"]
    try:
        network = _Network(document["cfg"]).eval()
        preprocess = FbankPreprocess(network.patch)
    except ImportError as e:
        raise MissingExtra(f'beats: {e.name} is missing: pip install "mmtune[beats]"') from None

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        return encode_by_length(lambda fbank: pool_all(network(fbank), pooling), inputs["fbank"], inputs["lengths"])

    tower = Tower("audio", network.width, preprocess, encode, [network])
    files = {CONFIG: config.encode()}
    return Backbone("beats", network, {"audio": tower}, [], files, use_cpu_kernels=True, info={"pooling": pooling})
