"""Products of matrices by the kernels that are fastest where they run.

On a CPU torch leaves float32 products to MKL, which runs on AMD processors with AVX-512 as on those without it; oneDNN,
which torch carries too, makes its kernels for the processor at hand. On a GPU, asked for `x W + b` at once, cuBLAS
takes a kernel that leaves most of it idle where x has few rows; asked for the product alone, one that does not. Of few
rows in float32 even that one runs in too few thread blocks: there the sum over the inner dimension is shared out over
more of them. Rounding differs, nothing else.
"""

import math
from contextlib import nullcontext

import torch
from torch import mm, ops
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 64  # rows up to which a product on a GPU is shared out
TILE = 128  # columns of a thread block's part of the result
WAVES = 2.2  # thread blocks for each multiprocessor of the GPU, at most
LEAST = 128  # of the inner dimension, in each share
SHARES = (16, 10, 8, 5, 4, 2)


def shares(n_inner, n_columns, n_processors):
    """Into how many parts the sum of a product of few rows is divided; 1 where that does not help."""
    most = WAVES * n_processors / -(-n_columns // TILE)
    return next((n for n in SHARES if n <= most and n_inner % n == 0 and n_inner // n >= LEAST), 1)


def shared_out(a, b, n):
    """a @ b for matrices, with the sum over the inner dimension in n parts."""
    return torch.bmm(a.unflatten(1, (n, -1)).transpose(0, 1), b.unflatten(0, (n, -1))).sum(dim=0)


class OnGpu(TorchDispatchMode):
    """While open, products of two matrices, those of backward too, are made alone and biases added behind.

    Args:
        n_processors: multiprocessors of the GPU; 0 makes every product in one part.
    """

    def __init__(self, n_processors):
        super().__init__()
        self.n_processors = n_processors

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ops.aten.mm.default and not kwargs:
            return self.product(*args)
        if func is ops.aten.addmm.default and not kwargs:
            return self.product(*args[1:]).add_(args[0])
        return func(*args, **(kwargs or {}))

    def product(self, a, b):
        n = shares(*b.shape, self.n_processors) if len(a) <= FEW else 1
        return shared_out(a, b, n) if n > 1 else mm(a, b)


class OnCpu(TorchFunctionMode):
    """While open, linear layers with frozen float32 weights are computed by oneDNN, forward and backward."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not kwargs and func is torch.nn.functional.linear:
            x, weight, bias = (*args, None)[:3]
        elif not kwargs and func is torch.addmm:  # transformers' Conv1D, which stores weights transposed
            x, weight, bias = args[1], args[2].t(), args[0]
        else:
            return func(*args, **(kwargs or {}))
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad and bias.ndim == 1)
        if not (frozen and x.numel() and x.dtype == weight.dtype == torch.float32 and weight.ndim == 2):
            return func(*args)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Linear.apply(x, weight, bias)
        return _by_onednn(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return _by_onednn(gradient, weight.t(), None), None, None


def _by_onednn(x, weight, bias):
    """x (…, inner) @ weight (columns, inner)ᵀ + bias."""
    return ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _operations(x_shape, weight_shape, *_, **__):
    return 2 * math.prod(x_shape) * weight_shape[0]


HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise")
OPERATIONS = {ops.mkldnn._linear_pointwise: _operations} if HAS_ONEDNN else {}  # unknown to torch's FlopCounterMode


def fast(device):
    """A context for forwards of models on a device: on a CPU `OnCpu`, where torch was built with oneDNN. On a GPU the
    faster products are those of recorded graphs (`graphs`); elsewhere `OnGpu` would cost more than it saves."""
    return OnCpu() if device.type == "cpu" and HAS_ONEDNN else nullcontext()
