"""Small untrained towers for the demo and the tests, e.g. `tiny:image+text`, `tiny:all`, `tiny:audio+text@7` (7 is the seed).

They implement the same backbone interface as hf and open_clip.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.backbones.mel_graph import LogMel
from mmtune.backbones.sound_windows import collate_windows, window_starts
from mmtune.contracts import Preprocess
from mmtune.errors import ModelError
from mmtune.modalities.sound import Sound

if TYPE_CHECKING:
    import PIL.Image

ALIASES = {"clip": "image+text", "clap": "audio+text", "all": "image+audio+text"}
DIM, WIDTH = 64, 32  # embedding dimension; channels of the first layer
SIDE = 64  # side of the input image, in pixels
RATE, WINDOW, MELS = 8000, 8000, 64  # samples a second; samples a window; mel bins
BUCKETS, TOKENS = 4096, 32  # token ids including padding (0); maximum number of tokens


class TinyConfig(TypedDict):
    """The content of tiny.json.

    towers: modalities of the towers
    seed: random seed of the weights
    dim: embedding dimension
    width: channels of the first layer
    """

    towers: list[str]
    seed: int
    dim: int
    width: int


def load(checkpoint: str) -> Backbone:
    """Create the towers of `NAME[@SEED]`, where NAME is clip, clap, all, or modalities joined by "+".

    Raises ModelError for another name or a seed that is not a number.
    """
    name, _, seed = checkpoint.partition("@")
    wanted = ALIASES.get(name, name).split("+")
    unknown = [w for w in wanted if w not in TOWERS]
    if unknown or (seed and not seed.isdigit()):
        raise ModelError(
            f"tiny:{checkpoint}: unknown; write tiny:clip, tiny:clap, tiny:all or tiny:image+text, optionally with @SEED"
        )
    return _backbone({"towers": wanted, "seed": int(seed or 0), "dim": DIM, "width": WIDTH})


def rebuild(directory: Path) -> Backbone:
    """Rebuild the backbone from its subdirectory of a saved artifact."""
    return _backbone(json.loads((directory / "tiny.json").read_text()))


def _backbone(config: TinyConfig) -> Backbone:
    module = nn.Module()
    with torch.random.fork_rng(devices=[]):
        for name in config["towers"]:
            # a different seed for each modality, which does not depend on the other towers
            torch.manual_seed(config["seed"] * 1000 + zlib.crc32(name.encode()) % 1000)
            module.add_module(name, TOWERS[name][0](config["width"], config["dim"]))
    log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))  # CLIP's initial logit scale
    module.register_parameter("log_scale", log_scale)
    towers = {n: Tower(n, config["dim"], TOWERS[n][1](), getattr(module, n), [getattr(module, n)]) for n in config["towers"]}
    if "text" in towers:
        towers["text"].token_mask = lambda inputs: inputs["ids"] != 0
    pairs = [f"{a}->{b}" for a in towers for b in towers if a != b]
    files = {"tiny.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}
    return Backbone(
        "tiny",
        module.eval(),
        towers,
        [LogitScale(log_scale, None, pairs)],
        files,
        lambda m: setattr(module, m, nn.Identity()),
        info={"untrained": True},
    )


class ConvBlock(nn.Module):
    """The residual block of ConvNeXt (arXiv 2201.03545), with a 5 x 5 depthwise convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(self.spatial(x)))


class ConvTower(nn.Module):
    """A small convolutional network for images and spectrograms: [U, C, H, W] -> [U, dim].

    The features are pooled over H and W by mean and by maximum; both results together go through a linear head.
    """

    def __init__(self, channels: int, width: int, dim: int):
        super().__init__()
        stages: list[nn.Module] = [
            nn.Conv2d(channels, width, 4, stride=4 if channels == 1 else 2, padding=1),
            nn.GroupNorm(1, width),
        ]
        for i in range(2):
            w = width * 2**i
            stages += [ConvBlock(w), nn.Conv2d(w, 2 * w, 2, stride=2), nn.GroupNorm(1, 2 * w)]
        self.body = nn.Sequential(*stages, ConvBlock(4 * width))
        self.head = nn.Sequential(nn.LayerNorm(8 * width), nn.Linear(8 * width, dim))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        x = self.body(inputs["planes"])  # "planes": the channels of an image, or the spectrogram as a single channel
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


