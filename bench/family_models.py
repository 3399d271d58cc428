"""Models of other libraries with random weights, in eval mode: what `muomni_fast.accelerate` knows.

Tests make them small, `families.py` in the sizes that are published. Importing this imports none of
the libraries; making a model raises ModuleNotFoundError where its library is not installed.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TRANSFORMERS, VECTOR_QUANTIZE = "transformers", "vector-quantize-pytorch"


@dataclasses.dataclass(frozen=True)
class Family:
    """A model that holds a part that is known.

    Attributes:
        name: as the report has it.
        package: that has its class.
        make: small or not -> the model, in eval mode.
        part: where the known module lies inside; "" is the model itself.
        inputs: the part, frames -> for each method its arguments; the first result of `encode` is
            what `decode` is given.
        saves: whether the model has `save_pretrained`.
    """

    name: str
    package: str
    make: Callable[[bool], nn.Module]
    part: str
    inputs: Callable[[Any, int], dict[str, tuple[Any, ...]]]
    saves: bool = True


def from_hf(module: str, *names: str) -> list[Any]:
    found = importlib.import_module(f"transformers.models.{module}")
    return [getattr(found, name) for name in names]


def _vocoder(small: bool, **real: Any) -> dict[str, Any]:
    """The settings of a HiFi-GAN generator, `real` or small ones."""
    if not small:
        return real
    return dict(
        upsample_initial_channel=16,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1], [3]],
    )


def _speecht5(small: bool) -> nn.Module:
    (config,) = from_hf("speecht5.configuration_speecht5", "SpeechT5HifiGanConfig")
    (model,) = from_hf("speecht5.modeling_speecht5", "SpeechT5HifiGan")
    sizes = {"model_in_dim": 6} if small else {}
    return lively(model(config(**sizes, **_vocoder(small))))


def _fastspeech2(small: bool) -> nn.Module:
    module = "fastspeech2_conformer"
    (config,) = from_hf(f"{module}.configuration_{module}", "FastSpeech2ConformerHifiGanConfig")
    (model,) = from_hf(f"{module}.modeling_{module}", "FastSpeech2ConformerHifiGan")
    sizes = {"model_in_dim": 6} if small else {}
    return lively(model(config(**sizes, **_vocoder(small))))


def _seamless(version: str) -> Callable[[bool], nn.Module]:
    def make(small: bool) -> nn.Module:
        module = "seamless_m4t" + version.lower().replace("v", "_v")
        (config,) = from_hf(f"{module}.configuration_{module}", f"SeamlessM4T{version}Config")
        (model,) = from_hf(f"{module}.modeling_{module}", f"SeamlessM4T{version}CodeHifiGan")
        sizes = dict(unit_embed_dim=4, lang_embed_dim=2, spkr_embed_dim=2) if small else {}
        return lively(model(config(**sizes, **_vocoder(small))))

    return make


def _vits(speakers: int) -> Callable[[bool], nn.Module]:
    def make(small: bool) -> nn.Module:
        (config,) = from_hf("vits.configuration_vits", "VitsConfig")
        (model,) = from_hf("vits.modeling_vits", "VitsModel")
        sizes: dict[str, Any] = {"num_speakers": 3 if speakers else 1}
        sizes["speaker_embedding_size"] = speakers
        if small:
            sizes |= dict(hidden_size=8, flow_size=6, ffn_dim=8, num_hidden_layers=1)
            sizes |= dict(spectrogram_bins=9, prior_encoder_num_wavenet_layers=1, vocab_size=9)
            sizes |= dict(prior_encoder_num_flows=1, posterior_encoder_num_wavenet_layers=1)
            sizes |= dict(duration_predictor_num_flows=1, duration_predictor_flow_bins=2)
        return lively(model(config(**sizes, **_vocoder(small))))

    return make


def lively(model: Any) -> nn.Module:
    """Weights large enough that audio is neither silence nor clipped."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose1d):
                fan_in = module.weight.shape[0] * module.kernel_size[0] // module.stride[0]
            with torch.no_grad():
                module.weight.normal_(0, 0.8 * fan_in**-0.5)
    return model.eval()


def _encodec(small: bool) -> nn.Module:
    (config,) = from_hf("encodec.configuration_encodec", "EncodecConfig")
    (model,) = from_hf("encodec.modeling_encodec", "EncodecModel")
    sizes = {}
    if small:
        sizes = dict(num_filters=2, hidden_size=8, codebook_size=16, num_lstm_layers=1)
        sizes |= dict(codebook_dim=8, target_bandwidths=[0.3, 1.5])
    return _with_codebooks(model(config(**sizes)), "quantizer.layers", "embed")


