"""Files of unknown origin, read by a few long-lived children with limits. A file that kills its reader is told, and a new one starts.

Each child is a session of its own, with a clean environment and none of our descriptors. Starting one takes 0.1 s, so
they are kept for as long as there are files.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch.images.walk import Candidate, Rows
from rocm_patch.images.worker import seconds
from rocm_patch.model import Image
from rocm_patch.run import CLEAN

PATIENCE: Final = 10.0
"""Times its computing time that a reader may take before it counts as hanging, on a disk that answers no more."""
LINE_LIMIT: Final = 4 << 20
_START: Final = "import sys; sys.path.insert(0, sys.argv[1]); from rocm_patch.images.worker import main; main()"
_HOME: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass(frozen=True)
class Done:
    """A file that has been read, as far as it could be."""

    path: str
    size: int
    images: tuple[Image, ...]


def scan(tasks: Sequence[Candidate], *, count: bool = True, workers: int = 0) -> Iterator[Done]:
    """Read files; they come back in the order in which they end. `workers` 0: as many as there are processors.

    Without `count` kernels are not counted and compressed code is not unpacked: a tenth of the time.
    """
    for task in tasks:
        if task.why:
            yield Done(task.path, task.size, (Image(task.path, "", "object", {}, (task.why,)),))
    # The largest first, at the end of the list: the last to end decides how long it takes.
    waiting = sorted((task for task in tasks if not task.why), key=lambda task: task.size)
    readers = [_Reader() for _ in range(min(workers or len(os.sched_getaffinity(0)), len(waiting)))]
    try:
        while waiting or any(reader.task for reader in readers):
            for reader in readers:
                if waiting and not reader.task:
                    reader.give(waiting.pop(), count)
            _wait(readers)
            for reader in readers:
                if done := reader.hear():
                    yield done
    finally:
        for reader in readers:
            reader.stop()


def _wait(readers: Sequence[_Reader]) -> None:
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            if reader.task:
                selector.register(reader.descriptor, selectors.EVENT_READ)
        selector.select(0.5)


class _Reader:
    """One child and the file that it is at."""

    def __init__(self) -> None:
        self.task: Candidate | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._rows = Rows("")
        self._budget = self._deadline = 0.0

    @property
    def descriptor(self) -> int:
        """Where its answers come from."""
        assert self._child is not None and self._child.stdout is not None  # noqa: S101, PT018
        return self._child.stdout.fileno()

    def give(self, task: Candidate, count: bool) -> None:
        """A file to read."""
        child = self._child = self._child or _started()
        self.task, self._rows = task, Rows(task.path)
        self._budget = seconds(task.size)
        self._deadline = time.monotonic() + PATIENCE * self._budget
        assert child.stdin is not None  # noqa: S101
        # If it has died meanwhile, its end is heard.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"path": task.path, "count": count, "seconds": self._budget}).encode() + b"\n")
            child.stdin.flush()

    def hear(self) -> Done | None:
        """Take what has come; the file's result once it has ended, well or badly."""
        task = self.task
        if task is None:
            return None
        why = None
        try:
            piece = os.read(self.descriptor, 1 << 20)
            self._buffer += piece
            *lines, rest = self._buffer.split(b"\n")
            self._buffer = bytearray(rest)
            for line in lines:
                if self._take(json.loads(line)):
                    why = ""
            if why is None and not piece:
                why = self._death()
            elif why is None and len(rest) > LINE_LIMIT:
                why = "its reader says too much"
        except BlockingIOError:
            if time.monotonic() > self._deadline:
                why = f"no answer within {PATIENCE * self._budget:.0f} s"
        except (ValueError, TypeError, KeyError) as error:
            why = f"its reader talks nonsense: {error}"
        if why is None:
            return None
        if why:
            self._rows.unread("", "object", why)
            self.stop()
        self.task = None
        return Done(task.path, task.size, self._rows.images())

    def stop(self) -> None:
        """End the child and whatever it started."""
        child, self._child = self._child, None
        self._buffer.clear()
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _take(self, message: dict[str, Any]) -> bool:
        for row in message["rows"]:
            if len(row) == 3:
                self._rows.unread(*row)
            else:
                self._rows.code(*row)
        return bool(message.get("end"))

    def _death(self) -> str:
        child = self._child
        assert child is not None  # noqa: S101
        code = child.wait()
        if code == -signal.SIGPROF:
            return f"more than {self._budget:.1f} s of computing; the rest was not read"
        with contextlib.suppress(ValueError):
            return f"its reader was ended by {signal.Signals(-code).name}"
        return f"its reader ended with {code}"


def _started() -> subprocess.Popen[bytes]:
    # Threads of a linear algebra library that nobody calls would take memory that is limited.
    environment = {**CLEAN, "OPENBLAS_NUM_THREADS": "1"}
    if folder := os.environ.get("TMPDIR"):
        environment["TMPDIR"] = folder
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, _HOME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    assert child.stdout is not None  # noqa: S101
    os.set_blocking(child.stdout.fileno(), False)
    return child
