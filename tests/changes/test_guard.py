"""The child that takes something back: when it acts, when it does not, and that nobody waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rocm_patch.changes.guard import Guard
from rocm_patch.errors import RocmPatchError


def gone(path, seconds=2.0):
    """How long until a path is gone; None: it stays."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if not path.exists():
            return time.monotonic() - start
        time.sleep(0.002)
    return None


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "mark"
    path.write_text("there")
    return path


def test_confirmed_it_does_nothing(mark):
    with Guard(mark.unlink) as guard:
        guard.confirm()
    assert mark.exists()


def test_left_without_a_word_it_acts(mark):
    with Guard(mark.unlink):
        pass
    assert not mark.exists()  # and that is so at once: leaving waits for it


def test_an_error_is_left_too(mark):
    with pytest.raises(ValueError, match="failed"), Guard(mark.unlink):
        raise ValueError("failed")
    assert not mark.exists()


def test_silence_is_not_a_confirmation(mark):
    guard = Guard(mark.unlink, patience=0.2)
    assert gone(mark) is not None
    with pytest.raises(RocmPatchError, match="not confirmed in time"):
        guard.confirm()
    assert guard.leave() == 0


def test_it_tries_again_where_the_disk_was_full(tmp_path, mark):
    tries = tmp_path / "tries"

    def take_back():
        with open(tries, "a") as file:
            file.write("x")
        if len(tries.read_text()) < 4:
            raise OSError(28, "No space left on device")
        mark.unlink()

    with Guard(take_back):
        pass
    assert (mark.exists(), tries.read_text()) == (False, "xxxx")


def writer(mark, patience=60.0):
    """A process that posts a guard and then does nothing."""
    child = os.fork()
    if child == 0:
        try:
            with Guard(mark.unlink, patience=patience):
                mark.with_name("posted").write_text("")
                time.sleep(30)
        finally:
            os._exit(1)
    while not mark.with_name("posted").exists():
        time.sleep(0.001)
    return child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_acts_when_the_writer_dies(number, mark):
    child = writer(mark)
    os.kill(child, number)
    os.waitpid(child, 0)
    assert gone(mark) is not None


def test_a_signal_for_the_group_is_not_for_the_guard(mark):
    """Ctrl-C in a terminal goes to the whole group: the guard must be alive when the writer is not."""
    child = writer(mark)
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.05)
    assert mark.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert gone(mark) is not None


def test_who_reads_the_writers_output_does_not_wait_for_the_guard(tmp_path):
    program = "import sys, os; sys.path.insert(0, sys.argv[1])\nfrom rocm_patch.changes.guard import Guard\nimport time\n"
    program += "Guard(lambda: time.sleep(20))\nprint('done', flush=True)\nos._exit(0)\n"
    source = os.path.dirname(os.path.dirname(__import__("rocm_patch").__file__))
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-I", "-c", program, source], capture_output=True, text=True, check=True, timeout=15)
    assert ended.stdout == "done\n"
    assert time.monotonic() - start < 10
