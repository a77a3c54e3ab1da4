"""Preprocess images with open_clip's inference transform, as the `preprocess_cfg` of a checkpoint specifies."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import PIL.Image


class OpenClipImagePreprocess:
    """Turn one RGB image into {"image": [3, H, W]}."""

    def __init__(self, config: Mapping[str, object]):
        """config: the checkpoint's `preprocess_cfg`; keys that this version of open_clip does not know are ignored."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {f.name for f in fields(PreprocessCfg)}
        options = PreprocessCfg(**{k: v for k, v in config.items() if k in known})
        self.transform = image_transform_v2(options, is_train=False)
        self.input_size = float(options.size if isinstance(options.size, int) else max(options.size))

    def __call__(self, signal: "PIL.Image.Image", rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"image": self.transform(signal)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"image": torch.stack([i["image"] for i in items])}
