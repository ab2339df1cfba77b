"""Products on tensor cores are float32 products: no further from float64 than those of torch."""

import pytest
import torch

from editscale.kernels import matmul

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and matmul._on_tensor_cores(torch.device("cuda"))),
    reason="needs a GPU on which products are made so",
)


def off(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def numbers(*shape, seed=0, spread=0.0):
    """Normal numbers, on the GPU, of magnitudes e^±spread."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x, scale = torch.randn(2, *shape, device="cuda", generator=generator)
    return x * (spread * scale).exp()


@pytest.mark.parametrize("spread", [0.0, 4.0])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "n_columns", "n_inner"),
    [
        ((1,), 1600, 1600),
        ((2, 16), 6400, 1600),
        ((33,), 1600, 6400),
        ((130,), 576, 577),
        ((7,), 1600, 50257),
        ((3, 333), 50257, 576),
        ((1000,), 31, 33),
    ],
)
def test_no_further_from_float64_than_torch(rows, n_columns, n_inner, with_bias, transposed, spread):
    from editscale.kernels import tensor_cores

    x = numbers(*rows, n_inner, spread=spread)
    weight = numbers(n_inner, n_columns, seed=1).t() if transposed else numbers(n_columns, n_inner, seed=1)
    bias = numbers(n_columns, seed=2) if with_bias else None
    exact = torch.nn.functional.linear(*(None if of is None else of.double() for of in (x, weight, bias)))
    found = tensor_cores.linear(x, weight, bias)
    assert found.shape == exact.shape
    # Sums as short as 33 have next to no rounding error in either.
    assert off(found, exact) <= max(off(torch.nn.functional.linear(x, weight, bias), exact), 3e-7)
    assert torch.equal(found, tensor_cores.linear(x, weight, bias))


def test_what_is_not_finite_stays_so():
    from editscale.kernels import tensor_cores

    weight, x = numbers(100, 64), numbers(3, 64, seed=1)
    x[0, 5], x[2, 7] = float("nan"), float("inf")
    x[0, 6] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # the NaN that GPUs make
    found = tensor_cores.linear(x, weight, None)
    assert not found[[0, 2]].isfinite().any() and found[1].isfinite().all()
    weight[3] = float("inf")
    assert not tensor_cores.linear(x[1:2], weight, None)[0, 3].isfinite()


@pytest.mark.parametrize("tf32", [False, True])
def test_recorded_layers_have_the_right_gradient(tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    layer = torch.nn.Linear(300, 200, device="cuda").requires_grad_(False)
    for n in (5, 50):
        x = numbers(n, 300).requires_grad_()
        expected = x.double() @ layer.weight.double().t() + layer.bias.double()
        (gradient,) = torch.autograd.grad((expected**2).sum(), x)
        with matmul.recorded(x.device):
            found = layer(x)
            (by_layer,) = torch.autograd.grad((found**2).sum(), x)
        tolerance = 1e-3 if tf32 and n > 32 else 1e-6
        assert off(found, expected) < tolerance and off(by_layer, gradient.double()) < tolerance
