"""Compile kernels for GPUs that are not here, and report what the compiler made of them.

    python bench/aot.py [--main] [--arch 80 90] [--out bench/results]

`aot_cases.py` says what is launched. Registers, stack, shared memory and instructions are read from
the machine code with the tools in Triton's own wheel. Exits with 1 if a kernel breaks a budget: no
spills, no local memory, shared memory within the architecture's, tensor-core instructions where a
product matters, vector loads, no float atomics, no sums that lanes round differently, no more
registers than a multiprocessor has.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if os.environ.pop("TRITON_INTERPRET", "0") == "1" and "triton" in sys.modules:
    raise RuntimeError("triton was imported with TRITON_INTERPRET=1: nothing can be compiled")

import triton
from aot_cases import CASES, Case
from timing import made_folder
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget

from muomni_fast.kernels import launch

TOOLS = Path(nvidia.__file__).parent / "bin"
# Only code, without analysing where it branches to, which takes a fifth of the time.
PROGRAMS = (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c", "-ndf"))
OPCODES = r"\b(HGMMA|HMMA|FFMA|DFMA|LDL|STL|LDG|LDGSTS|STG|LDS|STS|BAR)\b"
WIDE_LOADS = r"\b(?:LDG|LDGSTS)[.\w]*\.(?:64|128)\b"
INSTRUCTION = r"\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*) ([^;]*);"  # its name and operands
FLOAT_ATOMICS = r"\b(?:RED|ATOM|ATOMG)[.\w]*\.(?:F16|F32|F64|BF16)"
REGISTERS = 65536  # of a multiprocessor
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
COLUMNS = ("regs", "stack", "shared", "programs_per_sm", "HGMMA", "HMMA", "LDG", "LDGSTS", "BAR")
# Kernels of a generator whose products are too few, or whose tiles too small, for warp groups.
NO_DOTS = ("_conv_post_kernel", "_conv_post_grad_kernel")
SMALL_DOTS = ("_weight_grad_kernel",)


class AbsentGPU:
    """What a Triton driver must know to compile for a GPU of this compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """A number of its own, so that each architecture has its own cache."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[dict[str, Any]]:
    """Launches in the block compile for an absent GPU instead of running.

    Yields the kernels, each once, by what sets them apart.
    """
    kernels: dict[str, Any] = {}
    run, architecture = triton.JITFunction.run, launch.architecture

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **named)
        shown = ("N", "C", "taps", "TAPS", "DILATIONS", "STRIDE", "SUM")
        facts = [f"{name}={named[name]}" for name in shown if name in named]
        label = " ".join([self.fn.__name__, *facts])
        while label in kernels and kernels[label].hash != kernel.hash:
            label += "'"
        kernels[label] = kernel

    triton.runtime.driver.set_active(AbsentGPU(capability))
    triton.JITFunction.run = compile_only
    launch.architecture = lambda device: f"sm_{capability}"
    try:
        yield kernels
    finally:
        triton.JITFunction.run, launch.architecture = run, architecture


def machine_code(kernel: Any) -> tuple[str, str]:
    """Resource usage and disassembly of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        outputs = [
            subprocess.run(
                [TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, *options in PROGRAMS
        ]
    return outputs[0], outputs[1]


def report(case: Case, capability: int, seen: set[str]) -> list[dict[str, Any]]:
    """Compile one case and describe its kernels, less those `seen`, which it adds to.

    `problems` lists the budgets a kernel breaks.
    """
    start = time.perf_counter()
    with compiling_for(capability) as kernels:
        case.launch()
    seconds = time.perf_counter() - start
    several = len(kernels) > 1
    new = {label: kernel for label, kernel in kernels.items() if kernel.hash not in seen}
    seen.update(kernel.hash for kernel in new.values())
    return [
        describe(case, capability, kernel)
        | {"case": f"{case.name}: {label}" if several else case.name}
        | {"seconds": round(seconds / len(new), 1)}
        for label, kernel in new.items()
    ]


def lanes_differ(code: str) -> bool:
    """Whether a square is fused with what another lane shuffles to it: the other lane, doing the
    same, rounds the other of the two squares (kernels/rvq/squares.py)."""
    shuffled: set[str] = set()
    for name, operands in re.findall(INSTRUCTION, code):
        registers = [operand.strip().removesuffix(".reuse") for operand in operands.split(",")]
        if name.startswith("SHFL"):
            shuffled.add(registers[1])
            continue
        fused_square = name.startswith(("FFMA", "DFMA")) and registers[1] == registers[2]
        if fused_square and registers[3] in shuffled:
            return True
        shuffled.discard(registers[0])
    return False


def describe(case: Case, capability: int, kernel: Any) -> dict[str, Any]:
    """What the compiler made of a kernel."""
    usage, code = machine_code(kernel)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found, usage
    regs, stack, _, local = map(int, found.groups())
    count = collections.Counter(re.findall(OPCODES, code))
    shared, name = kernel.metadata.shared, kernel.metadata.name
    threads = kernel.metadata.num_warps * 32
    tensor_core = "HGMMA" if capability == 90 else "HMMA"
    spills = stack > case.spill or local
    if not case.spill:
        spills = spills or count["LDL"] or count["STL"]
    fits = min(REGISTERS // (regs * threads), SHARED_BYTES[capability] // max(shared, 1), 32)
    wanted = "HMMA" if capability < 90 or case.small else "HGMMA"
    if name in SMALL_DOTS and not count["HGMMA"]:
        wanted = "HMMA"
    checks = {
        "spills": spills and f"sm_{capability}" not in case.timed,
        "registers": regs * threads > REGISTERS,
        "shared memory": shared > SHARED_BYTES[capability],
        "no tensor cores": case.dots and name not in NO_DOTS and not count[wanted],
        "no wide load": not re.search(WIDE_LOADS, code),
        "float atomics": re.search(FLOAT_ATOMICS, code),
        "lanes differ": lanes_differ(code),
    }
    return {
        "case": case.name,
        "arch": f"sm_{capability}",
        "warps": kernel.metadata.num_warps,
        "regs": regs,
        "stack": stack,
        "shared": shared,
        "programs_per_sm": fits,
        **{name: count[name] for name in re.findall(r"\w+", OPCODES.replace(r"\b", ""))},
        "tensor_core": tensor_core if count[tensor_core] else "HMMA" if count["HMMA"] else "",
        "problems": [name for name, broken in checks.items() if broken],
    }


def main() -> int:
    """Compile, print a table, and write it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--main", action="store_true", help="only what every test run compiles")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=SHARED_BYTES)
    parser.add_argument("--out", type=made_folder, help="folder for aot-triton-VERSION.json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    print(f"triton {triton.__version__}", *COLUMNS, sep="  ")
    for case in CASES:
        if (args.main and not case.main) or args.case not in case.name:
            continue
        for capability in args.arch:
            for row in report(case, capability, seen):
                rows.append(row)
                cells = [f"{name}={row[name]}" for name in COLUMNS]
                print(f"{row['arch']}  {row['case']:36}", *cells, *row["problems"], flush=True)
    if args.out:
        path = args.out / f"aot-triton-{triton.__version__}.json"
        lines = ",\n".join(json.dumps(list(row.values())) for row in rows)
        head = json.dumps({"triton": triton.__version__, "columns": list(rows[0])})
        path.write_text(f'{head[:-1]}, "kernels": [\n{lines}\n]}}\n')
    return int(any(row["problems"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
