"""Run a notebook strictly: checked parameters before a kernel starts, success only when its results exist.

    python -m editscale run NOTEBOOK OUT.ipynb -f params/smoke/02a_sequential_editing.yaml -p order 1

papermill executes the notebook. It takes `sys.exit()` in a cell for success (nteract/papermill#330); here a
run has succeeded when its last cell wrote `done.json` (provenance.Record.finish) into the folder `out`, with files
that match it. A run that fails before it writes a result leaves those of an earlier one as they were."""

import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from editscale.files import sha256_file, write_whole
from editscale.workflow import gpus
from editscale.workflow.parameters import read_notebook, seal


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
    algebra: with one, results do not depend on the number of cores. While it runs, the executed notebook is a
    hidden file beside `executed`, and takes that name at its end. One that fails takes it too, unless a notebook
    that ran to its end has it: then it becomes <name>.failed.ipynb.

    Raises RunFailed when a cell fails or exits, or when declared results are missing; ValueError or OSError for what
    can be seen before the kernel starts."""
    notebook, executed = Path(notebook).resolve(), Path(executed).resolve()
    root, content = repository_root(notebook), read_notebook(notebook)
    if executed == notebook or executed.suffix != ".ipynb":
        raise ValueError(f"the executed notebook must be another .ipynb file, not {executed}")
    done = root / parameters["out"] / "done.json"
    for folder in (executed.parent, done.parent):
        _check_writable(folder)
    _check_kernel()
    part = executed.with_name(f".{secrets.token_hex(4)}.part.ipynb")
    place, before = _place_of_failed(executed), _version(done)
    try:
        with _kernel_environment(threads), gpus.lease(parameters.get("device"), root / gpus.LEASES):
            failure, signals = _execute(content, notebook, part, parameters, root)
        if not part.is_file():
            raise RunFailed(f"{notebook.name} was not executed: {_one_line(failure)}") from failure
        try:
            made = read_notebook(part)
        except ValueError as error:  # cut off
            part.unlink()
            raise RunFailed(f"{executed} could not be written: {_one_line(failure or error)}") from failure
        cell = _stopped_at(made, raised=failure is not None)
        if cell:
            what = f"was stopped by {signals[0]}" if signals else "failed"
            reason = "it left through sys.exit()" if failure is None else _one_line(failure)
            if signals and not getattr(failure, "evalue", ""):
                reason = "run the same command again"
            raise RunFailed(f"{notebook.name} {what} in {cell}: {reason}; see {place}") from failure
        record = _checked_results(done, before, root, notebook, place)
        place = executed
    finally:
        if part.is_file():
            _name_executed(part, notebook, place)
    if (failed := _failed(executed)).is_file():
        failed.unlink()
    return record


def _execute(content, notebook, part, parameters, root):
    """Execute a notebook into the file `part`: the error that stopped it, or None, and the signals that came."""
    import nbformat
    import papermill
    from traitlets.config import Config

    with _sockets() as folder, _signals() as (signals, options):
        given = Path(folder, notebook.name)
        given.write_text(nbformat.writes(content), encoding="utf-8")
        try:
            papermill.execute_notebook(
                _as_it_is(given),
                _as_it_is(part),
                parameters,
                kernel_name="python3",
                language="python",  # whatever the notebook says, or does not say, of its kernel
                cwd=str(root),
                progress_bar={"desc": notebook.stem} if sys.stderr.isatty() else False,
                coalesce_streams=True,  # a progress bar is one output, not one per refresh
                start_timeout=300,  # a busy machine is slow, not broken
                iopub_timeout=120,
                config=Config(KernelManager={"transport": "ipc", "connection_file": f"{folder}/kernel.json"}),
                **options,
            )
        except Exception as error:  # a failed cell, a dead kernel, a kernel that did not start
            return error, signals
        except KeyboardInterrupt as error:
            if not signals:
                raise
            return error, signals
    return None, signals


@contextmanager
def _signals():
    """While open, Ctrl-C and SIGTERM interrupt the kernel, so that the cell it is in can say what is kept.

    Yields the names of the signals that came, and options for papermill. A second signal is not waited for."""
    from jupyter_client import AsyncKernelManager

    signals, kernels = [], []

    class Kernel(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(**options)
            kernels.append(self)

    def stop(number, _):
        signals.append(signal.Signals(number).name)
        if len(signals) > 1 or not (kernels and kernels[-1].has_kernel):
            raise KeyboardInterrupt
        os.kill(kernels[-1].provisioner.pid, signal.SIGINT)

    def check(**_):  # a kernel between two cells takes no notice of a signal
        if signals:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in (number for number, handler in before.items() if handler != signal.SIG_IGN):
            signal.signal(number, stop)
        yield signals, {"kernel_manager_class": Kernel, "on_cell_start": check}
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _as_it_is(path):
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _sockets():
    """A new folder for a kernel's sockets, which are files: kernels side by side in one folder would share them.

    A socket's path holds about 100 bytes, and some disks take none: it is in the first of the system's temporary
    folders where a socket can be made. OSError names TMPDIR where none is."""
    tried = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])  # noqa: S108
    for place in tried:
        try:
            folder = tempfile.TemporaryDirectory(prefix="editscale-", dir=place)
        except OSError:
            continue
        with folder as name:
            try:
                with socket.socket(socket.AF_UNIX) as one:
                    one.bind(f"{name}/kernel-ipc-00000")
            except OSError:
                continue
            yield name
            return
    raise OSError(
        f"no kernel can start: none of {', '.join(tried)} can hold its sockets; set TMPDIR to a local folder "
        "that can be written to and has a short name"
    )


def _failed(executed):
    return executed.with_suffix(".failed.ipynb")


def _place_of_failed(executed):
    """Where an executed notebook goes if it fails: not to where one is that ran to its end."""
    failed = _failed(executed)
    _version(failed)  # raises OSError for a name that is too long
    try:
        return failed if _stopped_at(read_notebook(executed), raised=False) is None else executed
    except (FileNotFoundError, ValueError):
        return executed


def _name_executed(part, notebook, place):
    """Give an executed notebook its name, which it holds itself too."""
    import nbformat

    content = read_notebook(part)
    content.metadata.papermill.update(input_path=str(notebook), output_path=str(place))
    try:
        write_whole(place, nbformat.writes(seal(content)).encode())
        part.unlink()
    except OSError:  # a full disk holds one of the two
        os.replace(part, place)


def _version(path):
    """What differs between two versions of a file that are written whole; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns


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
    failed = [cell for cell in cells if cell.metadata.get("papermill", {}).get("exception")]
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if not failed and not raised and len(started) == len(cells):
        return None
    cell = (failed or started[-1:] or cells)[0]
    first_line = next((line for line in cell.source.splitlines() if line.split("#")[0].strip()), cell.source)
    return f"code cell {cells.index(cell) + 1} of {len(cells)} ({first_line.strip()[:60]})"


def _one_line(error: Exception) -> str:
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {text}".strip().splitlines()[0]


def _checked_results(done: Path, before, root: Path, notebook: Path, executed: Path) -> dict:
    if _version(done) in (None, before):
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
