"""The child that reads files of unknown origin: one JSON line in for a file, lines out for what is in it.

Limits on memory and on computing time are the kernel's: whatever a reader does wrong, the child dies and its parent
(`pool`) goes on. What was found before is kept, since it was sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from rocm_patch.images import walk

MEMORY: Final = 232 << 20
"""Bytes of data. A zstd window takes up to 128 MiB, Python and numpy 30."""
SPILL: Final = 16 << 30
"""Bytes of one nameless file."""
SECONDS: Final = 1.7
"""Of computing for a file of up to 64 MiB; a larger one gets more in proportion."""
SMALL: Final = 64 << 20
RATE: Final = 8 << 20
"""Bytes a second beyond that. Measured: 57 MB/s for the densest compressed library, 2 GB/s for plain ones."""
BATCH: Final = 256
NAME_LIMIT: Final = 1024
"""Letters of a member's name, and of anything else that is told of it: a reason may quote 64 KiB from the file."""
_PARENT_DEATH: Final = 1
"""PR_SET_PDEATHSIG, prctl(2)."""

Answer = Callable[[dict[str, Any]], Iterator[dict[str, Any]]]
"""From a task to what is said of it, piece by piece."""


def seconds(size: int) -> float:
    """Computing time that a file of `size` bytes may take."""
    return SECONDS + max(size - SMALL, 0) / RATE


def main() -> None:
    """Answer lines until there are no more."""
    serve(sys.stdin, _answer)


def serve(tasks: Iterable[str], answer: Answer, memory: int = MEMORY) -> None:
    """Answer tasks within limits. They are JSON lines with the computing time that each may take as `seconds`, and who asks as `parent`."""
    # Whatever ends the parent ends this process: nobody else would read its answer.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    for kind, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, SPILL), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)
    # A nameless file that grows too large is an error of writing, not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for line in tasks:
        task = json.loads(line)
        if os.getppid() != task["parent"]:
            # It ended before we asked to be told.
            return
        # Computing, not waiting, and to the millisecond: RLIMIT_CPU counts whole seconds since the child's start.
        signal.setitimer(signal.ITIMER_PROF, task["seconds"])
        why = ""
        try:
            for said in answer(task):
                _send(said)
        except MemoryError:
            why = "it needs more memory than a reader may take"
        except RecursionError:
            why = "it is nested too deeply"
        except Exception as error:
            # Nothing but FormatError leaves a reader, and that is caught; if something does, one file is lost and it is known which.
            why = f"a defect of rocm-patch: {type(error).__name__}: {error}"
        _send({"end": why})
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    held: list[list[Any]] = []
    trouble: Exception | None = None
    try:
        for member, item in walk.items(task["path"]):
            for told in walk.tell(item, task["count"]):
                if told:
                    held.append([each[:NAME_LIMIT] if isinstance(each, str) else each for each in (member, *told)])
            if len(held) >= BATCH:
                yield {"rows": held}
                held = []
    except Exception as error:
        # Without the frames, that hold what the memory was for: what was found before is still to be said.
        trouble = error.with_traceback(None)
    yield {"rows": held}
    if trouble:
        raise trouble


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
