"""CLAP's log-mel spectrogram of sounds, one sound at a time, so that a vector never depends on its batch or on chance.

A faster implementation is used only after it has been compared with upstream's own result.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.modalities.audio import Sound

MAX_WINDOWS = 128


class ClapPreprocess:
    """CLAP's log-mel spectrogram of one sound: mono, resampled, repeated or padded to the window.

    A longer sound becomes windows that cover it evenly (at most 128), whose unit vectors the model averages; with `rng` (training)
    it gives one random window. Upstream crops at random, and sets `is_longer` of a random clip where a whole batch is short; here
    `is_longer` is always False, as upstream has it for a short clip.
    """

    def __init__(self, extractor: Untyped, fused: bool):
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
        ).to(torch.complex64)  # the transform needs double precision, the rest does not
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
        """Whether training gets the same numbers every time: a longer sound gives another window each epoch."""
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
