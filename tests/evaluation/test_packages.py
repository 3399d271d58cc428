"""Figures by other people's packages: where one is missing, and what it refuses.

Stand-ins answer for the packages where only our own part is tested.
"""

import sys
import types
import warnings

import numpy as np
import pytest
from support.sounds import noise, voice

pytest.importorskip("soundfile")
pytest.importorskip("filelock")
from muomni_fast.reference.audio.files import read_audio  # noqa: E402
from muomni_fast.reference.evaluation import judges, words  # noqa: E402
from muomni_fast.reference.evaluation.metrics import METRICS, Sample, load_metrics  # noqa: E402
from muomni_fast.reference.evaluation.refused import RATE, Refused  # noqa: E402

OWN = ["mel_l1", "mel_mse", "mcd", "log_f0_rmse", "voicing_error"]
IMPORTS = {  # what each metric imports
    "stoi": "pystoi",
    "pesq": "pesq",
    "dnsmos": "speechmos",
    "word_errors": "pocketsphinx",
    "speaker": "resemblyzer",
}


def stand_in(monkeypatch, name, **content):
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))


def test_every_metric_is_our_own_or_has_its_package_here():
    assert list(METRICS) == [*OWN, *IMPORTS]
    for metric in METRICS.values():
        assert bool(metric.packages) == bool(metric.install) == (metric.name in IMPORTS)


@pytest.mark.parametrize("name", IMPORTS)
def test_a_missing_package_leaves_its_metric_out_and_says_so(name, monkeypatch):
    monkeypatch.setitem(sys.modules, IMPORTS[name], None)
    measures, left_out = load_metrics([*OWN, name])
    assert list(measures) == OWN and list(left_out) == [name]
    assert IMPORTS[name] in left_out[name] and METRICS[name].install in left_out[name]


