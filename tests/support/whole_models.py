"""Small models of transformers that hold another library's vocoder or codec as one of their parts.

Importing this imports no transformers.
"""

import importlib
from typing import Any

from whole_models import fastspeech2

CODEC = dict(num_filters=2, hidden_size=8, codebook_size=16, codebook_dim=8)
ENCODEC = CODEC | dict(num_lstm_layers=1, target_bandwidths=[0.3, 1.5], model_type="encodec")
MIMI = CODEC | dict(codebook_dim=4, vector_quantization_hidden_dimension=4, num_hidden_layers=1)
MIMI |= dict(num_attention_heads=2, num_key_value_heads=2, head_dim=4, intermediate_size=8)
MIMI |= dict(num_quantizers=4, upsample_groups=8, model_type="mimi")
LAYERS = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
ROOMY = 3000  # codes and words: more than the numbers of special ones


def _transformers() -> Any:
    return importlib.import_module("transformers")


def _musicgen() -> Any:
    library = _transformers()
    text = dict(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    decoder = LAYERS | dict(vocab_size=ROOMY, ffn_dim=8, num_codebooks=4)
    config = library.MusicgenConfig(
        text_encoder=text | {"model_type": "t5"}, audio_encoder=ENCODEC, decoder=decoder
    )
    return library.MusicgenForConditionalGeneration(config).eval()


def _bark() -> Any:
    library = _transformers()
    inner = dict(hidden_size=8, num_layers=1, num_heads=2, block_size=8)
    inner |= dict(input_vocab_size=10, output_vocab_size=10)
    names = "semantic_config", "coarse_acoustics_config", "fine_acoustics_config"
    config = library.BarkConfig(**dict.fromkeys(names, inner), codec_config=ENCODEC)
    return library.BarkModel(config).eval()


def _csm() -> Any:
    library = _transformers()
    sizes = LAYERS | dict(intermediate_size=8, num_key_value_heads=2, head_dim=4, num_codebooks=4)
    sizes |= dict(vocab_size=ROOMY)
    depth = sizes | {"backbone_hidden_size": 8}
    config = library.CsmConfig(
        **sizes, text_vocab_size=200_000, depth_decoder_config=depth, codec_config=MIMI
    )
    return library.CsmForConditionalGeneration(config).eval()


def _moshi() -> Any:
    library = _transformers()
    sizes = LAYERS | dict(ffn_dim=8, head_dim=4, num_codebooks=4, vocab_size=10)
    depth = sizes | dict(input_size=8, num_key_value_heads=2)
    config = library.MoshiConfig(**sizes, audio_encoder_config=MIMI, depth_decoder_config=depth)
    return library.MoshiForConditionalGeneration(config).eval()


_ACOUSTIC = "quantizer.acoustic_residual_vector_quantizer"
# By name: how it is made, where its part lies, and what `load` is asked for.
WHOLE: dict[str, Any] = {
    "FastSpeech2ConformerWithHifiGan": (lambda: fastspeech2(True), "vocoder", None),
    "MusicGen": (_musicgen, "audio_encoder.quantizer", None),
    "Bark": (_bark, "codec_model.quantizer", None),
    "Csm": (_csm, f"codec_model.{_ACOUSTIC}", "acoustic"),
    "Moshi": (_moshi, f"audio_encoder.{_ACOUSTIC}", "acoustic"),
}
