"""From the reference's modules to the vocoder's operators, which take weights in a list.

An operator stands for modules only where it computes what they would: residual blocks as the
reference has them, without forward hooks. Whatever else there is runs module by module.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..operators import autocast, learning, refuse_transforms
from ..reference.checks import require_channels, require_same_device
from ..reference.vocoder import hifigan
from . import ops as vocoder_ops
from .generator import Blocks, Network
from .ops import Packed


def resblock_forward(block: Any, x: Tensor) -> Tensor:
    """(B, channels, T) -> (B, channels, T); see `functional.mrf`."""
    if block._prepared is not None:
        return run_prepared_blocks(x, block._prepared, [block])
    if _plain_inside(block):
        return run_blocks(x, [block])
    return hifigan.ResBlock.forward(block, x)


def fusible(resblocks: Any) -> bool:
    """Whether an operator computes what these modules would, one by one."""
    known = all(_runs(block, hifigan.ResBlock.forward, resblock_forward) for block in resblocks)
    if not known or len({(block.channels, block.resblock) for block in resblocks}) != 1:
        return False
    return all(_plain_inside(block) for block in resblocks)


def generator_fusible(generator: hifigan.HiFiGANVocoder, network: Network) -> bool:
    """Whether an operator of this shape computes what the modules inside would."""
    count = generator.n_kernels
    ups = zip(generator.ups, network.rates, network.kernels, strict=True)
    starts = range(0, len(generator.resblocks), count)
    stages = [list(generator.resblocks)[start : start + count] for start in starts]
    return (
        all(_plain(conv, None) for conv in (generator.conv_pre, generator.conv_post))
        and all(_plain_up(*up) for up in ups)
        and all(fusible(stage) and blocks_of(stage) == network.blocks for stage in stages)
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


def _plain_inside(block: Any) -> bool:
    """Whether a residual block's convolutions are those that its attributes tell of."""
    convolutions, after = list(_convolutions(block)), [1] if block.resblock == "1" else []
    dilations = [d for dilation in block.dilations for d in (dilation, *after)]
    return len(convolutions) == len(dilations) and all(
        _plain(conv, block.kernel_size, dilation)
        for conv, dilation in zip(convolutions, dilations, strict=True)
    )


def _plain(conv: Any, kernel: int | None, dilation: int = 1) -> bool:
    """Whether this is torch's convolution, as long as its input; `kernel` None is any odd one."""
    if not _runs(conv, nn.Conv1d.forward) or conv.bias is None:
        return False
    kernel = kernel or conv.kernel_size[0]
    padding = (kernel - 1) // 2 * dilation
    shape = conv.kernel_size, conv.padding, conv.dilation, conv.stride, conv.groups
    expected = (kernel,), (padding,), (dilation,), (1,), 1
    return kernel % 2 == 1 and shape == expected and conv.padding_mode == "zeros"


def _plain_up(conv: Any, rate: int, kernel: int) -> bool:
    """Whether this is torch's transposed convolution, `rate` times as long as its input."""
    if not _runs(conv, nn.ConvTranspose1d.forward) or conv.bias is None:
        return False
    shape = conv.kernel_size, conv.stride, conv.padding, conv.output_padding, conv.dilation
    return shape == ((kernel,), (rate,), ((kernel - rate) // 2,), (0,), (1,)) and conv.groups == 1


def _runs(module: nn.Module, *forwards: Any) -> bool:
    """Whether calling the module runs one of these functions and nothing else."""
    own = type(module).forward in forwards and "forward" not in module.__dict__
    return own and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    """Whether something wants to see the module's calls."""
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
    return vocoder_ops.mrf(x, tensors, spec, None)


def pack_blocks(resblocks: Sequence[Any]) -> Packed:
    """What `run_prepared_blocks` takes.

    Raises:
        RuntimeError, ValueError: as `prepare`.
    """
    _require_fusible(fusible(resblocks))
    tensors = _finite(tensors_of_blocks(resblocks))
    return vocoder_ops.pack_blocks(tensors, blocks_of(resblocks))


def run_prepared_blocks(x: Tensor, packed: Packed, resblocks: Sequence[Any]) -> Tensor:
    """The mean of residual blocks, from what `pack_blocks` gave; no gradient reaches anything."""
    require_channels("x", x, resblocks[0].channels)
    x, *tensors = _one_prepared_kind("mrf", "x", x, packed)
    return vocoder_ops.mrf(x, tensors, blocks_of(resblocks).spec, packed.backend)


def run_generator(
    mel: Tensor, tensors: Sequence[Tensor], network: Network, lengths: Tensor | None
) -> Tensor:
    """Audio of a mel, from what `tensors_of` gives."""
    mel, *tensors = _one_kind("generator", "mel", mel, tensors)
    shape = lengths, network.rates, network.kernels, network.blocks.spec
    if learning(mel, *tensors):
        return vocoder_ops.generator_train(mel, tensors, *shape)[0]
    return vocoder_ops.generator(mel, tensors, *shape, None)


def pack_generator(generator: hifigan.HiFiGANVocoder) -> Packed:
    """What `run_prepared_generator` takes.

    Raises:
        RuntimeError, ValueError: as `prepare`.
    """
    network = network_of(generator)
    _require_fusible(generator_fusible(generator, network))
    return vocoder_ops.pack(_finite(tensors_of(generator)), network)


def run_prepared_generator(
    mel: Tensor, packed: Packed, network: Network, lengths: Tensor | None
) -> Tensor:
    """Audio of a mel, from what `pack_generator` gave; no gradient reaches anything."""
    mel, *tensors = _one_prepared_kind("generator", "mel", mel, packed)
    shape = lengths, network.rates, network.kernels, network.blocks.spec
    return vocoder_ops.generator(mel, tensors, *shape, packed.backend)


def _require_fusible(known: bool) -> None:
    if not known:
        raise RuntimeError("prepare: modules inside are hooked or not HiFi-GAN's own")


def _finite(tensors: Sequence[Tensor]) -> list[Tensor]:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("prepare: a weight is not finite")
    return [tensor.detach() for tensor in tensors]


def _one_prepared_kind(op: str, name: str, x: Tensor, packed: Packed) -> list[Tensor]:
    """`_one_kind` of `x`, without its gradient, and prepared weights."""
    refuse_transforms(op, x)
    require_same_device(**{name: x, "weights": packed.tensors[0]})
    x, *tensors = autocast(x.detach(), *packed.tensors)
    if x.dtype != tensors[0].dtype:
        raise TypeError(f"{name} is {x.dtype}, but prepared weights are {tensors[0].dtype}")
    return [x, *tensors]
