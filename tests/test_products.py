"""Products of matrices made in another way are the same products, with their gradients."""

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from editscale import products

H100 = 132  # multiprocessors


def outcome(lm, states):
    """What an MLP of a model makes of states, and the gradient of its squared sum."""
    x = states.clone().requires_grad_()
    out = lm.mlp(1)(x)
    return out.detach(), torch.autograd.grad((out**2).sum(), x)[0]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gptj"])
@pytest.mark.parametrize("n_rows", [3, 70])
def test_a_model_and_its_gradient_stay_what_they_are_on_a_gpu(model_type, n_rows):
    lm = tiny.tiny_model(model_type, dtype=torch.float64, n_layers=2, d_model=256, d_key=512)
    assert products.shares(256, 512, H100) == 2
    states = torch.randn(1, n_rows, lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = outcome(lm, states)
    with products.OnGpu(H100):
        found = outcome(lm, states)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gptj", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 0)])
def test_a_model_and_its_gradient_stay_what_they_are_on_a_cpu(model_type, dtype, tolerance):
    """Against float64: no further off than float32 is; float64 itself is left alone."""
    lm, exact = (tiny.tiny_model(model_type, dtype=of, n_layers=2) for of in (dtype, torch.float64))
    states = torch.randn(2, 7, lm.d_model, generator=torch.Generator().manual_seed(0)).double()
    expected = outcome(exact, states)
    with products.OnCpu():
        found = outcome(lm, states.to(dtype))
    for a, b in zip(expected, found, strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


def test_on_a_cpu_frozen_float32_layers_alone_are_computed_by_onednn(monkeypatch):
    seen = []
    by_onednn = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda *args: seen.append(args[0].shape) or by_onednn(*args))
    frozen, trained, double = (torch.nn.Linear(4, 3) for _ in range(3))
    frozen.requires_grad_(False)
    double.requires_grad_(False).double()
    with products.fast(torch.device("cpu")):
        x = torch.ones(2, 4, requires_grad=True)
        trained(x).sum().backward()
        double(torch.ones(2, 4, dtype=torch.float64))
        frozen(torch.ones(0, 4))
        assert not seen and trained.weight.grad is not None
        frozen(x).sum().backward()
    assert seen == [(2, 4), (2, 3)]  # forward, backward


def test_the_operations_of_a_layer_are_counted():
    layer = torch.nn.Linear(4, 3).requires_grad_(False)
    with FlopCounterMode(display=False, custom_mapping=products.OPERATIONS) as counter, products.OnCpu():
        layer(torch.ones(2, 5, 4))
    assert counter.get_total_flops() == 2 * (2 * 5) * 4 * 3


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_sum_in_parts_is_the_sum(n, transposed):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 20, dtype=torch.float64, generator=generator)
    b = torch.randn(11, 20, dtype=torch.float64, generator=generator).T
    b = b if transposed else b.contiguous()
    torch.testing.assert_close(products.shared_out(a, b, n), a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n_inner", "n_columns", "expected"),
    [(1600, 4800, 5), (1600, 1600, 10), (6400, 1600, 16), (1600, 50257, 1), (100, 100, 1), (577, 576, 1)],
)
def test_parts_fill_the_gpu_divide_the_sum_and_are_not_too_small(n_inner, n_columns, expected):
    n = products.shares(n_inner, n_columns, H100)
    assert n == expected
    assert n == 1 or (n_inner % n == 0 and n_inner // n >= products.LEAST)


def test_only_few_rows_are_shared_out(monkeypatch):
    seen = []
    monkeypatch.setattr(products, "shared_out", lambda a, b, n: seen.append((len(a), n)) or a @ b)
    with products.OnGpu(H100):
        for rows in (1, products.FEW, products.FEW + 1):
            torch.ones(rows, 1600) @ torch.ones(1600, 1600)
    with products.OnGpu(0):
        torch.ones(1, 1600) @ torch.ones(1600, 1600)
    assert seen == [(1, 10), (products.FEW, 10)]
