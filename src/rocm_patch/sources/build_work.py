"""The folder of one build: a lock, a stamp for each finished stage, and what an interruption may have left there.

WORK/lock                 held while a build runs here
WORK/session              the child that runs, so that the next build can end what a kill left behind
WORK/stamps/STAGE.json    digest of the inputs, and the output; there only once the output is whole and on disk
WORK/archive source build staged log ...
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch.errors import RefusedError, RocmPatchError

VARIABLE: Final = "ROCM_PATCH_BUILD"
"""In the environment of everything that a build starts: the work folder."""
_PATIENCE: Final = 10.0
"""Seconds that what a kill left behind gets to end."""
_UNSURE: Final = 180.0
"""Seconds before an abrupt end of the machine within which files may not have reached the disk: several times what kernels wait."""


def digest(*values: Any) -> str:
    """SHA-256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode("utf-8", "surrogateescape")).hexdigest()


def state_folder(environment: dict[str, str]) -> str:
    """Where builds lie: they can be made again, so it is the cache. Raises RefusedError without a home."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            raise RefusedError("neither HOME nor XDG_CACHE_HOME names a folder for the build", "set one of them")
        base = os.path.join(home, ".cache")
    return os.path.join(base, "rocm-patch", "builds")


@dataclass(frozen=True)
class Work:
    """The folder of one build."""

    folder: str

    def at(self, *names: str) -> str:
        """A path in it."""
        return os.path.join(self.folder, *names)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder. Raises RefusedError if another build does."""
        os.makedirs(self.at("stamps"), mode=0o700, exist_ok=True)
        os.makedirs(self.at("log"), mode=0o700, exist_ok=True)
        descriptor = os.open(self.at("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefusedError(f"another build runs in {self.folder}", "wait for it, or end it: it goes on from there") from None
            self._end_leftovers()
            yield
        finally:
            os.close(descriptor)

    def stage(
        self, name: str, inputs: str, do: Callable[[], Any], good: Callable[[Any], bool] = lambda _output: True, spoils: Sequence[str] = ()
    ) -> tuple[Any, bool]:
        """The output of a stage, and whether it was there already: its inputs are the same and what it made is `good`.

        Done anew it `spoils` later stages, whatever their inputs: sources that were unpacked again are not patched, though a stamp says so.
        """
        stamp = self._stamp(name)
        if stamp is not None and stamp["inputs"] == inputs and good(stamp["output"]):
            return stamp["output"], True
        for stale in (*spoils, name):
            self._unstamp(stale)
        output = do()
        self._seal(name, {"inputs": inputs, "output": output})
        return output, False

    def _unstamp(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.at("stamps", f"{name}.json"))

    def _stamp(self, name: str) -> dict[str, Any] | None:
        try:
            with open(self.at("stamps", f"{name}.json"), encoding="utf-8") as file:
                stamp = json.load(file)
        except (OSError, ValueError):
            return None
        return stamp if isinstance(stamp, dict) and set(stamp) == {"inputs", "output"} else None

    def _seal(self, name: str, stamp: dict[str, Any]) -> None:
        """All that the stage wrote first, then the stamp: a reboot must not find a stamp without its output."""
        flush(self.folder)
        path = self.at("stamps", f"{name}.json")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(stamp, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remember_child(self, pid: int) -> None:
        """Note the session that is about to work here."""
        with open(self.at("session.new"), "w", encoding="ascii") as file:
            json.dump({"pid": pid, "boot": boot_id()}, file)
        os.rename(self.at("session.new"), self.at("session"))

    def forget_child(self) -> None:
        """It has ended by itself."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.at("session"))

    def _end_leftovers(self) -> None:
        """End what a killed build left running; after a reboot, drop what may not have reached the disk."""
        try:
            with open(self.at("session"), encoding="ascii") as file:
                noted = json.load(file)
            pid, boot = int(noted["pid"]), str(noted["boot"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            pid, boot = 0, ""
        if boot == boot_id():
            end_session(pid, self.folder)
        elif drop_unsure(self.at("build")):
            self._unstamp("built")  # an install that only copies would miss what was dropped, for ever
        self.forget_child()


def drop_unsure(folder: str) -> int:
    """Remove the files of a build folder that were written last, and return how many; all of it if its own plan is among them.

    After a power failure a file can be there with its full length and without its bytes, newer than its source: ninja would keep it.
    """
    times = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            with contextlib.suppress(FileNotFoundError):
                times[path] = os.lstat(path).st_mtime
    last = min(max(times.values(), default=0.0), time.time())  # a file from the future says nothing about when the power went
    young = [path for path, when in times.items() if when > last - _UNSURE]
    if any(os.path.basename(path) in ("build.ninja", "Makefile", "CMakeCache.txt", ".config") for path in young):
        shutil.rmtree(folder)
        return len(times)
    for path in young:
        if not os.path.basename(path).startswith(".ninja_"):  # ninja mends its own records
            os.unlink(path)
    return len(young)


def boot_id() -> str:
    """Changes with each start of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def end_session(session: int, folder: str) -> None:
    """End all processes of a session that a build in this folder started. A reused number is not touched: its environment tells.

    Without a folder all of the session: for whoever holds its leader, dead or alive, so that the number cannot be another's.

    Raises:
        RocmPatchError: one does not go.
    """
    deadline = time.monotonic() + _PATIENCE
    while members := _members(session, folder):
        late = deadline - time.monotonic()
        if late < 0:
            raise RocmPatchError(
                f"processes of an earlier build do not end: {', '.join(map(str, members))}", "they may wait for a disk; look at them"
            )
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Told first: ninja ends what it has started, in process groups of their own.
                os.kill(pid, signal.SIGTERM if late > _PATIENCE / 2 else signal.SIGKILL)
        time.sleep(0.05)


def _members(session: int, folder: str) -> list[int]:
    found, wanted = [], f"{VARIABLE}={folder}".encode("utf-8", "surrogateescape")
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(name)) != session:
                continue
            with open(f"/proc/{name}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][:1]
            with open(f"/proc/{name}/environ", "rb") as file:
                if state not in b"ZX" and (not folder or wanted in file.read().split(b"\0")):
                    found.append(int(name))
        except (OSError, ValueError):
            continue
    return found


def flush(folder: str) -> None:
    """Bring all that was written on this file system to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "syncfs") or library.syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
