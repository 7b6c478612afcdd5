"""Run one child so that nothing it does reaches us: not its crash, its hang, its output, its children or its memory.

The rules, each of which a child in the torture set breaks:

* The wait is for the *process* (a pidfd where the kernel has one), never for the end of a pipe: a grandchild can hold
  a pipe open for ever.
* The child leads a session of its own, and we are subreaper while it runs, so that whatever it leaves behind becomes
  our child, sessions of its own or not, and is found and killed.
* Output is drained without end and kept within a bound, head and tail; results likewise.
* At the deadline: TERM to the group (the child answers with its stack), then KILL, then everything that is left.
* A process that the kernel does not let go (state D, a wedged driver) is never waited for: it is `stuck`.

Limits: no core file. Memory is watched (anonymous resident memory of the child and its descendants) and additionally
limited by RLIMIT_AS on the CPU alone: ROCm and CUDA reserve address space far beyond the machine's memory, and with
RLIMIT_AS they fail in ways that would be taken for the fault we look for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from rocm_patch.errors import UsageError

KEEP: Final = 128 << 10
"""Bytes of output kept at each end."""
RESULTS: Final = 1 << 20
GRACE: Final = 0.3
"""Between TERM and KILL: long enough to write a stack."""
PATIENCE: Final = 4.0
"""After KILL: a driver that tears down a process of many gigabytes may need seconds; after that it is stuck."""
TICK: Final = 0.1
DRAIN: Final = 2 << 20

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_ENDS: Final = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)
_ONE: Final = threading.Lock()


class Stat(NamedTuple):
    """The part of /proc/PID/stat that we decide by."""

    pid: int
    state: str
    parent: int
    session: int


def parse_stat(text: str) -> Stat:
    """Read a stat line. The name in parentheses may itself hold blanks and parentheses, so count from the last one."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    return Stat(int(pid), fields[0], int(fields[1]), int(fields[3]))


def remains(stats: Iterable[str]) -> Literal["gone", "alive", "stuck"]:
    """What the stat lines of a killed process and its threads say: a thread in D does not even take SIGKILL."""
    states = {parse_stat(text).state for text in stats}
    if "D" in states:
        return "stuck"
    return "alive" if states - {"Z", "X", "x"} else "gone"


@dataclass(frozen=True)
class Ending:
    """How a child ended, before anyone judges it."""

    code: int | None
    """Exit code; minus the signal where one killed it; None: it has not ended."""
    ended_by_us: Literal["", "deadline", "memory"]
    stuck: bool
    seconds: float
    cpu_seconds: float
    state: str
    """The kernel's letter for the child when the deadline came."""
    leftovers: int
    """Processes that it left behind, all killed (unless `stuck`)."""
    results: bytes
    results_cut: bool
    output: bytes
    output_lost: int


