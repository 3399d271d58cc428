"""Distances of spectra: torch and numpy are all they need.

All take audio (L,) float32, mono, at 16 kHz, an original and what was made of it, equally long and
starting together: nothing is aligned in time, as every row that is compared follows the original's
timing.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ..audio.mel import MelConfig, log_mel

MEL = MelConfig()  # of every figure, whatever mels the models were trained on
ORDER = 24  # cepstral coefficients that are compared, beyond the level


def mel_of(audio: np.ndarray) -> Tensor:
    """Log-mel (n_mels, T) of audio (L,) at 16 kHz, float64."""
    return log_mel(torch.from_numpy(np.asarray(audio, np.float64)), MEL)


def mel_l1(original: np.ndarray, made: np.ndarray) -> float:
    """Mean absolute difference of log-mels (natural logarithm).

    Blind to phases, and so to much of what is heard as metallic or rough. A band counts alike
    whether it is loud or at the logarithm's floor, and silence counts as speech does.
    """
    return float((mel_of(original) - mel_of(made)).abs().mean())


def mel_mse(original: np.ndarray, made: np.ndarray) -> float:
    """Mean squared difference of log-mels.

    Blind to what `mel_l1` is blind to; a few bands that are far off weigh more here than there.
    """
    return float((mel_of(original) - mel_of(made)).square().mean())


@functools.cache
def cosines(n_mels: int) -> Tensor:
    """(ORDER, n_mels): rows 2 / n_mels cos(pi m (k + 1/2) / n_mels) for m = 1 ... ORDER."""
    m = torch.arange(1, ORDER + 1, dtype=torch.float64)[:, None]
    bands = torch.arange(n_mels, dtype=torch.float64)[None] + 0.5
    return 2 / n_mels * torch.cos(math.pi * m * bands / n_mels)


def mel_cepstral_distortion(original: np.ndarray, made: np.ndarray) -> float:
    """Mel-cepstral distortion in dB, the mean over frames.

    Kubichek, "Mel-cepstral distance measure for objective speech quality assessment" (1993):
    10 / ln 10 * sqrt(2 * sum over m of (c_m - c'_m)^2), here with m = 1 ... ORDER. The cepstrum
    is the discrete cosine transform of the natural log-mel magnitudes, scaled so that log |S| =
    c_0 / 2 + sum of c_m cos(...); so the figure is the root-mean-square difference in dB of two
    spectral envelopes, without their level. Toolkits that take cepstra by another way (SPTK's
    all-pass warping, WORLD's envelopes, time warping) get other figures for the same audio.

    Blind to loudness (c_0 is left out), pitch, voicing and phases: it compares smooth envelopes.
    """
    difference = mel_of(original) - mel_of(made)  # (n_mels, T)
    cepstrum = cosines(len(difference)) @ difference  # (ORDER, T)
    distances = (2 * cepstrum.square().sum(0)).sqrt()
    return 10 / math.log(10) * float(distances.mean())
