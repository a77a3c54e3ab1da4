"""Preprocess images with open_clip's inference transform, as the `preprocess_cfg` of a checkpoint specifies."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields

import PIL.Image as PILImage
import torch
from torch import Tensor

from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size


class OpenClipImagePreprocess:
    """Turn one RGB image into {"image": [3, H, W]}."""

    def __init__(self, config: Mapping[str, object]):
        """config: the checkpoint's `preprocess_cfg`; keys that this version of open_clip does not know are ignored."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {f.name for f in fields(PreprocessCfg)}
        options = PreprocessCfg(**{k: v for k, v in config.items() if k in known})
        self.transform = image_transform_v2(options, is_train=False)
        size = options.size
        self.height, self.width = map(int, (size, size) if isinstance(size, int) else size[-2:])
        self.input_size = float(max(self.height, self.width))
        self.mode = options.resize_mode or "shortest"
        # open_clip uses `interpolation` only for square inputs, and bicubic resampling for all others
        self.resample = PILImage.Resampling.BICUBIC
        if options.interpolation == "bilinear" and self.height == self.width:
            self.resample = PILImage.Resampling.BILINEAR

    def __call__(self, signal: PILImage.Image, rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"image": self.transform(self._thin(signal))}

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
