"""Threads on the CPU: one, as `editscale run` gives a notebook, unless OMP_NUM_THREADS says how many.

With one, results do not depend on the number of cores. More of them wait for each other by keeping their cores busy:
where other work needs these, an edit takes many times as long.
"""

import os
from functools import cache


@cache
def set_threads():
    """Set torch's threads, for the whole process, when the first model is loaded onto the CPU.

    After that `torch.set_num_threads` has the last word. What it set before cannot be told from torch's default.
    """
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
