"""How the execution of a notebook ended: what is said where it failed, or where something outside stopped it.

Ctrl-C, SIGTERM and SIGHUP interrupt the cell that runs, so that it can end; a second one kills the kernel, and so does
the first if the cell has not ended after PATIENCE, or none has begun. Nothing is lost by that: what is kept is in the
ledger (sequences/stopping.py).
"""

import os
import signal
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from editscale.sequences import stopping
from editscale.sequences.ledger import Ledger
from editscale.workflow.parameters import notebook_parameters

PATIENCE = 10  # seconds; schedulers wait for 30 before they kill all


@dataclass
class Ending:
    """What is noted while a notebook is executed."""

    error: BaseException | None = None  # what papermill raised
    raised: str = ""  # what a cell raised, by the kernel's reply: an interrupt can keep it out of the notebook
    signals: list = field(default_factory=list)  # those that came to this process
    kernel: object = None  # its manager, once there is one
    begun: bool = False  # whether the kernel was asked to execute a cell
    status: int | None = None  # of a kernel that died: negative for a signal, as subprocess has it
    stderr: str = ""  # the last line that the kernel's process wrote there


@contextmanager
def signals_end(ending):
    """While open, signals that stop a command stop the kernel, as said above. One that has ended takes no notice."""

    def send(number):
        if ending.kernel.has_kernel:
            with suppress(ProcessLookupError):
                os.killpg(ending.kernel.provisioner.pgid, number)

    def stop(number, _):
        ending.signals.append(signal.Signals(number))
        if ending.kernel is None:
            raise stopping.Signal(ending.signals[0].name)
        if len(ending.signals) > 1 or not ending.begun:
            send(signal.SIGKILL)
        else:
            send(signal.SIGINT)
            patience.start()

    patience = threading.Timer(PATIENCE, send, [signal.SIGKILL])
    patience.daemon = True
    with stopping.handled(stop):
        try:
            yield
        finally:
            patience.cancel()


def described(ending, name, where, failed, see, ledgers, n_edits):
    """What is said of an execution that did not reach its end, and the signal that stopped it or None.

    Args:
        name: of the notebook. where: it stopped, such as "in code cell 2 of 3".
        failed: what failed if no signal stopped it, in words.
        see: the executed notebook, "" if there is none.
        ledgers, n_edits: see `ledgers_of`.
    """
    number, reason, remedy = _stopped_by(ending)
    see = see and f"see {see}"
    if remedy is None:
        return "; ".join(filter(None, [f"{failed}: {reason}", see])), None
    go_on = stopping.how_to_go_on(ledgers, n_edits, remedy)
    if number:
        failed = f"{name} was stopped by {number.name} {where}"
    elif stopping.AGAIN not in reason:  # as it is in what `says_how_to_go_on` raises
        go_on = f"{reason}; {go_on}"
    else:
        go_on = reason
    return ": ".join([", ".join(filter(None, [failed, see])), go_on]), number


def _stopped_by(ending):
    """The signal that a user or a scheduler sent, or None; what was raised, in one line; what to do about it, None for
    an error of the notebook itself."""
    if ending.signals:
        return ending.signals[0], "", ""
    if ending.error is None:
        return None, "it left through sys.exit()", None
    name, _, text = (ending.raised or f"{type(ending.error).__name__}: {ending.error}").partition(": ")
    reason = ": ".join([name, *text.strip().splitlines()[:1]])
    if ending.status is not None:
        return _of_dead_kernel(ending.status, reason, ending.stderr)
    if name in ("Interrupted", "Signal", "KeyboardInterrupt"):  # the kernel alone was sent a signal
        return stopping.signal_of(text), "", ""
    return None, reason, stopping.SEE_TO_IT if name == "Stopped" else stopping.remedy(name, text)


def _of_dead_kernel(status, reason, wrote):
    number = signal.Signals(-status) if status < 0 else None
    if number in stopping.STOPS:
        return number, "", ""
    how, remedy = number.name if number else f"exit status {status}", stopping.remedy("", wrote) or stopping.SEE_TO_IT
    if number == signal.SIGKILL:
        how, remedy = f"{how}, probably out of memory", stopping.MEMORY
    return None, f"{reason} with {how}" + (f"; it last wrote: {wrote}" if wrote else ""), remedy


def ledgers_of(folder, notebook, parameters):
    """The ledger in the folder of a run, in a list of one or none, and how many edits the run shall have."""
    known = notebook_parameters(notebook)
    if "n_edits" not in known:
        return [], 0
    n_edits = parameters.get("n_edits", known["n_edits"].default)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the next run reports a torn edit
            return [Ledger(folder)], n_edits
    except (OSError, ValueError):  # there is none, or one that the next run reports as damaged
        return [], n_edits
