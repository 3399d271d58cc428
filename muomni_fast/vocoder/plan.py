"""What a generator, or residual blocks, compute once of their modules, and keep between calls.

An operator takes weights in a list and stands for modules only where it computes what they would:
HiFi-GAN's own convolutions, without hooks. A plan says whether it does, in which shape, and where
its weights are found. It holds modules and names, never tensors.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..backend import choose
from ..operators import Operator, run, unshared
from ..preparable import EVERY_MODULES_HOOKS, hooks_of
from ..reference.vocoder import hifigan
from ..reference.vocoder.blocks import ResBlock, up_paddings
from ..reference.vocoder.weight_norm import CLASSES
from .generator import GENERATOR, layouts_of
from .ops import MRF
from .shapes import Blocks, Network


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Weights and biases as a backend reads them.

    Attributes:
        tensors: in the backend's layout.
        backend: "torch" or "triton".
    """

    tensors: list[Tensor]
    backend: str


class Plan:
    """The modules of a generator or of residual blocks, as one operator takes them.

    Args:
        operator: that stands for them.
        shape: of the generator, or of the blocks.
        convolutions: in the operator's order.
        fusible: whether the operator computes what the modules would.
    """

    def __init__(
        self,
        operator: Operator,
        shape: Network | Blocks,
        convolutions: Sequence[nn.Module],
        fusible: bool,
    ) -> None:
        self.operator, self.shape, self.fusible = operator, shape, fusible
        self.spec = shape.spec
        self._modules = [module for conv in convolutions for module in (conv, conv)]
        self._names = ["weight", "bias"] * len(convolutions)
        if isinstance(shape, Network) and not shape.last_bias:
            del self._modules[-1], self._names[-1]

    def tensors(self) -> list[Tensor]:
        """Weights (their values, if normed) and biases, in the operator's order."""
        return list(map(getattr, self._modules, self._names))

    def run(self, name: str, x: Tensor) -> Tensor:
        """Call the operator of residual blocks; `name` is that of `x`, for errors."""
        return run(self.operator, name, x, self.tensors(), None, self.spec)

    def prepare(self) -> Prepared:
        """Weights as the backend that runs here reads them.

        Raises:
            RuntimeError: modules inside are hooked or not HiFi-GAN's own.
            ValueError: a weight is not finite.
        """
        if not self.fusible:
            raise RuntimeError("prepare: modules inside are hooked or not HiFi-GAN's own")
        tensors = [tensor.detach() for tensor in self.tensors()]
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError("prepare: a weight is not finite")
        chosen = choose(self.operator.name, *tensors)
        layout = layouts_of(chosen)
        if isinstance(self.shape, Network):
            found = layout.pack(tensors, self.shape)
        else:
            found = layout.pack_blocks(tensors, self.shape)
        return Prepared(unshared(found, tensors), chosen)


def plan_of_generator(model: hifigan.HiFiGANVocoder) -> Plan:
    """How a generator runs as one operator."""
    config = model.config
    blocks = Blocks(
        config["resblock"],
        config["resblock_kernel_sizes"],
        config["resblock_dilation_sizes"],
        model.leaky_slope,
    )
    bias = config.get("conv_post_bias", True)  # an earlier version pickled none
    network = Network(
        config["upsample_rates"], config["upsample_kernel_sizes"], blocks, model.final, bias
    )
    convolutions: list[nn.Module] = [model.conv_pre]
    channels = config["upsample_initial_channel"]
    fusible = (
        type(model)._generate is hifigan.HiFiGANVocoder._generate
        and _plain(model.conv_pre, None, config["n_mels"], channels)
        and _plain(model.conv_post, None, channels >> len(network.factors), 1, bias=bias)
    )
    for level, (up, factor, kernel) in enumerate(
        zip(model.ups, network.factors, network.kernels, strict=True)
    ):
        resblocks: list[Any] = model._resblocks(level)
        fusible = fusible and _plain_up(up, factor, kernel, channels)
        channels //= 2
        fusible = fusible and _fusible(resblocks) and resblocks[0].channels == channels
        fusible = fusible and blocks_of(resblocks) == blocks
        if fusible:
            convolutions += [up, *(conv for block in resblocks for conv in _convolutions(block))]
    return Plan(GENERATOR, network, [*convolutions, model.conv_post], fusible)


