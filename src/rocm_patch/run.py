"""One way to run a child: argv without a shell, an environment that is named, a limit on time and output, the whole group killed.

The standard library only; the privileged side imports this module.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Final

from rocm_patch.errors import RefusedError, RocmPatchError

CLEAN: Final[Mapping[str, str]] = MappingProxyType({"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"})
"""The environment of a child unless another is named."""
OUTPUT_LIMIT: Final = 1 << 20
GRACE: Final = 0.5
"""How long to read on after the child has ended: a grandchild may hold the pipe for ever."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code` is negative for a signal; output beyond the limit was thrown away."""

    code: int
    out: bytes
    err: bytes
    timed_out: bool = False

    @property
    def text(self) -> str:
        """The last words, for a message."""
        return (self.err or self.out).decode("utf-8", "replace").strip()[-2000:]


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] = CLEAN,
    cwd: str = "/",
    show: bool = False,
    keep: Sequence[int] = (),
    foreground: bool = False,
    output_limit: int = OUTPUT_LIMIT,
) -> Ended:
    """Run a child to its end in a session of its own, and kill its group afterwards whatever happened.

    `show` sends what it prints to our stderr instead of collecting it; `keep` are descriptors that it inherits.
    `foreground` leaves it in our session, where it can ask for a password, and its stderr is ours.
    As root the program must be root's and writable by nobody else.

    Raises:
        RefusedError: as root, a program that others can write.
        RocmPatchError: it cannot be started.
    """
    if not os.path.isabs(argv[0]):
        raise RocmPatchError(f"{argv[0]!r} is not an absolute path")
    if os.geteuid() == 0:
        check_program(argv[0])
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=2 if show else subprocess.PIPE,
            stderr=2 if show or foreground else subprocess.PIPE,
            env=dict(environment),
            cwd=cwd,
            start_new_session=not foreground,
            pass_fds=tuple(keep),
        )
    except OSError as error:
        raise RocmPatchError(f"cannot run {argv[0]}: {error.strerror}") from error
    try:
        return _attend(child, stdin, time.monotonic() + timeout, output_limit, not foreground)
    except BaseException:
        _kill(child, not foreground)
        child.wait()
        raise
    finally:
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def check_program(path: str) -> None:
    """Refuse what root must not execute: not root's, or writable by others.

    Raises:
        RefusedError: which it is.
        RocmPatchError: it is not there.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise RocmPatchError(f"cannot run {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        raise RefusedError(f"{path} can be changed by others than root, and root does not run it")


def _kill(child: subprocess.Popen[bytes], group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(child.pid, signal.SIGKILL)
        elif child.returncode is None:
            os.kill(child.pid, signal.SIGKILL)


def _attend(child: subprocess.Popen[bytes], stdin: bytes, deadline: float, limit: int, group: bool) -> Ended:
    gathered: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    rest = memoryview(stdin)
    timed_out = False
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("out", child.stdout), ("err", child.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, name)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE, "in")
        ended_at: float | None = None
        while True:
            now = time.monotonic()
            if ended_at is None and _has_ended(child.pid):
                ended_at = now
            if ended_at is not None and (not selector.get_map() or now > ended_at + GRACE):
                break
            if now > deadline:
                timed_out = ended_at is None
                break
            for key, _ in selector.select(0.02):
                if key.data == "in":
                    rest = _feed(selector, child.stdin, rest)
                else:
                    _collect(selector, key, gathered[key.data], limit)
            if not selector.get_map():
                time.sleep(0.005)
    # Before it is reaped, while the number is still ours: a grandchild may be left in the group.
    if group or timed_out:
        _kill(child, group)
    return Ended(child.wait(), bytes(gathered["out"]), bytes(gathered["err"]), timed_out)


def _has_ended(pid: int) -> bool:
    """Without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _feed(selector: selectors.BaseSelector, stream: IO[bytes] | None, rest: memoryview) -> memoryview:
    if stream is None:
        return rest
    try:
        rest = rest[os.write(stream.fileno(), rest) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        rest = rest[len(rest) :]
    if not rest:
        selector.unregister(stream)
        stream.close()
    return rest


def _collect(selector: selectors.BaseSelector, key: selectors.SelectorKey, into: bytearray, limit: int) -> None:
    try:
        chunk = os.read(key.fd, 1 << 16)
    except BlockingIOError:
        return
    if not chunk:
        selector.unregister(key.fileobj)
    elif len(into) < limit:
        into += chunk[: limit - len(into)]
