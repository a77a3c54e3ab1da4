"""Log-mel spectrograms as a module of matrix products, which ONNX, OpenVINO and TorchScript can run without a Fourier transform."""

import numpy as np
import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """Samples [W, N] -> log-mel spectrograms [W, 1, frames, bins], or [W, 1, bins, frames] with `bins_first`.

    The signal is padded by reflection so that frame i is centred at sample i * hop, as in `torch.stft`.
    """

    def __init__(
        self,
        filters_FM: Tensor,
        window: Tensor,
        hop: int,
        *,
        floor: float,
        scale: float,
        bins_first: bool = False,
        copies: int = 1,
    ):
        """Build the matrices.

        filters_FM: mel filters, [frequencies, bins], applied to the power spectrum
        window: window function; its length is that of the Fourier transform
        hop: samples between two frames
        floor: smallest value of a bin before the logarithm
        scale: factor of the base-10 logarithm
        copies: number of equal channels
        """
        super().__init__()
        size = len(window)
        angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size // 2 + 1)) / size
        shaped = window.double().numpy()[:, None]
        self.register_buffer("cosines_NF", torch.from_numpy(shaped * np.cos(angles)).float())
        self.register_buffer("sines_NF", torch.from_numpy(shaped * np.sin(angles)).float())
        self.register_buffer("filters_FM", filters_FM.float())
        self.size, self.hop, self.floor, self.scale = size, hop, floor, scale
        self.bins_first, self.copies = bins_first, copies

    def forward(self, samples: Tensor) -> Tensor:
        half = self.size // 2
        padded = nn.functional.pad(samples[:, None], (half, half), mode="reflect")[:, 0]
        frames_WTN = padded.unfold(1, self.size, self.hop)
        power_WTF = (frames_WTN @ self.get_buffer("cosines_NF")).square() + (frames_WTN @ self.get_buffer("sines_NF")).square()
        mel_WTM = torch.log10((power_WTF @ self.get_buffer("filters_FM")).clamp(min=self.floor)) * self.scale
        mel = (mel_WTM.transpose(1, 2) if self.bins_first else mel_WTM)[:, None]
        return mel.expand(-1, self.copies, -1, -1) if self.copies > 1 else mel
