"""From the reference's modules to the vocoder's operators, which take weights in a list.

An operator stands for modules only where it computes what they would: residual blocks as the
reference has them, without forward hooks. Whatever else there is runs module by module.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import vocoder_ops
from .network import Blocks, Network
from .reference import hifigan
from .reference.checks import require_channels
from .reference.rvq_checks import require_same_device
from .reference.weight_norm import CONVOLUTIONS
from .transforms import autocast, learning, refuse_transforms


def resblock_forward(block: Any, x: Tensor) -> Tensor:
    """(B, channels, T) -> (B, channels, T); see `functional.mrf`."""
    if block._prepared is not None:
        return run_prepared_blocks(x, block._prepared, [block])
    if all(_plain(conv) for conv in _convolutions(block)):
        return run_blocks(x, [block])
    return hifigan.ResBlock.forward(block, x)


def fusible(resblocks: Any) -> bool:
    """Whether an operator computes what these modules would, one by one."""
    ours = hifigan.ResBlock.forward, resblock_forward
    known = all(type(block).forward in ours and not _hooked(block) for block in resblocks)
    if not known or len({(block.channels, block.resblock) for block in resblocks}) != 1:
        return False
    return all(_plain(conv) for block in resblocks for conv in _convolutions(block))


def generator_fusible(generator: hifigan.HiFiGANVocoder) -> bool:
    """Whether an operator computes what the modules inside would."""
    convolutions = generator.conv_pre, *generator.ups, generator.conv_post
    count = generator.n_kernels
    return all(_plain(conv) for conv in convolutions) and all(
        fusible(generator.resblocks[first : first + count])
        for first in range(0, len(generator.resblocks), count)
    )


def network_of(generator: hifigan.HiFiGANVocoder) -> Network:
    """The shape of a generator."""
    config = generator.config
    blocks = Blocks(
        config["resblock"], config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
    )
    return Network(config["upsample_rates"], config["upsample_kernel_sizes"], blocks)


def blocks_of(resblocks: Sequence[Any]) -> Blocks:
    """The shape of residual blocks."""
    return Blocks(
        resblocks[0].resblock,
        tuple(block.kernel_size for block in resblocks),
        tuple(block.dilations for block in resblocks),
    )


def _plain(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.bias is not None and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    """Whether something wants to see the module's calls."""
    if torch.compiler.is_compiling():
        return False
    hooks = module._forward_hooks, module._forward_pre_hooks
    return any(hooks) or any((module._backward_hooks, module._backward_pre_hooks))


def _convolutions(block: Any) -> Iterator[nn.Module]:
    if block.resblock == "2":
        yield from block.convs
    else:
        for pair in zip(block.convs1, block.convs2, strict=True):
            yield from pair


def _of(convolution: Any) -> tuple[Tensor, Tensor]:
    return convolution.weight, convolution.bias


def tensors_of_blocks(resblocks: Iterable[Any]) -> list[Tensor]:
    """Weights and biases, in the operators' order."""
    return [t for block in resblocks for conv in _convolutions(block) for t in _of(conv)]


def tensors_of(generator: hifigan.HiFiGANVocoder) -> list[Tensor]:
    """Weights (their values, if normed) and biases, in the operators' order."""
    tensors = [*_of(generator.conv_pre)]
    count = generator.n_kernels
    for stage, up in enumerate(generator.ups):
        blocks = generator.resblocks[stage * count : (stage + 1) * count]
        tensors += [*_of(up), *tensors_of_blocks(list(blocks))]
    return [*tensors, *_of(generator.conv_post)]


def _one_kind(op: str, name: str, x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Everything on one device and, once autocast has cast, of one dtype."""
    refuse_transforms(op, x, *tensors)
    elsewhere = next((t for t in tensors if t.device != x.device), x)
    require_same_device(**{name: x, "a weight": elsewhere})
    x, *tensors = autocast(x, *tensors)
    for tensor in tensors:
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {x.dtype}, but a weight is {tensor.dtype}")
    return [x, *tensors]


def run_blocks(x: Tensor, resblocks: Sequence[Any]) -> Tensor:
    """The mean of residual blocks."""
    require_channels("x", x, resblocks[0].channels)
    spec = blocks_of(resblocks).spec
    x, *tensors = _one_kind("mrf", "x", x, tensors_of_blocks(resblocks))
    if learning(x, *tensors):
        return vocoder_ops.mrf_train(x, tensors, spec)[0]
    return vocoder_ops.mrf(x, tensors, spec, False)


def pack_blocks(resblocks: Sequence[Any]) -> list[Tensor]:
    """What `run_prepared_blocks` takes.

    Raises:
        RuntimeError, ValueError: as `prepare`.
    """
    _require_fusible(fusible(resblocks))
    tensors = _finite(tensors_of_blocks(resblocks))
    return vocoder_ops.pack_blocks(tensors, blocks_of(resblocks))


def run_prepared_blocks(x: Tensor, packed: Sequence[Tensor], resblocks: Sequence[Any]) -> Tensor:
    """The mean of residual blocks, from what `pack_blocks` gave; no gradient reaches anything."""
    require_channels("x", x, resblocks[0].channels)
    x = _like_prepared("mrf", "x", x, packed)
    return vocoder_ops.mrf(x, packed, blocks_of(resblocks).spec, True)


def run_generator(
    mel: Tensor, tensors: Sequence[Tensor], network: Network, lengths: Tensor | None
) -> Tensor:
    """Audio of a mel, from what `tensors_of` gives."""
    mel, *tensors = _one_kind("generator", "mel", mel, tensors)
    shape = lengths, network.rates, network.kernels, network.blocks.spec
    if learning(mel, *tensors):
        return vocoder_ops.generator_train(mel, tensors, *shape)[0]
    return vocoder_ops.generator(mel, tensors, *shape, False)


def pack_generator(generator: hifigan.HiFiGANVocoder) -> list[Tensor]:
    """What `run_prepared_generator` takes.

    Raises:
        RuntimeError, ValueError: as `prepare`.
    """
    _require_fusible(generator_fusible(generator))
    return vocoder_ops.pack(_finite(tensors_of(generator)), network_of(generator))


def run_prepared_generator(
    mel: Tensor, packed: Sequence[Tensor], network: Network, lengths: Tensor | None
) -> Tensor:
    """Audio of a mel, from what `pack_generator` gave; no gradient reaches anything."""
    mel = _like_prepared("generator", "mel", mel, packed)
    shape = lengths, network.rates, network.kernels, network.blocks.spec
    return vocoder_ops.generator(mel, packed, *shape, True)


def _require_fusible(known: bool) -> None:
    if not known:
        raise RuntimeError("prepare: modules inside are hooked or not HiFi-GAN's own")


def _finite(tensors: Sequence[Tensor]) -> list[Tensor]:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("prepare: a weight is not finite")
    return [tensor.detach() for tensor in tensors]


def _like_prepared(op: str, name: str, x: Tensor, packed: Sequence[Tensor]) -> Tensor:
    """`x` without its gradient, if it is on the device and of the dtype of prepared weights."""
    refuse_transforms(op, x)
    if x.dtype != packed[0].dtype:
        raise TypeError(f"{name} is {x.dtype}, but prepared weights are {packed[0].dtype}")
    require_same_device(**{name: x, "weights": packed[0]})
    return x.detach()
