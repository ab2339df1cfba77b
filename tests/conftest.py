"""What every test shares: one thread per process, no screen, no network.

Set before torch and matplotlib are imported, and inherited by kernels: two pytest workers on two cores must
not compete for threads, and a test that would reach for the hub fails at once instead of waiting for it.
"""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
)

import pytest  # noqa: E402


@pytest.fixture
def ax():
    """Axes of a figure in the style of all figures."""
    import matplotlib.pyplot as plt

    with plt.style.context("editscale.paper"):
        fig, ax = plt.subplots()
        yield ax
        plt.close(fig)


@pytest.fixture(scope="module")
def forked_kernels():
    """While in use, kernels are forked from a process that has imported what they import (`forked`)."""
    import forked
    from jupyter_client.provisioning import local_provisioner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_provisioner, "launch_kernel", forked.launch_kernel)
        yield
