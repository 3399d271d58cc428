"""Whole models around the parts that `muomni_fast.accelerate` knows, for `families.py`: random
weights, in the sizes that are published, or small ones."""

import math
from collections.abc import Callable
from typing import Any

import torch
from family_models import FAMILIES, from_hf, lively
from torch import Tensor, nn

Whole = tuple[nn.Module, Callable[[Any], Tensor]]  # a model, and what calls it or its copy
SECONDS = 2.0  # of audio that codecs get


def _part(family: str, small: bool) -> Any:
    return next(known for known in FAMILIES if known.name == family).make(small)


def _text_to_speech(small: bool) -> Whole:
    """40 characters, 200 mel frames, whatever the model takes for an end."""
    (config,) = from_hf("speecht5.configuration_speecht5", "SpeechT5Config")
    (model,) = from_hf("speecht5.modeling_speecht5", "SpeechT5ForTextToSpeech")
    sizes: dict[str, Any] = {}
    if small:
        sizes = dict(hidden_size=8, encoder_layers=1, encoder_attention_heads=2, decoder_layers=1)
        sizes |= dict(encoder_ffn_dim=8, decoder_ffn_dim=8, decoder_attention_heads=2)
        sizes |= dict(num_mel_bins=6, speech_decoder_prenet_units=4, speaker_embedding_dim=4)
        sizes |= dict(speech_decoder_postnet_units=4)
    spoken = model(config(**sizes))
    both = nn.ModuleDict({"model": spoken, "vocoder": _part("SpeechT5", small)}).eval()
    characters = torch.arange(4, 44)[None]
    speaker = torch.randn(1, spoken.config.speaker_embedding_dim)
    ratio = 0.5 if small else 5.0  # frames a character

    def call(both: Any) -> Tensor:
        torch.manual_seed(1)  # its decoder drops out at random always
        return both["model"].generate_speech(
            characters, speaker, minlenratio=ratio, maxlenratio=ratio, vocoder=both["vocoder"]
        )

    return both, call


def fastspeech2(small: bool) -> Any:
    """FastSpeech2ConformerWithHifiGan, of which every character takes 5 frames."""
    module = "fastspeech2_conformer"
    name = "FastSpeech2ConformerWithHifiGan"
    (config,) = from_hf(f"{module}.configuration_{module}", f"{name}Config")
    (model,) = from_hf(f"{module}.modeling_{module}", name)
    sizes: dict[str, Any] = {}
    if small:
        widths = "speech_decoder_postnet_units", "duration_predictor_channels"
        widths += "energy_predictor_channels", "pitch_predictor_channels"
        sizes = dict.fromkeys(widths, 4) | dict(hidden_size=8, num_mel_bins=6)
        sizes |= dict(encoder_layers=1, decoder_layers=1)
        sizes |= dict(encoder_linear_units=8, decoder_linear_units=8)
    vocoder = _part("FastSpeech2Conformer", small)
    both = model(config(model_config=sizes, vocoder_config=vocoder.config.to_dict())).eval()
    both.vocoder = vocoder
    durations = both.model.duration_predictor.linear  # gives the logarithm of 1 + frames
    nn.init.zeros_(durations.weight)
    nn.init.constant_(durations.bias, math.log(6))
    return both


def _fastspeech2(small: bool) -> Whole:
    """40 characters, 200 mel frames."""
    characters = torch.arange(4, 44)[None]
    return fastspeech2(small), lambda model: model(characters, return_dict=True).waveform


def _units(version: str) -> Callable[[bool], Whole]:
    def make(small: bool) -> Whole:
        """100 units through the vocoder and its predictor of durations."""
        units = torch.arange(4, 14 if small else 104)[None]
        one = torch.zeros(1, 1, dtype=torch.long)
        return _part(f"SeamlessM4T{version}", small), lambda model: model(units, one, one)[0]

    return make


def _vits(speakers: bool) -> Callable[[bool], Whole]:
    def make(small: bool) -> Whole:
        """30 characters, and as many frames as random durations give."""
        (config,) = from_hf("vits.configuration_vits", "VitsConfig")
        (model,) = from_hf("vits.modeling_vits", "VitsModel")
        made = _part("VITS, speakers" if speakers else "VITS", small)
        if not small:  # other weights are as small as training begins with, and durations short
            made = model(config(**_sizes_of(made))).eval()
            lively(made.decoder)
        text = torch.arange(1, 9 if small else 31)[None]
        given = {"speaker_id": 1} if speakers else {}

        def call(model: Any) -> Tensor:
            torch.manual_seed(1)
            return model(text, **given).waveform

        return made, call

    return make


def _sizes_of(model: Any) -> dict[str, Any]:
    names = "num_speakers", "speaker_embedding_size"
    return {name: getattr(model.config, name) for name in names}


def _through(family: str, rate: int, **options: Any) -> Callable[[bool], Whole]:
    def make(small: bool) -> Whole:
        """Audio through `encode` and `decode`."""
        model = _xcodec(small) if family == "X-Codec" else _part(family, small)
        audio = 0.3 * torch.randn(1, 1, int(rate * (0.1 if small else SECONDS)))
        if family == "EnCodec":
            options["bandwidth"] = model.config.target_bandwidths[-1]

        def call(model: Any) -> Tensor:
            coded = model.encode(audio, **options)
            scales = [coded.audio_scales] if family == "EnCodec" else []
            return model.decode(coded.audio_codes, *scales).audio_values

        return model, call

    return make


def _xcodec(small: bool) -> Any:
    (config,) = from_hf("xcodec.configuration_xcodec", "XcodecConfig")
    (model,) = from_hf("xcodec.modeling_xcodec", "XcodecModel")
    sizes: dict[str, Any] = {}
    if small:
        acoustic = dict(encoder_hidden_size=4, decoder_hidden_size=16, hidden_size=8)
        semantic = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        semantic |= dict(intermediate_size=8, conv_dim=[8] * 7, num_conv_pos_embeddings=4)
        semantic |= dict(num_conv_pos_embedding_groups=2)
        sizes = dict(codebook_size=16, acoustic_model_config=acoustic)
        sizes |= dict(semantic_model_config=semantic)
    return model(config(**sizes)).eval()


WHOLE: dict[str, Callable[[bool], Whole]] = {
    "SpeechT5": _text_to_speech,
    "FastSpeech2Conformer": _fastspeech2,
    "SeamlessM4T": _units(""),
    "SeamlessM4T v2": _units(" v2"),
    "VITS": _vits(False),
    "VITS, speakers": _vits(True),
    "EnCodec": _through("EnCodec", 24000),
    "Mimi": _through("Mimi", 24000),
    "X-Codec": _through("X-Codec", 16000),
}
