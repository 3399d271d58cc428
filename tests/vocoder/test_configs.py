"""What the convolution kernels' tables decide: tiles, strips, and how float32 is multiplied."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.vocoder_problems import GENERATORS, always_strip
from torch import Tensor

from muomni_fast import reference
from muomni_fast.kernels import launch
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.mrf_strip import mrf_strip
from muomni_fast.vocoder.plan import plan_of_generator
from muomni_fast.vocoder.shapes import Blocks

# Strips


def stages(name: str, dtype: torch.dtype) -> list[tuple[Tensor, Blocks]]:
    """The input of each stage of a preset, 16 x 10 s, and its blocks."""
    with torch.device("meta"):
        model = reference.HiFiGANVocoder(**GENERATORS[name])
        shape, channels, rows, found = (
            plan_of_generator(model).shape,
            model.conv_pre.out_channels,
            870,
            [],
        )
        for rate in shape.factors:
            channels, rows = channels // 2, rows * rate
            found.append((torch.empty(16, rows, channels, dtype=dtype), shape.blocks))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", GENERATORS)
def test_every_stage_can_run_in_one_launch(monkeypatch, name, architecture, dtype):
    """Where a tile's strips for the whole device would not fit scratch, with fewer programs."""
    monkeypatch.setattr(launch, "architecture", lambda device: architecture)
    for x, blocks in stages(name, dtype):
        arguments = x, blocks.taps, blocks.dilations, blocks.paired
        config = always_strip(*arguments)
        assert 1 <= config.programs <= launch.MULTIPROCESSORS[architecture]
        assert config.length >= config.conv.block_t and config.length % config.conv.block_t == 0
        assert conv_configs.scratch_bytes(*arguments, config) <= conv_configs.MOST_SCRATCH


def test_fewer_programs_only_where_scratch_asks_for_it(monkeypatch):
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    found = {}
    for name in ("default", "v1"):
        for x, blocks in stages(name, torch.float32):
            config = always_strip(x, blocks.taps, blocks.dilations, blocks.paired)
            found[name, x.shape[2]] = config.programs
    assert found["v1", 256] < found["v1", 128] < 132
    assert found["default", 16] == found["v1", 32] == 132


def test_the_table_never_takes_fewer_programs(monkeypatch):
    """There a stage runs step by step instead."""
    for architecture, count in launch.MULTIPROCESSORS.items():
        monkeypatch.setattr(launch, "architecture", lambda device, name=architecture: name)
        for name in GENERATORS:
            for x, blocks in stages(name, torch.bfloat16):
                config = conv_configs.strip_config(x, blocks.taps, blocks.dilations, blocks.paired)
                assert config is None or config.programs % count == 0


def test_too_much_scratch_is_refused():
    x, tile = torch.zeros(1, 400_000, 8, device="meta"), conv_configs.ConvConfig(16, 16, 64, 4, 1)
    config = conv_configs.StripConfig(tile, programs=400_000, length=1)
    # Of each program two slices of 1 + 2 * 2 rows of 8 float32.
    message = r"config: expected at most 31,457,280 bytes of scratch, got 128,000,000"
    with pytest.raises(ValueError, match=message):
        mrf_strip(x, x, x, (3,), ((1,),), paired=True, slope=0.1, config=config)


# How float32 is multiplied

# One after another, in either of torch's two interfaces, which refuse each other's questions; and
# whether torch's own convolutions then round to tf32.
SETTINGS = [
    ("pass", True),
    ("cudnn.allow_tf32 = False", False),
    ("cudnn.allow_tf32 = True", True),
    ("torch.set_float32_matmul_precision('medium')", True),
    ("cudnn.conv.fp32_precision = 'ieee'", False),
    ("cudnn.allow_tf32 = True", True),
    ("cudnn.rnn.fp32_precision = 'ieee'", True),
    ("torch.backends.fp32_precision = 'ieee'; cudnn.allow_tf32 = False", False),
    ("cudnn.conv.fp32_precision = 'tf32'", True),
    ("cudnn.conv.fp32_precision = 'none'", False),
    ("torch.backends.fp32_precision = 'tf32'", True),
]
ASK = """
import sys, types, torch
from muomni_fast.rvq import torch_backend
from muomni_fast.kernels.launch import dot_precision
cudnn, cuda = torch.backends.cudnn, torch.device("cuda")
for setting in sys.argv[1:]:
    exec(setting)
    bytes_of = lambda size: types.SimpleNamespace(device=cuda, element_size=lambda: size)
    products = [torch_backend.matmul_precision(torch.device(device)) for device in ("cpu", "cuda")]
    print(dot_precision(bytes_of(4)), dot_precision(bytes_of(2)), *products)
"""


@pytest.mark.long
def test_float32_products_are_what_torch_makes_of_its_own_convolutions():
    """Settings that cannot be taken back, so in a process of its own."""
    command = [sys.executable, "-c", ASK, *(setting for setting, _ in SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, (SETTINGS[len(answers)], done.stderr)
    for (setting, tf32), (full, half, *products) in zip(SETTINGS, answers, strict=True):
        assert (full, half) == ("tf32" if tf32 else "tf32x3", "ieee"), setting
        assert set(products) <= {"ieee", "tf32", "bf16"}, setting


# What kernels are compiled for

LIST = """
import json, pkgutil, importlib, triton
from muomni_fast import kernels
found = {}
for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
    module = importlib.import_module(module.name)
    for name, kernel in vars(module).items():
        if isinstance(kernel, triton.JITFunction) and name.endswith("_kernel"):
            found[name] = [
                parameter.name for parameter in kernel.params
                if not (parameter.is_constexpr or parameter.name.endswith("_ptr"))
                and not parameter.do_not_specialize
            ]
print(json.dumps(found))
"""
# Numbers of the model or its layout, for which a kernel may be compiled anew (or which, as `scale`,
# are no integers), each for a reason that stands at the kernel.
A_MODELS_OWN = {
    "_rvq_encode_kernel": {"Q", "stride_xn"},
    "_code_sums_kernel": {"stride_rn", "K"},
    "_mrf_step_kernel": {"scale"},
    "_mrf_strip_kernel": {"scale"},
}


@pytest.mark.long
def test_no_kernel_is_compiled_for_a_batch_or_a_length():
    """A number that is 1, or that 16 divides, compiles a kernel of its own."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= 9
    for name, numbers in found.items():
        assert set(numbers) <= A_MODELS_OWN.get(name, set()), name


@pytest.mark.parametrize("layout", ["rows", "columns", "a slice"])
def test_a_single_row_has_the_stride_of_many(layout):
    """Whatever its own says."""
    strides = set()
    for count in (1, 2, 5):
        rows = torch.empty(count, 16) if layout == "rows" else torch.empty(16, count).T
        rows = torch.empty(count, 3, 16)[:, 1] if layout == "a slice" else rows
        rows = rows if rows.stride(1) == 1 else rows.contiguous()  # as launchers do
        strides.add(launch.row_stride(rows))
    assert strides <= {16, 48}
