"""The plain form of the kernels that a block of layers takes (`blocks`): the same functions in torch, of any dtype.

Shapes and arguments are those of `tensor_cores`, `norms` and `attention`. A matrix that a product takes or leaves is
one part here, (1, rows, columns).
"""

import torch
from torch.nn import functional


def products(x, weights):
    return (x.sum(0) @ torch.cat(list(weights)).t())[None]


def products_back(gradient, weights):
    return (gradient.sum(0) @ torch.cat(list(weights)))[None]


def total(parts, bias=None, residual=None, turn=None, back=False, as_parts=False):
    x = sum(of for of in (parts.sum(0), bias) if of is not None)
    if turn:
        cos, sin, n_turned = turn
        heads = x[:, :n_turned].unflatten(1, (-1, cos.shape[-1]))
        first, second = heads.chunk(2, dim=-1)
        other = torch.cat([second, -first] if back else [-second, first], dim=-1)
        x = torch.cat([(heads * cos[:, None] + other * sin[:, None]).flatten(1), x[:, n_turned:]], dim=1)
    x = x if residual is None else x + residual
    return x[None] if as_parts else x


def _norm(x, weight, shift, eps):
    if shift is not None:
        return functional.layer_norm(x, x.shape[-1:], weight, shift, eps)
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def norm(parts, bias, residual, of):
    x = total(parts, bias, residual)
    return x, _norm(x, *of)[None]


def norm_back(parts, residual, states, of):
    return residual.sum(0)[None] + _gradient(lambda x: _norm(x, *of), states, parts.sum(0))[None]


def _activation(x, kind):
    if kind.startswith("gated"):
        gate, up = x.chunk(2, dim=-1)
        return _activation(gate, kind.split()[-1]) * up
    return functional.silu(x) if kind == "silu" else functional.gelu(x, approximate="tanh")


def activate(parts, bias, kind):
    x = total(parts, bias)
    return x, _activation(x, kind)[None]


def activate_back(parts, states, kind):
    return _gradient(lambda x: _activation(x, kind), states, parts.sum(0))[None]


def tiles(mask):
    return ()  # all are read


def _attend(states, earlier, mask, heads):
    """What tokens find (tokens, heads · d_head), and log Σ exp of their scores (rows, heads, tokens of a row)."""
    n_heads, n_shared, scale = heads
    n_keys = n_heads // n_shared
    of_each = states.view(len(mask), mask.shape[2], n_heads + 2 * n_keys, -1).transpose(1, 2)
    q, *own = of_each.split([n_heads, n_keys, n_keys], dim=1)
    if earlier is not None:
        own = [torch.cat([x.expand(len(mask), -1, -1, -1), of], dim=2) for x, of in zip(earlier, own, strict=True)]
    k, v = (of.repeat_interleave(n_shared, dim=1) for of in own)
    scores = q @ k.mT * scale + mask
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(len(states), -1), scores.logsumexp(dim=-1)


def attention(states, earlier, mask, tiles, heads):
    out, logs = _attend(states, earlier, mask, heads)
    return out[None], logs


def attention_back(gradient, states, earlier, mask, tiles, heads, out, logs):
    return _gradient(lambda x: _attend(x, earlier, mask, heads)[0], states, gradient)


def _gradient(function, x, of_result):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x, of_result)[0]
