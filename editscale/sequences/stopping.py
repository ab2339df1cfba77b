"""What stops a sequence of edits from outside says what is kept and how to continue.

Ctrl-C, a scheduler's SIGTERM, a full disk, too little memory, a lost GPU: none is a result, so none is recorded.
The edits before it are in the ledger, and the same command continues after them.
"""

import signal
import threading
from contextlib import contextmanager

from editscale.models.hidden_states import is_out_of_memory


class Stopped(RuntimeError):
    """The machine stopped a sequence: memory, disk or device."""

    exit_status = 1  # of a command that ends so


class Interrupted(KeyboardInterrupt):
    """Somebody stopped a sequence: Ctrl-C or SIGTERM."""

    exit_status = 1  # of a command that ends so


@contextmanager
def says_how_to_go_on(ledgers, n_edits):
    """While edits go into ledgers: whatever stops them is raised as `Stopped` or `Interrupted`, with what is kept.

    SIGTERM ends the block like Ctrl-C, where Python may handle signals (in the main thread); other errors pass as they
    are.
    """
    import torch

    try:
        with _sigterm_raises():
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(_message(error, "", ledgers, n_edits)) from error
    except (OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            remedy = (
                "give it more memory (smaller batch_tokens, fewer orders together, nothing else on the device), then "
            )
        elif isinstance(error, (OSError, torch.AcceleratorError)):
            remedy = "see to that, then "
        else:
            raise
        raise Stopped(_message(error, remedy, ledgers, n_edits)) from error


def _message(error, remedy, ledgers, n_edits):
    reason = str(error).strip().split("\n")[0] or "Ctrl-C"
    kept = sorted({len(ledger) for ledger in ledgers})
    n_kept = f"{kept[0]} to {kept[-1]}" if len(kept) > 1 else f"{kept[0]}"
    folders = ", ".join(str(ledger.folder) for ledger in ledgers)
    return (
        f"stopped by {type(error).__name__} ({reason}): {n_kept} of {n_edits} edits are kept in {folders}; "
        f"{remedy}run the same command again, and it continues after them"
    )


@contextmanager
def _sigterm_raises():
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_):
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
