"""JupyterLab as `make lab` starts it: the whole repository, opened at the notebooks, with kernels in its root."""

from pathlib import Path

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager


class Kernels(AsyncMappingKernelManager):
    """Kernels that start in the repository's root, where every path in a notebook begins, whichever folder it is in."""

    def cwd_for_path(self, path, **options):
        return self.root_dir


c = get_config()  # noqa: F821
c.ServerApp.root_dir = str(Path(__file__).resolve().parents[1])
c.ServerApp.kernel_manager_class = Kernels
c.LabApp.default_url = "/lab/tree/notebooks"
