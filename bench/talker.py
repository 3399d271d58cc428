"""Codes per second of the Talker, reference and drop-in, and the time to the first audio.

    python bench/talker.py

Weights are random, which changes no time; frames are generated to a fixed number. Processor time of
one thread, which other processes on the same cores hardly lengthen, the median of five turns.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from timing import about, interleaved

import muomni_fast
from muomni_fast import MelConfig, reference
from muomni_fast.reference.training.presets import preset

# Models: the recipe, codebooks, and frames per second that the reference is to make at least.
SIZES = {"quick": (2, 600), "quick, 8 codebooks": (8, None), "muomni": (2, 220)}
TEXT = b"The first train left the harbour before the fog had lifted."  # 59 bytes
FRAMES = 100
GOALS = {"quick": 1.5, "quick, 8 codebooks": None, "muomni": 1.2}
FIRST_AUDIO = 100.0  # ms


def talkers(name: str) -> tuple[reference.Talker, muomni_fast.Talker]:
    """Both classes with one model's weights, which never end speech."""
    model = preset(name.split(",")[0]).recipe("talker").model
    torch.manual_seed(0)
    plain = reference.Talker(**{**model, "n_codebooks": SIZES[name][0]}).eval()
    fast = muomni_fast.Talker(**plain.config).eval()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def say(talker: reference.Talker) -> None:
    """Generate FRAMES steps of one item."""
    rows = talker.steps(max_frames=FRAMES).rows([TEXT], [0])
    for _ in range(FRAMES):
        next(rows)


def speech(library: Any) -> muomni_fast.SpeechCodec:
    """A codec as the quick preset trains it."""
    config = preset("quick")
    torch.manual_seed(0)
    rvq = library.RVQ(**config.recipe("rvq").shape(config))
    vocoder = library.HiFiGANVocoder(**config.recipe("vocoder").model).fold_weight_norm()
    talker = library.Talker(**config.recipe("talker").model, n_codebooks=rvq.n_codebooks)
    pooled = config.frames_per_code, config.pooling
    return library.SpeechCodec(rvq, vocoder, MelConfig(), *pooled, talker=talker).eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    machine = about(1)
    print(f"{machine['machine']}, torch {machine['torch']}, {machine['date']}")
    print(f"{'frames per second':<22}{'reference':>10}{'fast':>8}{'ratio':>8}   goals")
    for name, (_, least) in SIZES.items():
        plain, fast = talkers(name)
        runs = {"reference": lambda p=plain: say(p), "fast": lambda f=fast: say(f)}
        times = interleaved(runs, rounds=rounds)
        ratio = times["reference"] / times["fast"]
        goal = f"{least} frames/s, {GOALS[name]} x" if least else "none"
        figures = [FRAMES / times[run] for run in runs]
        print(f"{name:<22}{figures[0]:>10.0f}{figures[1]:>8.0f}{ratio:>8.2f}   {goal}")
    codecs = {name: speech(lib) for name, lib in (("reference", reference), ("fast", muomni_fast))}
    text = TEXT.decode()
    firsts = {
        name: (lambda c=codec: next(c.speak(text, stream=True))) for name, codec in codecs.items()
    }
    times = interleaved(firsts, rounds=rounds)
    vocoder: Any = codecs["reference"].vocoder
    per_code = codecs["reference"].frames_per_code
    codes = vocoder.context.future // per_code + 1
    steps = codes + codecs["reference"].rvq.n_codebooks - 1
    print(f"first audio, ms: {1e3 * times['reference']:.0f}, fast {1e3 * times['fast']:.0f}")
    print(
        f"  goal {FIRST_AUDIO:.0f}; it waits for the text, {steps} steps ({codes} codes, the last "
        "of which is complete when its last codebook is), and the vocoder's first frames"
    )


if __name__ == "__main__":
    main()
