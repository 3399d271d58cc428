"""What encodes beside this library, with the same codebooks: other libraries and bare products.

A contender is made of a quantizer and rows, and is a function that encodes them; those that need a
package raise ModuleNotFoundError where it is not installed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import muomni_fast
from muomni_fast import reference

Contender = Callable[[], Any]
Make = Callable[[reference.RVQ, Tensor], Contender]  # the quantizer, rows (N, n_mels)
PACKAGES = ("transformers", "vector-quantize-pytorch", "faiss-cpu")


def fast(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """Ours, unprepared."""
    ours = _ours(rvq)
    return lambda: ours.encode(rows)


def prepared(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """Ours, prepared."""
    ours = _ours(rvq).prepare()
    return lambda: ours.encode(rows)


def plain(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """The reference."""
    return lambda: rvq.encode(rows)


def _ours(rvq: reference.RVQ) -> muomni_fast.RVQ:
    ours = muomni_fast.RVQ(**rvq.config).eval()
    ours.load_state_dict(rvq.state_dict())
    return ours


def broadcast(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """What this library replaces: all differences of all rows to all codes, in memory at once."""

    def encode() -> Tensor:
        residual, codes = _projected(rvq, rows), []
        for codebook in rvq.codebook_weights():
            distance = (residual[:, None] - codebook).square().sum(-1)  # (N, K)
            codes.append(distance.argmin(1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, 1)

    return encode


def products(rvq: reference.RVQ, rows: Tensor, block: int | None = None) -> Contender:
    """The matrix products alone, projection and codebooks, into reused buffers: no codes.

    Args:
        block: rows at once; all of them by default.
    """
    block = min(len(rows), block or len(rows))
    codebooks = [weight.detach().t() for weight in rvq.codebook_weights()]
    scores = rows.new_empty(block, rvq.codebook_size)
    z = rows.new_empty(block, rvq.codebook_dim)

    def multiply() -> None:
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            n = len(part)
            if rvq.proj_in is not None:
                part = torch.mm(part, rvq.proj_in.weight.t(), out=z[:n])
            for codebook in codebooks:
                torch.mm(part, codebook, out=scores[:n])

    return multiply


def vector_quantize(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """vector-quantize-pytorch, in eval mode."""
    from vector_quantize_pytorch import ResidualVQ

    peer = ResidualVQ(
        dim=rvq.n_mels,
        codebook_dim=rvq.codebook_dim,
        num_quantizers=rvq.n_codebooks,
        codebook_size=rvq.codebook_size,
    ).eval()
    for layer, weight in zip(peer.layers, rvq.codebook_weights(), strict=True):
        layer._codebook.embed.data.copy_(weight)
    if rvq.proj_in is not None:
        peer.project_in.weight.data.copy_(rvq.proj_in.weight)
        peer.project_in.bias.data.zero_()
    return lambda: peer(rows[None])[1][0]


def encodec(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """EnCodec's quantizer as transformers has it."""
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    sizes = dict(codebook_size=rvq.codebook_size, codebook_dim=rvq.codebook_dim)
    peer = EncodecResidualVectorQuantizer(EncodecConfig(hidden_size=rvq.codebook_dim, **sizes))
    return _of_transformers(peer, peer.layers, "embed", rvq, rows)


def mimi(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """Mimi's quantizer as transformers has it."""
    from transformers import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiResidualVectorQuantizer

    sizes = dict(codebook_size=rvq.codebook_size, codebook_dim=rvq.codebook_dim)
    width = dict.fromkeys(("hidden_size", "vector_quantization_hidden_dimension"), rvq.codebook_dim)
    peer = MimiResidualVectorQuantizer(MimiConfig(**sizes, **width), rvq.n_codebooks)
    return _of_transformers(peer, peer.layers, "embed_sum", rvq, rows)


def xcodec(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """X-Codec's quantizer as transformers has it."""
    from transformers import XcodecConfig
    from transformers.models.xcodec.modeling_xcodec import XcodecResidualVectorQuantization

    sizes = dict(codebook_size=rvq.codebook_size, codebook_dim=rvq.codebook_dim)
    peer = XcodecResidualVectorQuantization(XcodecConfig(**sizes))
    return _of_transformers(peer, peer.quantizers, "embed", rvq, rows)


def _of_transformers(
    peer: nn.Module, layers: nn.ModuleList, name: str, rvq: reference.RVQ, rows: Tensor
) -> Contender:
    """Copy the codebooks; rows are laid out so that transposing them costs the peer nothing."""
    del layers[rvq.n_codebooks :]
    for layer, weight in zip(layers, rvq.codebook_weights(), strict=True):
        getattr(layer.codebook, name).copy_(weight)
    peer.eval()
    return lambda: peer.encode(_projected(rvq, rows).t()[None])[:, 0].t()


def _projected(rvq: reference.RVQ, rows: Tensor) -> Tensor:
    return rows if rvq.proj_in is None else F.linear(rows, rvq.proj_in.weight)


def faiss_greedy(rvq: reference.RVQ, rows: Tensor) -> Contender:
    """faiss's residual quantizer with a beam of one; its own codebooks, no projection."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    bits = rvq.codebook_size.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(rvq.codebook_dim, rvq.n_codebooks, bits)
    z = torch.randn(len(rows), rvq.codebook_dim).numpy()
    quantizer.max_beam_size = 1
    quantizer.train(z[:20_000])
    return lambda: quantizer.compute_codes(z)
