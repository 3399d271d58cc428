"""What all metrics share: the rate, and how one says that it cannot judge a clip."""

import numpy as np

from ..training.data import SILENT_PEAK

RATE = 16000  # Hz, of all audio that is judged


class Refused(ValueError):
    """A metric does not judge a clip; says why. The clip is left out of that metric's mean."""


def require_sound(audio: np.ndarray, least_seconds: float, most_seconds: float = 3600.0) -> None:
    """Raise Refused unless audio (L,) at 16 kHz has a length that a metric takes and is no
    silence."""
    seconds = len(audio) / RATE
    if not least_seconds <= seconds <= most_seconds:
        bound = f"shorter than {least_seconds:g} s"
        if seconds > most_seconds:
            bound = f"longer than {most_seconds:g} s"
        raise Refused(bound)
    if np.abs(audio).max() < SILENT_PEAK:
        raise Refused("silent")
