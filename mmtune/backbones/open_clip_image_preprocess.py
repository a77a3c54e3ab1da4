"""Preprocess images with open_clip's inference transform, as the `preprocess_cfg` of a checkpoint specifies."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image as PILImage
import torch
from torch import Tensor

from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size

if TYPE_CHECKING:
    from torchvision.transforms import Compose, Normalize


class OpenClipImagePreprocess:
    """Turn one RGB image into {"image": [3, H, W]}."""

    def __init__(self, config: Mapping[str, object]):
        """config: the checkpoint's `preprocess_cfg`; keys that this version of open_clip does not know are ignored."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {f.name for f in fields(PreprocessCfg)}
        options = PreprocessCfg(**{k: v for k, v in config.items() if k in known})
        self.transform = image_transform_v2(options, is_train=False)
        self._resized, self._normalise = _split(self.transform)
        size = options.size
        self.height, self.width = map(int, (size, size) if isinstance(size, int) else size[-2:])
        self.input_size = float(max(self.height, self.width))
        self.mode = options.resize_mode or "shortest"
        # open_clip uses `interpolation` only for square inputs, and bicubic resampling for all others
        self.resample = PILImage.Resampling.BICUBIC
        if options.interpolation == "bilinear" and self.height == self.width:
            self.resample = PILImage.Resampling.BILINEAR

    def __call__(self, signal: PILImage.Image, rng: random.Random | None = None) -> dict[str, Tensor]:
        if self._normalise is None:
            return {"image": self.transform(self._thin(signal))}
        return {"image": _normalised(self._resized(self._thin(signal)), self._normalise)}

    def _thin(self, signal: PILImage.Image) -> PILImage.Image:
        """Prepare a very thin image for the transform, and return any other image unchanged.

        If the transform would resize the shorter side and crop ("shortest"), the thin image is resized and cropped here,
        without a huge resized image. If it would resize the longer side ("longest"), a shorter side that would become 0 pixels
        is made 1.
        """
        ratios = signal.width / self.width, signal.height / self.height
        if self.mode == "longest":
            width, height = (round(side / max(ratios)) for side in signal.size)
            return signal if width and height else signal.resize((max(1, width), max(1, height)), self.resample)
        if self.mode != "shortest":
            return signal
        if self.width == self.height:
            size = shortest_edge_size(*signal.size, self.width)
        else:
            size = round(signal.width / min(ratios)), round(signal.height / min(ratios))
        cropped = centre_crop_of_resized(signal, size, (self.width, self.height), self.resample)
        return signal if cropped is None else cropped

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"image": torch.stack([i["image"] for i in items])}


def _split(transform: "Compose") -> "tuple[Compose, Normalize | None]":
    """Split a transform into what makes an RGB image of the input size, and its normalisation; None if it does not end with one."""
    from open_clip.transform import MaybeToTensor
    from torchvision.transforms import Compose, Normalize

    *first, to_tensor, last = transform.transforms
    if isinstance(to_tensor, MaybeToTensor) and isinstance(last, Normalize):
        return Compose(first), last
    return transform, None


def _normalised(image: PILImage.Image, by: "Normalize") -> Tensor:
    """Convert an RGB image to a normalised tensor [3, H, W], with the bits of torchvision, which copies it four times."""
    pixels = torch.from_numpy(np.array(image))
    x = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (by.mean, by.std))
    return x.div_(255).sub_(mean).div_(std)
