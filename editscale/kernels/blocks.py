"""Blocks of a transformer forward and backward, with few kernels: what the layers of a CUDA graph of steps are made of.

A block of GPT-2 or of Llama's type is

    x += out(attention(qkv(norm(x))));  x += down(activation(up(norm(x))))

with weights that no gradient is asked of. Written out by hand, as here, each product is followed by one kernel that
adds up what it left, adds bias and residual, goes on to what comes next, and writes it as the next product takes it:
nine kernels forward and ten backward, where torch and its autograd take about sixty. On the GPU these are those of
`tensor_cores`, `norms` and `attention`; with those of `plain`, in torch, the blocks are the same up to rounding, on any
device.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import ops

D_HEAD = (16, 32, 64, 128)  # for which `attention` has tiles


@dataclass(frozen=True)
class Block:
    """The weights of a block, each (columns, inner) and maybe transposed in memory, and how it uses them.

    Attributes:
        norms: before attention and before the MLP: weight, shift, eps; an RMSNorm where the shift is None.
        qkv: weights that queries, keys and values are made by, one or three; qkv_bias, over all of them, or None.
        out, down: weight, and bias or None. up: one weight, or that of the gate and the other; up_bias as qkv_bias.
        heads: how many there are; how many share a head of keys; what scores are multiplied by.
        activation: as for `norms.activate`.
        layer: the layer's number.
    """

    norms: tuple
    qkv: tuple
    qkv_bias: object
    out: tuple
    up: tuple
    up_bias: object
    down: tuple
    heads: tuple
    activation: str
    layer: int

    @property
    def d_head(self):
        n_heads, n_shared, _ = self.heads
        return sum(map(len, self.qkv)) // (n_heads + 2 * n_heads // n_shared)

    @property
    def widest(self):
        """Most columns of a matrix inside."""
        return max(sum(map(len, self.qkv)), sum(map(len, self.up)))

    def keys_and_values(self, states, n_rows):
        """Each (rows, key heads, tokens, d_head), of states (tokens of all rows, columns of qkv)."""
        n_heads, n_shared, _ = self.heads
        n_keys = n_heads // n_shared
        of_each = states.view(n_rows, len(states) // n_rows, -1, self.d_head).transpose(1, 2)
        return of_each.split([n_heads, n_keys, n_keys], dim=1)[1:]

    def turn(self, cos_sin):
        """`tensor_cores.total`'s argument: queries and keys turn, values do not."""
        n_heads, n_shared, _ = self.heads
        return (*cos_sin, (n_heads + n_heads // n_shared) * self.d_head) if cos_sin else None


def kernels():
    """Those of a GPU, by the names that `plain` has."""
    from editscale.kernels import norms, tensor_cores
    from editscale.kernels.attention import tiles

    def attention(states, earlier, mask, tiles, heads):
        return ops.editscale.attention(states, earlier or (), mask, tiles, *heads)

    def attention_back(gradient, states, earlier, mask, tiles, heads, out, logs):
        return ops.editscale.attention_back(gradient, states, earlier or (), mask, tiles, *heads, out, logs)

    return SimpleNamespace(
        products=ops.editscale.products,
        products_back=ops.editscale.products_back,
        total=tensor_cores.total,
        norm=norms.norm,
        norm_back=norms.norm_back,
        activate=norms.activate,
        activate_back=norms.activate_back,
        tiles=tiles,
        attention=attention,
        attention_back=attention_back,
    )


def forward(by, blocks, x, mask, tiles, cos_sin=None, cache=None, kept=None):
    """What leaves some blocks, (tokens, d_model).

    Args:
        by: where the kernels are: `plain`, or `kernels()`.
        x: (tokens, d_model) what enters, of all rows; mask: (rows, 1, tokens of a row, all keys), added to scores.
        tiles: of the mask.
        cos_sin: each (tokens, d_head), of rotary positions; or None.
        cache: has keys and values of earlier tokens, (rows or 1, key heads, earlier tokens, d_head), or None where
            there are none: `joined(layer)`; and takes those of these tokens: `add(keys, values, layer)`. Or None.
        kept: a list, to which is appended what `backward` needs of each block; or None.
    """
    parts, bias, residual = x[None], None, None
    for block in blocks:
        entered, normed = by.norm(parts, bias, residual, block.norms[0])
        states = by.total(by.products(normed, block.qkv), block.qkv_bias, turn=block.turn(cos_sin))
        earlier = None
        if cache is not None:
            earlier = cache.joined(block.layer)
            cache.add(*block.keys_and_values(states, len(mask)), block.layer)
        found, logs = by.attention(states, earlier, mask, tiles, block.heads)
        between, normed = by.norm(by.products(found, block.out[:1]), block.out[1], entered, block.norms[1])
        inside, active = by.activate(by.products(normed, block.up), block.up_bias, block.activation)
        parts, bias, residual = by.products(active, block.down[:1]), block.down[1], between
        if kept is not None:
            kept.append((earlier, entered, states, found, logs, between, inside))
    return by.total(parts, bias, residual)


def backward(by, blocks, gradient, mask, tiles, cos_sin, kept):
    """The gradient of what enters some blocks, (tokens, d_model), from that of what leaves them; see `forward`."""
    parts = by.total(gradient[None], as_parts=True)
    for block, of in zip(reversed(blocks), reversed(kept), strict=True):
        earlier, entered, states, found, logs, between, inside = of
        inner = by.activate_back(by.products_back(parts, block.down[:1]), inside, block.activation)
        parts = by.norm_back(by.products_back(inner, block.up), parts, between, block.norms[1])
        of_found = by.total(by.products_back(parts, block.out[:1]))
        of_states = by.attention_back(of_found, states, earlier, mask, tiles, block.heads, found, logs)
        inner = by.total(of_states[None], turn=block.turn(cos_sin), back=True, as_parts=True)
        parts = by.norm_back(by.products_back(inner, block.qkv), parts, entered, block.norms[0])
    return parts.sum(0)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, by, blocks, mask, tiles, cos_sin, cache):
        ctx.given, ctx.kept = (by, blocks, mask, tiles, cos_sin), []
        return forward(by, blocks, x, mask, tiles, cos_sin, cache, ctx.kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        by, blocks, *given = ctx.given
        return backward(by, blocks, gradient.contiguous(), *given, ctx.kept), *[None] * 6


def run(by, blocks, hidden, mask, cos_sin=None, cache=None):
    """`forward` of hidden states (rows, tokens, d_model), with a gradient if one is asked for.

    As there, but that cos and sin are (rows, tokens, d_head), and that the mask may be of one row for all.
    """
    n_rows, n_tokens, _ = hidden.shape
    x, mask = hidden.reshape(n_rows * n_tokens, -1), mask.expand(n_rows, -1, -1, -1)
    if cos_sin is not None:
        cos_sin = [of.expand(n_rows, -1, -1).reshape(len(x), -1) for of in cos_sin]
    tiles = by.tiles(mask)
    if torch.is_grad_enabled() and hidden.requires_grad:
        out = _Blocks.apply(x, by, blocks, mask, tiles, cos_sin, cache)
    else:
        out = forward(by, blocks, x, mask, tiles, cos_sin, cache)
    return out.view_as(hidden)
