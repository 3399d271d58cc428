"""Fused RVQ decoding: gather one codeword of each codebook, add them, and project back.

A program sums the codewords of a tile of frames on chip and multiplies them by the output
projection there: device memory sees the codes, the codebooks and the frames, never the sums. With
tables of already projected codewords (projection is linear) there is nothing to multiply, and
decoding is a pure gather and add.

A code out of range is never used as an address: it adds nothing and is counted.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ..launch import MAX_REGISTERS, ceil_div, power_of_two, row_stride, start
from .configs import DecodeConfig, decode_config

# The sums of wider rows do not fit the registers beside a product: torch multiplies those.
LARGEST_FUSED_DIM = 256


# Not compiled for N, or every length of a stream would compile a kernel of its own; nor for Q, as a
# caller may decode another number of codes every time; nor for the stride, as a code is loaded by
# itself whatever it is.
@triton.jit(do_not_specialize=["N", "Q", "stride_cn"])
def _rvq_decode_kernel(
    codes_ptr,  # (N, Q), rows stride_cn apart
    tables_ptr,  # (at least Q, K, D)
    weight_ptr,  # (M, D), or None
    bias_ptr,  # (M), or None
    out_ptr,  # (N, M), or (N, D) without a weight
    invalid_ptr,  # (1) int32: how many codes are out of range
    N,
    Q,
    stride_cn,
    K: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    # Without a weight, programs share out the columns too.
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    o_n = (tl.program_id(0) // CHUNKS).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(0) % CHUNKS
    o_d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    m_n = o_n < N

    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    invalid = tl.zeros([BLOCK_N], tl.int32)
    for q in tl.range(0, Q):
        code = tl.load(codes_ptr + o_n * stride_cn + q, mask=m_n, other=0)
        valid = (code >= 0) & (code < K)
        invalid += (m_n & (valid == 0)).to(tl.int32)
        words = tl.load(
            tables_ptr + q * (K * D) + code[:, None] * D + o_d[None, :],
            mask=(m_n & valid)[:, None] & (o_d[None, :] < D),
            other=0.0,
        )
        total += words.to(tl.float32)
    count = tl.sum(invalid, 0)
    if (count > 0) & (chunk == 0):
        tl.atomic_add(invalid_ptr, count)

    if weight_ptr is None:
        m_out = m_n[:, None] & (o_d[None, :] < D)
        tl.store(out_ptr + o_n[:, None] * D + o_d[None, :], total, mask=m_out)
    else:
        for m in tl.range(0, M, BLOCK_M):
            o_m = m + tl.arange(0, BLOCK_M)
            weight = tl.load(
                weight_ptr + o_m[None, :] * D + o_d[:, None],
                mask=(o_m[None, :] < M) & (o_d[:, None] < D),
                other=0.0,
            )  # [BLOCK_D, BLOCK_M]
            out = tl.dot(total, weight.to(tl.float32), input_precision="tf32x3")
            if bias_ptr is not None:
                out += tl.load(bias_ptr + o_m, mask=o_m < M, other=0.0)[None, :]
            m_out = m_n[:, None] & (o_m[None, :] < M)
            tl.store(out_ptr + o_n[:, None] * M + o_m[None, :], out, mask=m_out)


def rvq_decode(
    codes: Tensor,
    tables: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    invalid: Tensor,
    config: DecodeConfig | None = None,
) -> Tensor:
    """Launch the decoder; all tensors on one device.

    Args:
        codes: (N, q) int64, 1 <= q <= Q.
        tables: (Q, K, D) codewords in float32, bfloat16 or float16; (Q, K, n_mels) when projected.
        weight: (n_mels, D), or None to return the sums as they are.
        bias: (n_mels,), or None; only with a weight.
        invalid: one int32, raised by the number of codes out of range; those add nothing.
        config: of the table's own for these shapes if None.

    Returns:
        (N, n_mels) in the dtype of `tables`, accumulated in float32.
    """
    _, size, dim = tables.shape
    if weight is not None and dim > LARGEST_FUSED_DIM:
        return F.linear(rvq_decode(codes, tables, None, None, invalid), weight, bias)
    rows, n_codes = codes.shape
    width = dim if weight is None else weight.shape[0]
    config = config or decode_config(dim, tables.device, projected=weight is None)
    block_d = min(config.block_d, power_of_two(dim))
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    out = tables.new_empty(rows, width)
    if rows > 0:
        programs = ceil_div(rows, config.block_n) * ceil_div(dim, block_d)
        start(
            _rvq_decode_kernel,
            programs,
            codes,
            codes_ptr=codes,
            tables_ptr=tables.contiguous(),
            weight_ptr=None if weight is None else weight.contiguous(),
            bias_ptr=None if bias is None else bias.contiguous(),
            out_ptr=out,
            invalid_ptr=invalid,
            N=rows,
            Q=n_codes,
            stride_cn=row_stride(codes),
            **decode_constants(size, dim, width, config),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )
    return out


def decode_constants(size: int, dim: int, width: int, config: DecodeConfig) -> dict[str, object]:
    """The kernel's compile-time arguments."""
    return {
        "K": size,
        "D": dim,
        "M": width,
        "BLOCK_N": config.block_n,
        "BLOCK_D": min(config.block_d, power_of_two(dim)),
        "BLOCK_M": config.block_m,
    }
