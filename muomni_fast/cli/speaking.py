"""Text to a WAV file, for `muomni-fast speak`."""

from pathlib import Path
from typing import Any

from ..reference.audio.wav import wav_writer
from .models import Coder
from .places import Pair, UsageError
from .report import FAULTS, Report, make_parent


def say(coder: Coder, text: str, target: Path, report: Report, **options: Any) -> None:
    """Write what the codec's Talker makes of a text.

    Args:
        coder: whose codec has a Talker.
        text: what to say.
        target: of the WAV file.
        report: where it is told.
        options: of `SpeechCodec.speak`.

    Raises:
        UsageError: the text or an option is not one that the Talker takes, or nothing was said.
    """
    if target.suffix != ".wav":
        raise UsageError(f"-o {target}: expected a file that ends in .wav")
    codec, rate = coder.codec, coder.codec.config.sample_rate
    with report.progress(0.0):
        try:
            audio = codec.to(codec.rvq.codebook_weights()[0].device).speak(text, **options)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if len(audio) == 0:
            raise UsageError("speak: the Talker had nothing to say to that text")
        pair = Pair(Path("text"), target)
        try:
            make_parent(target)
            with wav_writer(target, rate) as file:
                file.write(audio.cpu().numpy())
        except FAULTS as error:
            report.failed(pair, error)
        else:
            report.done(pair, file.samples / rate, file.peak)
