"""float32 products on the tensor cores of a GPU, no less exact than by its float32 units: a Triton kernel.

Tensor cores multiply numbers of 11 binary digits (TensorFloat-32). A float32 number is the sum of two such numbers, to
its last digit or two; of the four products of two sums the last is below those digits and left out (Ootomo and Yokota,
arXiv:2203.03341). Tensor cores also round their sums toward zero, so only sums over 32 are left to them.

Matrices come and go as *parts*, (n, rows, columns), whose sum over the first dimension they are: a product takes the
two halves of x, which whatever made x wrote (`write`), and leaves its sum in as many parts as thread blocks shared it,
which whatever reads it adds up (`added`). So neither takes a kernel of its own.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FEW = 32  # rows up to which a product takes no longer than reading its weights
INNER = 32  # of the sum that tensor cores add up
LEAST = 128  # of the sum for each thread block
SIZE = 512  # numbers of a row for each thread block of what is done number by number


@dataclass(frozen=True)
class Tile:
    """What a thread block makes of a product: rows and columns of x Wᵀ.

    Attributes:
        blocks: thread blocks for each multiprocessor: where the result has fewer, they share the sum too.
        slow: time for a row of many, beside the fastest tile.
    """

    rows: int
    columns: int
    blocks: int
    slow: float
    num_warps: int = 4
    num_stages: int = 3

    def options(self):
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": self.num_warps, "num_stages": self.num_stages}


FOR_FEW = Tile(32, 64, 3, 1.0, num_stages=4)
FOR_MORE = Tile(64, 64, 3, 1.2), Tile(128, 64, 2, 1.0)


@triton.jit
def halves(x):
    """x as high + low, where high has 11 binary digits. What is not finite gives a NaN in low."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def write(out, at, n, x, mask, HALVED: tl.constexpr):
    """out (1 or 2, n) := x at some of its n places, or where HALVED its two halves."""
    if HALVED:
        high, low = halves(x)
        tl.store(out + at, high, mask=mask)
        tl.store(out + n + at, low, mask=mask)
    else:
        tl.store(out + at, x, mask=mask)


@triton.jit
def added(parts, at, n, mask, N_PARTS: tl.constexpr):
    """The sum over parts (N_PARTS, n) at some of the n places."""
    total = tl.load(parts + at, mask=mask, other=0.0)
    for i in tl.static_range(1, N_PARTS):
        total += tl.load(parts + i * n + at, mask=mask, other=0.0)
    return total


