"""The same measurements in a child with a deadline, for machines where a convolution crashes or hangs what calls it.

One child measures layer after layer. When it dies, or is silent for too long, the alternative that was at work is named in the row, a
new child measures the layer again without it, and one that failed on several layers is not tried again: on a card whose driver
resets, each crash takes the desktop with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from .bench import Row, Settings, Timer, measure
from .suites import Layer

STARTING = 300.0  # seconds until the child has imported torch, from a cold disk at worst
DEADLINE = 120.0  # seconds without a word; MIOpen searches for minutes on these cards, which is a failure as well
FAILURES = 3  # layers on which an alternative may end the child


class ChildDiedError(RuntimeError):
    """The child ended or was ended. The text says how, `alternative` what it had begun last."""

    def __init__(self, how: str, alternative: str) -> None:
        super().__init__(how)
        self.alternative = alternative


class Child:
    """A process that measures what it is sent, one line of JSON each way."""

    def __init__(self, settings: Settings) -> None:
        package = (__package__ or "").split(".")
        path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[len(package)]), os.environ.get("PYTHONPATH", "")]))
        self.settings = settings
        self.errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the child
        self.process = subprocess.Popen(
            [sys.executable, "-m", ".".join([*package, "bench_isolated"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.pending = b""
        self.started = False

    def measure(self, layer: Layer, direction: str, alternatives: tuple[str, ...], deadline_s: float) -> Row:
        """Raises ChildDiedError."""
        request = {"layer": asdict(layer), "direction": direction, "settings": asdict(replace(self.settings, alternatives=alternatives))}
        assert self.process.stdin is not None  # opened above
        at_work = ""
        try:
            if not self.started:
                self._line(STARTING)
                self.started = True
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            while True:
                answer = json.loads(self._line(deadline_s))
                if "row" in answer:
                    return Row(**answer["row"])
                at_work = answer["begins"]
        except (BrokenPipeError, EOFError):
            raise ChildDiedError(self._ending(), at_work) from None
        except TimeoutError:
            self.end()
            raise ChildDiedError(f"no answer in {deadline_s if self.started else STARTING:.0f} s", at_work) from None

    def _line(self, deadline_s: float) -> bytes:
        assert self.process.stdout is not None  # opened above
        until = time.monotonic() + deadline_s
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = self.process.stdout.read(65536)
            if not part:
                raise EOFError
            self.pending += part
        line, self.pending = self.pending.split(b"\n", 1)
        return line

    def _ending(self) -> str:
        self.end(wait_s=5.0)
        code = self.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        self.errors.seek(0)
        words = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        return f"{how}: {words[-1][:200]}" if words else how

    def end(self, wait_s: float = 0.0) -> None:
        """Ends it and what it started; one that the kernel holds (a hung GPU) is left behind rather than waited for."""
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                return
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


def run(layers: Sequence[Layer], settings: Settings, deadline_s: float = DEADLINE) -> Iterator[Row]:
    """As `bench.run`, a row for each layer and direction, whatever the alternatives do to the process that runs them."""
    failures = dict.fromkeys(settings.alternatives, 0)
    child: Child | None = None
    try:
        for layer in layers:
            for direction in settings.directions:
                notes: list[str] = []
                row = None
                left = [name for name in settings.alternatives if failures[name] < FAILURES]
                while row is None and left:
                    child = child or Child(settings)
                    try:
                        row = child.measure(layer, direction, tuple(left), deadline_s)
                    except ChildDiedError as died:
                        child.errors.close()
                        child = None
                        guilty = died.alternative if died.alternative in left else left[-1]
                        failures[guilty] += 1
                        left.remove(guilty)
                        notes.append(f"{guilty}: {died}")
                notes += [f"{name}: not tried, it failed on {FAILURES} layers" for name, count in failures.items() if count >= FAILURES]
                row = row or Row(layer.suite, layer.layer, settings.dtype, direction, layer.flops / 1e9 * (1 if direction == "forward" else 3))
                yield replace(row, note="; ".join([*notes, *filter(None, [row.note])]))
    finally:
        if child:
            child.end()
            child.errors.close()


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The child's side: says that it is there, measures until there are no more requests, names each alternative before it begins."""
    timers: dict[str, Timer] = {}

    def say(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    say({"begins": ""})
    for line in requests:
        request = json.loads(line)
        layer, settings = Layer(**_tuples(request["layer"])), Settings(**_tuples(request["settings"]))
        timer = timers.setdefault(settings.device, Timer(settings.device))
        row = measure(layer, request["direction"], settings, timer, begins=lambda name: say({"begins": name}))
        say({"row": asdict(row)})


if __name__ == "__main__":
    # Libraries print to standard output: the answers keep it for themselves, everything else goes to the errors.
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, private)
