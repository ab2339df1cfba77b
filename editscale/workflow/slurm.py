"""What Slurm says of jobs: whether their ends can be seen at all, before any is submitted, and why one was ended.

Where the program `sacct` is there, snakemake-executor-plugin-slurm asks it how jobs ended. On a cluster without
accounting it answers nothing, and the plugin waits for ever without a word (its 2.8.0; snakemake/
snakemake-executor-plugin-slurm#336). `squeue` answers everywhere, for MinJobAge seconds after the end of a job.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

QUERY = "sacct -X --parsable2 --clusters all --noheader --format=JobIdRaw,State --name editscale".split()  # as it asks
LONGEST = 200  # seconds: the plugin looks at its jobs every 180 or more often, and a look takes some
LOGS = ".snakemake/slurm_logs"  # of jobs that failed; the plugin removes the others
REASONS = {  # in the log of a job ↦ what happened, and what helps
    r"DUE TO TIME LIMIT": "ran into its limit of time; give it more minutes, runtime",
    r"oom.kill|[Ee]xceeded .*memory limit|OUT_OF_MEMORY": "took more memory than it asked for; give it more, mem_mb",
    r"DUE TO (NODE FAILURE|PREEMPTION)": "lost its node to a failure or to other jobs",
    r"CANCEL\w+ AT": "was taken out of the queue (scancel)",
}


def status_command(asked: str, first_look: int) -> str:
    """ "sacct" or "squeue": the program that tells how jobs of this cluster ended.

    Args:
        asked: the one that the plugin would use.
        first_look: seconds before it looks the first time.

    Raises ValueError, with what to do, where neither would, where this machine submits no jobs, or where no job would
    find this Python.
    """
    if not shutil.which("sbatch"):
        raise ValueError("there is no sbatch here: start this on a login node of the cluster, or without a profile")
    if shlex.quote(sys.executable) != sys.executable:
        raise ValueError(
            f"jobs would not find {sys.executable}, since the Slurm plugin does not quote its path; move the checkout "
            "to a folder without spaces and other characters that a shell reads"
        )
    code, error = _answer(QUERY)
    return decide(asked, first_look, error if code else None, min_job_age(_answer(["scontrol", "show", "config"])[1]))


def decide(asked: str, first_look: int, no_accounting: str | None, remembered: int | None) -> str:
    """The decision of `status_command`: what sacct says where it fails, and the seconds that the queue remembers."""
    needed = max(LONGEST, 3 * first_look)  # below 3 first looks the plugin takes sacct, whatever it was told
    in_queue = remembered is not None and remembered >= needed
    if no_accounting is None and not (asked == "squeue" and in_queue):
        return "sacct"
    if in_queue:
        return "squeue"
    known = "unknown (scontrol show config)" if remembered is None else f"{remembered} s"
    raise ValueError(
        f"nothing here would tell how jobs ended, and Snakemake would wait for ever: sacct says '{no_accounting}', and "
        f"MinJobAge, the time that squeue remembers a job, is {known}; it takes {needed} s. Ask the cluster's "
        "administrators for accounting (slurmdbd) or a longer MinJobAge, or run the study without a profile within one "
        "job: srun make figures SCALE=…"
    )


def min_job_age(config: str) -> int | None:
    """MinJobAge in seconds, of what `scontrol show config` prints; None if that does not say."""
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", config, re.M)
    return int(found[1]) if found else None


def ended(logs: str | Path, since: float) -> list[str]:
    """Sentences that say why Slurm ended jobs, from the logs in a folder that were written to after `since` (seconds
    since 1970). Nothing of a job that failed by itself: its notebook says why."""
    sentences = []
    for log in sorted(Path(logs).rglob("*.log")):
        if log.stat().st_mtime >= since:
            text = log.read_text(errors="replace")
            reasons = (meaning for pattern, meaning in REASONS.items() if re.search(pattern, text))
            if reason := next(reasons, None):
                sentences.append(f"Slurm job {log.stem} ({log.parent.name}) {reason}. {log}")
    return sentences


def saying_why(log_error):
    """`GroupJob.log_error` of Snakemake, which leaves out why a group failed, such as what sbatch answered, with it."""

    def log(job, msg=None, **others):
        if msg:
            print(f"group {job.groupid}: {msg}", file=sys.stderr)
        log_error(job, msg, **others)

    return log


def _answer(command):
    """Exit status of a command, and what it printed: its output, or else the last line of its errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    if done.returncode == 0:
        return 0, done.stdout
    return done.returncode, "".join((done.stderr or done.stdout).strip().splitlines()[-1:])