@triton.jit
def _total(
    parts, bias, residual, cos, sin, out, n, n_columns, n_turned,
    N_PARTS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, TURN: tl.constexpr, D: tl.constexpr,
    HALVED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """See `total`. One row, SIZE columns."""
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = columns < n_columns
    x = added(parts, row * n_columns + columns, n, inside, N_PARTS)
    if BIAS:
        x += tl.load(bias + columns, mask=inside, other=0.0)
    if TURN != 0:
        place, turned = columns % D, columns < n_turned
        other = tl.where(place < D // 2, columns + D // 2, columns - D // 2)
        y = added(parts, row * n_columns + other, n, turned, N_PARTS)
        if BIAS:
            y += tl.load(bias + other, mask=turned, other=0.0)
        y = tl.where((place < D // 2) == (TURN == 1), -y, y)
        c = tl.load(cos + row * D + place, mask=turned, other=1.0)
        x = x * c + y * tl.load(sin + row * D + place, mask=turned, other=0.0)
    if RESIDUAL:
        x += tl.load(residual + row * n_columns + columns, mask=inside, other=0.0)
    write(out, row * n_columns + columns, n, x, inside, HALVED)


@triton.jit
def _product(
    weight, weight_1, weight_2, x, bias, out, n_columns, n_1, n_2, end, end_1, n_rows, n_inner, share,
    by_column, by_inner, x_half, x_row, out_part, out_row,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, SPLIT: tl.constexpr,
    EVEN: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """out[i] (rows, columns) := x weightᵀ over part i of the inner dimension, + bias if i = 0.

    weight[c, k] is at c · by_column + k · by_inner; half h of x[r, k] at h · x_half + r · x_row + k;
    out[i, r, c] at i · out_part + r · out_row + c. EVEN: no part's last step of INNER is cut short.

    SPLIT: "", of one weight. "columns": of three side by side, the first with n_columns and the blocks of columns up to
    `end`, the second with n_1 and those up to `end_1`, the third with n_2 and the others. "inner": the sum over three,
    of columns of x side by side; the same with n_inner in place of n_columns, and parts in place of blocks.
    """
    block, part = tl.program_id(0), tl.program_id(2)
    if SPLIT == "columns":
        which, at_1, at_2 = block, n_columns, n_columns + n_1
    else:
        which, at_1, at_2 = part, n_inner, n_inner + n_1
    before = 0
    if SPLIT != "":
        second, third = which >= end, which >= end_1
        weight = tl.where(third, weight_2, tl.where(second, weight_1, weight))
        before = tl.where(third, at_2, tl.where(second, at_1, 0))
        which -= tl.where(third, end_1, tl.where(second, end, 0))
        length = tl.where(third, n_2, tl.where(second, n_1, at_1))
        if SPLIT == "columns":
            block, n_columns = which, length
        else:
            n_inner = length
    place = part
    if SPLIT == "inner":
        place = which
        x += before
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start, stop = place * share, tl.minimum(n_inner, (place + 1) * share)
    inner = tl.arange(0, INNER)
    # Past the last column and row the first ones are computed again, and not stored.
    w_at = weight + (columns % n_columns)[:, None] * by_column + (start + inner)[None, :] * by_inner
    x_at = x + (rows % n_rows)[None, :] * x_row + (start + inner)[:, None]
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
        x_low_at = x_at + x_half
        if EVEN:
            x_low = tl.load(x_low_at)
        else:
            x_low = tl.load(x_low_at, mask=left[:, None], other=0.0)
        w_high, w_low = halves(w)
        sums = tl.dot(w_low, x_high, input_precision="tf32")
        sums = tl.dot(w_high, x_low, sums, input_precision="tf32")
        total += tl.dot(w_high, x_high, sums, input_precision="tf32")
        w_at += INNER * by_inner
        x_at += INNER
    if SPLIT == "columns":
        out += before
    at = part.to(tl.int64) * out_part + rows.to(tl.int64)[None, :] * out_row + columns[:, None]
    tl.store(out + at, total, mask=(columns < n_columns)[:, None] & (rows < n_rows)[None, :])


def by_cublas(n_rows):
    """Whether cuBLAS makes a product of so many rows: TensorFloat-32 was asked for, and reading weights is not all."""
    return torch.backends.cuda.matmul.allow_tf32 and n_rows > FEW


def n_processors(x):
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def shares(n_rows, columns, inners, processors):
    """The `Tile` of a product, and the share of the inner dimension that each thread block adds up.

    Args:
        columns, inners: numbers of columns side by side, and of inner numbers one after the other: one of them has
            one number, and the other one for each weight.
    """

    def blocks(tile):
        return sum(triton.cdiv(n, tile.columns) for n in columns) * triton.cdiv(n_rows, tile.rows)

    if n_rows <= FEW:
        tile = FOR_FEW
    elif blocks(FOR_MORE[1]) * (sum(inners) // LEAST) < processors:  # too few blocks of the large tile
        tile = FOR_MORE[0]
    else:
        tile = min(FOR_MORE, key=lambda of: triton.cdiv(n_rows, of.rows) * of.rows * of.slow)
    n = max(1, min(sum(inners) // LEAST, tile.blocks * processors // blocks(tile)))
    return tile, triton.cdiv(triton.cdiv(sum(inners), n), INNER) * INNER


def _multiply(x, weights, bias, back=False):
    """Parts of x Wᵀ + bias of up to three weights (columns, inner), side by side, or where `back` of their sum."""
    n_rows, first = x.shape[1], weights[0]
    columns = [len(first)] if back else list(map(len, weights))
    inners = [w.shape[1] for w in weights] if back else [first.shape[1]]
    tile, share = shares(n_rows, columns, inners, n_processors(x))
    n_parts = [triton.cdiv(n, share) for n in inners]
    out = x.new_empty(sum(n_parts), n_rows, sum(columns))
    n_blocks = [triton.cdiv(n, tile.columns) for n in columns]
    lengths, steps = (inners, n_parts) if back else (columns, n_blocks)
    ends = steps[0], sum(steps[:2])
    given = [*weights, *[first] * (3 - len(weights))]
    lengths = [*lengths, *[0] * (3 - len(lengths))]
    with torch.cuda.device_of(x):
        _product[sum(n_blocks), triton.cdiv(n_rows, tile.rows), len(out)](
            *given, x, first if bias is None else bias, out, columns[0], *lengths[1:], *ends, n_rows, inners[0], share,
            *first.stride(), *x.stride()[:2], *out.stride()[:2],
            INNER=INNER, SPLIT="" if len(weights) == 1 else "inner" if back else "columns",
            EVEN=all(n % INNER == 0 for n in inners), BIAS=bias is not None, **tile.options(),
        )  # fmt: skip
    return out


def products(x, weights):
    """x Wᵀ of each of up to three weights (columns, inner), side by side: parts (n, rows, all columns).

    Args:
        x: (2, rows, inner), its halves; or for cuBLAS (1, rows, inner).
    """
    if not by_cublas(x.shape[1]):
        return _multiply(x, weights, None)
    out = x.new_empty(1, x.shape[1], sum(map(len, weights)))
    for weight, of in zip(weights, out[0].split(list(map(len, weights)), dim=1), strict=True):
        torch.mm(x[0], weight.t(), out=of)
    return out


def products_back(gradient, weights):
    """The gradient of `products` with respect to x: parts (n, rows, inner); gradient (1 or 2, rows, all columns)."""
    if not by_cublas(gradient.shape[1]):
        return _multiply(gradient, [weight.t() for weight in weights], None, back=True)
    out = gradient.new_empty(len(weights), gradient.shape[1], weights[0].shape[1])
    for part, of, weight in zip(out, gradient[0].split(list(map(len, weights)), dim=1), weights, strict=True):
        torch.mm(of, weight, out=part)
    return out


def total(parts, bias=None, residual=None, turn=None, back=False, as_parts=False):
    """The sum of parts (n, rows, columns) + bias (columns,) + residual (rows, columns): (rows, columns).

    Args:
        turn: (cos, sin, columns) of rotary positions, which turn the first so many columns: cos and sin (rows, d_head)
            of the angles of one head, twice in a row; or None. `back` turns the other way, as the gradient does.
        as_parts: give the sum as products take it, in halves (2, rows, columns) but for cuBLAS.
    """
    n_parts, n_rows, n_columns = parts.shape
    in_halves = as_parts and not by_cublas(n_rows)
    cos, sin, n_turned = turn or (parts, parts, 0)
    out = parts.new_empty(1 + in_halves, n_rows, n_columns)
    with torch.cuda.device_of(parts):
        _total[n_rows, triton.cdiv(n_columns, SIZE)](
            parts, parts if bias is None else bias, parts if residual is None else residual, cos, sin, out,
            n_rows * n_columns, n_columns, n_turned,
            N_PARTS=n_parts, BIAS=bias is not None, RESIDUAL=residual is not None,
            TURN=(-1 if back else 1) * bool(turn), D=cos.shape[-1] if turn else 2, HALVED=in_halves, SIZE=SIZE,
        )  # fmt: skip
    return out if as_parts else out[0]


def linear(x, weight, bias):
    """x (…, inner) weightᵀ + bias (columns,) or None, all float32; weight (columns, inner) may be transposed in memory.

    Where x or the weight is not finite, so is the result, but infinities become NaN.
    """
    rows = total(x.reshape(1, -1, x.shape[-1]).contiguous(), as_parts=True)
    out = _multiply(rows, [weight], bias)
    return (total(out) if len(out) > 1 else out[0]).view(*x.shape[:-1], len(weight))
