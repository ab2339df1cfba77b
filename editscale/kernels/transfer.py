"""Large matrices from a GPU to the CPU, by several threads.

The driver copies into memory that is not page-locked by one thread, which also waits for each new page: a gigabyte
takes longer than what was computed of it. Here it fills two small page-locked buffers, and several threads empty them.
"""

from concurrent.futures import ThreadPoolExecutor

CHUNK = 2**25  # bytes of a buffer
THREADS = 8  # they wait for memory, and take no core for long


def to_cpu(matrix):
    """`matrix.cpu()`."""
    return matrix.cpu() if matrix.device.type != "cuda" else _by_chunks(matrix.contiguous())


def _by_chunks(matrix):
    import torch

    out = torch.empty(matrix.shape, dtype=matrix.dtype)
    given, taken, length = matrix.view(-1), out.view(-1), CHUNK // matrix.itemsize
    buffers = [torch.empty(length, dtype=matrix.dtype, pin_memory=True) for _ in range(2)]
    filled = [torch.cuda.Event() for _ in buffers]
    starts = range(0, given.numel(), length)

    def fill(i):
        part = given[starts[i] : starts[i] + length]
        buffers[i % 2][: len(part)].copy_(part, non_blocking=True)
        filled[i % 2].record()

    def empty(i, pool):
        part = taken[starts[i] : starts[i] + length]
        pieces = zip(part.chunk(THREADS), buffers[i % 2][: len(part)].chunk(THREADS), strict=True)
        list(pool.map(lambda piece: piece[0].copy_(piece[1]), pieces))

    with torch.cuda.device(matrix.device), ThreadPoolExecutor(THREADS) as pool:
        for i in range(min(2, len(starts))):
            fill(i)
        for i in range(len(starts)):
            filled[i % 2].synchronize()
            empty(i, pool)
            if i + 2 < len(starts):
                fill(i + 2)
    return out
