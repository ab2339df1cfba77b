"""Products of matrices by the kernels that are fastest where they run.

On a CPU torch leaves float32 products to MKL, which runs on AMD processors with AVX-512 as on those without it; oneDNN,
which torch carries too, makes its kernels for the processor at hand. Where that has no AVX-512, MKL is as fast, and for
small layers several times faster. On a GPU cuBLAS makes float32 products without the tensor cores; `tensor_cores` makes
them with, no less exactly, where that was measured and where Triton, which comes with torch, finds the C compiler it
needs. Elsewhere torch's own products are used. Only rounding differs.
"""

import math
import shutil
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import ops
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(ops.mkldnn, "_linear_pointwise")
ONEDNN_PAYS = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() != "AVX2"
HAS_TRITON = bool(find_spec("triton") and (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")))
MEASURED = ((9, 0),)  # compute capabilities of GPUs on which `tensor_cores` was seen to be faster
LARGEST = 2**31 - 1024  # numbers of a matrix that the kernel's 32-bit offsets reach
MANY = 256  # rows from which a product on a GPU takes longer than Python takes to launch it


class FastLinear(TorchFunctionMode):
    """While open, linear layers with frozen float32 weights are computed by `editscale::linear`, forward and backward.

    Args:
        least: rows of a layer's input, at least; layers of fewer are left to the context around this one.
    """

    def __init__(self, least=1):
        super().__init__()
        self.least = least

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is takes_blocks:
            (x,) = args
            return x.is_cuda and x.numel() >= self.least * x.shape[-1] or func(*args)
        if not kwargs and func is torch.nn.functional.linear:
            x, weight, bias = (*args, None)[:3]
        elif not kwargs and func is torch.addmm:  # transformers' Conv1D, which stores weights transposed
            x, weight, bias = args[1], args[2].t(), args[0]
        else:
            return func(*args, **(kwargs or {}))
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad and bias.ndim == 1)
        if not (frozen and x.dtype == weight.dtype == torch.float32 and weight.ndim == 2):
            return func(*args)
        n_columns, n_inner = weight.shape
        n_rows = x.numel() // n_inner
        if n_rows < self.least or max(n_rows * n_inner, n_rows * n_columns, weight.numel()) > LARGEST:
            return func(*args)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Linear.apply(x, weight, bias)
        return ops.editscale.linear(x, weight, bias)


def takes_blocks(hidden):
    """Whether a `FastLinear` is open that leaves blocks of layers to `blocks.run`: on a GPU, where it takes layers."""
    return handle_torch_function(takes_blocks, (hidden,), hidden) if has_torch_function((hidden,)) else False


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return ops.editscale.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return ops.editscale.linear(gradient, weight.t(), None), None, None


def _on_cpu(x, weight, bias):
    return ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _on_gpu(x, weight, bias):
    from editscale.kernels import tensor_cores

    if torch.backends.cuda.matmul.allow_tf32 and x.numel() > tensor_cores.FEW * x.shape[-1]:
        # Asked for the sum at once, cuBLAS takes a kernel that leaves most of the GPU idle where rows are few.
        product = x @ weight.t()
        return product if bias is None else product.add_(bias)
    return tensor_cores.linear(x, weight, bias)


def _products(*given):
    from editscale.kernels import tensor_cores

    return tensor_cores.products(*given)


def _products_back(*given):
    from editscale.kernels import tensor_cores

    return tensor_cores.products_back(*given)


def _attention(*given):
    from editscale.kernels import attention

    return attention.attention(*given)


def _attention_back(*given):
    from editscale.kernels import attention

    return attention.attention_back(*given)


# Operators, so that FlopCounterMode sees them: x (…, inner) @ weight (columns, inner)ᵀ + bias, and those of blocks.
_LIBRARY = torch.library.Library("editscale", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("linear", _on_cpu, "CPU")
_LIBRARY.impl("linear", _on_gpu, "CUDA")
_LIBRARY.define("products(Tensor x, Tensor[] weights) -> Tensor")
_LIBRARY.impl("products", _products, "CUDA")
_LIBRARY.define("products_back(Tensor gradient, Tensor[] weights) -> Tensor")
_LIBRARY.impl("products_back", _products_back, "CUDA")
_SEEN = "Tensor states, Tensor[] earlier, Tensor mask, Tensor[] tiles, int n_heads, int n_shared, float scale"
_LIBRARY.define(f"attention({_SEEN}) -> (Tensor, Tensor)")
_LIBRARY.impl("attention", _attention, "CUDA")
_LIBRARY.define(f"attention_back(Tensor gradient, {_SEEN}, Tensor out, Tensor logs) -> Tensor")
_LIBRARY.impl("attention_back", _attention_back, "CUDA")


def _operations(x_shape, weight_shape, *_, **__):
    return 2 * math.prod(x_shape) * weight_shape[0]


def _operations_of_all(x_shape, weight_shapes, **__):
    return sum(2 * x_shape[1] * math.prod(shape) for shape in weight_shapes)


def _operations_of_attention(states_shape, _, mask_shape, __, n_heads, n_shared, *___, **____):
    d_head = states_shape[1] // (n_heads + 2 * n_heads // n_shared)
    return 4 * math.prod(mask_shape) * n_heads * d_head


def _operations_of_attention_back(_, *given, **__):
    return 2 * _operations_of_attention(*given)


OPERATIONS = {  # for FlopCounterMode's custom_mapping
    ops.editscale.linear: _operations,
    ops.editscale.products: _operations_of_all,
    ops.editscale.products_back: _operations_of_all,
    ops.editscale.attention: _operations_of_attention,
    ops.editscale.attention_back: _operations_of_attention_back,
}


def fast(device):
    """A context for forwards of models on a device: `FastLinear`, where that is faster, or one that does nothing."""
    if device.type == "cpu" and ONEDNN_PAYS:
        return FastLinear()
    if _on_tensor_cores(device) and not torch.backends.cuda.matmul.allow_tf32:
        return FastLinear(least=MANY)
    return nullcontext()


def recorded(device):
    """The same around what is recorded as a CUDA graph, where launching takes no time."""
    return FastLinear() if _on_tensor_cores(device) else nullcontext()


def _on_tensor_cores(device):
    return device.type == "cuda" and HAS_TRITON and torch.cuda.get_device_capability(device) in MEASURED
