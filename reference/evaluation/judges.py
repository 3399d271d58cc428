"""Figures by other people's packages; each function imports what it needs when it is made.

Audio is (L,) float32, mono, at 16 kHz, within full scale.
"""

import warnings
from collections.abc import Callable

import numpy as np

from .refused import RATE, Refused, require_sound

Comparison = Callable[[np.ndarray, np.ndarray], float]
# The C code refuses less; users report that it crashes on clips of minutes.
PESQ_SECONDS = 0.25, 60.0


def stoi() -> Comparison:
    """Short-time objective intelligibility, by pystoi: 0 to 1, higher is better.

    Taal, Hendriks, Heusdens and Jensen (2011): correlations of envelopes in third octaves over
    384 ms, up to 4.3 kHz. Blind to what is above that, to phases, to timbre and naturalness, and
    to steady differences of level in a band; it judges speech in noise, and was not made for
    vocoders.
    """
    import pystoi

    def measure(original: np.ndarray, made: np.ndarray) -> float:
        require_sound(original, 0.5)
        with warnings.catch_warnings():
            # Where too little of the clip is speech it warns, and returns 1e-5.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return float(pystoi.stoi(original, made, RATE))
            except (RuntimeWarning, ValueError) as warning:
                raise Refused("too little speech for STOI") from warning

    return measure


def pesq_wb() -> Comparison:
    """PESQ of ITU-T P.862.2, wide band, by pesq: 1.04 to 4.64, higher is better.

    Made for telephone networks and codecs. It compares loudness over time and frequency after
    aligning both, with the original's fine structure as the goal; so it is blind to naturalness:
    it ranks Griffin-Lim, which sounds metallic, above a neural vocoder that sounds clean but moves
    harmonics a little. Use it to compare codecs through one vocoder, not vocoders.
    """
    import pesq

    def measure(original: np.ndarray, made: np.ndarray) -> float:
        require_sound(original, *PESQ_SECONDS)
        require_sound(made, *PESQ_SECONDS)
        try:
            return float(pesq.pesq(RATE, original, made, "wb"))
        except pesq.PesqError as error:
            raise Refused(f"PESQ: {type(error).__name__}") from error

    return measure


def dnsmos() -> Callable[[np.ndarray], float]:
    """Overall quality that DNSMOS P.835 predicts, by speechmos: about 1 to 5, higher is better.

    Reddy, Gopal and Cutler (2022): a network that was trained on listeners' scores of noise
    suppressors. It does not hear the original, so it is blind to words, speaker and melody:
    fluent nonsense in another voice scores high, and a noisy recording scores low however well it
    is kept. A clip under 9 s is repeated until it is as long.
    """
    from speechmos import dnsmos as judge

    def measure(made: np.ndarray) -> float:
        require_sound(made, 0.25)
        return float(judge.run(made, RATE)["ovrl_mos"])

    return measure


def speaker_similarity() -> Comparison:
    """Cosine of two voices' embeddings, by resemblyzer: higher is better, 1 for the same audio.

    Wan, Wang, Papir and Moreno (2018). Blind to words and to most of quality; channel and noise
    move it too, so figures of the same voice in another recording, not 1, are what to hope for.
    """
    import resemblyzer

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embedding(audio: np.ndarray) -> np.ndarray:
        require_sound(audio, 0.5)
        trimmed = resemblyzer.preprocess_wav(audio, RATE)
        if len(trimmed) == 0:
            raise Refused("no speech found")
        return encoder.embed_utterance(trimmed)

    def measure(original: np.ndarray, made: np.ndarray) -> float:
        return float(embedding(original) @ embedding(made))

    return measure