def plan_of_blocks(resblocks: Sequence[Any]) -> Plan:
    """How residual blocks run as one operator."""
    if not _fusible(resblocks):
        return Plan(MRF, Blocks("1", (1,), ((1,),)), [], False)
    convolutions = [conv for block in resblocks for conv in _convolutions(block)]
    return Plan(MRF, blocks_of(resblocks), convolutions, True)


def blocks_of(resblocks: Sequence[Any]) -> Blocks:
    """The shape of residual blocks."""
    return Blocks(
        resblocks[0].resblock,
        tuple(block.kernel_size for block in resblocks),
        tuple(block.dilations for block in resblocks),
        resblocks[0].leaky_slope,
    )


# The forwards of residual blocks that an operator stands for; `modules` adds its own.
KNOWN_FORWARDS: list[Any] = [ResBlock.forward]


def _fusible(resblocks: Any) -> bool:
    """Whether an operator computes what these modules would, one by one."""
    if not all(_runs(block, *KNOWN_FORWARDS) for block in resblocks):
        return False
    if len({(block.channels, block.resblock, block.leaky_slope) for block in resblocks}) != 1:
        return False
    return all(_plain_inside(block) for block in resblocks)


def _plain_inside(block: Any) -> bool:
    """Whether a residual block's convolutions are those that its attributes tell of."""
    convolutions, after = list(_convolutions(block)), [1] if block.resblock == "1" else []
    dilations = [d for dilation in block.dilations for d in (dilation, *after)]
    return len(convolutions) == len(dilations) and all(
        _plain(conv, block.kernel_size, block.channels, block.channels, dilation)
        for conv, dilation in zip(convolutions, dilations, strict=True)
    )


def _plain(
    conv: Any,
    kernel: int | None,
    channels: int,
    width: int,
    dilation: int = 1,
    bias: bool = True,
) -> bool:
    """Whether this is torch's convolution from `channels` to `width`, as long as its input;
    `kernel` None is any odd one."""
    if not _runs(conv, nn.Conv1d.forward) or (conv.bias is not None) != bias:
        return False
    _require_no_norm(conv)
    kernel = kernel or conv.kernel_size[0]
    padding = (kernel - 1) // 2 * dilation
    shape = conv.kernel_size, conv.padding, conv.dilation, conv.stride, conv.groups
    expected = (kernel,), (padding,), (dilation,), (1,), 1
    fits = (conv.in_channels, conv.out_channels) == (channels, width)
    return fits and kernel % 2 == 1 and shape == expected and conv.padding_mode == "zeros"


def _plain_up(conv: Any, factor: int, kernel: int, channels: int) -> bool:
    """Whether this is torch's transposed convolution, `factor` times as long as its input, of half
    the channels."""
    if not _runs(conv, nn.ConvTranspose1d.forward) or conv.bias is None:
        return False
    _require_no_norm(conv)
    shape = conv.kernel_size, conv.stride, (*conv.padding, *conv.output_padding), conv.dilation
    expected = (kernel,), (factor,), up_paddings(kernel, factor), (1,)
    fits = (conv.in_channels, conv.out_channels) == (channels, channels // 2)
    return fits and shape == expected and conv.groups == 1


def _require_no_norm(conv: nn.Module) -> None:
    """`torch.func.functional_call` hangs weights of any name on modules, which ignore them."""
    if type(conv) in CLASSES and hasattr(conv, "weight_g"):
        raise TypeError(
            "weight_g: expected weights of a plain model, got normed ones; "
            "load_state_dict takes either"
        )


def _runs(module: nn.Module, *forwards: Any) -> bool:
    """Whether calling the module runs one of these functions and nothing else."""
    own = type(module).forward in forwards and "forward" not in module.__dict__
    return own and not any(hooks_of(module)) and not any(EVERY_MODULES_HOOKS)


def _convolutions(block: Any) -> Iterator[nn.Module]:
    if block.resblock == "2":
        yield from block.convs
    else:
        for pair in zip(block.convs1, block.convs2, strict=True):
            yield from pair