def test_what_a_package_needs_itself_is_named(monkeypatch):
    """speechmos does not ask pip for onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for module in ("speechmos", "speechmos.dnsmos"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    pytest.importorskip("speechmos")
    pytest.importorskip("librosa")
    _, left_out = load_metrics(["dnsmos"])
    assert "onnxruntime" in left_out["dnsmos"]


def test_our_own_need_no_package(monkeypatch):
    for module in IMPORTS.values():
        monkeypatch.setitem(sys.modules, module, None)
    measures, left_out = load_metrics(METRICS)
    assert list(measures) == OWN and list(left_out) == list(IMPORTS)
    sound = voice(120.0)
    for measure in measures.values():
        assert measure(Sample(sound, sound, "")).value == 0


def test_no_such_metric():
    with pytest.raises(ValueError, match="metrics: expected some of mel_l1.*got 'mos'"):
        load_metrics(["mos"])


# What a package cannot judge is refused by name: stand-ins.


def test_stoi_of_too_little_speech_is_no_figure(monkeypatch):
    def gives_up(original, made, rate):
        warnings.warn("Not enough STFT frames", RuntimeWarning, stacklevel=2)
        return 1e-5

    stand_in(monkeypatch, "pystoi", stoi=gives_up)
    with pytest.raises(Refused, match="too little speech"):
        judges.stoi()(noise(), noise())
    with pytest.raises(Refused, match="shorter than 0.5 s"):
        judges.stoi()(noise(0.1), noise(0.1))


def test_pesq_without_an_utterance_is_refused_with_the_reason(monkeypatch):
    class PesqError(RuntimeError):
        pass

    class NoUtterancesError(PesqError):
        pass

    def no_utterance(*arguments):
        raise NoUtterancesError(b"No utterances detected")

    stand_in(monkeypatch, "pesq", PesqError=PesqError, pesq=no_utterance)
    measure = judges.pesq_wb()
    with pytest.raises(Refused, match="NoUtterancesError"):
        measure(noise(), noise())
    with pytest.raises(Refused, match="silent"):
        measure(noise(), 0 * noise())
    with pytest.raises(Refused, match="longer than 60 s"):
        measure(noise(61), noise(61))


def test_word_errors_are_counted_over_all_words(monkeypatch):
    """Of a recogniser that always hears the same; a clip counts by its words."""
    made = []

    class Decoder:
        def __init__(self, **options):
            assert options["samprate"] == RATE
            made.append(self)

        def start_utt(self):
            pass

        end_utt = start_utt

        def process_raw(self, samples, full_utt):
            assert full_utt and len(samples) == 2 * RATE

        def hyp(self):
            return types.SimpleNamespace(hypstr="the red sun")

    stand_in(monkeypatch, "pocketsphinx", Decoder=Decoder)
    measure = words.word_errors()
    assert measure(noise(), "The red Sun.") == (0, 3)
    assert measure(noise(), "A red sun and moon") == (3, 5)
    assert len(made) == 2  # one that has heard a clip hears the next one differently
    measures, _ = load_metrics(["word_errors"])
    assert measures["word_errors"](Sample(noise(), noise(), "blue")) == (3.0, 1)
    for sound, text, reason in ((noise(), " -- ", "no words"), (0 * noise(), "a", "silent")):
        with pytest.raises(Refused, match=reason):
            words.word_errors()(sound, text)


def test_hearing_nothing_misses_every_word(monkeypatch):
    decoder = types.SimpleNamespace(
        start_utt=lambda: None,
        end_utt=lambda: None,
        process_raw=lambda samples, full_utt: None,
        hyp=lambda: None,
    )
    stand_in(monkeypatch, "pocketsphinx", Decoder=lambda **options: decoder)
    assert words.word_errors()(noise(), "one two") == (2, 2)


def test_a_voice_is_compared_after_trimming(monkeypatch):
    encoder = types.SimpleNamespace(embed_utterance=lambda x: np.array([0.6, 0.8]))
    trimmed = [np.ones(3), np.ones(3), np.ones(0)]
    stand_in(
        monkeypatch,
        "resemblyzer",
        VoiceEncoder=lambda device, verbose: encoder,
        preprocess_wav=lambda x, rate: trimmed.pop(0),
    )
    measure = judges.speaker_similarity()
    assert measure(noise(), noise()) == pytest.approx(1)
    with pytest.raises(Refused, match="no speech found"):
        measure(noise(), noise())


# The packages themselves, on a recording.


@pytest.fixture(scope="module")
def speech(recordings) -> np.ndarray:
    return read_audio(recordings / "ljspeech" / "LJ001-0013.flac", RATE)[0]


def noisy(speech: np.ndarray, level: float) -> np.ndarray:
    return np.clip(speech + noise(3.0, level)[: len(speech)], -1, 1)


def test_stoi_falls_with_noise(speech):
    pytest.importorskip("pystoi")
    measure = judges.stoi()
    same, little, much = (measure(speech, noisy(speech, n)) for n in (0, 0.005, 0.1))
    assert same == pytest.approx(1) and much + 0.05 < little < same
    with pytest.raises(Refused, match="too little speech"):
        measure(speech[:8000] * (np.arange(8000) < 1000), speech[:8000])


def test_pesq_falls_with_noise(speech):
    pytest.importorskip("pesq")
    measure = judges.pesq_wb()
    same, little, much = (measure(speech, noisy(speech, n)) for n in (0, 0.003, 0.03))
    assert same == pytest.approx(4.64, abs=0.01) and much < little < 4


@pytest.mark.long
def test_dnsmos_hears_noise(speech):
    pytest.importorskip("speechmos")
    pytest.importorskip("onnxruntime")
    measure = judges.dnsmos()
    assert measure(speech) > measure(noisy(speech, 0.05)) + 0.5
    with pytest.raises(Refused, match="shorter"):
        measure(speech[:10])


@pytest.mark.long
def test_words_of_a_recording_are_mostly_understood(speech):
    pytest.importorskip("pocketsphinx")
    errors, said = words.word_errors()(speech, "than in the same operations with ugly ones.")
    assert said == 8 and errors < said
    assert words.word_errors()(speech, "of another clip altogether")[0] > errors


@pytest.mark.long
def test_a_voice_is_most_like_itself(speech, recordings):
    pytest.importorskip("resemblyzer")
    measure = judges.speaker_similarity()
    own = read_audio(recordings / "ljspeech" / "LJ001-0011.flac", RATE)[0]
    other = read_audio(next((recordings / "vctk_16k").glob("*.flac")), RATE)[0]
    assert measure(speech, speech) == pytest.approx(1, abs=1e-5)
    assert measure(speech, own) > measure(speech, other)