def _mimi(small: bool) -> nn.Module:
    (config,) = from_hf("mimi.configuration_mimi", "MimiConfig")
    (model,) = from_hf("mimi.modeling_mimi", "MimiModel")
    sizes = {}
    if small:
        sizes = dict(num_filters=2, hidden_size=8, codebook_size=16, codebook_dim=4)
        sizes |= dict(vector_quantization_hidden_dimension=4, num_hidden_layers=1)
        sizes |= dict(num_attention_heads=2, num_key_value_heads=2, head_dim=4)
        sizes |= dict(intermediate_size=8, num_quantizers=4, upsample_groups=8)
    model = model(config(**sizes))
    for part in ("semantic", "acoustic"):
        layers = f"quantizer.{part}_residual_vector_quantizer.layers"
        _with_codebooks(model, layers, "embed_sum")
        for layer in model.get_submodule(layers):
            layer.codebook.cluster_usage.uniform_(0.5, 2)
    return model


def _xcodec(small: bool) -> nn.Module:
    (config,) = from_hf("xcodec.configuration_xcodec", "XcodecConfig")
    (model,) = from_hf("xcodec.modeling_xcodec", "XcodecResidualVectorQuantization")
    sizes = dict(codebook_size=16, codebook_dim=8) if small else {}
    return _with_codebooks(model(config(**sizes)), "quantizers", "embed")


def _with_codebooks(model: Any, layers: str, name: str) -> nn.Module:
    """Random codewords, each codebook's smaller than those before."""
    for number, layer in enumerate(model.get_submodule(layers)):
        getattr(layer.codebook, name).normal_(0, 0.9**number)
    return model.eval()


def residual_vq(small: bool = True, **options: Any) -> nn.Module:
    """vector-quantize-pytorch's, with `options` of its own."""
    from vector_quantize_pytorch import ResidualVQ

    sizes = dict(dim=512, codebook_dim=128, num_quantizers=8, codebook_size=1024)
    if small:
        sizes = dict(dim=12, codebook_dim=8, num_quantizers=3, codebook_size=16)
    return ResidualVQ(**(sizes | options)).eval()


def _mels(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (torch.randn(2, frames, part.conv_pre.in_channels),)}


def _latents(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (torch.randn(2, part.conv_pre.in_channels, frames),)}


def _with_speaker(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {
        "forward": (*_latents(part, frames)["forward"], torch.randn(2, part.cond.in_channels, 1))
    }


def _frames(width: Callable[[Any], int]) -> Callable[[Any, int], dict[str, tuple[Any, ...]]]:
    def inputs(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
        x = torch.randn(2, width(part), frames)
        codes: Tensor = part.encode(x)
        mimi = hasattr(part, "input_proj")
        return {"encode": (x,), "decode": (codes.transpose(0, 1) if mimi else codes,)}

    return inputs


def _rows(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    x = torch.randn(2, frames, part.project_in.in_features)
    with torch.no_grad():
        codes = part(x)[1]
    codes[0, 0, 1] = -1  # which adds nothing
    return {"forward": (x,), "get_output_from_indices": (codes,)}


_book = lambda layer: layer.codebook.embed.shape[1]
FAMILIES = [
    Family("SpeechT5", TRANSFORMERS, _speecht5, "", _mels),
    Family("FastSpeech2Conformer", TRANSFORMERS, _fastspeech2, "", _mels),
    Family("SeamlessM4T", TRANSFORMERS, _seamless(""), "hifi_gan", _latents),
    Family("SeamlessM4T v2", TRANSFORMERS, _seamless("v2"), "hifi_gan", _latents),
    Family("VITS", TRANSFORMERS, _vits(0), "decoder", _latents),
    Family("VITS, speakers", TRANSFORMERS, _vits(5), "decoder", _with_speaker),
    Family(
        "EnCodec", TRANSFORMERS, _encodec, "quantizer", _frames(lambda part: _book(part.layers[0]))
    ),
    Family(
        "Mimi",
        TRANSFORMERS,
        _mimi,
        "quantizer.acoustic_residual_vector_quantizer",
        _frames(lambda part: part.input_proj.in_channels),
    ),
    Family(
        "X-Codec",
        TRANSFORMERS,
        _xcodec,
        "",
        _frames(lambda part: _book(part.quantizers[0])),
        saves=False,
    ),
    Family("vector-quantize-pytorch", VECTOR_QUANTIZE, residual_vq, "", _rows, saves=False),
]
