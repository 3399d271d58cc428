"""What HiFi-GAN's constructors refuse: before anything is made, so that it costs neither time nor
memory."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..checks import require_equal_lengths
from ..values import (
    MOST_CHANNELS,
    MOST_HOP,
    MOST_LAYERS,
    require_bool,
    require_choice,
    require_int,
    require_ints,
    require_parameters,
    require_sequence,
    shown,
)


def block_weights(channels: int, kernel_size: int, dilations: Sequence[int], resblock: str) -> int:
    """Weights of a residual block, without biases."""
    return channels * channels * kernel_size * len(dilations) * (2 if resblock == "1" else 1)


def checked_dilations(kernel_sizes: Any, dilation_sizes: Any, prefix: str = "") -> list[Any]:
    """Kernel sizes and dilations of residual blocks, [(kernel_size, dilations), ...].

    Raises:
        TypeError, ValueError: they are not integers in range, or lengths do not match.
    """
    names = f"{prefix}kernel_sizes", f"{prefix}dilation_sizes"
    sizes = require_ints(names[0], kernel_sizes, 1, MOST_CHANNELS)
    all_dilations = require_sequence(names[1], dilation_sizes)
    require_equal_lengths(**dict(zip(names, (sizes, all_dilations), strict=True)))
    return [
        (size, require_ints(f"{names[1]}, dilations of kernel size {size}", d, 1, MOST_CHANNELS))
        for size, d in zip(sizes, all_dilations, strict=True)
    ]


def require_final(final: Any) -> None:
    """Raise unless this is what may follow `conv_post`: "tanh", "clamp" or None."""
    if final is not None and final not in ("tanh", "clamp"):
        kind = ValueError if isinstance(final, str) else TypeError
        raise kind(f'final: expected "tanh", "clamp" or None, got {shown(final)}')


def checked_generator(
    n_mels: Any,
    upsample_rates: Any,
    upsample_kernel_sizes: Any,
    upsample_initial_channel: Any,
    resblock: Any,
    resblock_kernel_sizes: Any,
    resblock_dilation_sizes: Any,
    weight_norm: Any,
    conv_post_bias: Any,
    final: Any,
) -> dict[str, Any]:
    """The arguments of `HiFiGANVocoder` by name, as plain integers and tuples.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, lengths do not match, or the model is too large.
    """
    n_mels = require_int("n_mels", n_mels, 1, MOST_CHANNELS)
    channels = require_int("upsample_initial_channel", upsample_initial_channel, 1, MOST_CHANNELS)
    rates = require_ints("upsample_rates", upsample_rates, 1, MOST_HOP)
    kernels = require_ints("upsample_kernel_sizes", upsample_kernel_sizes, 1, MOST_CHANNELS)
    require_choice("resblock", resblock, "1", "2")
    require_bool("weight_norm", weight_norm)
    require_bool("conv_post_bias", conv_post_bias)
    require_final(final)
    require_equal_lengths(upsample_rates=rates, upsample_kernel_sizes=kernels)
    blocks = checked_dilations(resblock_kernel_sizes, resblock_dilation_sizes, "resblock_")
    hop, levels = math.prod(rates), len(rates)
    if hop > MOST_HOP:
        raise ValueError(f"upsample_rates: expected a product of at most {MOST_HOP:,}, got {hop:,}")
    if channels % 2**levels:
        raise ValueError(
            f"upsample_initial_channel: expected a multiple of {2**levels}, got {channels}"
        )
    for rate, size in zip(rates, kernels, strict=True):
        # torch pads a side more than the other by less than the rate only.
        if size < rate or (rate == 1 and size % 2 == 0):
            expected = "an odd kernel for rate 1" if rate == 1 else "kernel - rate not negative"
            raise ValueError(
                f"upsample_kernel_sizes: expected {expected}, got kernel {size} for rate {rate}"
            )
    layers = levels * sum(len(dilations) for _, dilations in blocks)
    if layers > MOST_LAYERS:
        raise ValueError(
            f"resblock_dilation_sizes: expected at most {MOST_LAYERS:,} dilations on "
            f"{levels} levels together, got {layers:,}"
        )
    widths = [channels >> level for level in range(levels + 1)]
    weights = 7 * (n_mels * channels + widths[-1])
    weights += sum(a * b * k for (a, b), k in zip(pairwise(widths), kernels, strict=True))
    weights += sum(block_weights(w, k, d, resblock) for w in widths[1:] for k, d in blocks)
    require_parameters(f"upsample_initial_channel = {channels} and the kernel sizes", weights)
    return {
        "n_mels": n_mels,
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "upsample_initial_channel": channels,
        "resblock": resblock,
        "resblock_kernel_sizes": tuple(size for size, _ in blocks),
        "resblock_dilation_sizes": tuple(dilations for _, dilations in blocks),
        "weight_norm": weight_norm,
        "conv_post_bias": conv_post_bias,
        "final": final,
    }
