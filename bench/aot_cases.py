"""What `aot.py` compiles: launches of every kernel at the shapes that are known.

The launchers run as they are, on tensors without memory, so what is compiled is what is shipped.
"""

import contextlib
import dataclasses
import unittest.mock
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from muomni_fast import reference
from muomni_fast.kernels import tables
from muomni_fast.kernels.launch import power_of_two
from muomni_fast.kernels.rvq.code_sums import code_sums
from muomni_fast.kernels.rvq.decode import rvq_decode
from muomni_fast.kernels.rvq.encode import rvq_encode
from muomni_fast.kernels.rvq.table import table_width
from muomni_fast.kernels.talker.sample import sample
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder import conv, mrf_step, mrf_strip, weight_grad
from muomni_fast.reference.vocoder.addends import rows_at
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder import triton_backend as triton_vocoder
from muomni_fast.vocoder import triton_mrf
from muomni_fast.vocoder.plan import plan_of_generator
from muomni_fast.vocoder.shapes import Up

FEW_BYTES = 64


@dataclasses.dataclass
class Case:
    """Launches to compile.

    Attributes:
        name: of the kernel and shape.
        launch: runs launchers on tensors without memory.
        dots: whether they must use tensor cores, on sm_90 those of warp groups unless `small`.
        small: whether tiles have fewer than the 64 rows of a warp group; larger ones spill.
        spill: bytes that a thread may spill where no tile spills less.
        timed: architectures where its tile was timed, and may spill: it is faster than those that
            do not.
        main: whether every test run compiles it.
    """

    name: str
    launch: Callable[[], Any]
    dots: bool = False
    small: bool = False
    main: bool = False
    spill: int = 0
    timed: tuple[str, ...] = ()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def encode_case(
    name: str, shape: tuple[int, int, int], n_mels: int | None, main: bool = False, **options: Any
) -> Case:
    """An encoder for (Q, K, D) codebooks, with a projection if there is `n_mels`."""
    dtype, bias = options.pop("dtype", torch.float32), options.pop("bias", False)
    n_codebooks, size, dim = shape

    def launch() -> None:
        rvq_encode(
            meta(100_000, n_mels or dim, dtype=dtype),
            meta(*shape),
            meta(n_codebooks, 2, size, table_width(dim)),
            meta(dim, n_mels) if n_mels else None,
            meta(dim) if bias else None,
            meta(1, dtype=torch.int32),
            **options,
        )

    timed = tuple(
        architecture
        for architecture in tables.ARCHITECTURES
        for row in tables.read(tables.FOLDER / f"{architecture}.json")["encode"]
        if row["use"] and row["ms"] is not None and row["dim"] == power_of_two(dim)
    )
    found = dict(dots=True, small=dim > 128, spill=FEW_BYTES if dim > 256 else 0, timed=timed)
    return Case(f"encode {name}", launch, main=main, **found)


def decode_case(name: str, shape: tuple[int, int, int], n_mels: int | None, main: bool) -> Case:
    """A decoder of (Q, K, D) tables, with a projection if there is `n_mels`."""
    n_codebooks, _, dim = shape

    def launch() -> None:
        codes, invalid = meta(100_000, n_codebooks, dtype=torch.int64), meta(1, dtype=torch.int32)
        weight, bias = (meta(n_mels, dim), meta(n_mels)) if n_mels else (None, None)
        rvq_decode(codes, meta(*shape), weight, bias, invalid)

    small = dim > 128
    return Case(f"decode {name}", launch, dots=n_mels is not None, small=small, main=main)


def sums_case(size: int, dim: int, main: bool = False) -> Case:
    """Sums of 100,000 rows by code."""
    codes, rows = meta(100_000, dtype=torch.int64), meta(100_000, dim)
    return Case(f"code sums {size} x {dim}", lambda: code_sums(codes, rows, size), main=main)


