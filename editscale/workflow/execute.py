"""Run a notebook strictly: checked parameters before a kernel starts, success only when its results exist.

    python -m editscale run NOTEBOOK OUT.ipynb -f params/smoke/02a_sequential_editing.yaml -p order 1

papermill executes the notebook. It takes `sys.exit()` in a cell for success (nteract/papermill#330); here a
run has succeeded when its last cell wrote `done.json` (provenance.Record.finish) into the folder `out`, with files
that match it. A run that fails before it writes a result leaves those of an earlier one as they were.
What stops a run from outside is in `endings`."""

import json
import logging
import os
import resource
import secrets
import socket
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from editscale.files import sha256_file, write_whole
from editscale.sequences import stopping
from editscale.workflow import endings, gpus
from editscale.workflow.parameters import read_notebook, seal

# A kernel looks after the process that started it, unless that was gone before the kernel first looked.
ORPHAN = "if __import__('os').getppid() != {}: __import__('os')._exit(1)"
OPEN_FILES = 128  # a notebook and its kernel have up to 96 open each


class RunFailed(RuntimeError):
    """The notebook was executed, and it failed or did not leave the results that it declares."""

    def __init__(self, message, number=None):
        super().__init__(message)
        self.exit_status = stopping.status(number) if number else 1  # of a command that ends so


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
    _check_open_files()
    _check_kernel()
    part = executed.with_name(f".{secrets.token_hex(4)}.part.ipynb")
    place, before, ending = _place_of_failed(executed), _version(done), endings.Ending()
    with endings.signals_end(ending):
        try:
            with _kernel_environment(threads), gpus.lease(parameters.get("device"), root / gpus.LEASES):
                _execute(content, notebook, part, parameters, root, ending)
            if failed := _where_it_failed(part, notebook.name, executed, ending):
                see, known = place if part.is_file() else "", endings.ledgers_of(done.parent, notebook, parameters)
                raise RunFailed(*endings.described(ending, notebook.name, *failed, see, *known)) from ending.error
            record = _checked_results(done, before, root, notebook, place)
            place = executed
        finally:
            if part.is_file():
                _name_executed(part, notebook, place)
    if (failed := _failed(executed)).is_file():
        failed.unlink()
    return record


def _execute(content, notebook, part, parameters, root, ending):
    """Execute a notebook into the file `part`, and note how that ended."""
    import nbformat
    import papermill
    from jupyter_client import AsyncKernelManager
    from traitlets.config import Config

    def begin(**_):  # a kernel between two cells takes no notice of a signal
        ending.begun = True
        if ending.signals:
            raise RuntimeError("stopped between two cells")

    def note(execute_reply, **_):
        ending.raised = "{ename}: {evalue}".format(**execute_reply["content"])

    with _sockets() as folder, _quiet(papermill.log.logger):
        given, stderr = Path(folder, notebook.name), Path(folder, "stderr")
        given.write_text(nbformat.writes(content), encoding="utf-8")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # torch makes it on import, and leaves it

        class Kernel(AsyncKernelManager):
            async def start_kernel(self, **options):
                ending.kernel = self
                with open(stderr, "wb") as file:
                    await super().start_kernel(stderr=file, **options)

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
                kernel_manager_class=Kernel,
                extra_arguments=[f"--IPKernelApp.exec_lines={ORPHAN.format(os.getpid())}"],
                on_cell_start=begin,
                on_cell_error=note,
            )
        except (Exception, KeyboardInterrupt) as error:  # a failed cell, a dead kernel, one that did not start
            ending.error = error
        if ending.kernel and ending.kernel.has_kernel:  # one that was shut down has no process any more
            ending.status = ending.kernel.provisioner.process.poll()
            ending.stderr = (stderr.read_text(errors="replace").strip().splitlines() or [""])[-1][:200]


def _where_it_failed(part, name, executed, ending):
    """Where an execution stopped, in words, and what failed by that; None if it ran to its end. A torn `part` goes."""
    try:
        cell = _stopped_at(read_notebook(part), raised=ending.error is not None)
    except OSError:
        return "before its first cell", f"{name} was not executed"
    except ValueError as error:  # cut off
        part.unlink()
        ending.error = ending.error or error
        return "before all of it was written", f"{executed} could not be written"
    return cell and (cell, f"{name} failed {cell}")


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


def _check_open_files() -> None:
    """A kernel's sockets end a process that has too few files without a word."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < OPEN_FILES:
        raise OSError(f"this process may open {allowed} files, and needs {OPEN_FILES}: raise that (ulimit -n 1024)")


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
    """Where an executed notebook stopped, such as "in code cell 2 of 3 (…)"; None when it ran to its end.

    papermill notes in a cell's metadata that it was started and that it failed; a dead kernel leaves the
    former only. The cell that papermill adds for the given parameters is not counted."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    cells = [cell for cell in code if "injected-parameters" not in cell.metadata.get("tags", [])]
    failed = [cell for cell in cells if cell.metadata.get("papermill", {}).get("exception")]
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    if not failed and not raised and len(started) == len(cells):
        return None
    if not failed and not started:
        return "before its first cell"
    cell = (failed or started[-1:])[0]
    first_line = next((line for line in cell.source.splitlines() if line.split("#")[0].strip()), cell.source)
    return f"in code cell {cells.index(cell) + 1} of {len(cells)} ({first_line.strip()[:60]})"


@contextmanager
def _quiet(logger):
    """While open, what a logger without handlers says is not printed: here it ends in the one message."""
    nothing = logging.NullHandler()
    logger.addHandler(nothing)
    try:
        yield
    finally:
        logger.removeHandler(nothing)


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
