"""Preprocess images as a transformers image processor does.

Each image is processed on its own, so that its embedding does not depend on the batch. A faster implementation is used if it gives
the same result as transformers' image processor on test images.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmtune.backbones.checkpoint_files import Untyped

if TYPE_CHECKING:
    import PIL.Image
    from transformers.image_processing_utils import BaseImageProcessor


class ImagePreprocess:
    """Turn one RGB image into {"pixel_values": [3, H, W]} by a transformers image processor."""

    def __init__(self, processor: "BaseImageProcessor"):
        self.processor = processor
        self.resize = _fast_resize(processor)
        self.input_size = None if self.resize is None else float(self.resize.edge or max(self.resize.exact or (0,)))

    def __call__(self, signal: "PIL.Image.Image", rng: random.Random | None = None) -> dict[str, Tensor]:
        if self.resize is not None:
            return {"pixel_values": self.resize(signal)}
        return {"pixel_values": self.processor(images=signal, return_tensors="pt")["pixel_values"][0]}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([i["pixel_values"] for i in items])}


class ResizeCropNormalise:
    """Resize, centre-crop and normalise one image, as the torchvision backend of transformers does.

    It leaves out the overhead of transformers' image processors, which for a small image takes as long as the resizing itself.
    """

    def __init__(self, p: Untyped):
        """Read the settings of the image processor `p`."""
        from torchvision.transforms import InterpolationMode

        size = dict(p.size)
        self.edge = int(size.get("shortest_edge") or 0)
        self.exact = None if self.edge else (size["height"], size["width"])
        self.crop = (p.crop_size["height"], p.crop_size["width"]) if getattr(p, "do_center_crop", False) else None
        modes = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers of its resampling filters
        self.mode = InterpolationMode(modes[int(p.resample)])
        scale = float(p.rescale_factor) if p.do_rescale else 1.0
        mean = torch.tensor(p.image_mean if p.do_normalize else [0.0] * 3).view(3, 1, 1)
        std = torch.tensor(p.image_std if p.do_normalize else [1.0] * 3).view(3, 1, 1)
        self.mean, self.std = mean / scale, std / scale

    def __call__(self, image: "PIL.Image.Image") -> Tensor:
        from torchvision.transforms.v2 import functional as F

        x = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
        target = self._target(*x.shape[1:])
        if self.mode.value in ("bilinear", "bicubic"):
            x = interpolate(x[None], target, mode=self.mode.value, align_corners=False, antialias=True)[0]
        else:
            x = F.resize(x, target, self.mode, antialias=True)
        if self.crop:
            (h, w), (crop_h, crop_w) = x.shape[1:], self.crop
            top, left = round((h - crop_h) / 2), round((w - crop_w) / 2)
            fits = h >= crop_h and w >= crop_w
            x = x[:, top : top + crop_h, left : left + crop_w] if fits else F.center_crop(x, [crop_h, crop_w])
        return x.to(torch.float32).sub_(self.mean).div_(self.std)

    def _target(self, height: int, width: int) -> list[int]:
        """Return the [height, width] to which an image of this height and width is resized."""
        if self.exact:
            return list(self.exact)
        short, long = sorted((height, width))
        longer = int(self.edge * long / short)
        return [longer, self.edge] if width <= height else [self.edge, longer]


def _fast_resize(processor: "BaseImageProcessor") -> ResizeCropNormalise | None:
    """Return a ResizeCropNormalise if it gives the same results as `processor` on random images of three shapes, else None."""
    import PIL.Image

    try:
        fast = ResizeCropNormalise(processor)
        noise = np.random.default_rng(0)
        for shape in ((97, 131, 3), (131, 97, 3), (40, 40, 3)):
            image = PIL.Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
            if not torch.allclose(fast(image), processor(images=image, return_tensors="pt")["pixel_values"][0], atol=2e-6):
                return None
        return fast
    except Exception:  # a processor with other settings than ResizeCropNormalise reads: use `processor` itself
        return None
