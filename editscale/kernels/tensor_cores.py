"""float32 products on the tensor cores of a GPU, no less exact than by its float32 units: a Triton kernel.

Tensor cores multiply numbers of 11 binary digits (TensorFloat-32). A float32 number is the sum of two such numbers, to
its last digit or two; of the four products of two sums the last is below those digits and left out (Ootomo and Yokota,
arXiv:2203.03341). Tensor cores also round their sums toward zero, so only sums over 32 are left to them.
"""

import torch
import triton
import triton.language as tl

FEW = 32  # rows up to which a product takes no longer than reading its weights
FOR_FEW = {"COLUMNS": 64, "ROWS": 32, "num_warps": 4, "num_stages": 4}  # of the result for each thread block
FOR_MANY = {"COLUMNS": 128, "ROWS": 64, "num_warps": 8, "num_stages": 3}
INNER = 32  # of the sum that tensor cores add up
LEAST = 128  # of the sum for each thread block
BLOCKS = 2  # thread blocks for each multiprocessor: where the result has fewer, they share the sum too


@triton.jit
def _halves(x):
    """x as high + low, where high has 11 binary digits. What is not finite gives a NaN in low."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _halve(x, out, n, SIZE: tl.constexpr):
    """out (2, …) := the halves of x (…) of n numbers."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    high, low = _halves(tl.load(x + at, mask=at < n))
    tl.store(out + at, high, mask=at < n)
    tl.store(out + n + at, low, mask=at < n)


@triton.jit
def _add_up(parts, out, n, N_PARTS: tl.constexpr, SIZE: tl.constexpr):
    """out (n,) := the sum over parts (N_PARTS, n)."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.load(parts + at, mask=at < n)
    for i in tl.static_range(1, N_PARTS):
        total += tl.load(parts + i * n + at, mask=at < n)
    tl.store(out + at, total, mask=at < n)


@triton.jit
def _product(
    weight, x, bias, out, n_columns, n_rows, n_inner, share, by_column, by_inner,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
    HALVED: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """out[i] (rows, columns) := x weightᵀ over part i of the inner dimension, + bias if i = 0.

    weight[c, k] is at c · by_column + k · by_inner; x (rows, inner), or its halves (2, rows, inner) where HALVED.
    EVEN: no part's last step of INNER is cut short.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(2)
    start, stop = part * share, tl.minimum(n_inner, (part + 1) * share)
    inner = tl.arange(0, INNER)
    # Past the last column and row the first ones are computed again, and not stored.
    w_at = weight + (columns % n_columns)[:, None] * by_column + (start + inner)[None, :] * by_inner
    x_at = x + (rows % n_rows)[None, :] * n_inner + (start + inner)[:, None]
    total = tl.zeros((COLUMNS, ROWS), dtype=tl.float32)
    if BIAS:
        if part == 0:
            total += tl.load(bias + columns, mask=columns < n_columns, other=0.0)[:, None]
    for k in range(start, stop, INNER):
        if EVEN:
            w, x_high = tl.load(w_at), tl.load(x_at)
        else:
            left = inner < stop - k
            w, x_high = tl.load(w_at, mask=left[None, :], other=0.0), tl.load(x_at, mask=left[:, None], other=0.0)
        if HALVED:
            x_low_at = x_at + n_rows * n_inner
            if EVEN:
                x_low = tl.load(x_low_at)
            else:
                x_low = tl.load(x_low_at, mask=left[:, None], other=0.0)
        else:
            x_high, x_low = _halves(x_high)
        w_high, w_low = _halves(w)
        added = tl.dot(w_low, x_high, input_precision="tf32")
        added = tl.dot(w_high, x_low, added, input_precision="tf32")
        total += tl.dot(w_high, x_high, added, input_precision="tf32")
        w_at += INNER * by_inner
        x_at += INNER
    at = (part * n_rows + rows).to(tl.int64)[None, :] * n_columns + columns[:, None]
    tl.store(out + at, total, mask=(columns < n_columns)[:, None] & (rows < n_rows)[None, :])


def shares(n_rows, n_columns, n_inner, n_processors):
    """The sizes of a product's thread blocks, and the share of the inner dimension that each adds up."""
    sizes = FOR_FEW if n_rows <= FEW else FOR_MANY
    blocks = triton.cdiv(n_columns, sizes["COLUMNS"]) * triton.cdiv(n_rows, sizes["ROWS"])
    n = max(1, min(n_inner // LEAST, BLOCKS * n_processors // blocks))
    return sizes, triton.cdiv(triton.cdiv(n_inner, n), INNER) * INNER


def linear(x, weight, bias):
    """x (…, inner) weightᵀ + bias (columns,) or None, all float32; weight (columns, inner) may be transposed in memory.

    Where x or the weight is not finite, so is the result, but infinities become NaN.
    """
    n_columns, n_inner = weight.shape
    rows = x.reshape(-1, n_inner).contiguous()
    n_rows = len(rows)
    n_processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    sizes, share = shares(n_rows, n_columns, n_inner, n_processors)
    n_parts = triton.cdiv(n_inner, share)
    out = rows.new_empty(n_parts, n_rows, n_columns)
    with torch.cuda.device(x.device):
        if halved := n_rows > FEW:
            whole, rows = rows, rows.new_empty(2, n_rows, n_inner)
            _halve[(triton.cdiv(whole.numel(), 1024),)](whole, rows, whole.numel(), SIZE=1024)
        grid = (triton.cdiv(n_columns, sizes["COLUMNS"]), triton.cdiv(n_rows, sizes["ROWS"]), n_parts)
        _product[grid](
            weight, rows, weight if bias is None else bias, out, n_columns, n_rows, n_inner, share, *weight.stride(),
            INNER=INNER, HALVED=halved, EVEN=n_inner % INNER == 0, BIAS=bias is not None, **sizes,
        )  # fmt: skip
        if n_parts > 1:
            parts, out = out, out.new_empty(n_rows, n_columns)
            _add_up[(triton.cdiv(out.numel(), 256),)](parts, out, out.numel(), N_PARTS=n_parts, SIZE=256, num_warps=2)
    return out.view(*x.shape[:-1], n_columns)
