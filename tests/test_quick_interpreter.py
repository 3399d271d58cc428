"""The interpreter that tests run kernels in leaves out only what changes nothing."""

import pytest
import torch

import muomni_fast

interpreter = pytest.importorskip("triton.runtime.interpreter")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted"),
    pytest.mark.usefixtures("interpreter"),
]
tl = interpreter.tl


def test_nothing_would_come_of_the_check_for_overflow():
    """It ends in a device assertion, which the interpreter looks at only with this option."""
    options = interpreter.interpreter_builder.options
    assert not options.sanitize_overflow and not options.debug


def test_a_launch_replaces_the_language_once_and_leaves_it_as_it_was(monkeypatch):
    """Twice where a device function sees `triton.language.core` too, not at each call of one."""
    counts = {"launches": 0, "device functions": 0, "replaced": 0}

    def counting(name, function):
        def called(*args, **named):
            counts[name] += name != "replaced" or args[0] is tl
            return function(*args, **named)

        return called

    for owner, attribute, name in (
        (interpreter.GridExecutor, "__call__", "launches"),
        (interpreter.InterpretedFunction, "__call__", "device functions"),
        (interpreter, "_patch_builtin", "replaced"),
    ):
        monkeypatch.setattr(owner, attribute, counting(name, getattr(owner, attribute)))
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    rvq, mel = muomni_fast.RVQ(2, 8, 4, 8), torch.randn(5, 8)
    language = {name: getattr(tl, name) for name in ("load", "range", "reduce")}
    for _ in range(2):
        rvq.encode(mel)
        assert language == {name: getattr(tl, name) for name in language}
    assert counts["device functions"] > 4 * counts["launches"] > 0
    assert counts["launches"] <= counts["replaced"] <= 2 * counts["launches"]


def test_dtypes_are_those_of_triton():
    numpy_dtype = interpreter._get_np_dtype
    names = ("int1", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    names += ("float16", "bfloat16", "float32", "float64", "float8e4nv", "float8e5")
    for scalar in (getattr(tl, name) for name in names):
        pointer = tl.pointer_type(scalar)
        for dtype in (scalar, pointer, tl.block_type(scalar, [2]), tl.block_type(pointer, [2, 4])):
            for _ in range(2):
                assert numpy_dtype(dtype) == numpy_dtype.__wrapped__(dtype), dtype
