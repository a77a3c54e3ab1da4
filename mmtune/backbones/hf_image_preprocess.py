"""Preprocess images as a transformers image processor does.

Each image is processed on its own, so that its embedding does not depend on the batch. A faster implementation is used if it
gives the same result as transformers' image processor on test images.
"""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size
from mmtune.modalities.turbo_jpeg import pixels_of

if TYPE_CHECKING:
    import PIL.Image
    from transformers.image_processing_utils import BaseImageProcessor


INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""Outputs of an image processor that models take. The last two, and pixel values [patches, C], are those of SigLIP 2 (NaFlex)."""


class ImagePreprocess:
    """Turn one RGB image into {"pixel_values": [3, H, W]} by a transformers image processor (SigLIP 2: see INPUTS)."""

    def __init__(self, processor: "BaseImageProcessor"):
        self.processor, self.rounding = processor, _crop_rounding(processor)
        self.resize = _fast_resize(processor, self.rounding)
        self.input_size = None if self.resize is None else float(self.resize.edge or max(self.resize.exact or (0,)))

    def __call__(self, signal: "PIL.Image.Image", rng: random.Random | None = None) -> dict[str, Tensor]:
        if self.resize is not None:
            return {"pixel_values": self.resize(signal)}
        cropped = self._cropped(signal)
        if cropped is not None:
            return {"pixel_values": self.processor(images=cropped, return_tensors="pt", do_resize=False)["pixel_values"][0]}
        inputs = self.processor(images=signal, return_tensors="pt")
        return {key: inputs[key][0] for key in INPUTS if key in inputs}

    def _cropped(self, signal: "PIL.Image.Image") -> "PIL.Image.Image | None":
        """Resize and centre-crop a very thin image; return None if the image processor can do so without a huge resized
        image."""
        p: Untyped = self.processor
        edge = _resized_edge(p)
        if not edge or not getattr(p, "do_resize", False) or not getattr(p, "do_center_crop", False):
            return None
        size, crop = shortest_edge_size(*signal.size, edge), (p.crop_size["width"], p.crop_size["height"])
        return centre_crop_of_resized(signal, size, crop, int(p.resample), self.rounding)

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([i[key] for i in items]) for key in items[0]}


def _crop_rounding(processor: Untyped) -> Callable[[float], int]:
    """Return how a centre crop rounds half of an odd number of surplus pixels: down (int), or to the even number (round).

    It is measured on an image with three surplus columns, because versions of transformers differ.
    """
    import PIL.Image

    try:
        crop = processor.crop_size
        columns = np.arange(crop["width"] + 3, dtype=np.uint8)  # each pixel has the number of its column
        image = PIL.Image.fromarray(np.broadcast_to(columns[None, :, None], (crop["height"], len(columns), 3)).copy())
        plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_center_crop": True}
        first = float(processor(images=image, return_tensors="pt", **plain)["pixel_values"].flatten()[0])
    except Exception:  # a processor without such a crop
        return int
    return round if first == round(1.5) else int


def _resized_edge(processor: Untyped) -> int:
    """Return the length to which an image processor resizes the shorter edge before it crops the centre; 0 if it has none."""
    edge = int(dict(getattr(processor, "size", None) or {}).get("shortest_edge") or 0)
    name = type(processor).__name__
    if name.startswith("Levit"):
        return int(256 / 224 * edge)
    return int(edge / processor.crop_pct) if name.startswith("PoolFormer") and processor.crop_pct else edge


class ResizeCropNormalise:
    """Resize, centre-crop and normalise one image, as the torchvision backend of transformers does.

    It leaves out the overhead of transformers' image processors, which for a small image takes as long as the resizing itself.
    """

    def __init__(self, p: Untyped, rounding: Callable[[float], int]):
        """Read the settings of the image processor `p`. rounding: see `_crop_rounding`"""
        from torchvision.transforms import InterpolationMode

        size, self.rounding = dict(p.size), rounding
        self.edge = int(size.get("shortest_edge") or 0)
        self.exact = None if self.edge else (size["height"], size["width"])
        self.crop = (p.crop_size["height"], p.crop_size["width"]) if getattr(p, "do_center_crop", False) else None
        modes = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers of its resampling filters
        self.resample = int(p.resample)
        self.mode = InterpolationMode(modes[self.resample])
        scale = float(p.rescale_factor) if p.do_rescale else 1.0
        mean = torch.tensor(p.image_mean if p.do_normalize else [0.0] * 3).view(3, 1, 1)
        std = torch.tensor(p.image_std if p.do_normalize else [1.0] * 3).view(3, 1, 1)
        self.mean, self.std = mean / scale, std / scale

    def __call__(self, image: "PIL.Image.Image") -> Tensor:
        from torchvision.transforms.v2 import functional as F

        width, height = self._target(*image.size)
        crop = self.crop and (self.crop[1], self.crop[0])
        thin = crop and centre_crop_of_resized(image, (width, height), crop, self.resample, self.rounding)
        x = torch.from_numpy(pixels_of(thin or image)).permute(2, 0, 1)
        if thin:
            pass  # already resized and cropped
        elif self.mode.value in ("bilinear", "bicubic"):
            x = interpolate(x[None], (height, width), mode=self.mode.value, align_corners=False, antialias=True)[0]
        else:
            x = F.resize(x, [height, width], self.mode, antialias=True)
        if self.crop:
            crop_h, crop_w = self.crop
            over_h, over_w = x.shape[1] - crop_h, x.shape[2] - crop_w
            if over_h < 0 or over_w < 0:
                below, above = (max(0, -over_w), max(0, -over_h)), (max(0, 1 - over_w), max(0, 1 - over_h))
                x = F.pad(x, [n // 2 for n in below + above])
            top, left = (self.rounding(max(0, over) / 2) for over in (over_h, over_w))
            x = x[:, top : top + crop_h, left : left + crop_w]
        return x[:3].to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which an image of this width and height is resized."""
        return (self.exact[1], self.exact[0]) if self.exact else shortest_edge_size(width, height, self.edge)


def _fast_resize(processor: "BaseImageProcessor", rounding: Callable[[float], int]) -> ResizeCropNormalise | None:
    """Return a ResizeCropNormalise if it gives the same results as `processor` on random images of three shapes, else None."""
    import PIL.Image

    try:
        fast = ResizeCropNormalise(processor, rounding)
        noise = np.random.default_rng(0)
        for shape in ((97, 131, 3), (131, 97, 3), (40, 40, 3)):
            image = PIL.Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
            if not torch.allclose(fast(image), processor(images=image, return_tensors="pt")["pixel_values"][0], atol=2e-6):
                return None
        return fast
    except Exception:  # a processor with other settings than ResizeCropNormalise reads: use `processor` itself
        return None
