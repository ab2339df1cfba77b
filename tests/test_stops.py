"""Every way of stopping a run ends with one message: why, how many edits are kept, and the command that goes on."""

import signal

import pytest
from tools import stops

from editscale.sequences import stopping

SMALL = {str(stop): stop for stop in stops.STOPS if stop.command == "small"}
# All of them, and those of real notebooks, are stopped by tests/tools/stops.py.
QUICK = [
    "small: SIGHUP, group, edits 3",
    "small: SIGTERM, kernel, edits 3",
    "small: SIGINT SIGINT, process, edits 3",
    "small: SIGINT SIGINT, kernel, edits 3",
    "small: SIGKILL, kernel, edits 3",
    "small: SIGTERM, process, kernel 0",
    "small: file size 7000, process, edits 3",
    "small: python exits, process, edits 3",
    "small: open files 40, process, edits 3",
]


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    return stops.checkout(tmp_path_factory.mktemp("stops") / "checkout")


@pytest.mark.parametrize("name", QUICK)
def test_a_stopped_run_says_why_what_is_kept_and_how_to_go_on(name, top, tmp_path):
    found = stops.outcome(SMALL[name], top, tmp_path / "run")
    assert stops.right(SMALL[name], found), found


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("_ArrayMemoryError", "Unable to allocate 1. GiB", stopping.MEMORY),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", stopping.MEMORY),
        ("", "  what():  std::bad_alloc", stopping.MEMORY),
        ("ImportError", "\nlibtorch.so: failed to map segment from shared object", stopping.MEMORY),
        ("OSError", "[Errno 24] Too many open files: 'x'", stopping.SEE_TO_IT),
        ("SafetensorError", "I/O error: No space left on device (os error 28)", stopping.SEE_TO_IT),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'x'", None),
        ("RuntimeError", "shapes differ", None),
    ],
)
def test_an_error_of_the_machine_is_told_from_one_of_the_input(name, text, remedy):
    assert stopping.remedy(name, text) == remedy


def test_signals_on_the_heels_of_one_do_not_cut_off_what_is_said_of_it():
    before = [signal.getsignal(number) for number in stopping.STOPS]
    with pytest.raises(stopping.Interrupted, match="SIGTERM") as stopped, stopping.signals_raise():
        try:
            with stopping.says_how_to_go_on([], 3):
                signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGHUP)
    assert stopped.value.exit_status == 143 and isinstance(stopped.value.__cause__, stopping.Signal)
    assert [signal.getsignal(number) for number in stopping.STOPS] == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.signals_raise():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
