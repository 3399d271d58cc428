"""Speak sentences with three espeak-ng voices into an LJSpeech-style folder of 16 kHz FLAC.

The clips of `sentences.txt` are part of the repository; to make them again:
    apt-get install espeak-ng && python reference/speech/make_speech.py
For a Talker that is to say what it has not heard there are more, made up by a small grammar:
    python reference/speech/make_speech.py --sentences 3000 --out more
    python reference/train.py --data more
Every third sentence goes to the same voice, so the voices share no sentence.
"""

import argparse
import io
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

FOLDER = Path(__file__).resolve().parent
SAMPLE_RATE = 16000  # Hz
PEAK = 0.7
# speaker -> espeak-ng voice, speed (words per minute), pitch (0-99)
SPEAKERS = {
    "ada": ("en-gb+f2", 145, 55),
    "ben": ("en-us+m3", 142, 40),
    "cal": ("en-gb-scotland+m7", 136, 30),
}
# What made-up sentences are made of: WHO DID WHAT WHERE, or WHEN before it.
WHO = [
    "the baker",
    "my sister",
    "an old sailor",
    "the young teacher",
    "our neighbour",
    "a tall stranger",
    "the doctor",
    "her uncle",
    "the gardener",
    "a tired clerk",
    "the chief engineer",
    "his daughter",
    "the night porter",
    "a group of students",
    "the smallest boy",
    "the ferry captain",
    "someone from the village",
    "the judge",
    "both brothers",
    "the woman in grey",
]
DID = [
    "carried",
    "painted",
    "found",
    "borrowed",
    "sold",
    "forgot",
    "repaired",
    "watched",
    "counted",
    "followed",
    "described",
    "measured",
    "opened",
    "dropped",
    "washed",
    "promised",
    "drew",
    "collected",
    "weighed",
    "hid",
]
WHAT = [
    "a wooden chair",
    "the broken clock",
    "seven yellow flowers",
    "the letter from Paris",
    "a basket of plums",
    "an empty bottle",
    "the blue bicycle",
    "two heavy books",
    "a map of the coast",
    "the silver key",
    "a pair of shoes",
    "the church bell",
    "fresh bread",
    "the last ticket",
    "a quiet horse",
    "the kitchen table",
    "some warm clothes",
    "nine photographs",
    "the green door",
    "a jar of honey",
]
WHERE = [
    "near the harbour",
    "behind the school",
    "in the rain",
    "on a narrow bridge",
    "at the end of the street",
    "under the old oak",
    "beside the railway",
    "in front of the theatre",
    "across the river",
    "at home",
    "outside the hospital",
    "among the hills",
    "in the market",
    "by the window",
    "on the third floor",
    "far from the city",
    "along the beach",
    "without a word",
    "for a friend",
    "before the storm",
]
WHEN = [
    "yesterday",
    "last winter",
    "every Sunday",
    "in the morning",
    "after dinner",
    "at midnight",
    "once",
    "two weeks ago",
    "during the war",
    "as usual",
    "in early spring",
    "this afternoon",
]


def made_up(count: int, seed: int = 0) -> list[str]:
    """Different sentences, the same for a seed.

    Args:
        count: how many, at most half of those there can be.
        seed: of the choice.

    Raises:
        ValueError: there are not as many.
    """
    most = len(WHO) * len(DID) * len(WHAT) * len(WHERE) * (len(WHEN) + 1) // 2
    if not 1 <= count <= most:
        raise ValueError(f"sentences: expected 1 to {most:,}, got {count}")
    choose = random.Random(seed).choice
    found: dict[str, None] = {}  # in order
    while len(found) < count:
        who, rest = choose(WHO), f"{choose(DID)} {choose(WHAT)} {choose(WHERE)}"
        when = choose([*WHEN, ""])
        text = f"{when}, {who} {rest}." if when else f"{who} {rest}."
        found[text[0].upper() + text[1:]] = None
    return list(found)


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Return one spoken sentence as float audio (samples,) at SAMPLE_RATE, peak PEAK."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav))
    audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return audio * (PEAK / np.abs(audio).max())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, help="made-up ones (default: sentences.txt)")
    parser.add_argument("--out", type=Path, help="folder; needed with --sentences")
    given = parser.parse_args(arguments)
    if (given.sentences is None) != (given.out is None):
        parser.error("--sentences and --out go together: the repository's folder keeps its own")
    sentences = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    folder: Path = given.out or FOLDER
    if given.sentences is not None:
        sentences = made_up(given.sentences)
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    digits = max(2, len(str(-(-len(sentences) // len(SPEAKERS)))))
    rows = []
    for number, text in enumerate(sentences):
        speaker = list(SPEAKERS)[number % len(SPEAKERS)]
        clip = f"{speaker}-{number // len(SPEAKERS) + 1:0{digits}d}"
        audio = speak(text, *SPEAKERS[speaker])
        soundfile.write(folder / "wavs" / f"{clip}.flac", audio, SAMPLE_RATE, subtype="PCM_16")
        rows.append(f"{clip}|{text}|{text}|{speaker}\n")
    (folder / "metadata.csv").write_text("".join(sorted(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
