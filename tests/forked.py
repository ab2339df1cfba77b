"""Processes that begin with packages imported, forked from one that has imported them and nothing of editscale.

A kernel, or Snakemake, spends most of its start on imports; the tests start dozens of both.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = """snakemake.cli smart_open snakemake.report nbformat ipykernel.kernelapp torch
              transformers.models.gpt2.modeling_gpt2 pandas seaborn scipy.special
              transformers.integrations.mistral pyarrow.dataset pyarrow.parquet pandas.io.formats.style
              matplotlib_inline.backend_inline matplotlib.backends.backend_pdf matplotlib.backends.backend_svg
              PIL.JpegImagePlugin""".split()
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PACKAGES)


class Forked:
    """A Python program in a forked process, with what is used of a `subprocess.Popen`.

    Args:
        main: module name and function that is called without arguments, such as "snakemake.cli:main".
        arguments: what the program finds in sys.argv after its name.
        env: its environment, or None for this process's. cwd: its working directory.
        stdout, stderr: paths of files to write to, or None for this process's.
    """

    stdin = stdout = stderr = None

    def __init__(self, main, arguments, *, cwd, env=None, stdout=None, stderr=None):
        begun, theirs = CONTEXT.Pipe(duplex=False)
        given = main, arguments, os.path.abspath(cwd), dict(env or os.environ), stdout, stderr, os.getpid(), theirs
        self.process = CONTEXT.Process(target=_run, args=given)
        self.process.start()
        theirs.close()
        begun.recv()  # now it has a process group of its own, which may be killed
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(main, arguments, cwd, env, stdout, stderr, parent, begun):
    gc.freeze()  # what was imported before is not looked through for garbage
    sys.modules["debugpy"] = None  # a kernel has no use for a debugger here, and takes long to import it
    os.setsid()
    begun.send(True)
    for fd, path in ((1, stdout), (2, stderr)):
        if path:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.getppid = lambda: parent  # a kernel looks whether what started it is there
    module, function = main.split(":")
    sys.argv = [module, *arguments]
    sys.path[:] = ["", *(path for path in sys.path if not Path(path).is_relative_to(Path(__file__).parent))]
    getattr(sys.modules[module], function)()


def script():
    """Run the code that is the first argument, as `python -c` does."""
    exec(sys.argv[1], {"__name__": "__main__"})  # noqa: S102


def run(main, *arguments, cwd):
    """A program run to its end, as `subprocess.run` with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        code = Forked(main, arguments, cwd=cwd, stdout=out, stderr=err).wait()
        return subprocess.CompletedProcess(arguments, code, Path(out).read_text(), Path(err).read_text())


def launch_kernel(command, *, env, stderr, cwd=".", **_):
    """In place of jupyter_client's function of this name, for the kernel python3: `… -m ipykernel_launcher …`."""
    arguments = command[command.index("ipykernel_launcher") + 1 :]
    return Forked(
        "ipykernel.kernelapp:launch_new_instance", arguments, env=env, cwd=cwd, stdout=os.devnull, stderr=stderr.name
    )
