"""A frame gets the same codes alone and in any batch, on the device it is on."""

import pytest
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import reference

SHAPES = {  # n_codebooks, codebook_size, codebook_dim, n_mels
    "default": (2, 128, 64, 128),
    "wide projection": (2, 100, 48, 1024),
    "odd": (3, 50, 17, 33),
    "no projection": (4, 300, 96, 96),
}


def near_ties(rvq: reference.RVQ, rows: int) -> Tensor:
    """Frames whose projections lie near the middle of two codewords, where rounding decides."""
    words = rvq.codebook_weights()[0].detach()
    pairs = torch.randint(len(words), (2, rows))
    middle = (words[pairs[0]] + words[pairs[1]]) / 2
    if rvq.proj_in is None:
        return middle
    return middle @ torch.linalg.pinv(rvq.proj_in.weight.detach()).t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_codes_do_not_depend_on_the_batch(shape, dtype):
    *sizes, n_mels = shape
    rvq = muomni_fast.RVQ(*sizes, n_mels, projections=n_mels != sizes[2], bias=True).eval()
    prepared = muomni_fast.RVQ(**rvq.config).eval()
    prepared.load_state_dict(rvq.state_dict())
    prepared.prepare()
    mel = torch.cat([torch.randn(100, n_mels), near_ties(rvq, 157)]).to(dtype)
    codes = reference.rvq_encode(
        mel,
        rvq.stacked_codebooks(),
        *((None, None) if rvq.proj_in is None else (rvq.proj_in.weight, rvq.proj_in.bias)),
    )
    for model in (rvq, prepared):
        assert torch.equal(model.encode(mel), codes)
        for rows in (1, 2, 3, 16, 63, 64, 65, 128, 255):
            starts = range(0, len(mel) - rows + 1, max(1, rows // 2)) if rows > 3 else (0, 99, 254)
            for start in starts:
                part = slice(start, start + rows)
                assert torch.equal(model.encode(mel[part]), codes[part]), (rows, start)
        order = torch.randperm(len(mel))
        assert torch.equal(model.encode(mel[order]), codes[order])


@pytest.mark.slow
def test_compiled_and_with_other_threads():
    rvq = muomni_fast.RVQ().eval()
    mel = torch.cat([torch.randn(100, 128), near_ties(rvq, 100)])
    codes = rvq.encode(mel)
    compiled = torch.compile(rvq.encode, fullgraph=True, dynamic=True)
    threads = torch.get_num_threads()
    with torch.no_grad():
        for rows in (200, 31, 2):
            assert torch.equal(compiled(mel[:rows]), codes[:rows])
        for n in (1, 2, 16):  # with many, torch's own operators do what numpy does with few
            torch.set_num_threads(n)
            try:
                assert torch.equal(rvq.encode(mel), codes)
            finally:
                torch.set_num_threads(threads)
