"""The child that reads files of unknown origin: one JSON line in for a file, lines out for what is in it.

Limits on memory and on computing time are the kernel's: whatever a reader does wrong, the child dies and its parent
(`pool`) goes on. What was found before is kept, since it was sent.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from typing import Any, Final

from rocm_patch.images import walk

MEMORY: Final = 232 << 20
"""Bytes of data. A zstd window takes up to 128 MiB, Python and numpy 30."""
SPILL: Final = 16 << 30
"""Bytes of one nameless file."""
SECONDS: Final = 1.7
"""Of computing for a file of up to 64 MiB; a larger one gets more in proportion."""
SMALL: Final = 64 << 20
RATE: Final = 12 << 20
"""Bytes a second beyond that. Measured: 80 MB/s for dense compressed bundles, 2 GB/s for plain ones."""
BATCH: Final = 256
NAME_LIMIT: Final = 1024
"""Letters of a member's name."""


def seconds(size: int) -> float:
    """Computing time that a file of `size` bytes may take."""
    return SECONDS + max(size - SMALL, 0) / RATE


def main() -> None:
    """Answer lines until there are no more."""
    for kind, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, SPILL), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for line in sys.stdin:
        task = json.loads(line)
        # Computing, not waiting, and to the millisecond: RLIMIT_CPU counts whole seconds since the child's start.
        signal.setitimer(signal.ITIMER_PROF, task["seconds"])
        _answer(task)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(task: dict[str, Any]) -> None:
    held: list[list[Any]] = []
    try:
        for member, item in walk.items(task["path"]):
            found, why = walk.tell(item, task["count"])
            if found:
                held.append([member[:NAME_LIMIT], *found])
            if why:
                held.append([member[:NAME_LIMIT], *why])
            if len(held) >= BATCH:
                _send({"rows": held})
                held = []
    except MemoryError:
        held.append(["", "object", "it needs more memory than a reader may take"])
    except RecursionError:
        held.append(["", "object", "it is nested too deeply"])
    except Exception as error:
        # A reader lets nothing out but FormatError; if one does, one file is lost and its name is known.
        held.append(["", "object", f"a defect of rocm-patch: {type(error).__name__}: {error}"])
    _send({"rows": held, "end": True})


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
