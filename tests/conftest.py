"""What every test shares: one thread per process, no screen, no network, and a disk in memory where there is one.

Set before torch and matplotlib are imported, and inherited by kernels: two pytest workers on two cores must
not compete for threads, and a test that would reach for the hub fails at once instead of waiting for it.
"""

import os
import shutil

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
)
IN_MEMORY = "/dev/shm"  # noqa: S108
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", IN_MEMORY)

import copy  # noqa: E402
import gc  # noqa: E402

import pytest  # noqa: E402

# Files that take longest begin first, so that workers end together; pytest-xdist would begin with those of most tests.
LONGEST = "notebooks dag mitigations recorded first_edit golden bench sequence provenance steps stops decoding".split()


def pytest_configure(config):
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish():
    gc.freeze()  # what is imported by now stays, and is not looked through for garbage again and again


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


@pytest.fixture(scope="session")
def sequence_of(tmp_path_factory):
    """A function (method, folder, n) that puts the ledger of the first n facts of `test_sequence` into a folder.

    Returns the model right after its last edit, and the ledger. Each sequence is edited once, and copied.
    """
    from test_sequence import FACTS, edit_sequence

    from editscale.sequences.ledger import Ledger

    made = {}

    def put(method, folder, n=5):
        if (method, n) not in made:
            place = tmp_path_factory.mktemp("sequence")
            made[method, n] = place, edit_sequence(place, method, FACTS[:n])[0]
        place, lm = made[method, n]
        shutil.copytree(place, folder, dirs_exist_ok=True)
        return copy.deepcopy(lm), Ledger(folder)

    return put
