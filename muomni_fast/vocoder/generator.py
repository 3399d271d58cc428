"""A whole HiFi-GAN generator as an operator: what calls its layers in order, forward and backward.

One operator for inference, one for training that also returns what its backward needs, and the
backward, so that a generator costs one call. An operator chooses its backend when it runs
(`backend.choose`), so a compiled or exported program still does; a second derivative raises.
"""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..backend import choose
from ..operators import Operator, empty_where_needed, filled, needed, one_by_one, operator, refusal
from . import torch_backend, torch_inference
from .alone import each_alone
from .backends import Backend, Ends, InferenceBackend, PreparingBackend
from .orders import apart, size_together, together
from .shapes import Layers, Network

# On a CPU, from so many frames on, laying weights out anew costs less than it then saves. Fewer run
# in torch's layout unless prepared, so the two may round differently (`HiFiGANVocoder.prepare`).
MANY_FRAMES = 16


def backend_for(op: str, *tensors: Tensor) -> Backend:
    """The backend that runs the layers of `op` on these tensors."""
    if choose(op, *tensors) == "torch":
        return torch_backend
    from . import triton_backend

    return triton_backend


def layouts_of(chosen: str) -> PreparingBackend:
    """The backend that lays weights out beforehand, of "torch" or "triton"."""
    if chosen == "torch":
        return torch_inference
    from . import triton_backend

    return triton_backend


def preparing(op: str, prepared_for: str, *tensors: Tensor) -> PreparingBackend:
    """The backend that runs here, and has laid out weights before.

    Raises:
        RuntimeError: they were prepared for another one.
    """
    chosen = choose(op, *tensors)
    if prepared_for != chosen:
        raise RuntimeError(f"{op}: prepared for {prepared_for}, but {chosen} runs here")
    return layouts_of(chosen)


