"""Pitch by YIN, and two figures made of it; numpy is all it needs.

de Cheveigne and Kawahara, "YIN, a fundamental frequency estimator for speech and music" (2002),
steps 1 to 5. Our own, because the probabilistic one of librosa takes longer than all other figures
that need no package together, and loads a compiler.
"""

import numpy as np

from .refused import RATE, Refused

HOP = 256  # samples, as the mel's
WINDOW = 512  # samples that are compared with themselves, a lag later
LOWEST, HIGHEST = 60.0, 500.0  # Hz
THRESHOLD = 0.2  # of step 4: the share of aperiodic power that a voiced frame may have
QUIET = 10 ** (-50 / 20)  # of the loudest frame's level: what is below is not voiced
MIN_LAG, MAX_LAG = int(RATE / HIGHEST), int(np.ceil(RATE / LOWEST))


def differences(frames: np.ndarray) -> np.ndarray:
    """Difference function d(lag) of the paper's equation 6, for lags 0 to MAX_LAG + 1.

    Args:
        frames: (T, WINDOW + MAX_LAG + 1) float64.

    Returns:
        (T, MAX_LAG + 2): sums over WINDOW samples of (x[j] - x[j + lag])^2.
    """
    size = 1 << (WINDOW + frames.shape[1]).bit_length()
    spectrum = np.fft.rfft(frames, size)
    head = np.fft.rfft(frames[:, :WINDOW], size)
    products = np.fft.irfft(head.conj() * spectrum, size)[:, : MAX_LAG + 2]
    sums = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = sums[:, WINDOW:] - sums[:, :-WINDOW]  # (T, MAX_LAG + 2)
    return np.maximum(energy[:, :1] + energy - 2 * products, 0)


def pitch(audio: np.ndarray) -> np.ndarray:
    """Fundamental frequency of each frame.

    Args:
        audio: (L,) mono at 16 kHz.

    Returns:
        (ceil(L / HOP),) Hz; 0 where a frame is not voiced: not periodic, or 50 dB below the
        loudest.
    """
    length, n_frames = WINDOW + MAX_LAG + 1, -(-len(audio) // HOP)
    left = (length - HOP) // 2  # frames are centred on the mel's hops
    padded = np.pad(np.asarray(audio, np.float64), (left, length + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::HOP][:n_frames]
    d = differences(frames)
    lags = np.arange(d.shape[1])
    sums = np.cumsum(d[:, 1:], axis=1)
    normalised = np.ones_like(d)  # equation 8
    np.divide(d[:, 1:] * lags[1:], sums, out=normalised[:, 1:], where=sums > 0)

    before, at, after = normalised[:, :-2], normalised[:, 1:-1], normalised[:, 2:]
    dips = (at < THRESHOLD) & (at <= before) & (at < after)  # (T, MAX_LAG), lags from 1
    dips[:, : MIN_LAG - 1] = False
    first = dips.argmax(1)[:, None]  # the shortest lag: longer ones are its multiples
    a, b, c = (np.take_along_axis(x, first, 1)[:, 0] for x in (before, at, after))
    curve = a - 2 * b + c  # at a dip it is above 0
    shift = np.divide(a - c, 2 * curve, out=np.zeros_like(b), where=curve > 0)
    level = np.sqrt((frames**2).mean(1))
    voiced = dips.any(1) & (level > QUIET * level.max(initial=0))
    return np.where(voiced, RATE / (first[:, 0] + 1 + shift), 0.0)


def log_f0_rmse(original: np.ndarray, made: np.ndarray) -> float:
    """Root-mean-square difference of ln F0, over frames that are voiced in both.

    0.06 is a semitone. Blind to frames that lost their voice or won one (`voicing_error` has
    those), and to all that is not pitch; one frame an octave off weighs as much as 144 that are a
    semitone off.

    Raises:
        Refused: no frame is voiced in both.
    """
    a, b = pitch(original), pitch(made)
    both = (a > 0) & (b > 0)
    if not both.any():
        raise Refused("no frame is voiced in both")
    return float(np.sqrt(np.mean(np.log(a[both] / b[both]) ** 2)))


def voicing_error(original: np.ndarray, made: np.ndarray) -> float:
    """Share of frames that are voiced in one and not in the other.

    Blind to pitch and timbre. Frames of silence agree by themselves, so a clip with long pauses
    has a lower one; breathy and creaky frames flip at little cause.

    Raises:
        Refused: no frame of the original is voiced.
    """
    a, b = pitch(original) > 0, pitch(made) > 0
    if not a.any():
        raise Refused("no frame of the original is voiced")
    return float((a != b).mean())
