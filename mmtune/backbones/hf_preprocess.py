"""Transformers' own preprocessing, one item at a time, so that a vector never depends on its batch or on the call.

Where a faster way to the same numbers exists it is used only after it has been compared with upstream's own answer.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmtune.modalities.audio import Sound

MAX_WINDOWS = 128


class ImagePreprocess:
    """A transformers image processor on one RGB picture -> {"pixel_values": [3, H, W]}."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.fast = _fast_image(processor)
        self.input_size = None if self.fast is None else float(self.fast.edge or max(self.fast.exact or (0,)))

    def __call__(self, signal: Any, rng: random.Random | None = None) -> dict[str, Tensor]:
        if self.fast is not None:
            return {"pixel_values": self.fast(signal)}
        return {"pixel_values": self.processor(images=signal, return_tensors="pt")["pixel_values"][0]}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([i["pixel_values"] for i in items])}


class FastImage:
    """Resize, centre crop and normalise on one uint8 tensor: what the torchvision backend does, without its bookkeeping (for a
    small picture that took as long as the resizing)."""

    def __init__(self, p: Any):
        from torchvision.transforms import InterpolationMode

        size = dict(p.size)
        self.edge = int(size.get("shortest_edge") or 0)
        self.exact = None if self.edge else (size["height"], size["width"])
        self.crop = (p.crop_size["height"], p.crop_size["width"]) if getattr(p, "do_center_crop", False) else None
        modes = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
        self.mode = InterpolationMode(modes[int(p.resample)])
        scale = float(p.rescale_factor) if p.do_rescale else 1.0
        mean = torch.tensor(p.image_mean if p.do_normalize else [0.0] * 3).view(3, 1, 1)
        std = torch.tensor(p.image_std if p.do_normalize else [1.0] * 3).view(3, 1, 1)
        self.mean, self.std = mean / scale, std / scale

    def __call__(self, picture: Any) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        x = torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)
        h, w = x.shape[1:]
        if self.exact:
            target = list(self.exact)
        else:
            short, long = (w, h) if w <= h else (h, w)
            side = int(self.edge * long / short)
            target = [side, self.edge] if w <= h else [self.edge, side]
        if self.mode.value in ("bilinear", "bicubic"):
            x = interpolate(x[None], target, mode=self.mode.value, align_corners=False, antialias=True)[0]
        else:
            x = F.resize(x, target, self.mode, antialias=True)
        if self.crop:
            (h, w), (high, wide) = x.shape[1:], self.crop
            top, left = round((h - high) / 2), round((w - wide) / 2)
            inside = h >= high and w >= wide
            x = x[:, top : top + high, left : left + wide] if inside else F.center_crop(x, [high, wide])
        return x.to(torch.float32).sub_(self.mean).div_(self.std)


def _fast_image(processor: Any) -> FastImage | None:
    """FastImage if it gives what `processor` gives on noise of three shapes, else None (upstream is then called itself)."""
    import PIL.Image

    try:
        fast = FastImage(processor)
        noise = np.random.default_rng(0)
        for shape in ((97, 131, 3), (131, 97, 3), (40, 40, 3)):
            picture = PIL.Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
            if not torch.allclose(fast(picture), processor(images=picture, return_tensors="pt")["pixel_values"][0], atol=2e-6):
                return None
        return fast
    except Exception:  # a processor of another shape: use it as it is
        return None


