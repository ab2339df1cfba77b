"""Products of matrices made in another way are the same products, with their gradients."""

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from editscale.kernels import matmul


class Seen(TorchDispatchMode):
    """While open, keeps the shape of the input of every product that is made by the package's operator."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.editscale.linear.default:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def frozen_layer(n_in=4, n_out=3):
    return torch.nn.Linear(n_in, n_out).requires_grad_(False)


def outcome(lm, states):
    """What an MLP of a model makes of states, and the gradient of its squared sum."""
    x = states.clone().requires_grad_()
    out = lm.mlp(1)(x)
    return out.detach(), torch.autograd.grad((out**2).sum(), x)[0]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gptj", "gemma2", "gpt_neox"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 0)])
def test_a_model_and_its_gradient_stay_what_they_are(model_type, dtype, tolerance):
    """Against float64: no further off than float32 is; float64 itself is left alone."""
    lm, exact = (tiny.tiny_model(model_type, dtype=of, n_layers=2) for of in (dtype, torch.float64))
    states = torch.randn(2, 7, lm.d_model, generator=torch.Generator().manual_seed(0)).double()
    expected = outcome(exact, states)
    with Seen() as seen, matmul.FastLinear():
        found = outcome(lm, states.to(dtype))
    assert len(seen.shapes) == (0 if dtype is torch.float64 else 6 if model_type in ("llama", "gemma2") else 4)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


def test_frozen_float32_layers_alone_are_computed_otherwise():
    frozen, trained, double = frozen_layer(), torch.nn.Linear(4, 3), frozen_layer().double()
    with Seen() as seen, matmul.FastLinear():
        x = torch.ones(2, 4, requires_grad=True)
        trained(x).sum().backward()
        double(torch.ones(2, 4, dtype=torch.float64))
        frozen(torch.ones(0, 4))
        assert not seen.shapes and trained.weight.grad is not None
        frozen(x).sum().backward()
    assert seen.shapes == [(2, 4), (2, 3)]  # forward, backward


@pytest.mark.parametrize("pays", [True, False])
def test_a_cpu_takes_other_products_where_they_pay(pays, monkeypatch):
    monkeypatch.setattr(matmul, "ONEDNN_PAYS", pays)
    with Seen() as seen, matmul.fast(torch.device("cpu")):
        frozen_layer()(torch.ones(2, 4))
    assert seen.shapes == [(2, 4)] * pays


def test_layers_of_few_rows_are_left_to_what_is_open_around():
    layer = frozen_layer()
    with Seen() as seen:
        with matmul.FastLinear(least=6):
            layer(torch.ones(5, 4))
            layer(torch.ones(2, 3, 4))
        assert seen.shapes == [(2, 3, 4)]
        with matmul.FastLinear(), matmul.FastLinear(least=6):
            layer(torch.ones(5, 4))
    assert seen.shapes == [(2, 3, 4), (5, 4)]


@pytest.mark.parametrize(("n_in", "n_out"), [(1024, 8), (8, 1024)])
def test_layers_of_too_many_numbers_are_left_to_torch(n_in, n_out):
    """Those of the output are the input of backward."""
    layer, x = frozen_layer(n_in, n_out).to("meta"), torch.empty(2**21, n_in, device="meta")
    with Seen() as seen, matmul.FastLinear():
        assert layer(x).shape == (2**21, n_out)
        assert not seen.shapes
        with pytest.raises(NotImplementedError):  # the operator knows no such device, and is asked
            layer(x[:-1])


def test_the_operations_of_a_layer_are_counted():
    with FlopCounterMode(display=False, custom_mapping=matmul.OPERATIONS) as counter, matmul.FastLinear():
        frozen_layer()(torch.ones(2, 5, 4))
    assert counter.get_total_flops() == 2 * (2 * 5) * 4 * 3
