"""Compute CLAP's log-mel spectrograms.

Each sound is processed on its own, so that its embedding depends neither on the batch nor on randomness. The spectrogram is
computed by a faster implementation if that gives the same result as transformers' feature extractor on a test signal.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmtune.backbones.mel_graph import LogMel
from mmtune.backbones.sound_windows import Windowed, collate_windows, window_starts
from mmtune.modalities.audio import Sound

if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor


class ClapPreprocess(Windowed):
    """Turn one sound into CLAP's log-mel spectrograms.

    The sound is resampled to the model's sample rate. A sound shorter than the model's window is repeated or zero-padded, as
    the feature extractor specifies. A longer sound is cut into at most MAX_WINDOWS evenly spaced windows that cover it, and the
    model averages their L2-normalised embeddings; in training (with `rng`) one random window is used instead.

    transformers differs: it crops long sounds at random, and it sets `is_longer` for a random item of a batch without long
    sounds. Here `is_longer` is always False, the value that transformers uses for a short sound.
    """

    def __init__(self, extractor: "ClapFeatureExtractor", fused: bool):
        """Keep the feature extractor's settings and test the faster implementation.

        extractor: the checkpoint's feature extractor
        fused: whether the checkpoint uses feature fusion (`enable_fusion`)
        """
        super().__init__("input_features", int(extractor.sampling_rate), int(extractor.nb_max_samples))
        self.extractor, self.fused = extractor, fused
        self.filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
        self.filters_FM = torch.from_numpy(self.filters).float()
        self.hann = torch.hann_window(extractor.fft_window_size, periodic=True, dtype=torch.float64)
        self.fast = True
        noise = np.random.default_rng(0).standard_normal(self.window).astype(np.float32)
        self.fast = bool(torch.allclose(self._mel(noise), self._reference_mel(noise), atol=1e-3))

    def _reference_mel(self, samples: np.ndarray) -> Tensor:
        mel = self.extractor._np_extract_fbank_features(samples, self.filters)
        return torch.from_numpy(np.asarray(mel, np.float32))

    def _mel(self, samples: np.ndarray) -> Tensor:
        """Compute the log-mel spectrogram of samples [N], in dB: [frames, bins] float32."""
        if not self.fast:
            return self._reference_mel(samples)
        x = torch.from_numpy(samples).double()
        e = self.extractor
        spectrum_FT = torch.stft(
            x, e.fft_window_size, e.hop_length, window=self.hann, center=True, pad_mode="reflect", return_complex=True
        ).to(torch.complex64)  # only the Fourier transform needs double precision to match transformers' result
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

    def __call__(self, signal: Sound, rng: random.Random | None = None) -> dict[str, Tensor]:
        samples = signal.resampled(self.rate).samples
        starts = window_starts(len(samples), self.window, rng)
        mels = torch.stack([self._mel(self._padded(samples[s : s + self.window])) for s in starts])[:, None]
        return {"input_features": mels.expand(-1, 4, -1, -1) if self.fused else mels}

    def raw_inputs(self, signals: Sequence[Sound]) -> dict[str, Tensor]:
        """Return the samples of all windows of sounds, {"samples": [windows, window]}; the input of `feature_graph`."""
        sounds = [s.resampled(self.rate).samples for s in signals]
        windows = [self._padded(x[s : s + self.window]) for x in sounds for s in window_starts(len(x), self.window, None)]
        return {"samples": torch.from_numpy(np.stack(windows).astype(np.float32))}

    def feature_graph(self) -> torch.nn.Module:
        """Return a module that computes the tower's inputs from the samples of windows."""
        mel = LogMel(
            self.filters_FM, self.hann, int(self.extractor.hop_length), floor=1e-10, scale=10.0, copies=4 if self.fused else 1
        )
        return _ClapFeatures(mel)

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        inputs = collate_windows(items)
        return inputs | {"is_longer": torch.zeros(len(inputs["input_features"]), 1, dtype=torch.bool)}


class _ClapFeatures(torch.nn.Module):
    """Samples [W, N] -> the inputs of CLAP's sound tower."""

    def __init__(self, mel: LogMel):
        super().__init__()
        self.mel = mel

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        return {"input_features": self.mel(samples), "is_longer": torch.zeros_like(samples[:, :1], dtype=torch.bool)}