def sample_case(
    shape: tuple[int, int, int, int], temperature: float = 1.0, main: bool = False
) -> Case:
    """Codes drawn from (B, Q, K + 1) logits, and their sums of (K + 2, D) embeddings."""
    batch, n_codebooks, size, dim = shape

    def launch() -> None:
        step, end = meta(1, dtype=torch.int64), meta(batch, dtype=torch.int64)
        row, x = meta(batch, n_codebooks, dtype=torch.int64), meta(batch, dim)
        logits = meta(batch, n_codebooks, size + 1)
        table = meta(n_codebooks * (size + 2), dim)
        sample(logits, table, step, end, row, x, 512, temperature, seed=0)

    name = f"{n_codebooks} x {size}, {dim} wide{'' if temperature else ', greedy'}"
    return Case(f"sample {name}", launch, main=main)


def generator_case(
    preset: str,
    dtype: torch.dtype,
    *,
    main: bool = False,
    train: bool = False,
    whole: bool = False,
    precision: str | None = None,
    addends: str | None = None,
) -> Case:
    """All launches of a generator, 16 x 1 s; `train` with the gradients, `whole` with every stage
    in one launch that there is a tile for; in float32, where the table has none, all of them with
    the tiles of single convolutions, as bench/gpu_vocoder.py forces them. With `addends` at every
    place, for all rows ("speakers") or for each ("sources"), no last bias and audio cut off."""
    shape = reference.vocoder.hifigan.PRESETS.get(preset, {})
    if addends:
        shape = {**shape, "conv_post_bias": False, "final": "clamp"}
    with torch.device("meta"):
        model = reference.HiFiGANVocoder(**shape).to(dtype)
    tensors = [tensor.detach() for tensor in plan_of_generator(model).tensors()]
    net = plan_of_generator(model).shape
    mel = meta(16, model.n_mels, 87, dtype=dtype)
    added = []
    if addends:
        rows = rows_at(net.factors)
        net = dataclasses.replace(net, addends=tuple(range(len(rows))))
        channels = model.conv_pre.out_channels
        for place, each in enumerate(rows):
            size = 87 * each if addends == "sources" else 1
            added.append(meta(16, channels >> place, size, dtype=dtype))

    def strip(x: Tensor, *_: Any) -> conv_configs.StripConfig | None:
        found = conv_configs.strip_tile(x)
        if found is None and x.element_size() == 4:
            found = conv_configs.conv_config(x.shape[2], x.shape[2], x, x.shape[1]), 1
        return found and conv_configs.StripConfig(found[0], 10, found[0].block_t)

    def launch() -> None:
        changes = [(triton_mrf, "strip_config", strip if whole else lambda *_: None)]
        if precision:
            for module in PRECISION_USERS:
                changes.append((module, "dot_precision", lambda _: precision))
        with contextlib.ExitStack() as stack:
            for change in changes:
                stack.enter_context(unittest.mock.patch.object(*change))
            every = [*tensors, *added]
            layers = triton_vocoder.layers(every, net)
            audio, kept = generators.forward(triton_vocoder, mel, layers, net, None, train, added)
            if train:
                needs = [True] * (1 + len(every))
                generators.backward(
                    triton_vocoder, audio, audio, mel, kept, every, net, None, needs
                )

    kind = f"{str(dtype).removeprefix('torch.')}{f' as {precision}' if precision else ''}"
    what = "training" if train else "stages in one launch" if whole else "forward"
    what += f", {addends}" if addends else ""
    return Case(f"generator {preset}, {kind}, {what}", launch, dots=True, main=main)


def added_case(each: bool, main: bool = False) -> Case:
    """The first convolution and an upsampling of the default generator, bfloat16, with something
    added to what they give, for all rows or for each."""
    x, mel = (meta(16, *shape, dtype=BF16) for shape in ((87, 256), (128, 87)))
    weights = [(meta(n, taps, c, dtype=BF16), meta(n, dtype=BF16)) for n, taps, c in ADDED]

    def launch() -> None:
        rows = 87 if each else 1
        triton_vocoder.pre(mel, weights[0], addend=meta(16, 256, rows, dtype=BF16))
        addend = meta(16, 128, rows * 8 if each else 1, dtype=BF16)
        triton_vocoder.up(x, weights[1], Up(8, 16), addend=addend)

    return Case(f"addends for {'each row' if each else 'all rows'}", launch, dots=True, main=main)