class TextTower(nn.Module):
    """A text encoder: embeddings of hashed words, one transformer layer, mean pooling, a linear head."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.table = nn.Embedding(BUCKETS, 2 * width, padding_idx=0)
        # position embeddings; stored artifacts have this name
        self.place = nn.Parameter(torch.randn(TOKENS, 2 * width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(2 * width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, dim))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        ids_UT = inputs["ids"]
        pad = ids_UT == 0
        x = self.layer(self.table(ids_UT) + self.place[: ids_UT.shape[1]], src_key_padding_mask=pad)
        keep = (~pad).unsqueeze(-1).to(x.dtype)
        return self.head((x * keep).sum(1) / keep.sum(1).clamp(min=1))


class TinyImage:
    """Turn an RGB image into {"planes": [3, 64, 64]} with values from -1 to 1."""

    def __call__(self, signal: "PIL.Image.Image", rng: random.Random | None = None) -> dict[str, Tensor]:
        small = signal.resize((SIDE, SIDE), 2, reducing_gap=2.0) if signal.size != (SIDE, SIDE) else signal
        return {"planes": torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"planes": torch.stack([i["planes"] for i in items])}


class TinyAudio:
    """Turn a sound into log-mel spectrograms of one-second windows at 8 kHz.

    A longer sound gives several windows, whose embeddings the model averages; in training it gives one random window.
    """

    def __init__(self) -> None:
        edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2) / 2595) - 1)
        bins = np.linspace(0, RATE / 2, 257)
        rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
        self.mel_MF = torch.from_numpy(np.maximum(0, np.minimum(rise, fall)).astype(np.float32))

    def is_deterministic(self, signal: Sound) -> bool:
        """Whether preprocessing is deterministic in training (no random window), so that its result can be cached."""
        return signal.seconds * RATE <= WINDOW

    def __call__(self, signal: Sound, rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(RATE).samples
        samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
        starts = window_starts(len(samples), WINDOW, rng)
        x = torch.from_numpy(np.stack([samples[s : s + WINDOW] for s in starts]))
        power = torch.stft(x, 512, 128, window=torch.hann_window(512), return_complex=True).abs().square()
        return {"planes": (torch.log10((self.mel_MF @ power).clamp(min=1e-8)) / 4)[:, None]}

    def raw_inputs(self, signals: Sequence[Sound]) -> dict[str, Tensor]:
        """Return the samples of all windows of sounds, {"samples": [windows, WINDOW]}; the input of `feature_graph`."""
        sounds = [np.pad(x, (0, max(0, WINDOW - len(x)))) for x in (s.resampled(RATE).samples for s in signals)]
        windows = [x[start : start + WINDOW] for x in sounds for start in window_starts(len(x), WINDOW, None)]
        return {"samples": torch.from_numpy(np.stack(windows).astype(np.float32))}

    def feature_graph(self) -> nn.Module:
        """Return a module that computes the tower's inputs from the samples of windows."""
        return _TinyFeatures(LogMel(self.mel_MF.T, torch.hann_window(512), 128, floor=1e-8, scale=0.25, bins_first=True))

    @property
    def window_seconds(self) -> float:
        """Length of the tower's window (see `Preprocess`)."""
        return WINDOW / RATE

    def windows(self, item: dict[str, Tensor]) -> int:
        """Return the number of windows of a preprocessed item."""
        return len(item["planes"])

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return collate_windows(items)


class _TinyFeatures(nn.Module):
    """Samples [W, N] -> the input of the tower."""

    def __init__(self, mel: LogMel):
        super().__init__()
        self.mel = mel

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        return {"planes": self.mel(samples)}


class TinyText:
    """Turn a text into token ids: each lower-case word is hashed to an id from 1 to 4095; 0 is padding."""

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        words = re.findall(r"\w+", signal.lower())[:TOKENS] or ["?"]
        return {"ids": torch.tensor([1 + zlib.crc32(w.encode()) % (BUCKETS - 1) for w in words])}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"ids": nn.utils.rnn.pad_sequence([i["ids"] for i in items], batch_first=True)}

    def lengths(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Number of words of each row (see `Preprocess`)."""
        return (inputs["ids"] != 0).sum(1) if "ids" in inputs else None

    def cut(self, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        """The inputs without the positions after `length`."""
        return {k: v[:, :length] if k == "ids" else v for k, v in inputs.items()}


TOWERS: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[], Preprocess]]] = {
    "image": (lambda width, dim: ConvTower(3, width, dim), TinyImage),
    "audio": (lambda width, dim: ConvTower(1, width, dim), TinyAudio),
    "text": (TextTower, TinyText),
}
