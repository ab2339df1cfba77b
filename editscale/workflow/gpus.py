"""Share the GPUs of one machine among jobs: each takes the one that fewest others use, by lock files.

Snakemake counts GPUs but does not say which (snakemake/snakemake#281). Where a scheduler shows a job one GPU only,
nothing is left to choose.
"""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

LEASES = Path("runs/gpus")  # lock files, from the repository's root
MOST = 64  # jobs on one GPU


def visible():
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them. Needs no torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return []


@contextmanager
def lease(device, folder=LEASES):
    """While open, CUDA_VISIBLE_DEVICES of this process holds one GPU, for device "cuda"; for others nothing changes.

    A lease ends with the process that took it, however that ends. Raises RuntimeError if all GPUs have MOST jobs.
    """
    from filelock import FileLock, Timeout

    names = visible() if device == "cuda" else []
    if len(names) < 2:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    for lock, name in ((FileLock(Path(folder) / f"{n}-{name}.lock"), name) for n in range(MOST) for name in names):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            yield
        finally:
            lock.release()
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
        return
    raise RuntimeError(f"each of the GPUs {', '.join(names)} has {MOST} jobs; start fewer at a time")
