"""The quantizer where only a GPU can tell: graphs, streams, devices, huge tensors, errors on the
device. Parity on a GPU is test_kernels.py's, and bench/gpu.py's at full size."""

import pytest
import torch

import muomni_fast

pytestmark = pytest.mark.gpu


@pytest.fixture
def rvq() -> muomni_fast.RVQ:
    muomni_fast.raise_if_errors()
    return muomni_fast.RVQ(bias=True).cuda().eval()


def test_a_gpu_agrees_with_the_cpu(rvq):
    mel = torch.randn(20_000, 128)
    slow = muomni_fast.RVQ(bias=True)
    slow.load_state_dict(rvq.state_dict())
    codes, expected = rvq.encode(mel.cuda()).cpu(), slow.encode(mel)
    assert (codes != expected).any(1).double().mean() < 1e-3  # the projection's rounding
    torch.testing.assert_close(rvq.decode(expected.cuda()).cpu(), slow.decode(expected))
    for model, x in ((rvq, mel.cuda()), (slow, mel)):
        model.train()(x).mel.square().mean().backward()
    for a, b in zip(rvq.parameters(), slow.parameters(), strict=True):
        assert (a.grad.cpu() - b.grad).norm() < 1e-2 * b.grad.norm()


def test_a_row_has_the_code_it_has_alone(rvq):
    """In batches of 1 to 257 rows, at any place, prepared or not: near-ties of projected rows show
    any other order of its projection's sums."""
    from support.oracle import midpoints

    weight, bias = rvq.proj_in.weight.detach(), rvq.proj_in.bias.detach()
    near = midpoints(rvq.stacked_codebooks().detach()[0], 200) - bias
    mel = (near.double() @ torch.linalg.pinv(weight.double()).T).float()
    mel = torch.cat([mel, torch.randn(57, 128, device="cuda")])[torch.randperm(257)]
    codes = rvq.encode(mel)
    for prepared in (False, True):
        if prepared:
            rvq.prepare()
        for rows in range(1, 258):
            places = torch.arange(257).roll(61 * rows)[:rows]
            assert torch.equal(rvq.encode(mel[places]), codes[places]), (prepared, rows)


def test_cuda_graphs(rvq):
    mel = torch.randn(3000, 128, device="cuda")
    rvq.prepare()
    for _ in range(2):
        rvq.decode(rvq.encode(mel))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = rvq.encode(mel)
        frames = rvq.decode(codes)
    mel.copy_(torch.randn_like(mel))
    graph.replay()
    assert torch.equal(codes, rvq.encode(mel)) and torch.equal(frames, rvq.decode(codes))


def test_side_streams(rvq):
    mel = torch.randn(50_000, 128, device="cuda")
    expected = rvq.encode(mel)
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(10):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(rvq.encode(mel))
    torch.cuda.synchronize()
    assert all(torch.equal(codes, expected) for codes in results)


def test_a_device_that_is_not_the_current_one(rvq):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    mel = torch.randn(100, 128, device="cuda:1")
    assert torch.equal(
        rvq.to("cuda:1").encode(mel).cpu(), rvq.to("cuda:0").encode(mel.to("cuda:0")).cpu()
    )


def test_more_than_two_to_the_31_elements(rvq):
    rows = 2**31 // 128 + 1000
    if torch.cuda.mem_get_info()[0] < 3 * rows * 128 * 2:
        pytest.skip("needs 13 GB of GPU memory")
    mel = torch.zeros(rows, 128, dtype=torch.bfloat16, device="cuda")
    mel[-1000:] = torch.randn(1000, 128, device="cuda")
    assert torch.equal(rvq.encode(mel)[-1000:], rvq.encode(mel[-1000:]))


def test_bad_data_is_counted_on_the_device(rvq):
    codes = torch.randint(128, (500, 2), device="cuda")
    good = rvq.decode(codes)
    bad = codes.clone()
    bad[3, 0], bad[400, 1] = -5, 2**40
    frames = rvq.decode(bad)
    keep = torch.ones(500, dtype=torch.bool, device="cuda")
    keep[[3, 400]] = False
    assert torch.equal(frames[keep], good[keep]) and frames.isfinite().all()
    with pytest.raises(muomni_fast.CodeRangeError, match="2 codes"):
        muomni_fast.raise_if_errors()
    mel = torch.randn(500, 128, device="cuda")
    mel[7] = torch.nan
    assert not rvq.encode(mel)[7].any() and muomni_fast.raise_if_errors() == 1


def test_tf32_settings_do_not_reach_the_codes(rvq):
    mel, before = torch.randn(20_000, 128, device="cuda"), torch.get_float32_matmul_precision()
    codes = rvq.encode(mel)
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(rvq.encode(mel), codes)
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_torch_path_is_exact_too(rvq, monkeypatch):
    from support.oracle import unexcused_mismatches

    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "torch")
    mel, weight = torch.randn(20_000, 128, device="cuda"), rvq.proj_in.weight.detach()
    plain = muomni_fast.RVQ().cuda()
    plain.proj_in.weight.data.copy_(weight)
    books = plain.stacked_codebooks().detach()
    assert unexcused_mismatches(mel, weight, books, plain.encode(mel)) == 0


def test_compiles_whole(rvq):
    compiled = torch.compile(lambda mel: rvq.decode(rvq.encode(mel)), fullgraph=True, dynamic=True)
    for frames in (5, 300):
        mel = torch.randn(2, frames, 128, device="cuda")
        torch.testing.assert_close(compiled(mel), rvq.decode(rvq.encode(mel)))
