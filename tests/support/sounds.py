"""Audio at 16 kHz whose pitch, voicing and words are known."""

import numpy as np

RATE = 16000


def voice(f0: float | np.ndarray, seconds: float = 1.0, harmonics: int = 12) -> np.ndarray:
    """A buzz (samples,) float32 of that pitch in Hz, one value or one for each sample."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(f0, int(seconds * RATE))) / RATE
    parts = [np.sin(k * phase) / k for k in range(1, harmonics + 1)]
    return (0.2 * sum(parts)).astype(np.float32)


def noise(seconds: float = 1.0, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """White noise (samples,) float32."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    return (level * samples).astype(np.float32)
