"""Large matrices from a GPU to the CPU, by several threads.

The driver copies into memory that is not page-locked by one thread, which also waits for each new page: a gigabyte
takes longer than what was computed of it. Here it fills two small page-locked buffers, and several threads empty them.
The pages can be there before, made by threads while the GPU computes (`Room`).
"""

from concurrent.futures import ThreadPoolExecutor

CHUNK = 2**25  # bytes of a buffer
THREADS = 8  # they wait for memory, and take no core for long


class Room:
    """Memory of the CPU for some matrices of a GPU, all like one another, which threads begin to provide at once."""

    def __init__(self, like, n):
        self.pool = ThreadPoolExecutor(THREADS)
        on_gpu = like.device.type == "cuda"
        self.provided = [self.pool.submit(_zeros, like.shape, like.dtype) for _ in range(n if on_gpu else 0)]

    def to_cpu(self, matrix):
        """`matrix.cpu()`, of as many matrices as there is room for."""
        if matrix.device.type != "cuda":
            return matrix.cpu()
        return _by_chunks(matrix.contiguous(), self.provided.pop().result(), self.pool)


def _zeros(shape, dtype):
    """Zeros that are written, each page."""
    import torch

    return torch.empty(shape, dtype=dtype).zero_()


def _by_chunks(matrix, out, pool):
    import torch

    given, taken, length = matrix.view(-1), out.view(-1), CHUNK // matrix.itemsize
    buffers = [torch.empty(length, dtype=matrix.dtype, pin_memory=True) for _ in range(2)]
    filled = [torch.cuda.Event() for _ in buffers]
    starts = range(0, given.numel(), length)

    def fill(i):
        part = given[starts[i] : starts[i] + length]
        buffers[i % 2][: len(part)].copy_(part, non_blocking=True)
        filled[i % 2].record()

    def empty(i):
        part = taken[starts[i] : starts[i] + length]
        pieces = zip(part.chunk(THREADS), buffers[i % 2][: len(part)].chunk(THREADS), strict=True)
        list(pool.map(lambda piece: piece[0].copy_(piece[1]), pieces))

    with torch.cuda.device(matrix.device):
        for i in range(min(2, len(starts))):
            fill(i)
        for i in range(len(starts)):
            filled[i % 2].synchronize()
            empty(i)
            if i + 2 < len(starts):
                fill(i + 2)
    return out
