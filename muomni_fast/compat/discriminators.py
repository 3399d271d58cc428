"""The discriminators of HiFi-GAN's own code, and of what was made of it, micro-Omni's among them:
`DiscriminatorP` and `DiscriminatorS`, known by these names and their modules.

Audio that is folded by a period, (B, 1, T / period, period), goes through convolutions that are one
column wide. On a CPU torch's one-dimensional convolution of the same columns, as items of a batch,
takes less time than its two-dimensional one, in training too. So these convolutions are what is
replaced: padding, folding and feature maps stay the discriminator's own, hooks that compute weights
run before, and gradients are torch's.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .adapter import Adapter, adapter_of, named

INSIDE = "convs", "conv_post"
# The longest period at which a step of training was measured to be faster, by the stride of the
# convolutions; the guide has the table. Short columns of many items take longer than theirs.
LONGEST = {2: 5, 3: 3}


class ColumnConvolution(Adapter):
    """`forward`: (B, C, T, period) -> (B, C', T', period), for kernels (k, 1)."""

    family = "discriminators"
    classes = ()
    methods = ("forward",)

    @classmethod
    def misfit(cls, module: Any) -> str:
        if type(module).forward is not nn.Conv2d.forward or "forward" in module.__dict__:
            return "its convolutions are not torch's own"
        one_wide = module.kernel_size[1], module.stride[1], module.dilation, module.groups
        if one_wide != (1, 1, (1, 1), 1) or module.padding_mode != "zeros":
            return "its convolutions are not one column wide"
        if isinstance(module.padding, str) or module.padding[1] != 0:
            return "its convolutions are padded beside the columns"
        return ""

    def forward(self, x: Tensor) -> Tensor:
        """As the module's own, in its layout."""
        conv = self.module
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_contiguous():
            return self.own("forward", x)
        batch, channels, rows, period = x.shape
        columns = x.permute(0, 3, 1, 2).reshape(batch * period, channels, rows)
        weight = conv.weight.squeeze(3)  # (C', C, k)
        result = F.conv1d(columns, weight, conv.bias, conv.stride[:1], conv.padding[:1])
        return result.unflatten(0, (batch, period)).permute(0, 2, 3, 1).contiguous()


class PeriodAdapter(Adapter):
    """Swaps the convolutions of a discriminator of one period."""

    family = "discriminators"
    classes = ()
    methods = ("convs.forward", "conv_post.forward")

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return named(module, "DiscriminatorP", *INSIDE)

    @classmethod
    def misfit(cls, module: Any) -> str:
        reasons = map(ColumnConvolution.misfit, cls._convolutions(module))
        if not isinstance(getattr(module, "period", None), int):
            return "it has no period"
        return next(filter(None, reasons), "")

    @classmethod
    def slower(cls, module: Any) -> str:
        anyway = "(slower=True swaps it all the same)"
        if not module.conv_post.weight.is_cpu:
            return f"measured on a CPU only {anyway}"
        period, stride = module.period, module.convs[0].stride[0]
        if period > LONGEST.get(stride, 0):
            return f"not measured to be faster at period {period} and stride {stride} {anyway}"
        return ""

    @classmethod
    def swap(cls, module: Any) -> None:
        for conv in cls._convolutions(module):
            ColumnConvolution(conv).attach()

    @classmethod
    def swapped(cls, module: Any) -> bool:
        return all(adapter_of(conv) is not None for conv in cls._convolutions(module))

    @staticmethod
    def _convolutions(module: Any) -> list[Any]:
        return [*module.convs, module.conv_post]


class ScaleAdapter(Adapter):
    """Names a discriminator of one scale, which stays as it is."""

    family = "discriminators"
    classes = ()
    methods = ()

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return named(module, "DiscriminatorS", *INSIDE)

    @classmethod
    def misfit(cls, module: Any) -> str:
        return "nothing here was measured to be faster than its own convolutions"
