"""Small things several modules share: checks of arguments, and an escape from autocast."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .values import shown

MOST_TINY_CLIPS = 1000  # of one or two samples
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def refuse_in_capture(device: torch.device, what: str) -> None:
    """Raise RuntimeError while a CUDA graph is captured: what waits for the GPU there breaks the
    capture, with an error that does not say what it was.

    Args:
        device: where the tensors in question are.
        what: what cannot be captured, and what to do instead.
    """
    if (
        device.type == "cuda"
        and not torch.compiler.is_compiling()
        and torch.cuda.is_current_stream_capturing()
    ):
        raise RuntimeError(f"{what} (a CUDA graph is being captured)")


def require_tensor(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise TypeError(f"{name}: expected a torch.Tensor, got {kind}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def require_float(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a dense tensor of a float dtype of at least 16 bits."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    if not dense or value.dtype not in FLOATS:
        require_tensor(name, value)
        expected = "float16, bfloat16, float32 or float64"
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")


def require_integers(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a dense tensor of integers."""
    require_tensor(name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {value.dtype}")


def require_mel(mel: Tensor, n_mels: int) -> None:
    """Raise unless `mel` is a float tensor (B, n_mels, T >= 1): what every vocoder here takes."""
    require_channels("mel", mel, n_mels)


def require_channels(name: str, value: Tensor, channels: int) -> None:
    """Raise unless `value` is a float tensor (B, channels, T >= 1)."""
    require_float(name, value)
    if value.ndim != 3 or value.shape[1] != channels or value.shape[2] == 0:
        turned = value.ndim == 3 and value.shape[2] == channels and value.shape[1] > 0
        hint = f"; {name}.transpose(1, 2) has it" if turned and value.shape[1] != channels else ""
        expected = f"(B, {channels}, T >= 1)"
        raise ValueError(f"{name}: expected {expected}, got {tuple(value.shape)}{hint}")


def mono(name: str, audio: Any) -> Tensor:
    """Audio (B, L) or (B, 1, L) as (B, L).

    Thousands of clips of one or two samples are taken for one clip whose channels stand last, as
    files are read; to fewer of them no such thing can be said, and they are what they say.

    Raises:
        TypeError: it is no dense tensor.
        ValueError: it has another shape.
    """
    require_tensor(name, audio)
    if audio.ndim == 3 and audio.shape[1] == 1:
        return audio[:, 0]
    if audio.ndim != 2:
        raise ValueError(f"{name}: expected (B, L) or (B, 1, L), got {tuple(audio.shape)}")
    # Not under a compiler, which would make other graphs of short clips.
    compiling = torch.compiler.is_compiling()
    if not compiling and 1 <= audio.shape[1] <= 2 and audio.shape[0] > MOST_TINY_CLIPS:
        raise ValueError(
            f"{name}: expected (B, L), got {tuple(audio.shape)}: channels last? Average them: "
            f"{name}.mean(1)[None]"
        )
    return audio


def listed(name: str, values: Sequence[Any]) -> Tensor:
    """A list's numbers as a tensor on the CPU, whatever the default device; int64 if there are
    none."""
    dtype = None if len(values) else torch.int64
    try:
        return torch.tensor(values, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected integers, got {shown(values)}") from error


def require_lengths(lengths: Tensor | Sequence[int], mel: Tensor) -> Tensor:
    """Frames of each item as a tensor on the mel's device.

    Values are checked where they can be read and reading them does not make a GPU wait.

    Raises:
        TypeError: they are not integers.
        ValueError: there is not one for each item, or one is not between 0 and T.
        RuntimeError: a CUDA graph is being captured, and they are not on the mel's device.
    """
    found: Any = lengths
    if isinstance(lengths, (str, bytes)) or not hasattr(lengths, "__len__"):
        raise TypeError(f"lengths: expected one for each item, got {shown(lengths)}")
    if not isinstance(lengths, Tensor) or lengths.device != mel.device:
        # A graph would replay the copy, and from memory that may be somebody else's by then.
        got = f"a tensor on {lengths.device}" if isinstance(lengths, Tensor) else "a list"
        refuse_in_capture(mel.device, f"lengths: expected a tensor on {mel.device}, got {got}")
    if not isinstance(found, Tensor):
        found = listed("lengths", found)
    require_tensor("lengths", found)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {found.dtype}")
    if found.shape != mel.shape[:1]:
        raise ValueError(f"lengths: expected ({mel.shape[0]},), got {tuple(found.shape)}")
    unread = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if found.device.type == "cpu" and found.numel() and not unread:
        low, high = map(int, found.long().aminmax())
        if low < 0 or high > mel.shape[2]:
            raise ValueError(f"lengths: expected 0 to {mel.shape[2]} frames, got {low} to {high}")
    return found.to(mel.device, torch.int64, non_blocking=True)


def require_finite(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Load hook: refuse weights that are not finite, or no floating point numbers, before any is
    copied.

    A codebook that is not finite would silently win, or never win, a search; torch casts integers,
    and drops what is imaginary, without a word.
    """
    for own, weight in itertools.chain(module.named_parameters(), module.named_buffers()):
        name, value = prefix + own, state.get(prefix + own)
        if isinstance(value, Tensor) and weight.is_floating_point():
            if not value.is_floating_point():
                raise RuntimeError(f"{name}: expected floating point numbers, got {value.dtype}")
            if not torch.isfinite(value).all():
                raise RuntimeError(f"{name} holds a value that is not finite")


def accept_wrapped_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any
) -> None:
    """Load hook: take names as they are inside wrappers that the module itself does not have:
    `torch.compile`'s add `_orig_mod.` anywhere, DistributedDataParallel's `module.` in front.

    Raises:
        RuntimeError: two names would become one.
    """
    paths = [path.split(".") for path, _ in module.named_modules(remove_duplicate=False)]
    own = {tuple(part for part in path if part != "_orig_mod"): path for path in paths}
    for name in [*state]:
        if not name.startswith(prefix):
            continue
        parts = [part for part in name[len(prefix) :].split(".") if part != "_orig_mod"]
        if parts[:1] == ["module"] and "module" not in module._modules:
            del parts[0]
        if not parts:
            continue
        length = max(n for n in range(len(parts)) if n == 0 or tuple(parts[:n]) in own)
        front = own[tuple(parts[:length])] if length else []
        plain = prefix + ".".join([*front, *parts[length:]])
        if plain != name:
            if plain in state:
                raise RuntimeError(f"expected one of {plain} and {name}, got both")
            state[plain] = state.pop(name)


def require_hop(hop: int, hop_length: int) -> None:
    """Raise unless a generator makes exactly `hop_length` samples per mel frame."""
    if hop != hop_length:
        raise ValueError(
            f"the product of upsample_rates is {hop}, but the mel's hop_length is {hop_length}"
        )


def require_n_mels(n_mels: int, expected: int, what: str) -> None:
    """Raise unless `what` uses the mel's number of bands."""
    if n_mels != expected:
        raise ValueError(f"{what} has n_mels = {n_mels}, but the mel has n_mels = {expected}")


def require_equal_lengths(**sequences: Sequence[Any]) -> None:
    """Raise unless the named sequences are of one length, at least 1."""
    lengths = {name: len(value) for name, value in sequences.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        got = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"expected equal lengths, at least 1: {got}")


def full_precision(like: Tensor) -> torch.autocast:
    """Switch autocast off where `like` lives: distances decide codes, and mels are compared."""
    return torch.autocast(device_type=like.device.type, enabled=False)


def require_whole(name: str, weight: Tensor) -> None:
    """Raise TypeError if a weight is torch's DTensor, of which each process has a part."""
    if hasattr(weight, "full_tensor"):
        raise TypeError(f"{name} is sharded over processes; gather it before")


def require_same_device(**tensors: Tensor | None) -> None:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise ValueError(f"expected one device: {where}")
