"""Augmentations of sounds and pictures beyond the plainest, every draw from the generator that is handed in: a run that is
resumed sees what the killed one would have, whatever its threads."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

FRAME = 0.032  # seconds


def mask_sound(samples: np.ndarray, rate: int, time: float, freq: float, masks: int, rng: random.Random) -> np.ndarray:
    """SpecAugment (Park et al., arXiv 1904.08779) on the sound itself, so that any tower's spectrogram sees it: in `masks`
    stretches of up to `time` of the length, and in bands of up to `freq` of the mel scale, every level becomes the sound's
    (geometric) mean level, and phases stay. A sound of less than two frames comes back as it is."""
    import torch

    size = 1 << max(5, round(float(np.log2(rate * FRAME))))
    if len(samples) < 2 * size:
        return samples
    window = torch.hann_window(size)
    spectrum = torch.stft(torch.from_numpy(samples), size, size // 4, window=window, return_complex=True)
    power = spectrum.abs().clamp(min=1e-7)
    mean = power.log().mean().exp()
    mel = 2595 * np.log10(1 + np.linspace(0, rate / 2, len(power)) / 700)
    hidden = torch.zeros(power.shape, dtype=torch.bool)
    for _ in range(masks):
        if time:
            width = rng.uniform(0, time) * power.shape[1]
            start = rng.uniform(0, power.shape[1] - width)
            hidden[:, round(start) : round(start + width)] = True
        if freq:
            width = rng.uniform(0, freq) * mel[-1]
            low = rng.uniform(0, mel[-1] - width)
            hidden[torch.from_numpy((mel >= low) & (mel < low + width))] = True
    spectrum = torch.where(hidden, spectrum / power * mean, spectrum)
    return torch.istft(spectrum, size, size // 4, window=window, length=len(samples)).numpy()


def mix_sounds(samples: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """[N] `samples` with `share` of the energy from `other`, repeated or cut to N; as loud as `samples` alone."""
    other = np.resize(other, len(samples))
    level, theirs = (float(np.sqrt(np.mean(x.astype(np.float64) ** 2))) for x in (samples, other))
    if theirs < 1e-9 or level < 1e-9:
        return samples
    return (np.sqrt(1 - share) * samples + np.sqrt(share) * level / theirs * other).astype(np.float32)


class Changes:
    """Further changes of a picture, through torchvision's v2 functions: one of many at a random strength (TrivialAugment,
    arXiv 2103.10158), perspective, blur, grey, a rectangle erased (arXiv 1708.04896)."""

    def __init__(self, trivial: bool, perspective: float, blur: float, grey: float, erase: float):
        self.trivial, self.perspective, self.blur, self.grey, self.erase = trivial, perspective, blur, grey, erase

    def __bool__(self) -> bool:
        return bool(self.trivial or self.perspective or self.blur or self.grey or self.erase)

    def __call__(self, picture: Any, rng: random.Random) -> Any:
        from torchvision.transforms.v2 import functional as F

        w, h = picture.size
        if self.trivial:
            picture = rng.choice(_TRIVIAL)(F, picture, rng)
        if self.perspective:
            corners = [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]]
            most = self.perspective / 2
            moved = [
                [
                    x + (1 if x == 0 else -1) * round(rng.uniform(0, most) * w),
                    y + (1 if y == 0 else -1) * round(rng.uniform(0, most) * h),
                ]
                for x, y in corners
            ]
            picture = F.perspective(picture, corners, moved, fill=[255, 255, 255])
        if self.blur:
            sigma = rng.uniform(0.1, max(self.blur, 0.1))
            picture = F.gaussian_blur(picture, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])
        if self.grey and rng.random() < self.grey:
            picture = F.to_grayscale(picture, num_output_channels=3)
        if self.erase:
            area, ratio = rng.uniform(0.02, max(self.erase, 0.02)) * w * h, 2.0 ** rng.uniform(-1, 1)
            ew, eh = min(w, max(1, round((area * ratio) ** 0.5))), min(h, max(1, round((area / ratio) ** 0.5)))
            x, y = rng.randint(0, w - ew), rng.randint(0, h - eh)
            picture = picture.copy()
            picture.paste(tuple(rng.randrange(256) for _ in range(3)), (x, y, x + ew, y + eh))
        return picture


_Change = Callable[[Any, Any, random.Random], Any]


def _shear(F: Any, p: Any, r: random.Random) -> Any:
    shear = [r.uniform(-45, 45), 0.0] if r.random() < 0.5 else [0.0, r.uniform(-45, 45)]
    return F.affine(p, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, fill=[255, 255, 255])


def _move(F: Any, p: Any, r: random.Random) -> Any:
    by = [r.uniform(-0.3, 0.3) * p.width, 0.0] if r.random() < 0.5 else [0.0, r.uniform(-0.3, 0.3) * p.height]
    return F.affine(p, angle=0.0, translate=[round(x) for x in by], scale=1.0, shear=[0.0, 0.0], fill=[255, 255, 255])


_TRIVIAL: tuple[_Change, ...] = (
    lambda F, p, r: p,
    _shear,
    _move,
    lambda F, p, r: F.rotate(p, r.uniform(-135, 135), fill=[255, 255, 255]),
    lambda F, p, r: F.adjust_brightness(p, r.uniform(0.01, 1.99)),
    lambda F, p, r: F.adjust_saturation(p, r.uniform(0.01, 1.99)),
    lambda F, p, r: F.adjust_contrast(p, r.uniform(0.01, 1.99)),
    lambda F, p, r: F.adjust_sharpness(p, r.uniform(0.01, 1.99)),
    lambda F, p, r: F.posterize(p, r.randint(2, 8)),
    lambda F, p, r: F.solarize(p, r.uniform(0, 255)),
    lambda F, p, r: F.autocontrast(p),
    lambda F, p, r: F.equalize(p),
)
"""TrivialAugmentWide's changes at its strengths."""
