"""Run a notebook strictly: checked parameters before a kernel starts, success only when its results exist.

    python -m editscale run NOTEBOOK OUT.ipynb -f params/smoke/02a_sequential_editing.yaml -p order 1

papermill executes the notebook. It takes `sys.exit()` in a cell for success (nteract/papermill#330); here a
run has succeeded when its last cell left `done.json` (provenance.Record.finish) in the folder `out`, with files
that match it."""

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from editscale.files import sha256_file
from editscale.workflow import gpus
from editscale.workflow.parameters import read_notebook


class RunFailed(RuntimeError):
    """The notebook was executed, and it failed or did not leave the results that it declares."""

    exit_status = 1  # of a command that ends so


def repository_root(notebook: str | Path) -> Path:
    """The folder above `notebook` that holds pyproject.toml: where every path in a notebook begins."""
    for folder in Path(notebook).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError(f"no folder above {notebook} holds pyproject.toml; it is not in the repository")


def run_notebook(notebook: str | Path, executed: str | Path, parameters: dict, *, threads: int = 1) -> dict:
    """The run's `done.json`, after executing `notebook` with checked `parameters`
    (parameters.collect_parameters).

    The kernel is python3 of this interpreter, in the repository root, with `threads` threads for linear
    algebra: with one, results do not depend on the number of cores. The executed notebook is written to
    `executed` whether it fails or not. Raises RunFailed when a cell
    fails or exits, or when declared results are missing; ValueError or OSError for what can be seen before
    the kernel starts."""
    import papermill
    from traitlets.config import Config

    notebook, executed = Path(notebook).resolve(), Path(executed).resolve()
    root = repository_root(notebook)
    if executed == notebook or executed.suffix != ".ipynb":
        raise ValueError(f"the executed notebook must be another .ipynb file, not {executed}")
    done = root / parameters["out"] / "done.json"
    for folder in (executed.parent, done.parent):
        _check_writable(folder)
    _check_kernel()
    done.unlink(missing_ok=True)
    executed.unlink(missing_ok=True)

    failure = None
    # A kernel's sockets are files in a short folder of their own: kernels side by side in one working
    # directory would share them, and a home folder can be on a disk where they do not work.
    with (
        _kernel_environment(threads),
        gpus.lease(parameters.get("device"), root / gpus.LEASES),
        tempfile.TemporaryDirectory(prefix="editscale-") as sockets,
    ):
        transport = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        try:
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                parameters,
                kernel_name="python3",
                cwd=str(root),
                progress_bar={"desc": notebook.stem} if sys.stderr.isatty() else False,
                coalesce_streams=True,  # a progress bar is one output, not one per refresh
                start_timeout=300,  # a busy machine is slow, not broken
                iopub_timeout=120,
                config=Config(KernelManager=transport),
            )
        except Exception as error:  # a failed cell, a dead kernel, a kernel that did not start
            failure = error
    if not executed.is_file():
        raise RunFailed(f"{notebook.name} was not executed: {_one_line(failure)}") from failure
    cell = _stopped_at(read_notebook(executed), raised=failure is not None)
    if cell:
        reason = "it left through sys.exit()" if failure is None else _one_line(failure)
        raise RunFailed(f"{notebook.name} failed in {cell}: {reason}; see {executed}") from failure
    return _checked_results(done, root, notebook, executed)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror}") from error


def _check_kernel() -> None:
    """The kernel python3 must be this interpreter's: a user-wide one would run in another environment."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except NoSuchKernel as error:
        raise ValueError(f"no kernel python3 in {sys.prefix}; install ipykernel there") from error
    # A bare "python" is replaced by this interpreter when the kernel starts (jupyter_client).
    if program.is_absolute() and program.parent != Path(sys.executable).parent:
        raise ValueError(f"kernel python3 is {program}, not of {sys.executable}: remove that kernel")


@contextmanager
def _kernel_environment(threads: int):
    """What the kernel inherits: its threads and slow progress bars. The caller's environment is put back."""
    before = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TQDM_MININTERVAL"] = "10"
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stopped_at(notebook, raised: bool) -> str | None:
    """The code cell at which an executed notebook stopped, in words; None when it ran to its end.

    papermill notes in a cell's metadata that it was started and that it failed; a dead kernel leaves the
    former only. The cell that papermill adds for the given parameters is not counted."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    cells = [cell for cell in code if "injected-parameters" not in cell.metadata.get("tags", [])]
    failed = [cell for cell in cells if cell.metadata.papermill.get("exception")]
    started = [cell for cell in cells if cell.metadata.papermill.get("start_time")]
    if not failed and not raised and len(started) == len(cells):
        return None
    cell = (failed or started[-1:] or cells)[0]
    first_line = next((line for line in cell.source.splitlines() if line.split("#")[0].strip()), cell.source)
    return f"code cell {cells.index(cell) + 1} of {len(cells)} ({first_line.strip()[:60]})"


def _one_line(error: Exception) -> str:
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {text}".strip().splitlines()[0]


def _checked_results(done: Path, root: Path, notebook: Path, executed: Path) -> dict:
    if not done.is_file():
        raise RunFailed(f"{notebook.name} left no {done}: end it with record.finish(); see {executed}")
    try:
        record = json.loads(done.read_text(encoding="utf-8"))
        files = dict(record["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"{notebook.name} wrote {done} that lists no files; see {executed}") from error
    changed = [name for name in files if not _is_file(root / name, files[name])]
    if changed or not files:
        what = ", ".join(changed) or "no file"
        raise RunFailed(f"{notebook.name} declares {what} in {done} but did not leave it; see {executed}")
    return record


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
