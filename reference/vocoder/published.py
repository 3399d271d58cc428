"""Generators that HiFi-GAN's own code, and what was made of it, has trained and saved."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..audio.mel import read_hifigan_config
from ..checkpoint import load_state
from ..checks import require_hop
from ..errors import CheckpointError
from ..reading import blaming, is_plain, load_foreign, open_regular
from ..values import held_by_file, require_parameters, shown

G = TypeVar("G", bound=nn.Module)

# Config entries that are constructor arguments.
ARGUMENTS = (
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "resblock",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)
SLOPES = "leaky_slope", "leaky_relu_slope"  # which few configs state
OPTIONS = "conv_post_bias", "final"  # the same
STATES = "generator", "model", "state_dict", "model_state_dict"  # under which a file may hold it
DISCRIMINATORS = "mpd", "msd"
FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16  # of weights


def load_generator(model_class: type[G], config_json: str | Path, checkpoint: str | Path) -> G:
    """`HiFiGANVocoder.from_hifigan` for a class of generators."""
    arguments, hop = generator_arguments(config_json)
    with open_regular(checkpoint) as (_, size), blaming(config_json), held_by_file(size):
        model: Any = model_class(**arguments)
        require_hop(model.hop_length, hop)
    load_state(model, generator_state(checkpoint), checkpoint)
    return model.eval()


def generator_arguments(config_json: str | Path) -> tuple[dict[str, Any], int]:
    """Constructor arguments that a config of HiFi-GAN's own code says, and its hop.

    Raises:
        CheckpointError: it is no such config, or contradicts itself.
    """
    h = read_hifigan_config(config_json, [*ARGUMENTS, "num_mels", "hop_size"])
    arguments: dict[str, Any] = {name: h[name] for name in ARGUMENTS}
    arguments["n_mels"] = h["num_mels"]
    if h["resblock"] in (1, 2) and not isinstance(h["resblock"], bool):
        arguments["resblock"] = str(h["resblock"])
    stated = [h[name] for name in SLOPES if name in h]
    if len({repr(slope) for slope in stated}) > 1:
        raise CheckpointError(f"{config_json}: {' and '.join(SLOPES)} differ: {stated}")
    if stated:
        arguments["leaky_slope"] = stated[0]
    arguments |= {name: h[name] for name in OPTIONS if name in h}
    return arguments, h["hop_size"]


def generator_state(checkpoint: str | Path) -> dict[str, Tensor]:
    """A generator's weights, half precision ones as float32, wherever a file has them.

    Raises:
        CheckpointError: it cannot be read safely, or holds something else: names what.
    """
    content = foreign_state(checkpoint)
    if any(key in content for key in DISCRIMINATORS) or any(
        str(key).startswith("discriminators.") for key in content
    ):
        raise _other(checkpoint, "discriminators (the generator is usually in a g_ file beside)")
    return plain_tensors(checkpoint, content)


def foreign_state(checkpoint: str | Path) -> dict[Any, Any]:
    """A state dict, wherever a file has it, unchecked.

    Raises:
        CheckpointError: the file cannot be read safely, or holds none.
    """
    content = load_foreign(checkpoint)
    for _ in STATES:  # one in another, but a file may hold a dictionary that holds itself
        if not isinstance(content, dict):
            break
        found = [key for key in STATES if isinstance(content.get(key), dict)]
        if not found:
            break
        content = content[found[0]]
    if not isinstance(content, dict) or not content:
        raise _other(checkpoint, f"a {type(content).__name__}")
    return content


def plain_tensors(checkpoint: str | Path, state: dict[Any, Any]) -> dict[str, Tensor]:
    """A state dict with half precision as float32.

    Raises:
        CheckpointError: it holds anything but tensors of floats by names, each with memory of its
            own, or so many names of the same memory that copies of them would exceed the file.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not is_plain(value) or value.dtype not in FLOATS:
            got = f"a {type(value).__name__} by {shown(name)}"
            if isinstance(value, Tensor):
                got += f", {value.dtype} on the device {value.device.type}"
            raise CheckpointError(f"{checkpoint}: expected plain tensors by name, got {got}")
    memory = [value.untyped_storage() for value in state.values()]
    stored = sum({own.data_ptr(): own.nbytes() for own in memory}.values())  # each once
    with blaming(checkpoint), held_by_file(stored):
        count = sum(value.numel() for value in state.values())
        require_parameters(f"{len(memory):,} tensors in {stored:,} bytes", count)
    half = torch.float16, torch.bfloat16
    return {name: value.float() if value.dtype in half else value for name, value in state.items()}


def _other(checkpoint: str | Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint}: expected a generator's state dict, alone or under one of "
        f"{', '.join(STATES)}, got {got}"
    )
