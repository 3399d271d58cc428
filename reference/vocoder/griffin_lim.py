"""Fast Griffin-Lim on the same framing and filterbank that `log_mel` uses.

Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm" (2013), algorithm 2; the mel
filterbank is inverted by non-negative least squares (multiplicative updates of Lee and Seung,
2001).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.mel import MelConfig, filterbank_like, spectrogram, window_like
from ..checks import full_precision, require_lengths, require_mel
from ..values import require_int
from .streaming import one_clip

NNLS_STEPS = 64
MOMENTUM = 0.99  # librosa's default
SEED = 0  # of the initial phases: the same mel always gives the same audio


def mel_to_magnitude(mel: Tensor, config: MelConfig) -> Tensor:
    """Least-squares non-negative STFT magnitude of a log-mel: (B, n_mels, T) -> (B, F, T)."""
    filters = filterbank_like(config, mel)  # (n_mels, F)
    # At the floor log_mel only says "no more than the floor": silence fits best.
    silent = mel <= np.log(config.log_floor) + 1e-4  # False for NaN, which must show in the audio
    energy = mel.exp().masked_fill(silent, 0.0)
    tiny = torch.finfo(mel.dtype).tiny
    target = filters.T @ energy  # (B, F, T)
    gram = filters.T @ filters  # (F, F)
    magnitude = target / gram.sum(1, keepdim=True).clamp(min=tiny)
    for _ in range(NNLS_STEPS):
        magnitude = magnitude * target / (gram @ magnitude).clamp(min=tiny)
    return magnitude


def inverse_spectrogram(spectrum: Tensor, config: MelConfig) -> Tensor:
    """Least-squares signal of a complex STFT: (B, F, T) -> (B, T * hop_length).

    Inverse of `mel.spectrogram`: overlap-add, then the padding is cut off.
    """
    window = window_like(config, spectrum.real)
    frames = torch.fft.irfft(spectrum, n=config.n_fft, dim=1) * window[:, None]  # (B, n_fft, T)
    n_frames = spectrum.shape[-1]
    length = (n_frames - 1) * config.hop_length + config.n_fft

    def overlap_add(columns: Tensor) -> Tensor:
        step = (1, config.hop_length)
        return F.fold(columns, (1, length), (1, config.n_fft), stride=step)[:, 0, 0]

    envelope = overlap_add(window.square()[None, :, None].expand(1, -1, n_frames))
    audio = overlap_add(frames) / envelope.clamp(min=1e-8)
    start = (config.n_fft - config.hop_length) // 2
    return audio[:, start : start + n_frames * config.hop_length]


def griffin_lim(magnitude: Tensor, config: MelConfig, n_iter: int = 32) -> Tensor:
    """Find audio whose STFT magnitude is close to (B, F, T); returns (B, T * hop_length).

    Every item starts from the same phases, so that an item's audio does not depend on its batch
    mates.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = magnitude.shape[1:]
    phase = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    angles = torch.polar(torch.ones_like(phase), 2 * torch.pi * phase)
    complex_dtype = torch.complex128 if magnitude.dtype == torch.float64 else torch.complex64
    angles = angles.to(magnitude.device, complex_dtype)
    previous = torch.zeros_like(angles)
    tiny = torch.finfo(magnitude.dtype).tiny
    for _ in range(n_iter):
        rebuilt = spectrogram(inverse_spectrogram(magnitude * angles, config), config)
        angles = rebuilt - (MOMENTUM / (1 + MOMENTUM)) * previous
        angles = angles / angles.abs().clamp(min=tiny)
        previous = rebuilt
    return inverse_spectrogram(magnitude * angles, config)


class GriffinLimVocoder(nn.Module):
    """Audio from a log-mel without learned weights.

    Args:
        config: the settings the mels were made with.
        n_iter: Griffin-Lim iterations.
    """

    def __init__(self, config: MelConfig | None = None, n_iter: int = 32) -> None:
        super().__init__()
        self.config = config or MelConfig()
        self.n_iter = require_int("n_iter", n_iter, 1)

    @torch.no_grad()
    def forward(self, mel: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Invert log-mels.

        Args:
            mel: (B, n_mels, T).
            lengths: (B,) integers 0 to T, frames of each item; None if all have T. An item is then
                inverted as if it were alone, and zeros follow its end.

        Returns:
            (B, T * hop_length) float32.

        Raises:
            TypeError: `mel` is not floating point, or is float8; `lengths` are not integers.
            ValueError: the shape is not (B, n_mels, T >= 1); `lengths` do not fit.
        """
        require_mel(mel, self.config.n_mels)
        if len(mel) == 0:
            return mel.new_empty(0, mel.shape[2] * self.config.hop_length, dtype=torch.float32)
        with full_precision(mel):
            if lengths is None:
                return self._inverted(mel)
            audio = mel.new_zeros(
                len(mel), mel.shape[2] * self.config.hop_length, dtype=torch.float32
            )
            for item, frames in enumerate(require_lengths(lengths, mel).tolist()):
                if frames:
                    alone = self._inverted(mel[item : item + 1, :, :frames])
                    audio[item, : alone.shape[1]] = alone[0]
            return audio

    def _inverted(self, mel: Tensor) -> Tensor:
        magnitude = mel_to_magnitude(mel.float(), self.config)
        return griffin_lim(magnitude, self.config, self.n_iter)

    def mel_to_audio(self, mel: Tensor | np.ndarray) -> Tensor:
        """Invert one clip: (n_mels, T) -> (T * hop_length,)."""
        return one_clip(self, mel)
