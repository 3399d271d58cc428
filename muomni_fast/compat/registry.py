"""Every family that is known. A new one is a file beside this, and a line here."""

from .adapter import Adapter
from .discriminators import PeriodAdapter, ScaleAdapter
from .encodec import EncodecAdapter, XcodecAdapter
from .hifigan import HiFiGANAdapter
from .micro_omni import MicroOmniQuantizer, MicroOmniVocoder
from .mimi import MimiAdapter
from .seamless import SeamlessAdapter
from .speecht5 import FastSpeech2ConformerAdapter, SpeechT5Adapter
from .vector_quantize import VectorQuantizeAdapter
from .vits import VitsAdapter

ADAPTERS: list[type[Adapter]] = [
    SpeechT5Adapter,
    FastSpeech2ConformerAdapter,
    SeamlessAdapter,
    VitsAdapter,
    EncodecAdapter,
    XcodecAdapter,
    MimiAdapter,
    VectorQuantizeAdapter,
    HiFiGANAdapter,
    MicroOmniQuantizer,
    MicroOmniVocoder,
    PeriodAdapter,
    ScaleAdapter,
]

_PROJECTIONS = "not yet: every codebook has a projection of its own"
# Classes that are known and have no adapter: family and reason.
LATER = {
    "transformers.models.dac.modeling_dac.DacResidualVectorQuantizer": ("DAC", _PROJECTIONS),
    "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer."
    "HiggsAudioV2TokenizerResidualVectorQuantization": ("Higgs Audio", _PROJECTIONS),
}
