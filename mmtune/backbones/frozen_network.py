"""Towers from network files that another runtime executes (TFLite, ONNX): features only, without gradients.

The input decides the modality: one that takes samples, [N], [1, N] or [1, 1, N], is a sound encoder, and one that takes RGB
pixels, [1, 3, H, W] or [1, H, W, 3], an image encoder. Options in the MODEL string, `FAMILY:FILE?name=value&name=value`:

    output=NAME            the tensor that is the embedding; a feature map is averaged over its positions; default: the output
    rate=16000             samples a second (required for sounds)
    window=0.975           seconds of a window, if the file leaves the number of samples open
    mean=0.5, std=0.5      subtracted from, and divided into, pixels from 0 to 1; or three numbers a:b:c (required for images)
    size=224               side of the image, if the file leaves it open
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import PIL.Image as PILImage
import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size
from mmtune.backbones.sound_windows import collate_windows, window_starts
from mmtune.contracts import JsonObject, Preprocess
from mmtune.errors import ModelError, first_line

if TYPE_CHECKING:
    from mmtune.modalities.sound import Sound

CONFIG = "frozen.json"
OPTIONS = ("output", "rate", "window", "mean", "std", "size")


class Runner(Protocol):
    """Executes the network of a file.

    input_shape: dimensions of its input; None for one that the file leaves open
    """

    input_shape: list[int | None]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network on one batch of the shape `input_shape`."""
        ...


class FrozenNetwork(nn.Module):
    """A network without parameters of torch. Its output is averaged over the positions of a feature map."""

    def __init__(self, runner: Runner, shape: Sequence[int], channels_first: bool):
        """shape: the input's shape, whose first dimension is the batch unless it has one dimension only"""
        super().__init__()
        self.runner, self.shape, self.channels_first = runner, list(shape), channels_first
        self.batched = runner.input_shape[0] is None and len(shape) > 1

    def forward(self, x: Tensor) -> Tensor:
        """Encode [W, ...] -> [W, dim]."""
        rows = x.detach().float().cpu().numpy()
        if self.batched:
            out = self._features(self.runner.run(rows.reshape(-1, *self.shape[1:])), len(rows))
        else:
            out = np.concatenate([self._features(self.runner.run(row.reshape(self.shape)), 1) for row in rows])
        return torch.from_numpy(out).to(x.device)

    def _features(self, out: np.ndarray, rows: int) -> np.ndarray:
        """Average an output over its positions: [rows, dim]. Several vectors for each row, such as frames of a sound, are averaged too."""
        out = np.asarray(out, np.float32)
        if out.ndim == 1:
            return out[None]
        if out.ndim == 4:
            out = out.mean((2, 3) if self.channels_first else (1, 2))
        elif out.ndim == 3:
            out = out.mean(1)
        return out if len(out) == rows else out.reshape(rows, -1, out.shape[-1]).mean(1)


class FrozenSoundPreprocess:
    """Turn one sound into windows {"x": [windows, samples]}; a sound shorter than a window is padded with zeros."""

    def __init__(self, rate: int, window: int):
        self.rate, self.window = rate, window

    def is_deterministic(self, signal: "Sound") -> bool:
        """Whether preprocessing is deterministic in training: not for a sound with several windows."""
        return signal.seconds * self.rate <= self.window

    def __call__(self, signal: "Sound", rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(self.rate).samples
        starts = window_starts(len(samples), self.window, rng)
        samples = np.pad(samples, (0, max(0, self.window - len(samples))))
        return {"x": torch.from_numpy(np.stack([samples[s : s + self.window] for s in starts]))}

    @property
    def window_seconds(self) -> float:
        """Length of the tower's window (see `Preprocess`)."""
        return self.window / self.rate

    def windows(self, item: dict[str, Tensor]) -> int:
        """Return the number of windows of a preprocessed item."""
        return len(item["x"])

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return collate_windows(items)


class FrozenImagePreprocess:
    """Turn one RGB image into {"x": pixels}: shorter side resized (bilinear), centre crop, normalised."""

    def __init__(self, height: int, width: int, channels_first: bool, mean: Sequence[float], std: Sequence[float]):
        self.height, self.width, self.channels_first = height, width, channels_first
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.input_size = float(max(height, width))

    def __call__(self, signal: PILImage.Image, rng: random.Random | None = None) -> dict[str, Tensor]:
        edge = max(self.height, self.width)
        size = shortest_edge_size(*signal.size, edge)
        crop = (self.width, self.height)
        image = centre_crop_of_resized(signal, size, crop, PILImage.Resampling.BILINEAR)
        if image is None:
            left, top = round((size[0] - self.width) / 2), round((size[1] - self.height) / 2)
            image = signal.resize(size, PILImage.Resampling.BILINEAR).crop((left, top, left + self.width, top + self.height))
        pixels = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        return {"x": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.channels_first else pixels))}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.stack([i["x"] for i in items])}


