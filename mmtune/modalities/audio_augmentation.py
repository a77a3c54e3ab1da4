"""Augment sounds in training.

All random numbers come from the generator that is passed in. A resumed run therefore trains on the same sounds as an
uninterrupted one, regardless of the number of threads.
"""

import random

import numpy as np

from mmtune.errors import RecipeError
from mmtune.modalities.sound import Sound

FRAME_SECONDS = 0.032  # approximate length of a spectrogram frame for masking


class AudioAugmentation:
    """Apply time shift, gain, white noise, polarity inversion and spectrogram masks, in this order.

    The options are explained in `Audio.augment`.
    """

    def __init__(
        self,
        shift: bool,
        gain_db: float,
        noise_db: float | None,
        polarity: bool,
        masks: "MaskSpectrogram | None" = None,
    ):
        self.shift, self.gain_db, self.noise_db, self.polarity, self.masks = shift, gain_db, noise_db, polarity, masks

    def __call__(self, sound: Sound, rng: random.Random) -> Sound:
        x = sound.samples
        if self.shift:
            x = np.roll(x, rng.randrange(len(x)))
        if self.gain_db:
            x = x * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if self.noise_db is not None:
            level = float(np.sqrt(np.mean(x**2))) * 10 ** (-(self.noise_db + rng.uniform(0, 20)) / 20)
            noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(x), np.float32)
            x = x + noise * np.float32(level)
        if self.polarity and rng.random() < 0.5:
            x = -x
        changed = Sound(np.ascontiguousarray(x, np.float32), sound.rate)
        return self.masks(changed, rng) if self.masks else changed


class MaskSpectrogram:
    """Mask random parts of the spectrogram (SpecAugment, arXiv 1904.08779). Wrong where a short click or a narrow tone is the label."""

    def __init__(self, time: float = 0.0, freq: float = 0.0, masks: int = 1):
        """
        time: maximum fraction of the duration that a time mask covers, 0 to 1
        freq: maximum fraction of the mel scale that a frequency mask covers, 0 to 1
        masks: number of time masks and number of frequency masks
        """
        for name, share in (("time", time), ("freq", freq)):
            if not 0 <= share <= 1:
                raise RecipeError(f"{name}: {share} is not a number from 0 to 1")
        if masks < 1:
            raise RecipeError(f"masks: {masks} is not 1 or more")
        self.time, self.freq, self.masks = time, freq, masks

    def __call__(self, sound: Sound, rng: random.Random) -> Sound:
        masked = mask_spectrogram(sound.samples, sound.rate, self.time, self.freq, self.masks, rng)
        return Sound(np.ascontiguousarray(masked, np.float32), sound.rate)


def mask_spectrogram(samples: np.ndarray, rate: int, time: float, freq: float, masks: int, rng: random.Random) -> np.ndarray:
    """Mask random parts of the spectrogram and convert it back to samples [N] (SpecAugment, Park et al., arXiv 1904.08779).

    Because the result is a waveform, it works with any tower, whatever spectrogram the tower computes.

    rate: sample rate
    time: maximum fraction of the duration that a time mask covers, 0 to 1
    freq: maximum fraction of the mel scale that a frequency mask covers, 0 to 1
    masks: number of time masks and number of frequency masks

    The magnitudes of masked bins become the geometric mean magnitude of the sound; their phases stay. A sound shorter than two
    frames is returned unchanged.
    """
    import torch

    size = 1 << max(5, round(float(np.log2(rate * FRAME_SECONDS))))  # a power of two, at least 32
    if len(samples) < 2 * size:
        return samples
    window = torch.hann_window(size)
    spectrum = torch.stft(torch.from_numpy(samples), size, size // 4, window=window, return_complex=True)
    magnitude = spectrum.abs().clamp(min=1e-7)
    mean = magnitude.log().mean().exp()
    mel = 2595 * np.log10(1 + np.linspace(0, rate / 2, len(magnitude)) / 700)
    masked = torch.zeros(magnitude.shape, dtype=torch.bool)
    for _ in range(masks):
        if time:
            width = rng.uniform(0, time) * magnitude.shape[1]
            start = rng.uniform(0, magnitude.shape[1] - width)
            masked[:, round(start) : round(start + width)] = True
        if freq:
            width = rng.uniform(0, freq) * mel[-1]
            low = rng.uniform(0, mel[-1] - width)
            masked[torch.from_numpy((mel >= low) & (mel < low + width))] = True
    spectrum = torch.where(masked, spectrum / magnitude * mean, spectrum)
    return torch.istft(spectrum, size, size // 4, window=window, length=len(samples)).numpy()


def mix_sounds(samples: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Mix two sounds of the same sample rate. The result is as long and as loud as `samples`.

    samples: [N]
    other: mixed in; repeated or cut to length N
    share: the fraction of the energy that comes from `other`, 0 to 1
    """
    other = np.resize(other, len(samples))
    level, other_level = (float(np.sqrt(np.mean(x.astype(np.float64) ** 2))) for x in (samples, other))
    if other_level < 1e-9 or level < 1e-9:
        return samples
    return (np.sqrt(1 - share) * samples + np.sqrt(share) * level / other_level * other).astype(np.float32)
