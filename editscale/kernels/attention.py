"""Attention of few tokens to many, on a GPU: a Triton kernel each way, after FlashAttention (arXiv:2205.14135).

Keys and values of earlier tokens are read where they lie, those of the tokens themselves where the product left them,
and no score is written to memory. Texts that share a row see little of each other. Which tiles of keys a tile of
queries sees at all is found once for all layers, and the others are left out, with their NaN if they have one. `plain`
has the same in torch.
"""

import torch
import triton
import triton.language as tl

from editscale.kernels.tensor_cores import by_cublas, write

Q, K = 16, 32  # queries and keys of a tile
OPTIONS = {"num_warps": 4, "num_stages": 2}
HIDDEN = tl.constexpr(-1e38)  # a mask below this hides


@triton.jit
def _tile(x, tokens, n, by_token, D: tl.constexpr):
    """x[token] (tokens, D), 0 past the n tokens that there are."""
    at = tokens.to(tl.int64)[:, None] * by_token + tl.arange(0, D)[None, :]
    return tl.load(x + at, mask=(tokens < n)[:, None], other=0.0)


@triton.jit
def _mask(mask, queries, n, by_query, keys, n_keys):
    """mask (queries, keys), hiding what is not there."""
    inside = (queries < n)[:, None] & (keys < n_keys)[None, :]
    return tl.load(mask + queries[:, None] * by_query + keys[None, :], mask=inside, other=-3.0e38)


