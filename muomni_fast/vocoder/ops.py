"""The vocoder's operators: a whole generator, and a stage's residual blocks.

One operator for inference, one for training that also returns what its backward needs, and the
backward, so that a generator costs one call. All take and return (B, C, T). As in `ops`, an
operator chooses its backend when it runs, and a second derivative raises.

Items of a batch with lengths run one by one where there are no kernels: torch's convolutions round
differently in another batch, and what follows an item's end need not be computed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..operators import one_by_one, operator, refusal
from ..reference.checks import refuse_in_capture
from . import generator as network
from . import torch_backend as torch_vocoder
from . import torch_inference
from .generator import Blocks, Network

# On a CPU, from so many on, laying weights out anew costs less than it then saves. Fewer run in
# torch's layout unless prepared, so the two may round differently (`HiFiGANVocoder.prepare`).
MANY_FRAMES = 16
MANY_ROWS = 512  # of a stage


@dataclasses.dataclass(frozen=True)
class Packed:
    """Weights and biases as a backend reads them.

    Attributes:
        tensors: in the backend's layout.
        backend: "torch" or "triton".
    """

    tensors: list[Tensor]
    backend: str


def _backend(
    op: str, *tensors: Tensor, channels_last: bool = False, prepared_for: str | None = None
) -> ModuleType:
    """The module that runs the layers of `op` on these tensors.

    Without kernels, `channels_last` is faster for many rows and has no gradient.

    Raises:
        RuntimeError: weights were prepared for another backend than runs here.
    """
    chosen = backend.choose(op, *tensors)
    if prepared_for not in (None, chosen):
        raise RuntimeError(f"{op}: prepared for {prepared_for}, but {chosen} runs here")
    if chosen == "torch":
        return torch_inference if channels_last else torch_vocoder
    from . import triton_backend as triton_vocoder

    return triton_vocoder


def _network(rates: Sequence[int], kernels: Sequence[int], blocks: str) -> Network:
    return Network(tuple(rates), tuple(kernels), Blocks.parse(blocks))


def pack(tensors: Sequence[Tensor], shape: Network) -> Packed:
    """Weights and biases as the backend that runs here reads them, for `prepared_for`."""
    run = _backend("generator", *tensors, channels_last=True)
    return _packed("generator", run.pack(tensors, shape), tensors)


def pack_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> Packed:
    """`pack` of one stage's residual blocks."""
    run = _backend("mrf", *tensors, channels_last=True)
    return _packed("mrf", run.pack_blocks(tensors, blocks), tensors)


def _packed(op: str, found: Sequence[Tensor], tensors: Sequence[Tensor]) -> Packed:
    return Packed(_unshared(found, tensors), backend.choose(op, *tensors))


def _unshared(found: Sequence[Tensor], others: Sequence[Tensor] = ()) -> list[Tensor]:
    """Tensors that share no memory with each other or with others, copied where they did."""
    held, result = {t.untyped_storage().data_ptr() for t in others}, []
    for tensor in found:
        if tensor.numel() and tensor.untyped_storage().data_ptr() in held:
            tensor = tensor.clone()
        held.add(tensor.untyped_storage().data_ptr())
        result.append(tensor)
    return result


