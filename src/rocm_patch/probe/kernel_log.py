"""What the kernel said about GPUs while a probe ran."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Final

ABOUT_GPUS: Final = re.compile(r"amdgpu|amdkfd|\bkfd\b|\[drm|NVRM|\bXid\b|AMD-Vi|Out of memory: Killed", re.IGNORECASE)
PRIVATE: Final = re.compile(r"serial number", re.IGNORECASE)
UUID: Final = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
LINES: Final = 40
RECORDS: Final = 5000
_JOURNALCTL: Final = ("--dmesg", "--no-pager", "--quiet", "--output=short-unix")


class KernelLog:
    """A window on the kernel's log: `lines()` gives what came since the last call. Reads only."""

    def __init__(self, kmsg: str = "/dev/kmsg", environment: Mapping[str, str] | None = None) -> None:
        self._descriptor = -1
        self._since = time.time()
        self._journalctl = ""
        self.note = ""
        """Why nothing can be read; empty where it can."""
        try:
            self._descriptor = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            found = shutil.which("journalctl", path=(environment or {}).get("PATH", os.defpath))
            if found and self._ask(found, "--lines=1", lambda _: True):
                self._journalctl = found
            else:
                why = f"{kmsg}: {error.strerror}; journalctl: {'no rights' if found else 'absent'}"
                self.note = f"the kernel log cannot be read ({why}): GPU resets and page faults are seen only by their effects"

    def close(self) -> None:
        """Let go."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1

    def lines(self, *, expensive: bool = True) -> tuple[str, ...]:
        """New lines about GPUs; moves the mark. `expensive`: also where that means to start journalctl."""
        if self._descriptor >= 0:
            return self._from_kmsg()
        since, now = self._since, time.time()
        if not self._journalctl or not expensive:
            return ()
        self._since = now
        found = self._ask(self._journalctl, f"--since=@{int(since)}", lambda stamp: since <= stamp < now)
        return _ours(found)

    def mark(self) -> None:
        """Forget what came so far."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.lseek(self._descriptor, 0, os.SEEK_END)
        self._since = time.time()

    def _from_kmsg(self) -> tuple[str, ...]:
        found = list[str]()
        for _ in range(RECORDS):
            try:
                record = os.read(self._descriptor, 8192)
            except BrokenPipeError:
                continue  # overwritten before we came; the next read goes on behind the gap
            except OSError:
                break
            if not record:
                break
            text = record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
            found.append(text)
        return _ours(found)

    @staticmethod
    def _ask(journalctl: str, which: str, wanted: Callable[[float], bool]) -> list[str]:
        try:
            ended = subprocess.run([journalctl, *_JOURNALCTL, which], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return []
        found = list[str]()
        for line in ended.stdout.decode("utf-8", "replace").splitlines():
            stamp, _, rest = line.partition(" ")
            with contextlib.suppress(ValueError):
                if ended.returncode == 0 and wanted(float(stamp)):
                    found.append(rest.partition(" kernel: ")[2] or rest)
        return found


def _ours(lines: list[str]) -> tuple[str, ...]:
    """What is about GPUs, without what tells one card from another of its kind: results are shown to others."""
    return tuple(UUID.sub("GPU-...", line) for line in lines if ABOUT_GPUS.search(line) and not PRIVATE.search(line))[-LINES:]
