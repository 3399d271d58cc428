"""Speak `sentences.txt` with three espeak-ng voices into an LJSpeech-style folder of 16 kHz FLAC.

The clips are part of the repository; this script is needed only to make them again:
    apt-get install espeak-ng && python reference/speech/make_speech.py
Every third sentence goes to the same voice, so the voices share no sentence.
"""

import io
import subprocess
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


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Return one spoken sentence as float audio (samples,) at SAMPLE_RATE, peak PEAK."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav))
    audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return audio * (PEAK / np.abs(audio).max())


def main() -> None:
    sentences = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    (FOLDER / "wavs").mkdir(exist_ok=True)
    rows = []
    for number, text in enumerate(sentences):
        speaker = list(SPEAKERS)[number % len(SPEAKERS)]
        clip = f"{speaker}-{number // len(SPEAKERS) + 1:02d}"
        audio = speak(text, *SPEAKERS[speaker])
        soundfile.write(FOLDER / "wavs" / f"{clip}.flac", audio, SAMPLE_RATE, subtype="PCM_16")
        rows.append(f"{clip}|{text}|{text}|{speaker}\n")
    (FOLDER / "metadata.csv").write_text("".join(sorted(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