@operator("generator")
def generator(
    mel: Tensor,
    tensors: Sequence[Tensor],
    lengths: Tensor | None,
    rates: Sequence[int],
    kernels: Sequence[int],
    blocks: str,
    prepared_for: str | None,
) -> Tensor:
    """(B, n_mels, T) -> (B, T * hop), without a gradient.

    `tensors` are weights and biases in the order of `network.Layers`, or what `pack` gave for the
    backend `prepared_for`; `blocks` is `network.Blocks.spec`.
    """
    shape = _network(rates, kernels, blocks)
    layers = functools.cache(
        lambda run: (run.unpacked if prepared_for else run.layers)(tensors, shape)
    )

    chosen = _backend("generator", mel, *tensors, prepared_for=prepared_for)

    def audio_of(mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        many = prepared_for is not None or mel.shape[0] * mel.shape[2] >= MANY_FRAMES
        run = torch_inference if many and chosen is torch_vocoder else chosen
        return network.forward(run, mel, layers(run), shape, lengths, keep=False)[0]

    if lengths is None or chosen is not torch_vocoder:
        return audio_of(mel, lengths)
    audio = mel.new_zeros(mel.shape[0], mel.shape[2] * shape.hop)
    for own_mel, own_audio in _items(lengths, mel, audio):
        own_audio.copy_(audio_of(own_mel))
    return audio


def _items(lengths: Tensor, mel: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Of each item that has frames its part of every tensor, (1, ..., frames * rate)."""
    refuse_in_capture(lengths.device, "lengths: without kernels they are read, which waits")
    for item, frames in enumerate(lengths.tolist()):
        if frames > 0:  # compiled code does not check
            yield [
                t[item : item + 1, ..., : t.shape[-1] // mel.shape[-1] * frames]
                for t in (mel, *others)
            ]


@torch.library.register_fake("muomni::generator")
def _(mel: Tensor, tensors: Any, lengths: Any, rates: Any, *rest: Any) -> Tensor:
    return mel.new_empty(mel.shape[0], mel.shape[2] * _network(rates, rates, "1|1:1").hop)


@operator("generator_train")
def generator_train(
    mel: Tensor,
    tensors: Sequence[Tensor],
    lengths: Tensor | None,
    rates: Sequence[int],
    kernels: Sequence[int],
    blocks: str,
) -> tuple[Tensor, list[Tensor]]:
    """`generator`, and what its backward needs, laid out as the backend that ran has it."""
    run, shape = _backend("generator", mel, *tensors), _network(rates, kernels, blocks)
    layers = run.layers(tensors, shape)
    if lengths is None or run is not torch_vocoder:
        return network.forward(run, mel, layers, shape, lengths, keep=True)
    audio = mel.new_zeros(mel.shape[0], mel.shape[2] * shape.hop)
    kept = [t.zero_() for t in network.fake_kept(run, mel, tensors[0].shape[0], shape)]
    for own_mel, *own in _items(lengths, mel, audio, *kept):
        own_audio, own_kept = network.forward(run, own_mel, layers, shape, None, keep=True)
        for into, part in zip(own, [own_audio, *own_kept], strict=True):
            into.copy_(part)
    return audio, kept


@torch.library.register_fake("muomni::generator_train")
def _(
    mel: Tensor, tensors: Sequence[Tensor], lengths: Any, rates: Any, kernels: Any, blocks: str
) -> tuple[Tensor, list[Tensor]]:
    run, shape = _backend("generator", mel, *tensors), _network(rates, kernels, blocks)
    audio = mel.new_empty(mel.shape[0], mel.shape[2] * shape.hop)
    return audio, network.fake_kept(run, mel, tensors[0].shape[0], shape)


@operator("generator_backward")
def generator_backward(
    grad: Tensor,
    audio: Tensor,
    mel: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    lengths: Tensor | None,
    rates: Sequence[int],
    kernels: Sequence[int],
    blocks: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of mel and tensors; an empty tensor for each not needed."""
    run, shape = _backend("generator", mel, *tensors), _network(rates, kernels, blocks)
    if lengths is None or run is not torch_vocoder:
        grads = network.backward(run, grad, audio, mel, kept, tensors, shape, lengths, needs)
        return _filled(grads, [mel, *tensors], needs)
    d_mel, *totals = [
        torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in (mel, *tensors)
    ]
    for own_mel, own_d_mel, *own in _items(lengths, mel, d_mel, grad, audio, *kept):
        own_grad, own_audio, *own_kept = own
        d, *grads = network.backward(
            run, own_grad, own_audio, own_mel, own_kept, tensors, shape, None, needs
        )
        for total, found in zip([own_d_mel, *totals], [d, *grads], strict=True):
            if found is not None:
                total += found
    return _filled([d_mel, *totals], [mel, *tensors], needs)


@torch.library.register_fake("muomni::generator_backward")
def _(
    grad: Tensor, audio: Any, mel: Tensor, kept: Any, tensors: Sequence[Tensor], *rest: Any
) -> list[Tensor]:
    return _empty_where_needed([mel, *tensors], rest[-1])


def _filled(
    grads: Sequence[Tensor | None], like: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """In the dtype and layout of what they belong to."""
    return _unshared(
        [
            g.to(t.dtype).contiguous() if need and g is not None else t.new_empty(0)
            for g, t, need in zip(grads, like, needs, strict=True)
        ]
    )


def _empty_where_needed(like: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape if need else 0) for t, need in zip(like, needs, strict=True)]


def _needed(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(grads, needs, strict=True)]


def _save_generator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
    mel, tensors, lengths, ctx.rates, ctx.kernels, ctx.blocks = inputs
    audio, kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.n_kept, ctx.n_tensors = len(kept), len(tensors)
    ctx.save_for_backward(audio, mel, lengths, *kept, *tensors)


def _generator_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    need_mel, need_tensors = ctx.needs_input_grad[:2]
    nothing = None, [None] * ctx.n_tensors, None, None, None, None
    if grad is None:
        return nothing
    audio, mel, lengths, *rest = ctx.saved_tensors
    kept, tensors = rest[: ctx.n_kept], rest[ctx.n_kept :]
    needs = [need_mel, *need_tensors]
    shape = lengths, ctx.rates, ctx.kernels, ctx.blocks
    grads = generator_backward(grad.contiguous(), audio, mel, kept, tensors, *shape, needs)
    d_mel, *d_tensors = _needed(grads, needs)
    return d_mel, d_tensors, *nothing[2:]


torch.library.register_autograd(
    "muomni::generator_train", _generator_backward, setup_context=_save_generator
)


@operator("mrf")
def mrf(x: Tensor, tensors: Sequence[Tensor], blocks: str, prepared_for: str | None) -> Tensor:
    """The mean of a stage's residual blocks, (B, C, T), without a gradient.

    `tensors` are weights and biases block by block, or what `pack_blocks` gave for the backend
    `prepared_for`.
    """
    many = prepared_for is not None or x.shape[0] * x.shape[2] >= MANY_ROWS
    run = _backend("mrf", x, *tensors, channels_last=many, prepared_for=prepared_for)
    shape = Blocks.parse(blocks)
    packed = tensors if prepared_for else run.pack_blocks(tensors, shape)
    return run.stage(x, packed, shape, keep=False)[0]


@torch.library.register_fake("muomni::mrf")
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@operator("mrf_train")
def mrf_train(x: Tensor, tensors: Sequence[Tensor], blocks: str) -> tuple[Tensor, list[Tensor]]:
    """`mrf`, and what its backward needs, laid out as the backend that ran has it."""
    run, shape = _backend("mrf", x, *tensors), Blocks.parse(blocks)
    return run.stage(x, run.pack_blocks(tensors, shape), shape, keep=True)


@torch.library.register_fake("muomni::mrf_train")
def _(x: Tensor, tensors: Sequence[Tensor], blocks: str) -> tuple[Tensor, list[Tensor]]:
    run = _backend("mrf", x, *tensors)
    return x.new_empty(x.shape), run.fake_kept(x, x.shape[1], x.shape[2], Blocks.parse(blocks))


@operator("mrf_backward")
def mrf_backward(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and tensors; an empty tensor for each not needed."""
    run = _backend("mrf", x, *tensors)
    d_x, grads = run.stage_grad(grad, x, kept, tensors, Blocks.parse(blocks), needs[1:])
    return _filled([d_x, *grads], [x, *tensors], needs)


@torch.library.register_fake("muomni::mrf_backward")
def _(grad: Any, x: Tensor, kept: Any, tensors: Sequence[Tensor], blocks: Any, needs: Any) -> Any:
    return _empty_where_needed([x, *tensors], needs)


def _save_mrf(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
    x, tensors, ctx.blocks = inputs
    ctx.mark_non_differentiable(*output[1])
    ctx.set_materialize_grads(False)
    ctx.n_kept, ctx.n_tensors = len(output[1]), len(tensors)
    ctx.save_for_backward(x, *output[1], *tensors)


def _mrf_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, [None] * ctx.n_tensors, None
    need_x, need_tensors = ctx.needs_input_grad[:2]
    x, *rest = ctx.saved_tensors
    kept, tensors = rest[: ctx.n_kept], rest[ctx.n_kept :]
    needs = [need_x, *need_tensors]
    d_x, *grads = _needed(
        mrf_backward(grad.contiguous(), x, kept, tensors, ctx.blocks, needs), needs
    )
    return d_x, grads, None


torch.library.register_autograd("muomni::mrf_train", _mrf_backward, setup_context=_save_mrf)

for _op in (generator, generator_train, mrf, mrf_train):
    torch.library.register_vmap(_op.name(), one_by_one(_op))
for _op in (generator_backward, mrf_backward):
    torch.library.register_autograd(_op.name(), refusal(_op.name()))