class TokenPreprocess:
    """A tokenizer on one text -> {"input_ids": [T]}; batches are padded to their longest, or to the full length (SigLIP)."""

    def __init__(self, tokenizer: Any, config: Any, limit: int | None = None, full_length: bool = False):
        self.tokenizer, self.full = tokenizer, full_length
        room = int(getattr(config, "max_position_embeddings", 512))
        if "roberta" in str(config.model_type) or config.model_type in ("clap_text_model", "xlm-roberta", "mpnet"):
            room -= int(config.pad_token_id) + 1  # their positions start behind the padding index
        self.limit = min(room, int(min(tokenizer.model_max_length, 1 << 20)), limit or room)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.mask = "attention_mask" in tokenizer.model_input_names

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        ids = self.tokenizer(signal, truncation=True, max_length=self.limit)["input_ids"]
        return {"input_ids": torch.tensor(ids, dtype=torch.long)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        length = self.limit if self.full else max(len(i["input_ids"]) for i in items)
        ids = torch.full((len(items), length), self.pad, dtype=torch.long)
        mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, item in enumerate(items):
            n = len(item["input_ids"])
            ids[row, :n], mask[row, :n] = item["input_ids"], 1
        return {"input_ids": ids} | ({"attention_mask": mask} if self.mask else {})


class ClapPreprocess:
    """CLAP's log-mel of one sound: mono, resampled, repeated or padded to the window.

    A longer sound becomes windows that cover it evenly (at most 128); the model averages their unit vectors. Upstream
    crops at random and flags a random clip of an all-short batch as long; here no window is ever flagged, so the vector is
    upstream's for a short clip with `is_longer=False`, always. With `rng` (training) a longer sound gives one random window.
    """

    def __init__(self, extractor: Any, fused: bool):
        self.extractor, self.fused = extractor, fused
        self.window = int(extractor.nb_max_samples)
        self.rate = int(extractor.sampling_rate)
        self.filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
        self.filters_FM = torch.from_numpy(self.filters).float()
        self.hann = torch.hann_window(extractor.fft_window_size, periodic=True, dtype=torch.float64)
        self.fast = True
        noise = np.random.default_rng(0).standard_normal(self.window).astype(np.float32)
        self.fast = bool(torch.allclose(self._mel(noise), self._upstream(noise), atol=1e-3))

    def _upstream(self, samples: np.ndarray) -> Tensor:
        mel = self.extractor._np_extract_fbank_features(samples, self.filters)
        return torch.from_numpy(np.asarray(mel, np.float32))

    def _mel(self, samples: np.ndarray) -> Tensor:
        """[N] -> log-mel in dB [frames, bins] float32."""
        if not self.fast:
            return self._upstream(samples)
        x = torch.from_numpy(samples).double()
        e = self.extractor
        spectrum_FT = torch.stft(
            x, e.fft_window_size, e.hop_length, window=self.hann, center=True, pad_mode="reflect", return_complex=True
        ).to(torch.complex64)  # the transform needs double precision, what follows does not
        power_FT = spectrum_FT.real.square() + spectrum_FT.imag.square()
        return (power_FT.T @ self.filters_FM).clamp_(min=1e-10).log10_().mul_(10.0)

    def _padded(self, samples: np.ndarray) -> np.ndarray:
        n = len(samples)
        if n < self.window:
            if self.extractor.padding == "repeat":
                samples = np.tile(samples, self.window // n + 1)[: self.window]
            elif self.extractor.padding == "repeatpad":
                samples = np.tile(samples, self.window // n)
            samples = np.pad(samples, (0, self.window - len(samples)))
        return samples

    def is_deterministic(self, signal: Sound) -> bool:
        """Whether training sees the same numbers every time: a longer sound gives another window each epoch."""
        return signal.seconds * self.rate <= self.window

    def __call__(self, signal: Sound, rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(self.rate).samples
        over = len(samples) - self.window
        if over <= 0:
            starts = [0]
        elif rng is not None:
            starts = [rng.randint(0, over)]
        else:
            count = min(MAX_WINDOWS, -(-len(samples) // self.window))
            starts = [round(i * over / (count - 1)) for i in range(count)]
        mels = torch.stack([self._mel(self._padded(samples[s : s + self.window])) for s in starts])[:, None]
        return {"input_features": mels.expand(-1, 4, -1, -1) if self.fused else mels}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        features = torch.cat([i["input_features"] for i in items])
        counts = torch.tensor([len(i["input_features"]) for i in items])
        inputs = {"input_features": features, "is_longer": torch.zeros(len(features), 1, dtype=torch.bool)}
        if len(features) > len(items):
            inputs["segments"] = torch.repeat_interleave(torch.arange(len(items)), counts)
        return inputs
