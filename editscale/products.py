"""Products of few rows with a weight, faster than the library's choice on a GPU.

Asked for `x W + b` at once, cuBLAS takes a kernel that leaves most of a GPU idle where x has few rows; asked for the
product alone, one that does not. Of very few rows in float32 even that one runs in too few thread blocks: there the sum
over the inner dimension is shared out over more of them. Graphs are recorded so (`graphs`).
"""

from torch import bmm, mm, ops
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 64  # rows up to which a product is shared out
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
    return bmm(a.unflatten(1, (n, -1)).transpose(0, 1), b.unflatten(0, (n, -1))).sum(dim=0)


class Separately(TorchDispatchMode):
    """While open, products of matrices are made before biases are added, and of very few rows in parts.

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
