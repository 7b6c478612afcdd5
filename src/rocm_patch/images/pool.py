"""Work on files of unknown origin, done by a few long-lived children with limits. What kills a child is told, and a new one starts.

Each child is a session of its own, with a clean environment and none of our descriptors. Starting one takes 0.1 s, so
they are kept for as long as there is work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch.images.rows import Rows
from rocm_patch.images.walk import Candidate
from rocm_patch.images.worker import seconds
from rocm_patch.model import Image
from rocm_patch.run import CLEAN

PATIENCE: Final = 10.0
"""Times its computing time that a task may take before it counts as hanging, on a disk that answers no more."""
LINE_LIMIT: Final = 32 << 20
"""Bytes of one answer: a judgement with the names of its kernels, packed and plain, is the longest."""
_PIPE: Final = 1 << 20
"""Bytes that a child can say before it waits for us: what the kernel grants to everyone."""
_START: Final = "import sys, importlib; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
_HOME: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_READER: Final = "rocm_patch.images.worker"


@dataclass(frozen=True)
class Task:
    """What a child is told, plain values for JSON, and the computing time in seconds that it may take."""

    values: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Said:
    """A piece of the answer to the task of that number."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """The task of that number is over; `why` is empty if it ended well."""

    number: int
    why: str


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
    # The largest first: the last to end decides how long it takes.
    files = sorted((task for task in tasks if not task.why), key=lambda task: -task.size)
    rows = [Rows(task.path) for task in files]
    for event in run([Task({"path": os.path.abspath(task.path), "count": count}, seconds(task.size)) for task in files], _READER, workers):
        row, file = rows[event.number], files[event.number]
        if isinstance(event, Said):
            for values in event.values["rows"]:
                if len(values) == 3:
                    row.unread(*values)
                else:
                    row.code(*values)
            continue
        row.why = event.why
        yield Done(file.path, file.size, row.images())


def run(tasks: Sequence[Task], module: str, workers: int = 0) -> Iterator[Said | Ended]:
    """Do tasks, begun in the given order, by children that run `main` of a module (see `worker.serve`)."""
    waiting = list(range(len(tasks)))[::-1]
    children = [_Child(module) for _ in range(min(workers or len(os.sched_getaffinity(0)), len(tasks)))]
    try:
        while waiting or any(child.busy for child in children):
            for child in children:
                if waiting and not child.busy:
                    number = waiting.pop()
                    child.give(number, tasks[number])
            _wait(children)
            for child in children:
                yield from child.hear()
    finally:
        for child in children:
            child.stop()


def _wait(children: Sequence[_Child]) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.busy:
                selector.register(child.descriptor, selectors.EVENT_READ)
        selector.select(0.5)


class _Child:
    """One process and the task that it is at."""

    def __init__(self, module: str) -> None:
        self.busy = False
        self._module = module
        self._number = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._clear()
        self._budget = self._deadline = 0.0

    @property
    def descriptor(self) -> int:
        """Where its answers come from."""
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018
        return self._process.stdout.fileno()

    def give(self, number: int, task: Task) -> None:
        """Something to do."""
        process = self._process = self._process or _started(self._module)
        self.busy, self._number, self._budget = True, number, task.seconds
        self._deadline = time.monotonic() + PATIENCE * task.seconds
        assert process.stdin is not None  # noqa: S101
        # If it has died meanwhile, its end is heard.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({**task.values, "seconds": task.seconds, "parent": os.getpid()}).encode() + b"\n")
            process.stdin.flush()

    def hear(self) -> Iterator[Said | Ended]:
        """Take what has come; the last is an Ended once it is over, well or badly."""
        if not self.busy:
            return
        why = ""
        try:
            piece = os.read(self.descriptor, _PIPE)
            # Only what is new is searched: a line of 30 MiB comes in hundreds of pieces.
            *ends, rest = piece.decode("ascii").split("\n")
            for end in ends:
                said = self._line(end)
                if "end" in said:
                    self.busy = False
                    yield Ended(self._number, str(said["end"]))
                    return
                yield Said(self._number, said)
                del said
            self._pieces.append(rest)
            self._held += len(rest)
            if not piece:
                why = self._death()
            elif self._held > LINE_LIMIT:
                why = "its reader says too much"
        except BlockingIOError:
            if time.monotonic() > self._deadline:
                why = f"no answer within {PATIENCE * self._budget:.0f} s"
        except (ValueError, RecursionError) as error:
            why = f"its reader talks nonsense: {error}"
        if why:
            self.stop()
            yield Ended(self._number, why)

    def stop(self) -> None:
        """End the process and whatever it started."""
        process, self._process, self.busy = self._process, None, False
        self._clear()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, end: str) -> dict[str, Any]:
        """What the line says that ends with those letters; a long one is there twice at most at any time."""
        text = "".join((*self._pieces, end))
        self._clear()
        said: dict[str, Any] = json.loads(text)
        return said

    def _clear(self) -> None:
        self._pieces: list[str] = []
        self._held = 0

    def _death(self) -> str:
        process = self._process
        assert process is not None  # noqa: S101
        code = process.wait()
        if code == -signal.SIGPROF:
            return f"more than {self._budget:.1f} s of computing; the rest was not read"
        with contextlib.suppress(ValueError):
            return f"its reader was ended by {signal.Signals(-code).name}"
        return f"its reader ended with {code}"


def _started(module: str) -> subprocess.Popen[bytes]:
    # Threads of a linear algebra library that nobody calls would take memory that is limited.
    environment = {**CLEAN, "OPENBLAS_NUM_THREADS": "1"}
    if folder := os.environ.get("TMPDIR"):
        environment["TMPDIR"] = folder
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, _HOME, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101
    os.set_blocking(process.stdout.fileno(), False)
    # Refused where the user has too many such pipes: then it takes more reads.
    with contextlib.suppress(OSError):
        fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
    return process
