"""What stands between the products of a transformer block, on a GPU: norms and activation, a Triton kernel each.

A kernel adds up the parts that a product leaves (`tensor_cores`), adds what else comes in between, and writes the
halves that the next product takes. `plain` has the same in torch.
"""

import torch
import triton
import triton.language as tl

from editscale.kernels.tensor_cores import SIZE, added, by_cublas, write


@triton.jit
def _normed(x, inside, n_columns, eps, CENTERED: tl.constexpr):
    """x less its mean where CENTERED, over its standard deviation, one row; and one over that deviation."""
    if CENTERED:
        x = tl.where(inside, x - tl.sum(x, axis=0) / n_columns, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / n_columns + eps)
    return x * inverse, inverse


@triton.jit
def _norm(
    parts, bias, residual, weight, shift, states, out, n, n_columns, eps,
    N_PARTS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, CENTERED: tl.constexpr, HALVED: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """See `norm`. One row."""
    columns = tl.arange(0, SIZE)
    inside, at = columns < n_columns, tl.program_id(0).to(tl.int64) * n_columns + columns
    x = added(parts, at, n, inside, N_PARTS)
    if BIAS:
        x += tl.load(bias + columns, mask=inside, other=0.0)
    if RESIDUAL:
        x += tl.load(residual + at, mask=inside, other=0.0)
    tl.store(states + at, x, mask=inside)
    y, _ = _normed(x, inside, n_columns, eps, CENTERED)
    y *= tl.load(weight + columns, mask=inside, other=0.0)
    if CENTERED:
        y += tl.load(shift + columns, mask=inside, other=0.0)
    write(out, at, n, y, inside, HALVED)


@triton.jit
def _norm_back(
    parts, residual, weight, states, out, n, n_columns, eps,
    N_PARTS: tl.constexpr, N_RESIDUAL: tl.constexpr, CENTERED: tl.constexpr, HALVED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """See `norm_back`. One row."""
    columns = tl.arange(0, SIZE)
    inside, at = columns < n_columns, tl.program_id(0).to(tl.int64) * n_columns + columns
    x = tl.load(states + at, mask=inside, other=0.0)
    y, inverse = _normed(x, inside, n_columns, eps, CENTERED)
    gradient = added(parts, at, n, inside, N_PARTS) * tl.load(weight + columns, mask=inside, other=0.0)
    moved = gradient - y * (tl.sum(gradient * y, axis=0) / n_columns)
    if CENTERED:
        moved -= tl.sum(gradient, axis=0) / n_columns
    write(out, at, n, moved * inverse + added(residual, at, n, inside, N_RESIDUAL), inside, HALVED)


@triton.jit
def _gate(x, GELU: tl.constexpr):
    """The activation of x and its slope: x σ(x), or GELU's approximation by tanh, which is x σ(1.6 (x + 0.04 x³))."""
    if GELU:  # √(8/π) and 0.044715
        inner, slope = 1.5957691216057308 * (x + 0.044715 * x * x * x), 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
        inner, slope = x, 1.0
    share = 1.0 / (1.0 + tl.exp(-inner))
    return x * share, share + x * share * (1.0 - share) * slope


@triton.jit
def _activate(
    parts, bias, states, out, n_in, n_out, n_columns,
    N_PARTS: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr, HALVED: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """See `activate`. One row, SIZE columns of n_columns that come out."""
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside, at = columns < n_columns, row * n_columns * (1 + GATED) + columns
    x = added(parts, at, n_in, inside, N_PARTS)
    if BIAS:
        x += tl.load(bias + columns, mask=inside, other=0.0)
    tl.store(states + at, x, mask=inside)
    y, _ = _gate(x, GELU)
    if GATED:
        up = added(parts, at + n_columns, n_in, inside, N_PARTS)
        tl.store(states + at + n_columns, up, mask=inside)
        y *= up
    write(out, row * n_columns + columns, n_out, y, inside, HALVED)


@triton.jit
def _activate_back(
    parts, states, out, n_in, n_out, n_columns,
    N_PARTS: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr, HALVED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """See `activate_back`. One row, SIZE columns of n_columns of the gradient."""
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside, at = columns < n_columns, row * n_columns * (1 + GATED) + columns
    gradient = added(parts, row * n_columns + columns, n_in, inside, N_PARTS)
    y, slope = _gate(tl.load(states + at, mask=inside, other=0.0), GELU)
    if GATED:
        write(out, at + n_columns, n_out, gradient * y, inside, HALVED)
        gradient *= tl.load(states + at + n_columns, mask=inside, other=0.0)
    write(out, at, n_out, gradient * slope, inside, HALVED)


def norm(parts, bias, residual, of):
    """The sum x of parts (n, rows, columns), bias (columns,) and residual (rows, columns); and the norm of x, as
    products take it, (1 or 2, rows, columns).

    Args:
        bias, residual: or None.
        of: weight, shift, eps; a LayerNorm, or where the shift is None an RMSNorm.
    """
    (n_parts, n_rows, n_columns), (weight, shift, eps) = parts.shape, of
    states, out = torch.empty_like(parts[0]), parts.new_empty(2 - by_cublas(n_rows), n_rows, n_columns)
    with torch.cuda.device_of(parts):
        _norm[(n_rows,)](
            parts, weight if bias is None else bias, weight if residual is None else residual, weight,
            weight if shift is None else shift, states, out, n_rows * n_columns, n_columns, eps,
            N_PARTS=n_parts, BIAS=bias is not None, RESIDUAL=residual is not None, CENTERED=shift is not None,
            HALVED=len(out) == 2, SIZE=triton.next_power_of_2(n_columns), num_warps=_warps(n_columns),
        )  # fmt: skip
    return states, out


def norm_back(parts, residual, states, of):
    """The gradient with respect to the x of `norm`, as products take it.

    Args:
        parts: (n, rows, columns) of the gradient of the normed x; residual: (1 or 2, rows, columns), that of x itself.
        states: x; of: as for `norm`.
    """
    (n_parts, n_rows, n_columns), (weight, shift, eps) = parts.shape, of
    out = parts.new_empty(2 - by_cublas(n_rows), n_rows, n_columns)
    with torch.cuda.device_of(parts):
        _norm_back[(n_rows,)](
            parts, residual, weight, states, out, n_rows * n_columns, n_columns, eps,
            N_PARTS=n_parts, N_RESIDUAL=len(residual), CENTERED=shift is not None, HALVED=len(out) == 2,
            SIZE=triton.next_power_of_2(n_columns), num_warps=_warps(n_columns),
        )  # fmt: skip
    return out


def _warps(n_columns):
    return 4 if n_columns <= 1024 else 8


def activate(parts, bias, kind):
    """The sum x of parts (n, rows, columns) and bias (columns,) or None; and its activation as products take it.

    Args:
        kind: "gelu" (approximated by tanh) or "silu"; "gated silu" of the first half of the columns, times the second.
    """
    (n_parts, n_rows, n_in), gated = parts.shape, kind.startswith("gated")
    n_columns = n_in // 2 if gated else n_in
    states, out = torch.empty_like(parts[0]), parts.new_empty(2 - by_cublas(n_rows), n_rows, n_columns)
    with torch.cuda.device_of(parts):
        _activate[n_rows, triton.cdiv(n_columns, SIZE)](
            parts, parts if bias is None else bias, states, out, n_rows * n_in, n_rows * n_columns, n_columns,
            N_PARTS=n_parts, BIAS=bias is not None, GATED=gated, GELU=kind.endswith("gelu"), HALVED=len(out) == 2,
            SIZE=SIZE,
        )  # fmt: skip
    return states, out


def activate_back(parts, states, kind):
    """The gradient with respect to the x of `activate`, as products take it; parts (n, rows, columns that came out)."""
    (n_parts, n_rows, n_columns), gated = parts.shape, kind.startswith("gated")
    n_out = states.shape[-1]
    out = parts.new_empty(2 - by_cublas(n_rows), n_rows, n_out)
    with torch.cuda.device_of(parts):
        _activate_back[n_rows, triton.cdiv(n_columns, SIZE)](
            parts, states, out, n_rows * n_columns, n_rows * n_out, n_columns,
            N_PARTS=n_parts, GATED=gated, GELU=kind.endswith("gelu"), HALVED=len(out) == 2, SIZE=SIZE,
        )  # fmt: skip
    return out
