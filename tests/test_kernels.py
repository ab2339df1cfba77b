"""The kernels of blocks do what their plain form does in torch, no less exactly than float32 does.

On a machine without a GPU they run through Triton's interpreter, where triton is installed and TRITON_INTERPRET=1.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from test_blocks import a_mask

from editscale.kernels import matmul, plain

ON_GPU = torch.cuda.is_available() and matmul._on_tensor_cores(torch.device("cuda"))
INTERPRETED = not torch.cuda.is_available() and find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="needs a GPU on which kernels were measured")
DEVICE = "cuda" if ON_GPU else "cpu"
N_ROWS = (5, 40)  # few, and so many that products take halves


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture(autouse=True)
def processors(monkeypatch):
    from editscale.kernels import tensor_cores

    if not ON_GPU:
        monkeypatch.setattr(tensor_cores, "n_processors", lambda x: 40)


def double(given):
    if isinstance(given, torch.Tensor):
        return given.double() if given.is_floating_point() else given
    return type(given)(map(double, given)) if isinstance(given, (tuple, list)) else given


def check(function, expected, *args, tolerance=5e-7, **kwargs):
    """The function gives what the plain one gives in float64; and the same again."""
    found, again = function(*args, **kwargs), function(*args, **kwargs)
    exact = expected(*map(double, args), **{name: double(of) for name, of in kwargs.items()})
    pairs = [(found, again, exact)] if isinstance(found, torch.Tensor) else zip(found, again, exact, strict=True)
    for one, two, of in pairs:
        assert torch.equal(one, two)
        one = one.double()
        if one.ndim == of.ndim and one.shape != of.shape:
            one, of = one.sum(0), of.sum(0)
        assert one.shape == of.shape and (one - of).norm() <= tolerance * of.norm()


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_their_gradient(n_rows, transposed):
    from editscale.kernels import tensor_cores

    weights = [numbers(300, 110).t()] if transposed else [numbers(n, 300, seed=n) for n in (70, 20, 20)]
    x, gradient = (tensor_cores.total(numbers(1, n_rows, n), as_parts=True) for n in (300, 110))
    check(tensor_cores.products, plain.products, x, weights)
    check(tensor_cores.products_back, plain.products_back, gradient, weights)


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("back", [False, True])
def test_sums_turned_or_not(n_rows, back):
    from editscale.kernels import tensor_cores

    parts, bias, angle = numbers(3, n_rows, 96), numbers(96, seed=1), numbers(n_rows, 8, seed=2)
    turn = (*(of(torch.cat([angle, angle], dim=1)) for of in (torch.cos, torch.sin)), 64)
    for given in ({}, {"turn": turn}, {"turn": turn, "back": back}):
        check(tensor_cores.total, plain.total, parts, bias, as_parts=True, **given)
    check(tensor_cores.total, plain.total, parts, bias, numbers(n_rows, 96, seed=3))


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("centered", [False, True])
def test_norms_and_their_gradient(n_rows, centered):
    from editscale.kernels import norms

    parts, residual = numbers(3, n_rows, 300), numbers(n_rows, 300, seed=1)
    of = numbers(300, seed=2), numbers(300, seed=3) if centered else None, 1e-5
    check(norms.norm, plain.norm, parts, numbers(300, seed=4), residual, of)
    check(norms.norm, plain.norm, parts[:1], None, None, of)
    for halves in (1, 2):
        check(norms.norm_back, plain.norm_back, parts, numbers(halves, n_rows, 300), residual, of)


@pytest.mark.parametrize("n_rows", N_ROWS)
@pytest.mark.parametrize("kind", ["gelu", "silu", "gated silu"])
def test_activations_and_their_gradient(n_rows, kind):
    from editscale.kernels import norms

    parts, states = numbers(3, n_rows, 600), 3 * numbers(n_rows, 600, seed=1)
    bias = None if kind.startswith("gated") else numbers(600, seed=2)
    check(norms.activate, plain.activate, parts, bias, kind)
    gradient = numbers(3, n_rows, 300 if kind.startswith("gated") else 600)
    check(norms.activate_back, plain.activate_back, gradient, states, kind)


@pytest.mark.parametrize(("n_rows", "n_tokens"), [(1, 20), (1, 70), (2, 40)])
@pytest.mark.parametrize(("n_earlier", "rows_of_earlier"), [(0, 1), (50, 1), (50, 2)])
@pytest.mark.parametrize(("n_heads", "n_shared", "d_head"), [(3, 1, 16), (6, 3, 64)])
def test_attention_and_its_gradient(n_rows, n_tokens, n_earlier, rows_of_earlier, n_heads, n_shared, d_head):
    from editscale.kernels import attention

    n_keys = n_heads // n_shared
    states = numbers(n_rows * n_tokens, (n_heads + 2 * n_keys) * d_head)
    shape = min(rows_of_earlier, n_rows), n_earlier, n_keys, d_head
    earlier = tuple(numbers(*shape, seed=seed).transpose(1, 2) for seed in (1, 2)) if n_earlier else ()
    mask = a_mask(n_rows, n_tokens, n_earlier, torch.float32).to(DEVICE)
    mask[:, :, :, :n_earlier][..., 30:] = torch.finfo(torch.float32).min  # a whole block of keys
    heads = n_heads, n_shared, d_head**-0.5

    def expected(states, earlier, mask, tiles, *heads):
        return plain.attention(states, earlier or None, mask.clamp(min=-1e30), tiles, heads)

    tiles = attention.tiles(mask)
    assert (tiles[0][..., 0] < tiles[0].shape[-1] - 1).any() or not n_earlier
    check(attention.attention, expected, states, earlier, mask, tiles, *heads)
    gradient = numbers(len(states), n_heads * d_head, seed=3)
    out, logs = attention.attention(states, earlier, mask, tiles, *heads)

    def expected_back(gradient, states, earlier, mask, tiles, *given):
        given = mask.clamp(min=-1e30), tiles, given[:3], *given[3:]
        return plain.attention_back(gradient, states, earlier or None, *given)

    check(attention.attention_back, expected_back, gradient, states, earlier, mask, tiles, *heads, out, logs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    from editscale.kernels import attention, norms, tensor_cores

    for n_rows in N_ROWS:
        x = numbers(1, n_rows, 64)
        x[0, 2, 3] = bad
        rows = torch.arange(n_rows, device=DEVICE) != 2
        of = numbers(64), numbers(64), 1e-5
        for found in (
            norms.norm(x, None, None, of)[1].sum(0),
            norms.norm_back(x, x, numbers(n_rows, 64), of).sum(0),
            norms.norm_back(numbers(1, n_rows, 64), numbers(1, n_rows, 64), x[0], of).sum(0),
        ):
            assert not found[2].isfinite().any() or not found[2, 3].isfinite()
            assert found[rows].isfinite().all()
        for kind in ("gelu", "silu", "gated silu"):
            found = norms.activate(x, None, kind)[1].sum(0)
            assert not found[2, 3].isfinite() and found[rows].isfinite().all()
        assert not tensor_cores.total(x)[2, 3].isfinite()
        states = numbers(n_rows, 96)
        mask = torch.zeros(1, 1, n_rows, n_rows, device=DEVICE)
        mask[0, 0, rows, 2] = torch.finfo(torch.float32).min
        for column in (3, 35, 67):  # a query, a key, a value
            broken = states.clone()
            broken[2, column] = bad
            found, _ = attention.attention(broken, (), mask, attention.tiles(mask), 2, 1, 0.25)
            assert not found.sum(0)[2].isfinite().all()
