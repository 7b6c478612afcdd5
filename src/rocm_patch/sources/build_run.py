"""Run one command of a build: its words go to a log, its own count of steps becomes progress, and with us it ends too."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import RocmPatchError
from rocm_patch.sources import build_child
from rocm_patch.sources.build_work import VARIABLE, Work, end_session

_STEP: Final = re.compile(rb"\[ *(\d{1,7})/(\d{1,7})\]")
_PERCENT: Final = re.compile(rb"\[ *(\d{1,3})%\]")
_AFTER: Final = 2.0
"""Seconds for which the pipe is read after the command has ended: a compile server that it started may hold it for ever."""
_GRACE: Final = 5.0
LOG_LIMIT: Final = 256 << 20


@dataclass(frozen=True)
class Progress:
    """How far a stage is. `left` in seconds, from the steps of this run; negative: not known yet. `total` 0: it does not count."""

    stage: str
    done: int
    total: int
    left: float


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` as a shell counts, negative for a signal; `silent` if it was ended because it said nothing for long."""

    code: int
    log: str
    silent: bool = False


def execute(
    work: Work,
    stage: str,
    argv: Sequence[str],
    *,
    cwd: str,
    environment: Mapping[str, str],
    silence: float,
    say: Callable[[Progress], None] = lambda _: None,
    append: bool = False,
) -> Ended:
    """Run a command to its end. Ctrl-C and every other exception end it and all that it started.

    Raises:
        OSError: the log cannot be written (a full disk).
    """
    path = work.at("log", f"{stage}.log")
    with open(path, "ab" if append else "wb") as log:
        log.write(f"$ {' '.join(argv)}\n".encode("utf-8", "surrogateescape"))
        log.flush()
        child = subprocess.Popen(
            [sys.executable, "-I", build_child.__file__, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**environment, VARIABLE: work.folder},
            start_new_session=True,
        )
        try:
            work.remember_child(child.pid)
            silent = _attend(child, log.write, stage, silence, say)
            if child.returncode is None:
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
                # What a Makefile left in the background would write into the next stage. Before the leader is reaped its number is ours.
                end_session(child.pid, "")
            code = child.wait()
        except BaseException:
            _end(child, work)
            raise
        finally:
            if child.stdout is not None:
                child.stdout.close()
        if silent:
            _end(child, work)
    work.forget_child()
    return Ended(code, path, silent)


def _attend(child: subprocess.Popen[bytes], write: Callable[[bytes], object], stage: str, silence: float, say: Callable[[Progress], None]) -> bool:
    """Read until it has ended. True if it was silent for too long."""
    pipe = child.stdout
    if pipe is None:
        raise RocmPatchError("no pipe to read from")
    descriptor, meter, rest, written = pipe.fileno(), _Meter(stage, say), b"", 0
    os.set_blocking(descriptor, False)
    heard, ended = time.monotonic(), 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(0.1)
            now = time.monotonic()
            if ready:
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    return False
                heard = now
                if written < LOG_LIMIT:  # a tool gone mad must not fill the disk
                    write(chunk)
                    written += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-4096:]
                for line in lines:
                    meter.hear(line)
            elif ended and now > ended + _AFTER:
                return False
            elif not ended and os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                ended = now
            elif not ended and now > heard + silence:
                _stop(child)
                return True


class _Meter:
    """Counts steps: ninja's [n/m], else per cent."""

    def __init__(self, stage: str, say: Callable[[Progress], None]) -> None:
        self._stage, self._say = stage, say
        self._first: tuple[int, float] | None = None
        self._total = 0

    def hear(self, line: bytes) -> None:
        match = _STEP.search(line[:40])
        if match:
            done, total = int(match[1]), int(match[2])
        elif match := _PERCENT.search(line[:40]):
            done, total = int(match[1]), 100
        else:
            return
        now = time.monotonic()
        if self._first is None or total != self._total or done < self._first[0]:
            # ninja looks again after a change of its plan, and counts anew; so does a second command of the stage.
            self._first, self._total = (done, now), total
        begun, since = self._first
        left = (now - since) / (done - begun) * (total - done) if done > begun else -1.0
        self._say(Progress(self._stage, done, total, left))


def _stop(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()


def _end(child: subprocess.Popen[bytes], work: Work) -> None:
    if child.poll() is None:
        _stop(child)
    child.wait()
    end_session(child.pid, work.folder)
    work.forget_child()
