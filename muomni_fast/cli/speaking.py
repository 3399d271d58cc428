"""Text to a WAV file, for `muomni-fast speak`."""

import hashlib
from pathlib import Path
from typing import Any

from ..reference.audio.files import audio_info
from ..reference.audio.wav import wav_writer
from .existing import DIGITS, comment_of, digest, entry, is_sound_there
from .models import Coder, weights_into
from .places import Pair, UsageError
from .report import FAULTS, Report, make_parent


def say(
    coder: Coder, text: str, target: Path, report: Report, overwrite: bool, **options: Any
) -> None:
    """Write what the codec's Talker makes of a text.

    Args:
        coder: whose codec has a Talker.
        text: what to say.
        target: of the WAV file.
        report: where it is told.
        overwrite: write it whatever is there.
        options: of `SpeechCodec.speak`.

    Raises:
        UsageError: the text or an option is not one that the Talker takes, or nothing was said.
    """
    if target.suffix != ".wav":
        raise UsageError(f"-o {target}: expected a file that ends in .wav")
    codec, rate, pair = coder.codec, coder.codec.config.sample_rate, Pair(Path("text"), target)
    model = hashlib.sha256(f"{coder.digest} {codec.config}".encode())
    weights_into(model, codec)
    made_of = {"from": "text", "source": digest(text), "model": model.hexdigest()[:DIGITS]}
    made_of |= {name: entry(value) for name, value in options.items()}
    try:
        if not overwrite and is_sound_there(target, made_of):
            report.skipped(pair, audio_info(target).frames / rate)
            return
    except FAULTS as error:
        report.failed(pair, error)
        return
    with report.progress(0.0):
        try:
            audio = codec.to(codec.rvq.codebook_weights()[0].device).speak(text, **options)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if len(audio) == 0:
            raise UsageError("speak: the Talker had nothing to say to that text")
        replaced = target.exists()
        try:
            make_parent(target)
            with wav_writer(target, rate, comment_of(made_of)) as file:
                file.write(audio.cpu().numpy())
        except FAULTS as error:
            report.failed(pair, error)
        else:
            report.done(pair, file.samples / rate, replaced, file.peak)