def read_checkpoint(family: str, checkpoint: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """Return the file and the options of a MODEL string. Raises ModelError if there is no such file, or for an unknown option."""
    path, options = split_options(family, checkpoint, OPTIONS)
    file = Path(path).expanduser()
    if not file.is_file() or file.suffix != suffix:
        raise ModelError(f"{family}:{checkpoint}: no such file ending in {suffix}: {file}")
    for name in ("rate", "window", "size", "mean", "std"):
        try:
            values = [float(v) for v in options.get(name, "1").split(":")]
        except ValueError:
            values = []
        if len(values) not in ((1, 3) if name in ("mean", "std") else (1,)) or name != "mean" and min(values) <= 0:
            raise ModelError(f"{family}:{checkpoint}: {name} must be a positive number; got {options[name]!r}")
    return file, options


def frozen_backbone(family: str, where: str, runner: Runner, config: JsonObject, file: str, data: bytes) -> Backbone:
    """Build the backbone of a network file.

    family: the model family
    where: the MODEL string, for error messages
    runner: executes the network
    config: the options, as strings; they are stored with the model
    file, data: name and content under which the network is stored with the model

    Raises ModelError if the input is neither samples nor pixels, or if an option that it needs is missing.
    """
    shape = list(runner.input_shape)
    channels_first = len(shape) == 4 and shape[1] == 3
    modality: str
    preprocess: Preprocess
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        preprocess, modality = _image(where, shape, channels_first, config), "image"
    elif len(shape) in (1, 2, 3) and all(d in (1, None) for d in shape[:-1]):
        preprocess, modality = _sound(where, shape, config), "audio"
    else:
        raise ModelError(f"{where}: an input of shape {shape} is not supported; supported are samples [1, N] and RGB pixels")
    full = [d if d is not None else 1 for d in shape]
    network = FrozenNetwork(runner, full, channels_first).eval()
    try:
        dim = network(torch.zeros(1, *full[1:] if len(full) > 1 else full)).shape[-1]
    except Exception as e:  # the runtimes raise unrelated exception types
        raise ModelError(f"{where}: the network cannot be run ({first_line(e)[:200]})") from None
    encode: Callable[[dict[str, Tensor]], Tensor] = lambda inputs: network(inputs["x"])  # noqa: E731
    files = {CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), file: data}
    return Backbone(family, network, {modality: Tower(modality, dim, preprocess, encode, [network])}, [], files)


def _sound(where: str, shape: list[int | None], config: JsonObject) -> FrozenSoundPreprocess:
    """Return the preprocessing of sounds, and fill in the number of samples in `shape`."""
    if "rate" not in config:
        raise ModelError(f"{where}: a sound encoder needs the rate of its samples; write {where}?rate=16000")
    rate, window = int(float(config["rate"])), shape[-1]
    if window is None:
        if "window" not in config:
            raise ModelError(f"{where}: the file leaves the number of samples open; write {where}&window=SECONDS")
        window = shape[-1] = round(rate * float(config["window"]))
    return FrozenSoundPreprocess(rate, window)


def _image(where: str, shape: list[int | None], channels_first: bool, config: JsonObject) -> FrozenImagePreprocess:
    """Return the preprocessing of images, and fill in the height and width in `shape`."""
    if "mean" not in config or "std" not in config:
        raise ModelError(f"{where}: an image encoder needs the mean and std of its pixels; write {where}?mean=0.5&std=0.5")
    axes = (2, 3) if channels_first else (1, 2)
    if None in (shape[axes[0]], shape[axes[1]]) and "size" not in config:
        raise ModelError(f"{where}: the file leaves the size of the image open; write {where}&size=224")
    for axis in axes:
        shape[axis] = shape[axis] or int(float(config["size"]))
    mean, std = ([float(v) for v in str(config[k]).split(":")] for k in ("mean", "std"))
    return FrozenImagePreprocess(int(shape[axes[0]] or 0), int(shape[axes[1]] or 0), channels_first, mean, std)
