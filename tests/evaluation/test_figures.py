"""Figures that need no package, against other formulas and known values."""

import math

import numpy as np
import pytest
import torch
from support.sounds import RATE, noise, voice

from muomni_fast.reference.evaluation import pitch as yin
from muomni_fast.reference.evaluation import spectral
from muomni_fast.reference.evaluation.pitch import log_f0_rmse, pitch, voicing_error
from muomni_fast.reference.evaluation.refused import Refused, require_sound
from muomni_fast.reference.evaluation.spectral import (
    MEL,
    mel_cepstral_distortion,
    mel_l1,
    mel_mse,
    mel_of,
)
from muomni_fast.reference.evaluation.words import edit_distance, normalised

# Spectra


def test_a_gain_moves_log_mels_by_its_logarithm_and_no_envelope():
    sound = noise(level=0.05)  # loud enough in all bands that none is at the floor
    assert float(mel_of(sound).min()) > math.log(MEL.log_floor) + math.log(2)
    assert mel_l1(sound, 2 * sound) == pytest.approx(math.log(2), rel=1e-6)
    assert mel_mse(sound, 2 * sound) == pytest.approx(math.log(2) ** 2, rel=1e-6)
    assert mel_cepstral_distortion(sound, 2 * sound) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", [mel_l1, mel_mse, mel_cepstral_distortion])
def test_distances_of_spectra_are_symmetric_and_zero_for_the_same(distance):
    a, b = noise(seed=1), noise(seed=2)
    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12) and distance(a, b) > 0


@pytest.mark.parametrize("m", [1, 5, spectral.ORDER])
def test_cepstral_distortion_of_one_ripple(monkeypatch, m):
    """A ripple of height a over the bands has the cepstrum c_m = a: 10 / ln 10 sqrt(2) a dB."""
    bands = torch.arange(MEL.n_mels, dtype=torch.float64)[:, None] + 0.5
    ripple = 0.3 * torch.cos(math.pi * m * bands / MEL.n_mels).expand(-1, 7)
    monkeypatch.setattr(spectral, "mel_of", lambda which: ripple if which else 0 * ripple)
    assert mel_cepstral_distortion(True, False) == pytest.approx(
        10 / math.log(10) * math.sqrt(2) * 0.3, rel=1e-12
    )


def test_cepstral_distortion_of_all_coefficients_is_the_difference_in_decibels(monkeypatch):
    """By Parseval: with every coefficient it is the rms difference of two spectra in dB, each
    without its level."""
    monkeypatch.setattr(spectral, "ORDER", MEL.n_mels - 1)
    spectral.cosines.cache_clear()
    a, b = noise(seed=1), voice(150.0)
    decibels = 20 / math.log(10) * (mel_of(a) - mel_of(b))
    decibels -= decibels.mean(0)
    wanted = float(decibels.square().mean(0).sqrt().mean())
    got = mel_cepstral_distortion(a, b)
    spectral.cosines.cache_clear()
    assert got == pytest.approx(wanted, rel=1e-9)


# Pitch


@pytest.mark.parametrize("f0", [65.0, 97.3, 180.0, 333.3, 480.0])
@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_pitch_of_a_steady_voice(f0, level):
    found = pitch(level * voice(f0))
    assert len(found) == math.ceil(RATE / yin.HOP)
    inner = found[2:-2]  # edge frames are partly silence
    assert (inner > 0).all() and np.abs(inner / f0 - 1).max() < 0.005


def test_pitch_follows_a_glide():
    """Of every frame at its centre."""
    course = np.geomspace(90, 300, 2 * RATE)
    found = pitch(voice(course, 2.0))
    centres = np.arange(len(found)) * yin.HOP + yin.HOP // 2
    error = found[2:-2] / course[centres[2:-2]] - 1
    assert np.abs(error).max() < 0.02


def test_noise_silence_and_what_is_far_quieter_have_no_pitch():
    assert (pitch(noise()) == 0).mean() > 0.99
    assert (pitch(np.zeros(5000, np.float32)) == 0).all()
    sound = np.concatenate([voice(120.0), 1e-3 * voice(120.0)])  # 60 dB below
    found = pitch(sound)
    assert (found[4:58] > 0).all() and (found[67:] == 0).all()


@pytest.mark.parametrize("samples", [1, 100, yin.HOP, yin.HOP + 1])
def test_pitch_of_very_short_audio(samples):
    found = pitch(np.ones(samples, np.float32))
    assert len(found) == math.ceil(samples / yin.HOP) and np.isfinite(found).all()


def test_difference_function_is_the_papers_sum():
    frames = np.random.default_rng(0).standard_normal((3, yin.WINDOW + yin.MAX_LAG + 1))
    head = frames[:, : yin.WINDOW]
    wanted = [
        ((head - frames[:, lag : lag + yin.WINDOW]) ** 2).sum(1) for lag in range(yin.MAX_LAG + 2)
    ]
    assert np.allclose(yin.differences(frames), np.stack(wanted, axis=1), atol=1e-9)


def test_f0_figures_of_known_changes():
    low, high = voice(150.0), voice(150.0 * 2 ** (1 / 12))
    assert log_f0_rmse(low, high) == pytest.approx(math.log(2) / 12, rel=0.05)
    assert log_f0_rmse(low, low) == 0 and voicing_error(low, low) == 0
    half = np.concatenate([voice(150.0), noise()])
    assert voicing_error(np.tile(voice(150.0), 2), half) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(Refused, match="voiced in both"):
        log_f0_rmse(low, noise())
    with pytest.raises(Refused, match="no frame of the original"):
        voicing_error(noise(level=1e-3), low)


# Words


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("a b c", "a c", 1),
        ("a c", "a b c", 1),
        ("a b c", "a x c", 1),
        ("k i t t e n", "s i t t i n g", 3),
        ("i n t e n t i o n", "e x e c u t i o n", 5),
    ],
)
def test_edit_distance_of_known_pairs(said, heard, errors):
    assert edit_distance(said.split(), heard.split()) == errors
    assert edit_distance(heard.split(), said.split()) == errors


def test_edit_distance_is_the_least_over_all_ways():
    """Against the recursion that defines it."""

    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = np.random.default_rng(0)
    for _ in range(40):
        a, b = ("".join(draw.choice(list("xyz"), draw.integers(6))) for _ in range(2))
        assert edit_distance(a, b) == slow(a, b)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Printing, in the ONLY sense", "printing in the only sense"),
        ('or "forty-two line Bible" of', "or forty two line bible of"),
        ("don't 'quote' the artists'", "don't quote the artists"),
        ("it\u2019s caf\u00e9\u2014na\u00efve", "it's cafe naive"),
        (" -- ... ", ""),
        ("in 1884_a", "in 1884 a"),
    ],
)
def test_words_are_normalised(text, words):
    assert normalised(text) == words.split()


# Refusals


def test_lengths_and_silence_are_refused_by_name():
    require_sound(noise(0.5), 0.5)
    for sound, reason in (
        (noise(0.49), "shorter than 0.5 s"),
        (noise(2.0), "longer than 1 s"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.zeros(0, np.float32), "shorter"),
    ):
        with pytest.raises(Refused, match=reason):
            require_sound(sound, 0.5, 1.0)