@triton.jit
def _tiles(
    mask, seen, seen_back, n, n_earlier, mask_row, mask_query, n_q, n_k, n_all,
    Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """See `tiles`. One tile of queries, or of keys, of one row."""
    place, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    mask, found = mask + row * mask_row, 0
    if place < n_q:
        seen += (row * n_q + place) * (n_all + 1)
        queries = place * Q + tl.arange(0, Q)
        for tile in range(n_all):
            own = tile >= n_all - n_k
            keys = (tile - tl.where(own, n_all - n_k, 0)) * K + tl.arange(0, K)
            at = mask + tl.where(own, n_earlier, 0)
            if tl.max(_mask(at, queries, n, mask_query, keys, tl.where(own, n, n_earlier))) > HIDDEN:
                found += 1
                tl.store(seen + found, tile)
        tl.store(seen, found)
    else:
        seen_back += (row * n_k + place - n_q) * (n_q + 1)
        keys = (place - n_q) * K + tl.arange(0, K)
        for tile in range(n_q):
            queries = tile * Q + tl.arange(0, Q)
            if tl.max(_mask(mask + n_earlier, queries, n, mask_query, keys, n)) > HIDDEN:
                found += 1
                tl.store(seen_back + found, tile)
        tl.store(seen_back, found)


@triton.jit
def _of_tile(
    tile, first_own, own_k, k, k_token, v, v_token, mask, queries, n, n_earlier, mask_query,
    TO_V: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Keys, values and mask of a tile of keys: of earlier tokens, or from `first_own` on of these tokens."""
    own = tile >= first_own
    keys = (tile - tl.where(own, first_own, 0)) * K + tl.arange(0, K)
    n_keys = tl.where(own, n, n_earlier)
    k_tile = _tile(tl.where(own, own_k, k), keys, n_keys, tl.where(own, WIDTH, k_token), D)
    v_tile = _tile(tl.where(own, own_k + TO_V, v), keys, n_keys, tl.where(own, WIDTH, v_token), D)
    return k_tile, v_tile, _mask(mask + tl.where(own, n_earlier, 0), queries, n, mask_query, keys, n_keys)


@triton.jit
def _attention(
    states, earlier_k, earlier_v, mask, seen, out, logs, n, n_earlier, scale, mask_row, mask_query, n_all, first_own,
    k_row, k_head, k_token, v_row, v_head, v_token, n_out,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """See `attention`. Q queries of one head of one row."""
    row, head = (tl.program_id(1) // HEADS).to(tl.int64), tl.program_id(1) % HEADS
    N_KEYS: tl.constexpr = HEADS // SHARED
    WIDTH: tl.constexpr = (HEADS + 2 * N_KEYS) * D
    queries, shared = tl.program_id(0) * Q + tl.arange(0, Q), head // SHARED
    own, mask = states + row * n * WIDTH, mask + row * mask_row
    k, v = earlier_k + row * k_row + shared * k_head, earlier_v + row * v_row + shared * v_head
    q = _tile(own + head * D, queries, n, WIDTH, D)
    top, total = tl.full((Q,), float("-inf"), tl.float32), tl.zeros((Q,), tl.float32)
    sums = tl.zeros((Q, D), tl.float32)
    seen += (row * tl.num_programs(0) + tl.program_id(0)) * (n_all + 1)
    for i in range(tl.load(seen)):
        k_tile, v_tile, hidden = _of_tile(
            tl.load(seen + 1 + i), first_own, own + (HEADS + shared) * D, k, k_token, v, v_token, mask, queries, n,
            n_earlier, mask_query, N_KEYS * D, WIDTH, D, K,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * scale + hidden
        highest = tl.maximum(top, tl.max(scores, axis=1))
        shrink, weights = tl.exp(top - highest), tl.exp(scores - highest[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        sums = sums * shrink[:, None] + tl.dot(weights, v_tile, input_precision=PRECISION)
        top = highest
    inside = queries < n
    at = ((row * n + queries) * HEADS + head)[:, None] * D + tl.arange(0, D)[None, :]
    write(out, at, n_out, sums / total[:, None], inside[:, None], HALVED)
    tl.store(logs + (row * HEADS + head) * n + queries, top + tl.log(total), mask=inside)


@triton.jit
def _slopes(q, k, v, g, hidden, log, dots, scale, PRECISION: tl.constexpr):
    """Attention weights (Q, K), and the gradient with respect to q · k."""
    weights = tl.exp(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + hidden - log[:, None])
    return weights, weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - dots[:, None]) * scale


@triton.jit
def _queries(
    gradients, out, logs, n, n_out, own, head, row, queries,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """Of some queries of one head: q; the gradient of what they found; the logs; the products of gradient and found."""
    at = (row * n * HEADS + head) * D
    g, found = _tile(gradients + at, queries, n, HEADS * D, D), _tile(out + at, queries, n, HEADS * D, D)
    if HALVED:
        found += _tile(out + n_out + at, queries, n, HEADS * D, D)
    log = tl.load(logs + (row * HEADS + head) * n + queries, mask=queries < n, other=0.0)
    return _tile(own + head * D, queries, n, WIDTH, D), g, log, tl.sum(g * found, axis=1)


@triton.jit
def _back_of_queries(
    gradients, own, k, v, mask, seen, out, logs, result, n, n_earlier, scale, mask_query, first_own, k_token, v_token,
    n_out, row, head, queries, HEADS: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    K: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """The gradient of some queries of one head."""
    q, g, log, dots = _queries(gradients, out, logs, n, n_out, own, head, row, queries, HEADS, WIDTH, D, HALVED)
    gradient = tl.zeros(q.shape, tl.float32)
    for i in range(tl.load(seen)):
        k_tile, v_tile, hidden = _of_tile(
            tl.load(seen + 1 + i), first_own, own + (HEADS + head // SHARED) * D, k, k_token, v, v_token, mask, queries,
            n, n_earlier, mask_query, HEADS // SHARED * D, WIDTH, D, K,
        )  # fmt: skip
        _, slopes = _slopes(q, k_tile, v_tile, g, hidden, log, dots, scale, PRECISION)
        gradient += tl.dot(slopes, k_tile, input_precision=PRECISION)
    at = queries[:, None] * WIDTH + head * D + tl.arange(0, D)[None, :]
    tl.store(result + at, gradient, mask=(queries < n)[:, None])


@triton.jit
def _back_of_keys(
    gradients, own, mask, seen, out, logs, result, n, scale, mask_query, n_out, row, keys, shared,
    HEADS: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, Q: tl.constexpr,
    PRECISION: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """The gradient of some keys, and values, of the heads that share them."""
    k_at = (HEADS + shared) * D
    v_at = k_at + HEADS // SHARED * D
    k, v = _tile(own + k_at, keys, n, WIDTH, D), _tile(own + v_at, keys, n, WIDTH, D)
    of_k, of_v = tl.zeros(k.shape, tl.float32), tl.zeros(k.shape, tl.float32)
    for i in range(tl.load(seen) * SHARED):
        queries, head = tl.load(seen + 1 + i // SHARED) * Q + tl.arange(0, Q), shared * SHARED + i % SHARED
        hidden = _mask(mask, queries, n, mask_query, keys, n)
        q, g, log, dots = _queries(gradients, out, logs, n, n_out, own, head, row, queries, HEADS, WIDTH, D, HALVED)
        weights, slopes = _slopes(q, k, v, g, hidden, log, dots, scale, PRECISION)
        of_v += tl.dot(tl.trans(weights), g, input_precision=PRECISION)
        of_k += tl.dot(tl.trans(slopes), q, input_precision=PRECISION)
    at = keys[:, None] * WIDTH + tl.arange(0, D)[None, :]
    tl.store(result + k_at + at, of_k, mask=(keys < n)[:, None])
    tl.store(result + v_at + at, of_v, mask=(keys < n)[:, None])


@triton.jit
def _attention_back(
    gradients, states, earlier_k, earlier_v, mask, seen, seen_back, out, logs, result, n, n_earlier, scale,
    mask_row, mask_query, n_all, first_own, n_q, n_k, k_row, k_head, k_token, v_row, v_head, v_token, n_out,
    HEADS: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, HALVED: tl.constexpr,
):  # fmt: skip
    """See `attention_back`. Of one row: in the first thread blocks K keys and values, then Q queries of one head."""
    row, place = tl.program_id(1).to(tl.int64), tl.program_id(0)
    WIDTH: tl.constexpr = (HEADS + 2 * (HEADS // SHARED)) * D
    own, mask, result = states + row * n * WIDTH, mask + row * mask_row, result + row * n * WIDTH
    n_of_keys = HEADS // SHARED * n_k
    if place < n_of_keys:
        tile, shared = place % n_k, place // n_k
        _back_of_keys(
            gradients, own, mask + n_earlier, seen_back + (row * n_k + tile) * (n_q + 1), out, logs, result, n, scale,
            mask_query, n_out, row, tile * K + tl.arange(0, K), shared, HEADS, SHARED, WIDTH, D, Q, PRECISION, HALVED,
        )  # fmt: skip
    else:
        tile, head = (place - n_of_keys) % n_q, (place - n_of_keys) // n_q
        _back_of_queries(
            gradients, own, earlier_k + row * k_row + head // SHARED * k_head,
            earlier_v + row * v_row + head // SHARED * v_head, mask, seen + (row * n_q + tile) * (n_all + 1),
            out, logs, result, n, n_earlier, scale, mask_query, first_own, k_token, v_token, n_out, row, head,
            tile * Q + tl.arange(0, Q), HEADS, SHARED, WIDTH, D, K, PRECISION, HALVED,
        )  # fmt: skip


def tiles(mask):
    """Which tiles of keys each tile of queries sees, (rows, tiles of queries, 1 + tiles of keys) int32: how many, then
    which; and which tiles of queries see each tile of the tokens' own keys, likewise.

    Args:
        mask: (rows, 1, tokens, earlier tokens + tokens), added to scores.
    """
    n_rows, _, n, n_keys = mask.shape
    n_earlier, n_q, n_k = n_keys - n, triton.cdiv(n, Q), triton.cdiv(n, K)
    n_all = triton.cdiv(n_earlier, K) + n_k
    seen = mask.new_empty(n_rows, n_q, 1 + n_all, dtype=torch.int32)
    seen_back = mask.new_empty(n_rows, n_k, 1 + n_q, dtype=torch.int32)
    with torch.cuda.device_of(mask):
        _tiles[n_q + n_k, n_rows](
            mask, seen, seen_back, n, n_earlier, mask.stride(0), mask.stride(2), n_q, n_k, n_all, Q=Q, K=K
        )
    return seen, seen_back


def _given(states, earlier, mask, seen, n_heads, n_shared, scale):
    """What both kernels take of their arguments: sizes and strides, before and after; constants."""
    n, n_all = mask.shape[2], seen.shape[2] - 1
    keys, values = earlier or [states[None, None, :0]] * 2
    strides = [x.stride(i) if x.shape[i] > 1 or i == 2 else 0 for x in (keys, values) for i in range(3)]
    sizes = n, keys.shape[2], scale, mask.stride(0), mask.stride(2), n_all, n_all - triton.cdiv(n, K)
    width = states.shape[1] // (n_heads + 2 * n_heads // n_shared) * n_heads
    constants = {"HEADS": n_heads, "SHARED": n_shared, "D": width // n_heads, "Q": Q, "K": K}
    constants["PRECISION"] = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return keys, values, sizes, (*strides, len(states) * width), constants


def attention(states, earlier, mask, tiles, n_heads, n_shared, scale):
    """What tokens find, as products take it, (1 or 2, tokens, heads · d_head); and log Σ exp of scores (rows, heads,
    tokens of a row), which `attention_back` needs.

    Args:
        states: (tokens, (heads + 2 · key heads) · d_head), queries, keys and values of tokens, of all rows.
        earlier: keys and values of earlier tokens, (rows or 1, key heads, earlier tokens, d_head); or ().
        mask: (rows, 1, tokens of a row, all keys), added to scores; keys are the earlier ones, then those of the row.
        tiles: of the mask.
        n_shared: heads that share a head of keys; scale: what scores are multiplied by.
    """
    keys, values, sizes, more, constants = _given(states, earlier, mask, tiles[0], n_heads, n_shared, scale)
    n_rows, n = len(mask), mask.shape[2]
    out = states.new_empty(2 - by_cublas(len(states)), len(states), n_heads * constants["D"])
    logs = states.new_empty(n_rows, n_heads, n)
    with torch.cuda.device_of(states):
        _attention[triton.cdiv(n, Q), n_rows * n_heads](
            states, keys, values, mask, tiles[0], out, logs, *sizes, *more, HALVED=len(out) == 2, **constants, **OPTIONS
        )
    return out, logs


def attention_back(gradient, states, earlier, mask, tiles, n_heads, n_shared, scale, out, logs):
    """The gradient with respect to the states of `attention`, like these; of earlier tokens there is none.

    Args:
        gradient: (tokens, heads · d_head), of what tokens found. The others: what `attention` took and gave.
    """
    keys, values, sizes, more, constants = _given(states, earlier, mask, tiles[0], n_heads, n_shared, scale)
    result, n_q, n_k = torch.empty_like(states), tiles[0].shape[1], tiles[1].shape[1]
    grid = n_heads // n_shared * n_k + n_heads * n_q, len(mask)
    with torch.cuda.device_of(states):
        _attention_back[grid](
            gradient, states, keys, values, mask, *tiles, out, logs, result, *sizes, n_q, n_k, *more,
            HALVED=len(out) == 2, **constants, **OPTIONS,
        )  # fmt: skip
    return result
