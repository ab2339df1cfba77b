"""Run scale smoke on a cluster of one node, on this machine, and compare it with a local run: `make slurmtest`.

A Slurm of Debian's packages (munged, slurmctld, slurmd) is started on 127.0.0.1, with its configuration, key, state and
logs in a temporary folder, and is stopped by process id at the end, also after an error or Ctrl-C. It has no
accounting, like many small clusters. Nothing is installed and nothing outside the folder is written. The study runs in
a copy of this checkout, once through params/slurm and once without it. Printed are how many Slurm jobs that took, and
what `editscale compare` says. Exit status: 0 if both runs found the same, 1 if not, 2 where a program is missing.
"""

import argparse
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}  # and packages
PLUGIN = "snakemake_executor_plugin_slurm"
LEFT_OUT = {".git", ".venv", ".snakemake", "runs", "data"}  # of the checkout's own folders
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONFIG = """\
ClusterName=slurmtest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge={min_job_age}
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=32000
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """What this test needs and does not find, with the command that installs it; empty if it can start."""
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)]
    lines = [f"apt-get install {' '.join(packages)}"] if packages else []
    if not find_spec(PLUGIN):
        lines.append(f"{sys.executable} -m pip install -c .ci/constraints.txt {PLUGIN.replace('_', '-')}")
    return lines


@contextmanager
def cluster(folder, *, min_job_age=300):
    """A Slurm of one node while open; yields the environment in which its commands find it."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    config = folder / "slurm.conf"
    places = {"host": host, "folder": folder, "user": getpass.getuser(), "ports": free_ports(2)}
    config.write_text(CONFIG.format(**places, min_job_age=min_job_age, cpus=max(8, os.cpu_count())))
    srun = folder / "bin/srun"  # within a job the plugin takes SLURM_CONF away from it
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"PATH": f"{srun.parent}:{PATH}", "SLURM_CONF": str(config)}
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")]
    commands = [
        ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-L", f"{folder}/slurmctld.log"],
        ["slurmd", "-D", "-N", host, "-L", f"{folder}/slurmd.log"],
    ]
    started = []
    try:
        for command in commands:  # in sessions of their own: Ctrl-C is for the study, they are stopped after it
            with open(folder / f"{command[0]}.out", "wb") as output:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
                )
            wait_for(lambda name=command[0]: name != "munged" or (folder / "munge.socket").exists(), started, folder)
        wait_for(lambda: said(["sinfo", "-h", "-o", "%t"], environment) == "idle", started, folder)
        yield environment
    finally:
        if len(started) == len(commands):
            said(["scancel", "--quiet", f"--user={getpass.getuser()}"], environment)
            deadline = time.time() + 30
            while said(["squeue", "-h"], environment) and time.time() < deadline:
                time.sleep(0.5)
        for process in reversed(started):
            stop(process)


def wait_for(condition, processes, folder, seconds=60):
    """Wait until something holds. RuntimeError, with the ends of the logs, where a process ends or time is up."""
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline or any(process.poll() is not None for process in processes):
            logs = [path for path in sorted(folder.glob("*.*")) if path.suffix in (".log", ".out")]
            ends = [f"{path.name}: {line}" for path in logs for line in path.read_text().splitlines()[-5:]]
            raise RuntimeError("Slurm did not start:\n" + "\n".join(ends))
        time.sleep(0.2)


def said(command, environment):
    """What a Slurm command printed; nothing if it failed or took longer than a minute."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def stop(process):
    """End a process that was started here: by a request, after ten seconds by force."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(n):
    """Ports of 127.0.0.1 that nothing listens on."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


def study(checkout, environment, *arguments):
    """Run scale smoke in a copy of the checkout; its output goes to the terminal and comes back.

    RuntimeError if it failed."""
    command = [sys.executable, "-m", "snakemake", "-s", "notebooks/Snakefile", "--config", "scale=smoke", *arguments]
    environment = environment | {"PYTHONPATH": str(checkout)}
    lines = []
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        except BaseException:  # it would wait for its jobs, which `cluster` cancels
            stop(process)
            raise
    if process.returncode:
        raise RuntimeError(f"the study failed with status {process.returncode}: {' '.join(arguments)}")
    return "".join(lines)


def main(arguments=None):
    """Run the test and print what came out; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=Path, help="a finished runs/smoke of the same code, instead of a local run")
    chosen = parser.parse_args(arguments)
    if lines := missing():
        print("make slurmtest needs programs that are not here. On Debian or Ubuntu:", *lines, sep="\n  ")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    temporary, keep = Path(tempfile.mkdtemp(prefix="slurmtest-")), False
    try:
        return compared(temporary, chosen.local)
    except RuntimeError as error:
        keep = True
        print(f"{error}\nlogs are kept in {temporary}")
        return 1
    except KeyboardInterrupt:
        print("stopped, and Slurm with it")
        return 130
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)


def compared(folder, local=None):
    """Run the study both ways in a folder, print how many jobs that took and what differs; the status of `compare`."""
    checkout, began = folder / "checkout", time.time()
    shutil.copytree(ROOT, checkout, ignore=lambda where, names: LEFT_OUT & {*names} if Path(where) == ROOT else ())
    with cluster(folder) as environment:
        printed = study(checkout, environment, "--profile", "params/slurm", "--jobs", str(os.cpu_count()))
    minutes, through_slurm = (time.time() - began) / 60, checkout / "runs/slurm"
    (checkout / "runs/smoke").rename(through_slurm)
    if local is None:
        study(checkout, os.environ, "--cores", "all")
        local = checkout / "runs/smoke"
    n_jobs = len(re.findall(r"has been submitted with SLURM jobid", printed))
    n_notebooks = len(list((through_slurm / "notebooks").rglob("*.ipynb")))
    command = [sys.executable, "-m", "editscale", "compare", str(through_slurm), str(local)]
    status = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
    print(f"\n{n_notebooks} notebooks in {n_jobs} Slurm jobs, {minutes:.1f} minutes; the local run ", end="")
    print("found the same" if status == 0 else "differs, as listed above")
    return status


if __name__ == "__main__":
    sys.exit(main())
