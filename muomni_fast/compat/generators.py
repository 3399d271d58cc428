"""What all families of HiFi-GAN generators share.

Their modules are HiFi-GAN's own under other names. So an adapter builds a `HiFiGANVocoder` without
weights, puts their convolutions into it, and lets it check them, prepare them and run them: one
implementation, and every parameter stays theirs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..vocoder.modules import HiFiGANVocoder
from .adapter import Adapter, differentiated, hooked, watched

FRAMES = 4  # of the trial
# How near the trial must be to what the module's own code gives, dB: far above what a different
# slope, order or padding leaves, far below what rounding does.
LEAST_SNR = {torch.float64: 120.0, torch.float32: 80.0, torch.float16: 30.0, torch.bfloat16: 15.0}


def _least_snr(like: Tensor) -> float:
    """dB; numbers that convolutions round to TF32 are as short as float16's."""
    cudnn: Any = torch.backends.cudnn
    short = like.is_cuda and like.dtype == torch.float32 and cudnn.conv.fp32_precision == "tf32"
    return LEAST_SNR[torch.float16 if short else like.dtype]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The modules of a generator, and what they do not tell.

    Attributes:
        pre, post: the first convolution and the last.
        ups: the transposed convolutions.
        blocks: the residual blocks of all levels, each with `convs1` and `convs2`, or `convs`.
        slope: of every leaky_relu but the last.
    """

    pre: Any
    ups: Any
    blocks: Any
    post: Any
    slope: float


class View(HiFiGANVocoder):
    """A generator of modules that belong to another model."""

    def _current(self) -> Any:
        # A compiled program would keep what was prepared when the weights change.
        return None if torch.compiler.is_compiling() else super()._current()


class GeneratorAdapter(Adapter):
    """Runs a HiFi-GAN generator: (B, C, T) -> audio (B, T * hop)."""

    methods = ("forward",)
    frames_first: ClassVar[bool] = False  # whether `forward` takes (B, T, C)
    upsampling: ClassVar[str] = "upsampler"  # their name of `ups`
    # Of a file: entries of its config whose sum is the channels that go in, whether the last
    # convolution has a bias, and modules or buffers that stay outside.
    bands: ClassVar[tuple[str, ...]] = ()
    post_bias: ClassVar[bool] = True
    outside: ClassVar[tuple[str, ...]] = ()

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._view: View | None = None

    @classmethod
    def parts(cls, module: Any) -> Parts:
        """Where the modules lie.

        Raises:
            AttributeError: there are others.
        """
        return Parts(
            module.conv_pre,
            getattr(module, cls.upsampling),
            module.resblocks,
            module.conv_post,
            cls.slope(module),
        )

    @classmethod
    def slope(cls, module: Any) -> float:
        """Of every leaky_relu but the last."""
        return module.config.leaky_relu_slope

    @classmethod
    def misfit(cls, module: Any) -> str:
        try:
            parts = cls.parts(module)
            view, reason = view_of(module, parts)
        except AttributeError as error:
            return f"its modules are not as known: {error}"
        if view is None:
            return reason
        bias = parts.pre.bias
        if bias.is_meta:
            return "its weights are on the meta device"
        return cls(module)._trial(bias)

    def attach(self) -> None:
        super().attach()
        self.usable()  # a compiled program looks no more

    @torch.no_grad()
    def _trial(self, like: Tensor) -> str:
        """Whether the module's own code gives the same audio of a few frames; if not, says so."""
        assert self._generator() is not None
        return self._compared(self._trials(like))

    def _compared(self, trials: list[tuple[Tensor, ...]]) -> str:
        for inputs in trials:
            try:
                theirs = self.own("forward", *inputs)
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                return f"its own code does not take {FRAMES} frames: {error}"
            ours = self.run(*inputs)
            if ours.shape != theirs.shape:
                shapes = f"{list(theirs.shape)} for {FRAMES} frames, not {list(ours.shape)}"
                return f"it gives audio {shapes}"
            energy, least = theirs.double().square().sum(), _least_snr(inputs[0])
            if energy == 0:
                return "its own code gives silence, which nothing can be compared with"
            off = (ours.double() - theirs.double()).square().sum()
            if not 10 ** (-least / 10) * energy >= off:
                return "its own code gives other audio: this version computes something else"
        return ""

    def _trials(self, like: Tensor) -> list[tuple[Tensor, ...]]:
        """What `forward` is called with in the trial, of the dtype and device of `like`."""
        view = self._view
        assert view is not None
        mel = _wave(like, 1, FRAMES, view.n_mels)
        trials: list[tuple[Tensor, ...]] = [(mel if self.frames_first else mel.transpose(1, 2),)]
        if hasattr(self.module, "cond"):
            trials.append((*trials[0], _wave(like, 1, self.module.cond.in_channels, 1)))
        return trials

    def run(self, mel: Tensor) -> Tensor:
        """What the module computes, of the input of its `forward`, without derivatives."""
        raise NotImplementedError

    def audio(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Audio from weights as they are now.

        Args:
            x: (B, C, T), which `fits`.
            addend: (B, C_pre, 1) or (B, C_pre, T), added after the first convolution.

        Returns:
            (B, T * hop).
        """
        view = self._view
        assert view is not None  # `fits` has made it
        if addend is None:
            return view(x)
        addend = addend.expand(x.shape[0], -1, -1)
        return view(x, addends=[addend.to(x.dtype)])

    def fits(self, x: Any, ndims: Sequence[int] = (3,), condition: Any = None) -> bool:
        """Whether an input runs here; otherwise the module's own code takes it.

        Args:
            x: what `forward` is given.
            ndims: that it may have.
            condition: (B or 1, C, 1 or T), of which the module's `cond` makes an addend, or None.
        """
        if self.stands_back() or not isinstance(x, Tensor) or x.ndim not in ndims:
            return False
        if condition is not None:
            if not isinstance(condition, Tensor) or condition.ndim != 3:
                return False
            batch, _, rows = condition.shape
            if batch not in (1, x.shape[0]) or rows not in (1, x.shape[2]):
                return False
            if torch.is_grad_enabled() and condition.requires_grad:
                return False
        if x.numel() == 0 or differentiated(x, self.module.parameters()):
            if not torch.compiler.is_compiling():
                self.drop()  # the weights may be about to change, through an optimiser
            return False
        view = self._generator()
        if view is None or x.shape[-1 if self.frames_first else -2] != view.n_mels:
            return False
        bias: Any = view.conv_pre.bias
        return x.dtype == bias.dtype or torch.is_autocast_enabled(x.device.type)

    def drop(self) -> None:
        super().drop()
        if self._view is not None:
            self._view._drop()

    def _generator(self) -> View | None:
        """A generator of the module's convolutions, prepared; None where they are hooked, say."""
        if not self.usable() or self._view is None:
            return None
        if torch.compiler.is_compiling():
            return self._view if self._shared(self._view) else None
        self.ready()
        return self._view

    def _look(self) -> bool:
        self._view, _ = view_of(self.module, self.parts(self.module))
        return self._view is not None

    def _shared(self, view: View) -> bool:
        """Whether a generator still has the module's own convolutions."""
        parts = self.parts(self.module)
        ends = view.conv_pre is parts.pre and view.conv_post is parts.post
        return ends and view.ups is parts.ups and not watched(parts.blocks)

    def _prepare(self) -> bool:
        assert self._view is not None
        try:
            self._view.prepare()
        except ValueError:  # not finite: the operator gives what they give
            self._view._drop()
        return True


def view_of(module: nn.Module, parts: Parts) -> tuple[View | None, str]:
    """A generator that has the convolutions of `parts`, or why there is none."""
    if not len(parts.ups) or not len(parts.blocks):
        return None, "it has no upsampling level or no residual blocks"
    reason = hooked(module)
    if reason:
        return None, reason
    paired = hasattr(parts.blocks[0], "convs1")
    dilated = [block.convs1 if paired else block.convs for block in parts.blocks]
    branches = dilated[: len(dilated) // len(parts.ups)]
    optional: dict[str, Any] = {} if parts.post.bias is not None else {"conv_post_bias": False}
    try:
        with torch.device("meta"):
            view = View(
                n_mels=parts.pre.in_channels,
                upsample_rates=[up.stride[0] for up in parts.ups],
                upsample_kernel_sizes=[up.kernel_size[0] for up in parts.ups],
                upsample_initial_channel=parts.pre.out_channels,
                resblock="1" if paired else "2",
                resblock_kernel_sizes=[convs[0].kernel_size[0] for convs in branches],
                resblock_dilation_sizes=[[c.dilation[0] for c in convs] for convs in branches],
                leaky_slope=parts.slope,
                **optional,
            )
    except (TypeError, ValueError) as error:
        return None, f"of no shape that HiFiGANVocoder has: {error}"
    view.eval()  # before it holds modules that are not its own
    if len(view.resblocks) != len(dilated):
        return None, f"expected {len(view.resblocks)} residual blocks, got {len(dilated)}"
    view.conv_pre, view.ups, view.conv_post = parts.pre, parts.ups, parts.post
    own: Any
    for own, theirs in zip(view.resblocks, parts.blocks, strict=True):
        if getattr(theirs, "leaky_relu_slope", parts.slope) != parts.slope:
            return None, "its residual blocks have another slope"
        if paired:
            own.convs1, own.convs2 = theirs.convs1, theirs.convs2
        else:
            own.convs = theirs.convs
    if not view._current_plan().fusible:
        return None, "its convolutions are not HiFi-GAN's own"
    return view, ""


def _wave(like: Tensor, *shape: int) -> Tensor:
    """Numbers that look random, without drawing any."""
    values = torch.arange(math.prod(shape), device=like.device, dtype=torch.float64)
    return (values * 0.7).sin().reshape(shape).to(like.dtype)
