"""What stops a command from outside says what is kept and how to continue.

Ctrl-C, a scheduler's SIGTERM, a closed terminal, a full disk, too little memory, a lost GPU: none is a result, so none
is recorded. The edits before it are in the ledger, and the same command continues after them.
"""

import errno
import re
import signal
import threading
import time
from contextlib import contextmanager

AGAIN = "run the same command again"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how users, schedulers and terminals stop a command
SEE_TO_IT = "see to that, then "
MEMORY = "give it more memory (smaller batch_tokens, fewer orders together, nothing else on the device), then "
NO_WORDS = "no memory left"  # an error without any: MemoryError
# As torch, C++, Python and the linker say it.
NO_MEMORY = ("can't allocate memory", "bad_alloc", "can't start new thread", "failed to map segment")
# Errors of the system that say nothing about what a command was given.
MACHINE = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN")
}


class Stopped(RuntimeError):
    """The machine stopped a sequence: memory, disk or device."""

    exit_status = 1  # of a command that ends so


class Interrupted(KeyboardInterrupt):
    """Somebody stopped a sequence: Ctrl-C, SIGTERM or SIGHUP."""

    def __init__(self, message, number=signal.SIGINT):
        super().__init__(message)
        self.exit_status = status(number)


class Signal(KeyboardInterrupt):
    """A signal that came. A plain KeyboardInterrupt, once it went through code that C runs, as imports do, lets Python
    end as by SIGINT whatever its exit status should be."""


def status(number):
    """Exit status of a command that a signal ended: what a shell, and a scheduler, gives one without a handler."""
    return 128 + number


def signal_of(text):
    """The signal that the text of a KeyboardInterrupt names; one that names none came from Ctrl-C."""
    named = re.search(r"\bSIG[A-Z]+\b", text)
    return signal.Signals[named[0]] if named else signal.SIGINT


def remedy(name, text):
    """What to do about an error of the machine, by the name of its type and its text; None for any other error."""
    if "MemoryError" in name or any(words in text for words in NO_MEMORY):
        return MEMORY
    number = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", text)  # as Python and as Rust say it
    if name == "AcceleratorError" or (number and int(number[1] or number[2]) in MACHINE):
        return SEE_TO_IT
    return None


def how_to_go_on(ledgers, n_edits, remedy=""):
    """What is kept of a run of `n_edits` edits in these ledgers, maybe none, and how to continue: the end of a message.

    The command line writes that command after it.
    """
    if not ledgers:
        return f"{remedy}{AGAIN}"
    kept = sorted({len(ledger) for ledger in ledgers})
    n_kept = f"{kept[0]} to {kept[-1]}" if len(kept) > 1 else f"{kept[0]}"
    folders = ", ".join(str(ledger.folder) for ledger in ledgers)
    return f"{n_kept} of {n_edits} edits are kept in {folders}; {remedy}{AGAIN}, and it continues after them"


@contextmanager
def says_how_to_go_on(ledgers, n_edits):
    """While edits go into ledgers: whatever stops them is raised as `Stopped` or `Interrupted`, with what is kept.

    SIGTERM and SIGHUP end the block like Ctrl-C (`signals_raise`); other errors pass as they are.
    """
    try:
        with signals_raise():
            yield
    except KeyboardInterrupt as error:
        reason, go_on = str(error) or "Ctrl-C", how_to_go_on(ledgers, n_edits)
        raise Interrupted(f"stopped by KeyboardInterrupt ({reason}): {go_on}", signal_of(reason)) from error
    except (OSError, RuntimeError, MemoryError) as error:
        name, text = type(error).__name__, str(error)
        what_to_do = remedy(name, text) or (SEE_TO_IT if isinstance(error, OSError) else None)
        if what_to_do is None:
            raise
        reason, go_on = text.strip().split("\n")[0] or NO_WORDS, how_to_go_on(ledgers, n_edits, what_to_do)
        raise Stopped(f"stopped by {name} ({reason}): {go_on}") from error


@contextmanager
def signals_raise():
    """While open, signals raise `Signal`: SIGTERM and SIGHUP with their name, Ctrl-C without.

    Those that follow within a second do not: schedulers and hasty fingers send several, and the first is on its way.
    What somebody else does about a signal stays, be it this function further out.
    """
    raised = [float("-inf")]

    def interrupt(number, _):
        if time.monotonic() - raised[0] > 1:
            raised[0] = time.monotonic()
            raise Signal(*([] if number == signal.SIGINT else [signal.Signals(number).name]))

    with handled(interrupt, (signal.SIG_DFL, signal.default_int_handler, None)):
        yield


@contextmanager
def handled(handler, replacing=None):
    """While open, `handler` is called for a signal of `STOPS`, in the place of any handler or of those in `replacing`.

    One that is ignored stays so (nohup). Nothing changes outside the main thread, where Python takes no handlers.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPS if in_main}
    try:
        for number, one in before.items():
            if one in replacing if replacing else one != signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, signal.SIG_DFL if one is None else one)
