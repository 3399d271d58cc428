"""Weights as the kernels read them: laid out at once, in an order that is found once."""

import pytest
import torch
from support.vocoder_problems import generator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from muomni_fast.reference import HiFiGANVocoder  # noqa: E402
from muomni_fast.vocoder import orders  # noqa: E402
from muomni_fast.vocoder import triton_layouts as layouts  # noqa: E402
from muomni_fast.vocoder.plan import plan_of_generator  # noqa: E402

VIEWS = {"view", "as_strided", "split", "split_with_sizes", "slice"}


class Operators(TorchDispatchMode):
    """Notes all that is called but views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def tensors_of(model: HiFiGANVocoder, dtype: torch.dtype = torch.float32):
    plan = plan_of_generator(model)
    return [tensor.detach().to(dtype) for tensor in plan.tensors()], plan.shape


@pytest.fixture
def none_known(monkeypatch):
    monkeypatch.setattr(orders, "_orders", {})


@pytest.mark.parametrize("layout", [layouts.pack, layouts._pack_grads], ids=["values", "gradients"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", ["default", "v3"])
def test_all_weights_by_two_operators(none_known, preset, dtype, layout):
    tensors, network = tensors_of(generator(preset), dtype)
    for _ in range(2):
        with Operators() as seen:
            found = orders.in_order(tensors, layout, network)
        assert all(map(same, found, layout(tensors, network)))
        assert all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in found)
    assert seen.names == ["new_zeros", "cat", "index_select"]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def test_so_much_is_kept_and_no_more(none_known, monkeypatch):
    for kernel in (3, 5):
        model = HiFiGANVocoder(resblock_kernel_sizes=(kernel,) * 3)
        tensors, network = tensors_of(model)
        if kernel == 3:  # of which there may be one, but not two
            most = int(1.5 * sum(tensor.numel() for tensor in tensors))
            monkeypatch.setattr(orders, "MOST_NUMBERS", most)
        found = orders.in_order(tensors, layouts.pack, network)
        assert all(map(same, found, layouts.pack(tensors, network)))
    assert len(orders._orders) == 1


def test_what_is_kept_has_none_of_the_callers_modes(none_known):
    tensors, network = tensors_of(generator("default"))
    with torch.inference_mode(), torch.device("meta"):
        orders.in_order(tensors, layouts.pack, network)
    (order,) = orders._orders.values()
    assert order.numbers.device.type == "cpu" and not order.numbers.is_inference()


def views() -> list[Tensor]:
    """Parts of two pieces of memory, turned, and one of its own."""
    first, second = torch.randn(2 * 3 * 5 + 7), torch.randn(24)
    weight = first[:30].view(2, 3, 5).permute(0, 2, 1)
    return [weight, first[30:], torch.randn(3), second.view(4, 6).t(), second[5:6]]


@pytest.mark.parametrize("most", [0, 1000], ids=["one by one", "in order"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_together_and_apart(none_known, monkeypatch, most, dtype):
    monkeypatch.setattr(orders, "MOST_NUMBERS", most)
    for _ in range(2):
        tensors, like = views(), torch.empty(0, dtype=dtype)
        with Operators() as seen:
            packed = orders.together(tensors, like, True)
        assert packed.shape == (orders.size_together(tensors),)
        found = orders.apart(packed, tensors)
        assert all(map(same, found, [tensor.to(dtype) for tensor in tensors]))
        assert all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in found)
    if most:
        assert [name for name in seen.names if name != "_to_copy"] == [
            "new_zeros",
            "cat",
            "index_select",
        ]


def test_contiguous_tensors_need_no_order(none_known):
    tensors = [torch.randn(3, 5), torch.randn(8), torch.randn(())]
    packed = orders.together(tensors, tensors[0], True)
    assert all(map(same, orders.apart(packed, tensors), tensors))
    assert not orders._orders


def test_no_order_is_kept_of_what_is_not_usual(none_known):
    """Which weights need a gradient may change from step to step, and each choice has its own."""
    tensors = views()
    found = orders.apart(orders.together(tensors, tensors[0], False), tensors)
    assert all(map(same, found, tensors)) and not orders._orders
