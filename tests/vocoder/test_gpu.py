"""The vocoder where only a GPU can tell: graphs, streams, devices, huge tensors, the same bits in
any batch. Parity there is test_mrf_kernels.py's, and bench/gpu_vocoder.py's at full size."""

import pytest
import torch
from support.vocoder_problems import PATHS, generator, path, snr_db

import muomni_fast
from muomni_fast.vocoder import orders

pytestmark = pytest.mark.gpu


@pytest.fixture
def vocoder() -> muomni_fast.HiFiGANVocoder:
    model = muomni_fast.HiFiGANVocoder()
    model.load_state_dict(generator("default").state_dict())
    return model.cuda().eval()


def test_a_gpu_agrees_with_the_cpu(vocoder, full_float32):
    mel = torch.randn(2, 128, 30)
    slow = muomni_fast.HiFiGANVocoder()
    slow.load_state_dict(vocoder.state_dict())
    with torch.no_grad():
        assert snr_db(vocoder(mel.cuda()).cpu(), slow(mel)) > 100
    for model, x in ((vocoder, mel.cuda()), (slow, mel)):
        model.train()(x).square().mean().backward()
    for a, b in zip(vocoder.parameters(), slow.parameters(), strict=True):
        assert (a.grad.cpu() - b.grad).norm() < 1e-2 * b.grad.norm()


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_items_are_the_same_bits_in_any_batch(vocoder, way, dtype):
    vocoder = vocoder.to(dtype).prepare()
    mel, frames = torch.randn(3, 128, 90, device="cuda", dtype=dtype), [90, 41, 7]
    with path(way), torch.no_grad():
        together = vocoder(mel, frames)
        for item, (count, audio) in enumerate(zip(frames, together, strict=True)):
            alone = vocoder(mel[item : item + 1, :, :count])[0]
            assert torch.equal(audio[: len(alone)], alone) and not audio[len(alone) :].any()


def test_both_paths_give_the_same_bits(vocoder):
    mel = torch.randn(2, 128, 50, device="cuda", dtype=torch.bfloat16)
    vocoder, audio = vocoder.to(torch.bfloat16).prepare(), []
    for way in PATHS:
        with path(way), torch.no_grad():
            audio.append(vocoder(mel))
    assert torch.equal(*audio)


def test_cuda_graphs(vocoder):
    mel, lengths = torch.randn(2, 128, 40, device="cuda"), torch.tensor([40, 9], device="cuda")
    vocoder.prepare()
    with torch.no_grad():
        vocoder(mel, lengths)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            audio = vocoder(mel, lengths)
        mel.copy_(torch.randn_like(mel))
        lengths.copy_(torch.tensor([3, 40]))
        graph.replay()
        assert torch.equal(audio, vocoder(mel, lengths))


def test_an_order_of_weights_is_not_found_in_a_graph(vocoder):
    """Nor lies in its memory; a graph captured later takes it from where it is kept."""
    mel, audio, graphs = torch.randn(1, 128, 30, device="cuda"), [], []
    with torch.no_grad():
        audio.append(vocoder(mel))  # compiles
        orders._orders.clear()
        for known in (False, True):
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                audio.append(vocoder(mel))
            assert bool(orders._orders) == known
            if not known:
                audio.append(vocoder(mel))
        for graph in graphs:
            graph.replay()
    assert all(torch.equal(audio[0], other) for other in audio[1:])


def test_side_streams(vocoder):
    mel = torch.randn(4, 128, 200, device="cuda")
    vocoder.prepare()
    with torch.no_grad():
        expected, results = vocoder(mel), []
        streams = [torch.cuda.Stream() for _ in range(4)]
        for _ in range(10):
            for stream in streams:
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    results.append(vocoder(mel))
    torch.cuda.synchronize()
    assert all(torch.equal(audio, expected) for audio in results)


def test_a_device_that_is_not_the_current_one(vocoder):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    mel = torch.randn(1, 128, 20, device="cuda:1")
    with torch.no_grad():
        audio = vocoder.to("cuda:1")(mel).cpu()
        assert torch.equal(audio, vocoder.to("cuda:0")(mel.to("cuda:0")).cpu())


def test_more_than_two_to_the_31_elements():
    """The widest activation, (B, T * 256, 16), is larger; the last item is as if alone."""
    frames, items = 4096, 2**31 // (4096 * 256 * 16) + 2
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GB of GPU memory")
    vocoder = muomni_fast.HiFiGANVocoder().cuda().bfloat16().eval().prepare()
    mel = torch.randn(items, 128, frames, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        for way in PATHS:
            with path(way):
                assert torch.equal(vocoder(mel)[-1], vocoder(mel[-1:])[0])