class Tail:
    """Head and tail of a stream of any length."""

    def __init__(self, keep: int = KEEP) -> None:
        self.keep, self.head, self.tail, self.seen = keep, bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Take what came."""
        self.seen += len(data)
        room = self.keep - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > 2 * self.keep:
            del self.tail[: -self.keep]

    def lost(self) -> int:
        """Bytes that were dropped."""
        return max(0, self.seen - len(self.head) - min(len(self.tail), self.keep))

    def bytes(self) -> bytes:
        """What was kept, with a line that says what was not."""
        mark = b"\n[... %d bytes left out ...]\n" % self.lost() if self.lost() else b""
        return bytes(self.head) + mark + bytes(self.tail[-self.keep :])


def execute(
    argv: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    deadline: float,
    environment: Mapping[str, str],
    folder: str,
    memory: int,
    limit_address_space: bool = False,
) -> Ending:
    """Run a child to its end, or to ours.

    Args:
        argv: the command, or a function of the descriptor on which the child is to write its results.
        deadline: seconds until it is killed.
        environment: all of the child's environment.
        folder: its working directory.
        memory: bytes of anonymous memory that it and its descendants may have.
        limit_address_space: also set RLIMIT_AS; never for a GPU.

    Raises:
        UsageError: it cannot be started.
    """
    with _ONE, _subreaper():
        return _Run(argv, deadline, environment, folder, memory, limit_address_space).result()


class _Run:
    def __init__(
        self,
        argv: Sequence[str] | Callable[[int], Sequence[str]],
        deadline: float,
        environment: Mapping[str, str],
        folder: str,
        memory: int,
        limit_address_space: bool,
    ) -> None:
        self.memory, self.output, self.results, self.results_cut = memory, Tail(), bytearray(), False
        self.before = {stat.pid for stat in _processes() if stat.parent == os.getpid()}
        self.leftovers: set[int] = set()
        self.state = ""
        self.code: int | None = None
        self.cpu = 0.0
        out_read, out_write = os.pipe()
        result_read, result_write = os.pipe()
        self.readers = {out_read: self.output.add, result_read: self._take_result}
        try:
            self.began = time.monotonic()
            command = list(argv(result_write) if callable(argv) else argv)
            try:
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out_write,
                    stderr=out_write,
                    env=dict(environment),
                    cwd=folder,
                    start_new_session=True,
                    pass_fds=(result_write,),
                )
            except OSError as error:
                raise UsageError(f"{command[0]} cannot be run: {error.strerror or error}") from error
        except BaseException:
            for descriptor in (out_read, result_read):
                os.close(descriptor)
            raise
        finally:
            os.close(out_write)
            os.close(result_write)
        self.pid = self.child.pid
        self.end = self.began + deadline
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            if limit_address_space:
                resource.prlimit(self.pid, resource.RLIMIT_AS, (2 * memory, 2 * memory))
        for descriptor in self.readers:
            os.set_blocking(descriptor, False)

    def result(self) -> Ending:
        reason: Literal["", "deadline", "memory"] = ""
        stuck = False
        watch = _pidfd(self.pid)
        try:
            reason = self._wait(watch)
        finally:  # also for Ctrl-C: nothing of ours may outlive us
            if reason or not self._ended():
                self.state = _state(self.pid)
                self._signal_group(signal.SIGTERM)
                self._pump_until(watch, time.monotonic() + GRACE)
            seconds = time.monotonic() - self.began
            stuck = not self._kill_all(watch)
            for descriptor in list(self.readers):
                self._drain(descriptor, DRAIN)
                if self.readers.pop(descriptor, None):
                    os.close(descriptor)
            if watch >= 0:
                os.close(watch)
        return Ending(
            self.code, reason, stuck, seconds, self.cpu, self.state, len(self.leftovers),
            bytes(self.results), self.results_cut, self.output.bytes(), self.output.lost(),
        )  # fmt: skip

    # -- waiting

    def _wait(self, watch: int) -> Literal["", "deadline", "memory"]:
        next_look = next_tree = 0.0
        while True:
            now = time.monotonic()
            if self._ended():
                return ""
            if now >= self.end:
                return "deadline"
            if now >= next_look:
                next_look = now + TICK
                if _anonymous_memory(self.pid) > self.memory:
                    return "memory"
            if now >= next_tree:
                next_tree = now + 1.0
                if sum(_anonymous_memory(stat.pid) for stat in self._descendants()) > self.memory:
                    return "memory"
            self._pump(watch, min(TICK, self.end - now))

    def _ended(self) -> bool:
        """Without reaping: while the zombie is there, neither its number nor its group's can be anybody else's."""
        try:
            told = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return told is not None and told.si_code in _ENDS  # a child that asked to be traced also reports its stops
        except ChildProcessError:
            return True

    def _pump_until(self, watch: int, end: float) -> None:
        while (left := end - time.monotonic()) > 0 and not self._ended():
            self._pump(watch, min(TICK, left))

    def _pump(self, watch: int, timeout: float) -> None:
        poll = select.poll()
        for descriptor in self.readers:
            poll.register(descriptor, select.POLLIN)
        if watch >= 0:
            poll.register(watch, select.POLLIN)
        else:
            timeout = min(timeout, 0.02)
        for descriptor, _ in poll.poll(max(0.0, timeout) * 1000):
            if descriptor != watch:
                self._drain(descriptor, 1 << 20)

    def _drain(self, descriptor: int, limit: int) -> None:
        """Take what is there, at most `limit`: a writer that never stops must not keep us."""
        take = self.readers.get(descriptor)
        while take is not None and limit > 0:
            try:
                data = os.read(descriptor, 1 << 16)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                del self.readers[descriptor]
                os.close(descriptor)
                return
            take(data)
            limit -= len(data)

    def _take_result(self, data: bytes) -> None:
        room = RESULTS - len(self.results)
        self.results += data[:room]
        self.results_cut = self.results_cut or len(data) > room

    # -- ending

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _descendants(self) -> list[Stat]:
        """What came from the child, reparented to us or not. Children that we had before are not, nor what shares our session."""
        processes = {stat.pid: stat for stat in _processes()}
        ours, me, session = list[Stat](), os.getpid(), os.getsid(0)
        for stat in processes.values():
            if stat.session == session or stat.pid == me:
                continue
            walk: Stat | None = stat
            while walk is not None and walk.parent != me:
                walk = processes.get(walk.parent)
            if walk is not None and walk.pid not in self.before and walk.session != session:
                ours.append(stat)
        return ours

    def _kill_all(self, watch: int) -> bool:
        """Kill and reap until nothing is left; False where something cannot be killed."""
        end = time.monotonic() + PATIENCE
        while True:
            found = self._descendants()
            for stat in found:  # stop first: what forks faster than we kill stands still
                if stat.pid != self.pid and stat.state not in "ZXx":
                    self.leftovers.add(stat.pid)
                    _send(stat.pid, signal.SIGSTOP)
            self._signal_group(signal.SIGKILL)
            for stat in found:
                _send(stat.pid, signal.SIGKILL)
            left = [stat.pid for stat in found if not self._reap(stat.pid)]
            if self.code is None and self.pid not in left and not self._reap(self.pid):
                left.append(self.pid)
            if not left:
                return True
            if time.monotonic() > end:
                for pid in left:
                    self.state = "D" if remains(_stats(pid)) == "stuck" else self.state
                self.child.returncode = self.child.returncode or -9  # the kernel keeps it; nobody waits for it
                return False
            self._pump(watch if self.pid in left else -1, 0.02)

    def _reap(self, pid: int) -> bool:
        """True when this process is no more."""
        if pid == self.pid and self.code is not None:
            return True
        try:
            done, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            return remains(_stats(pid)) == "gone"  # somebody else's child still: its parent dies, then it is ours
        if not done or os.WIFSTOPPED(status):
            return False
        if pid == self.pid:
            self.code = os.waitstatus_to_exitcode(status)
            self.child.returncode = self.code
            self.cpu = usage.ru_utime + usage.ru_stime
        return True


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """Be the parent of orphans for a while, and then what we were before."""
    libc = ctypes.CDLL(None, use_errno=True)
    was = ctypes.c_int(0)
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, was.value, 0, 0, 0)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _processes() -> list[Stat]:
    return [parse_stat(text) for name in os.listdir("/proc") if name.isdigit() and (text := _read(f"/proc/{name}/stat"))]


def _stats(pid: int) -> list[str]:
    """The stat lines of a process and of its threads: a leader may be a zombie while a thread of it is stuck."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [text for name in threads if (text := _read(f"/proc/{pid}/task/{name}/stat"))]


def _state(pid: int) -> str:
    text = _read(f"/proc/{pid}/stat")
    return parse_stat(text).state if text else ""


def _anonymous_memory(pid: int) -> int:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0