def forward(
    backend: InferenceBackend,
    mel: Tensor,
    layers: Layers,
    network: Network,
    lengths: Tensor | None,
    keep: bool,
    addends: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Audio of a mel, and what its gradient needs if `keep`.

    Args:
        backend: what runs the layers.
        mel: (B, n_mels, T).
        layers: what the backend's `layers` gives.
        network: the shape.
        lengths: (B,) frames of each item, for a backend that takes it, or None.
        keep: return what lies between the layers: the output of `pre`; for each level the output
            of `up`, what `mrf` keeps and its output; audio before it is cut off, if it is.
        addends: for the places that the shape names.

    Returns:
        (B, T * hop), and the list.
    """
    ends: Ends = None if lengths is None else (lengths, 1)
    addend_of = dict(zip(network.addends, addends, strict=True)).get
    x = backend.pre(mel, layers.pre, ends, addend_of(0))
    kept = [x] if keep else []
    levels = zip(network.ups, layers.ups, layers.mrfs, strict=True)
    for place, (shape, up, mrf) in enumerate(levels, 1):
        u = backend.up(x, up, shape, ends, addend_of(place))
        ends = ends and (ends[0], ends[1] * shape.factor)
        x, inner = backend.mrf(u, mrf, network.blocks, keep, ends)
        if keep:
            kept += [u, *inner, x]
        del u  # or it would outlive the next level's
    if keep and network.final == "clamp":
        audio = backend.post(x, layers.post, None, ends)
        return audio.clamp(-1, 1), [*kept, audio]
    return backend.post(x, layers.post, network.final, ends), kept


def backward(
    backend: Backend,
    grad: Tensor,
    audio: Tensor,
    mel: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    network: Network,
    lengths: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the mel and of every weight, bias and addend, None where not needed.

    Args:
        backend, mel, network, lengths: as in `forward`.
        grad, audio: (B, T * hop), of its result and that itself.
        kept: what it kept.
        tensors: weights and biases as torch has them, in the order of `Layers.of`, then addends,
            of which the shape is looked at.
        needs: of the mel, then of each tensor.
    """
    levels, size = len(network.factors), network.blocks.size
    weights = backend.grad_layers(tensors, network)
    need = Layers.of(network.divided(needs[1:]))
    grad_mel: Tensor | None = None
    nothing = [None, None], [[None, None]] * levels, [[None] * size] * levels
    found = Layers(*nothing, [None] * network.last_size)
    final = network.final
    if final == "clamp":  # as torch does it: a value at the edge counts, one that is NaN does not
        *kept, whole = kept
        grad, final = grad.masked_fill(~(whole.abs() <= 1), 0), None
    per_level = (len(kept) - 1) // levels
    rows_per_frame = network.hop
    ends = None if lengths is None else (lengths, rows_per_frame)
    count = len(network.addends)
    places = zip(network.addends, tensors[-count:], needs[-count:], strict=False)
    wanted = {place: addend.shape[2] == 1 for place, addend, need in places if need}
    of_addends: dict[int, Tensor] = {}
    last = kept[-1], weights.post, final, need.post, ends
    grad, found.post = backend.post_grad(grad, audio, *last)
    for level in reversed(range(levels)):
        if (
            not any(needs[: 1 + 2 + (level + 1) * (2 + size)])
            and min(wanted, default=levels + 1) > level + 1
        ):
            break
        first = 1 + level * per_level
        x, u, inner = kept[first - 1], kept[first], kept[first + 1 : first + per_level - 1]
        grad, found.mrfs[level] = backend.mrf_grad(
            grad, u, inner, weights.mrfs[level], network.blocks, need.mrfs[level], ends
        )
        if level + 1 in wanted:
            of_addends[level + 1] = backend.addend_grad(grad, wanted[level + 1], ends)
        shape = network.ups[level]
        rows_per_frame //= shape.factor
        ends = None if lengths is None else (lengths, rows_per_frame)
        grad, found.ups[level] = backend.up_grad(
            grad, x, weights.ups[level], shape, need.ups[level], ends
        )
    else:
        if 0 in wanted:
            of_addends[0] = backend.addend_grad(grad, wanted[0], ends)
        if any(needs[:3]):
            grad_mel, found.pre = backend.pre_grad(grad, mel, weights.pre, needs[0], need.pre, ends)
    return [grad_mel, *found.flat(), *map(of_addends.get, network.addends)]


def fake_kept(backend: Backend, mel: Tensor, channels: int, network: Network) -> list[Tensor]:
    """Tensors like those `forward` keeps; `channels` are those after `pre`."""
    rows = mel.shape[2]
    kept = [backend.fake(mel, channels, rows)]
    for factor in network.factors:
        channels, rows = channels // 2, rows * factor
        inner = backend.fake_kept(mel, channels, rows, network.blocks)
        kept += [backend.fake(mel, channels, rows), *inner, backend.fake(mel, channels, rows)]
    if network.final == "clamp":
        kept.append(mel.new_empty(mel.shape[0], rows))
    return kept


@operator("generator")
def generator(
    mel: Tensor,
    tensors: Sequence[Tensor],
    lengths: Tensor | None,
    network: str,
    prepared_for: str | None,
) -> Tensor:
    """(B, n_mels, T) -> (B, T * hop), without a gradient.

    `tensors` are weights and biases in the order of `Layers`, or what the backend `prepared_for`
    laid out, and then addends; `network` is `Network.spec`.
    """
    shape = Network.parse(network)
    addends = tensors[len(tensors) - len(shape.addends) :]
    backend: InferenceBackend
    if prepared_for is not None:  # its tensors are of one kind: the first speaks for all
        backend = preparing("generator", prepared_for, mel, tensors[0])
    else:
        backend = backend_for("generator", mel, *tensors)
    laid_out: dict[bool, Layers] = {}  # for few frames and for many, once for all items

    def audio_of(mel: Tensor, lengths: Tensor | None, addends: Sequence[Tensor]) -> Tensor:
        plain = backend is torch_backend
        many = plain and mel.shape[0] * mel.shape[2] >= MANY_FRAMES
        runs = torch_inference if many else backend
        if many not in laid_out:
            unpacked = prepared_for is not None and cast(PreparingBackend, runs).unpacked
            laid_out[many] = (unpacked or runs.layers)(tensors, shape)
        return forward(runs, mel, laid_out[many], shape, lengths, False, addends)[0]

    if lengths is None or backend.TAKES_ENDS:
        return audio_of(mel, lengths, addends)
    audio = mel.new_zeros(mel.shape[0], mel.shape[2] * shape.hop)
    one = lambda own, *added: [audio_of(own, None, added)]
    each_alone(lengths, one, [mel, *addends], [audio])
    return audio


@torch.library.register_fake("muomni::generator")
def _(mel: Tensor, tensors: Any, lengths: Any, network: str, prepared_for: Any) -> Tensor:
    return mel.new_empty(mel.shape[0], mel.shape[2] * Network.parse(network).hop)


@operator("generator_train")
def generator_train(
    mel: Tensor, tensors: Sequence[Tensor], lengths: Tensor | None, network: str
) -> tuple[Tensor, list[Tensor]]:
    """`generator`, and what its backward needs, laid out as the backend that ran has it."""
    backend, shape = backend_for("generator", mel, *tensors), Network.parse(network)
    layers, addends = backend.layers(tensors, shape), tensors[len(tensors) - len(shape.addends) :]
    if lengths is None or backend.TAKES_ENDS:
        return forward(backend, mel, layers, shape, lengths, True, addends)
    audio, kept = _like_training(backend, mel, tensors, shape)

    def one(own: Tensor, *added: Tensor) -> list[Tensor]:
        own_audio, own_kept = forward(backend, own, layers, shape, None, True, added)
        return [own_audio, *own_kept]

    into = [audio.zero_(), *(t.zero_() for t in kept)]
    each_alone(lengths, one, [mel, *addends], into)
    return audio, kept


def _like_training(
    backend: Backend, mel: Tensor, tensors: Sequence[Tensor], shape: Network
) -> tuple[Tensor, list[Tensor]]:
    """Unwritten tensors like those of `generator_train`."""
    audio = mel.new_empty(mel.shape[0], mel.shape[2] * shape.hop)
    return audio, fake_kept(backend, mel, tensors[0].shape[0], shape)


@torch.library.register_fake("muomni::generator_train")
def _(
    mel: Tensor, tensors: Sequence[Tensor], lengths: Any, network: str
) -> tuple[Tensor, list[Tensor]]:
    backend = backend_for("generator", mel, *tensors)
    return _like_training(backend, mel, tensors, Network.parse(network))


@operator("generator_backward")
def generator_backward(
    grad: Tensor,
    audio: Tensor,
    mel: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    lengths: Tensor | None,
    network: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of mel and addends, an empty tensor for each not needed; and of the weights and
    biases that need one, `together`."""
    backend, shape = backend_for("generator", mel, *tensors), Network.parse(network)
    of_weights = len(tensors) - len(shape.addends)
    grads: Sequence[Tensor | None]
    if lengths is None or backend.TAKES_ENDS:
        grads = backward(backend, grad, audio, mel, kept, tensors, shape, lengths, needs)
    else:
        totals = [
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
            for t in (mel, *tensors)
        ]
        first = 1 + of_weights  # addend

        def one(own_mel: Tensor, *own: Tensor) -> list[Tensor | None]:
            own_grad, own_audio, *own_kept = own
            found = backward(
                backend, own_grad, own_audio, own_mel, own_kept, tensors, shape, None, needs
            )
            return [found[0], *found[first:], *found[1:first]]

        into = [totals[0], *totals[first:]]
        each_alone(lengths, one, [mel, grad, audio, *kept], into, totals[1:first])
        grads = totals
    wanted = _wanted(grads[1:], needs, of_weights)
    found = filled([grads[0], *grads[1 + of_weights :]], *_others(mel, tensors, needs, of_weights))
    return [*found, together(wanted, tensors[0], usual=len(wanted) == of_weights)]


def _others(
    mel: Tensor, tensors: Sequence[Tensor], needs: Sequence[bool], of_weights: int
) -> tuple[list[Tensor], list[bool]]:
    """The mel and the addends, and which of them need a gradient."""
    return [mel, *tensors[of_weights:]], [needs[0], *needs[1 + of_weights :]]


def _wanted(each: Sequence[Any], needs: Sequence[bool], of_weights: int) -> list[Any]:
    """Of something for each tensor, that of the weights and biases that need a gradient."""
    return list(itertools.compress(each, needs[1 : 1 + of_weights]))


@torch.library.register_fake("muomni::generator_backward")
def _(
    grad: Tensor,
    audio: Any,
    mel: Tensor,
    kept: Any,
    tensors: Sequence[Tensor],
    lengths: Any,
    network: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    of_weights = len(tensors) - len(Network.parse(network).addends)
    size = size_together(_wanted(tensors, needs, of_weights))
    others = empty_where_needed(*_others(mel, tensors, needs, of_weights))
    return [*others, tensors[0].new_empty(size)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
    mel, tensors, lengths, ctx.network = inputs
    audio, kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.n_kept, ctx.n_tensors = len(kept), len(tensors)
    count = len(Network.parse(ctx.network).addends)
    weights, addends = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
    shapes = [addend.new_empty(()).expand(addend.shape) for addend in addends]  # of no memory
    ctx.save_for_backward(audio, mel, lengths, *kept, *weights, *shapes)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, [None] * ctx.n_tensors, None, None
    need_mel, need_tensors = ctx.needs_input_grad[:2]
    audio, mel, lengths, *rest = ctx.saved_tensors
    kept, tensors = rest[: ctx.n_kept], rest[ctx.n_kept :]
    needs = [need_mel, *need_tensors]
    arguments = audio, mel, kept, tensors, lengths, ctx.network, needs
    *others, packed = generator_backward(grad.contiguous(), *arguments)
    of_weights = len(tensors) - len(Network.parse(ctx.network).addends)
    grad_mel, *of_addends = needed(others, _others(mel, tensors, needs, of_weights)[1])
    found = iter(apart(packed, _wanted(tensors, needs, of_weights)))
    grads = [next(found) if need else None for need in need_tensors[:of_weights]]
    return grad_mel, [*grads, *of_addends], None, None


GENERATOR = Operator("generator", generator, generator_train)
torch.library.register_autograd("muomni::generator_train", _backward, setup_context=_save)
torch.library.register_autograd(generator_backward.name(), refusal(generator_backward.name()))
for _op in (generator, generator_train):
    torch.library.register_vmap(_op.name(), one_by_one(_op))
