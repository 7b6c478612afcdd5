"""A child that may crash or hang, and is talked to in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any


class StoppedError(RuntimeError):
    """No child can be started, or one cannot be ended; the message says why."""


class DiedError(Exception):
    """The child crashed or hung."""

    def __init__(self, how: str, verdict: str) -> None:
        super().__init__(how)
        self.verdict = verdict


class Child:
    """A process that runs a module of ours, one line of JSON each way."""

    def __init__(self, interpreter: Sequence[str], module: str) -> None:
        package = (__package__ or "").split(".")
        place = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[len(package)]), os.environ.get("PYTHONPATH", "")]))
        self.errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the child
        self.pending = b""
        try:
            self.process = subprocess.Popen(
                [*interpreter, "-m", ".".join([*package, module])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": place, "ROCM_PATCH_CONV": "0"},
            )
        except OSError as error:
            self.errors.close()
            raise StoppedError(f"{interpreter[0]} cannot be run: {error.strerror}") from error

    def say(self, document: dict[str, Any]) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(document).encode() + b"\n")
        except BrokenPipeError:
            raise self._death() from None

    def hear(self, deadline_s: float) -> dict[str, Any]:
        """One line.

        Raises:
            DiedError: the child ended, was silent for too long, or spoke nonsense.
        """
        assert self.process.stdout is not None
        until = time.monotonic() + deadline_s
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                raise DiedError(f"no answer in {deadline_s:.0f} s", "hung")
            part = self.process.stdout.read(65536)
            if not part:
                raise self._death()
            self.pending += part
        line, self.pending = self.pending.split(b"\n", 1)
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.end()
            raise DiedError("it said what was never agreed", "crashed")
        return found

    def _death(self) -> DiedError:
        self._stop(wait_s=5.0)
        code = self.process.returncode
        how = f"signal {_signal_name(-code)}" if code is not None and code < 0 else f"exit status {code}"
        self.errors.seek(0)
        words = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        self.close()
        return DiedError(f"{how}: {words[-1][:300]}" if words else how, "crashed")

    def end(self) -> None:
        """End it and what it started.

        Raises:
            StoppedError: the kernel does not let it go.
        """
        self._stop(wait_s=0.0)
        self.close()

    def _stop(self, wait_s: float) -> None:
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                raise StoppedError(f"process {self.process.pid} does not end: the driver of the GPU holds it; restart the machine") from None

    def close(self) -> None:
        """Give back the pipes and what it said."""
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                stream.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
