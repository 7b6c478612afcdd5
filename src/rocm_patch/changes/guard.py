"""A child that takes something back if we do not come to say that all is well.

For a change after which no program may start any more. The child is forked beforehand and executes nothing: it has all its
code already, so it can still work where every new program dies.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from rocm_patch.errors import RocmPatchError

PATIENCE: Final = 60.0
"""Seconds without a word after which the child acts."""
_ATTEMPTS: Final = 100
_PAUSE: Final = 0.1
_WELL: Final = b"k"


class Guard:
    """The parent's end. Leave the context without `confirm` and the child acts; so it does if this process dies."""

    def __init__(self, take_back: Callable[[], None], keep: tuple[int, ...] = (), patience: float = PATIENCE) -> None:
        """Fork. `take_back` may be called more than once; `keep` are descriptors that the child holds, a lock for instance."""
        ours, self._end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _watch(ours, self._end, take_back, keep, patience)
        os.close(ours)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def confirm(self) -> None:
        """Dismiss the child.

        Raises:
            RocmPatchError: it had acted already.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._end, _WELL)
        if self.leave() != 0:
            raise RocmPatchError("the guard took the change back, since it was not confirmed in time")

    def leave(self) -> int:
        """Close our end, wait for the child, and return how it ended: 0 if it did nothing. May be called again."""
        if self._end < 0:
            return 0
        os.close(self._end)
        self._end = -1
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        except ChildProcessError:  # somebody ignores SIGCHLD: nobody can tell how it ended
            return 1


def _watch(ours: int, theirs: int, take_back: Callable[[], None], keep: tuple[int, ...], patience: float) -> None:
    """The child. Never returns."""
    code = 1
    try:
        os.close(theirs)
        os.setsid()  # a Ctrl-C or a hang-up of the terminal is for the parent
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        _close_all_but({ours, *keep})
        told, _, _ = select.select([ours], [], [], patience)
        if told and os.read(ours, 1) == _WELL:
            code = 0
        else:
            for _ in range(_ATTEMPTS):
                try:
                    take_back()
                    break
                except Exception:  # a full disk may have room a moment later, and there is nobody to tell
                    time.sleep(_PAUSE)
    finally:
        os._exit(code)


def _close_all_but(kept: set[int]) -> None:
    """Whoever reads our parent's output must not wait for this child."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        if number not in kept:
            os.dup2(nothing, number)
    low = 3
    for number in sorted(number for number in kept if number >= 3):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