ADDED = (256, 7, 128), (8 * 128, 3, 256)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PRECISION_USERS = (conv, weight_grad, mrf_step, mrf_strip)

DEFAULT = (2, 128, 64)
CASES = [
    encode_case("default", DEFAULT, 128, main=True),
    encode_case("default, bias, loss sums", DEFAULT, 128, main=True, bias=True, with_sums=True),
    encode_case("default, fast", DEFAULT, 128, exact=False),
    encode_case("default, bf16", DEFAULT, 128, dtype=torch.bfloat16),
    encode_case("default, fp16", DEFAULT, 128, dtype=torch.float16),
    encode_case("default, no projection", DEFAULT, None),
    encode_case("EnCodec 8 x 1024 x 128", (8, 1024, 128), None, main=True),
    encode_case("8 x 1024 x 128 from 80 mels", (8, 1024, 128), 80),
    encode_case("Mimi 8 x 2048 x 256", (8, 2048, 256), None, main=True),
    encode_case("8 x 2048 x 256 from 512", (8, 2048, 256), 512),
    encode_case("Lyra 46 x 16 x 64", (46, 16, 64), None),
    encode_case("LPCNet 4 x 2048 x 18", (4, 2048, 18), None),
    encode_case("1 x 2048 x 18", (1, 2048, 18), None, main=True),
    encode_case("9 x 1024 x 8 from 1024", (9, 1024, 8), 1024),
    encode_case("4 x 4096 x 32 from 80 mels", (4, 4096, 32), 80),
    encode_case("2 x 1000 x 512", (2, 1000, 512), None, main=True),
    encode_case("2 x 1000 x 500 from 100 mels", (2, 1000, 500), 100),
    decode_case("default", DEFAULT, 128, main=True),
    decode_case("default, prepared", (2, 128, 128), None, main=True),
    decode_case("EnCodec 8 x 1024 x 128", (8, 1024, 128), None, main=False),
    *(
        decode_case(f"2 x 1024 x {dim} to 80 mels", (2, 1024, dim), 80, main=False)
        for dim in (16, 32, 128, 256)
    ),
    sums_case(128, 64, main=True),
    sums_case(1024, 128),
    sums_case(4096, 8),
    sample_case((1, 2, 128, 128), main=True),
    sample_case((1, 2, 128, 128), temperature=0.0, main=True),
    sample_case((1, 8, 128, 256)),
    sample_case((16, 8, 1024, 512)),
    sample_case((16, 8, 4096, 1024)),
    sample_case((16, 8, 8191, 8192)),
    generator_case("default", BF16, main=True),
    generator_case("default", BF16, main=True, whole=True),
    generator_case("default", BF16, train=True),
    generator_case("default", FP16),
    generator_case("default", FP32, train=True),
    generator_case("default", FP32, train=True, precision="tf32"),
    generator_case("default", FP32, whole=True, precision="tf32"),
    generator_case("v1", FP32, whole=True, precision="tf32"),
    *(generator_case(preset, BF16, train=True) for preset in ("v1", "v2", "v3")),
    *(generator_case(preset, BF16, whole=True) for preset in ("v1", "v2", "v3")),
    *(generator_case(preset, FP32) for preset in ("v1", "v2", "v3")),
    generator_case("default", BF16, addends="sources"),
    *(added_case(each, main=True) for each in (False, True)),
    generator_case("v1", BF16, train=True, addends="sources"),
    *(generator_case(preset, BF16, addends="speakers") for preset in ("default", "v1", "v2")),
    *(generator_case("default", FP32, addends=kind) for kind in ("speakers", "sources")),
]
