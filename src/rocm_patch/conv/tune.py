"""Measure the candidates for given problems in a child with a deadline, and keep what was found.

Never started by itself: a person asks for it (`rocm-patch bench --tune`). What is stored is not measured again unless that is asked for, so
a run that was interrupted goes on where it was. A candidate is written down as `started` before it begins; if it crashes or hangs its child,
that is its verdict for good, a new child goes on with the next one, and the engine will not choose it. A row that is still `started` when
another run looks is judged by the boot in which it was written: another boot means that the candidate took the machine down, the same boot
that the tuner was killed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from . import records, store
from .child import Child, DiedError, StoppedError
from .choose import Settings
from .problem import Problem
from .records import Key, Measured
from .suites import Layer

__all__ = ["Outcome", "StoppedError", "problems_of", "tune"]
DEADLINE = 60.0
"""Seconds without a word, by default: compiling a kernel takes seconds, a search by a vendor's library minutes."""
START = 240.0
"""Seconds until a child has imported torch and found its device."""
FAILURES = 3
"""Problems on which an algorithm may end the child before the rest of it is left out, and starts that may fail."""
BUDGET_MS = 40.0
"""Measured work for each candidate that is near the best."""


@dataclass(frozen=True)
class Outcome:
    """What is known about one problem."""

    problem: str
    rows: tuple[Measured, ...]
    """Of this run and of earlier ones, the fastest first."""
    measured: int
    """How many of them in this run."""
    note: str = ""

    @property
    def best(self) -> Measured | None:
        """The fastest that is right; None: the engine falls back to its estimate, to PyTorch's own path, to the CPU."""
        return self.rows[0] if self.rows and self.rows[0].verdict == "ok" else None


def problems_of(layer: Layer, dtype: torch.dtype, device: torch.device, *, backward: bool = True) -> list[Problem]:
    """The convolutions that a layer asks for: forward, and with `backward` the gradients of input and weight."""
    names = ["input", "forward", "weight"] if layer.transposed else ["forward", "input", "weight"]
    image, size = (layer.output_shape, layer.input_shape) if layer.transposed else (layer.input_shape, layer.output_shape)
    first = Problem(
        names[0], device, dtype, layer.batch, image[1], size[1], layer.groups, image[2:], size[2:], layer.kernel, layer.stride, layer.padding,
        layer.dilation, layer.bias,
    )  # fmt: skip
    return [first, *(replace(first, operation=name, bias=False) for name in names[1:] if backward)]


def tune(
    problems: Sequence[Problem],
    *,
    settings: Settings | None = None,
    most: int = 6,
    again: bool = False,
    deadline_s: float = DEADLINE,
    budget_ms: float = BUDGET_MS,
    progress: Callable[[str], object] = lambda _text: None,
    interpreter: Sequence[str] = (sys.executable,),
) -> Iterator[Outcome]:
    """Measure problems of one device, one outcome each as it is had.

    Args:
        problems: what is to be tuned; a problem that occurs twice is measured once.
        settings: what the engine may use.
        most: variants of an algorithm that are measured, the most promising by its own order.
        again: measure what is stored as well, also what crashed.
        deadline_s: seconds that a candidate may be silent.
        budget_ms: measured work for each candidate that is near the best.
        progress: told in words what begins.
        interpreter: the Python that runs the child, which must have torch.

    Raises:
        StoppedError: no child can be started, or one cannot be ended.
    """
    unique = list({problem.name(): problem for problem in problems}.values())
    if not unique:
        return
    tuner = _Tuner(unique[0].device, settings or Settings(), most, again, deadline_s, budget_ms, progress, interpreter)
    try:
        for problem in unique:
            yield tuner.problem(problem)
    finally:
        tuner.close()
        store.forget()


class _Tuner:
    def __init__(
        self, device: torch.device, settings: Settings, most: int, again: bool, deadline_s: float, budget_ms: float,
        progress: Callable[[str], object], interpreter: Sequence[str],
    ) -> None:  # fmt: skip
        self.device, self.settings, self.most, self.again = device, settings, most, again
        self.deadline_s, self.budget_ms, self.progress, self.interpreter = deadline_s, budget_ms, progress, interpreter
        self.child: Child | None = None
        self.stack = ""
        self.known: dict[str, dict[Key, Measured]] = {}
        self.ended: Counter[str] = Counter()
        self.unexplained = 0
        self.unwritten = ""
        self.name = ""
        self.rows: dict[Key, Measured] = {}
        """Of the problem at work, in this run."""
        self.written: dict[Key, Measured] = {}

    def close(self) -> None:
        """End the child; take back what was begun, so that an interrupted run leaves no half answers."""
        if self.child is not None:
            self.child.end()
            self.child = None
        if half := [key for key, row in self.written.items() if row.verdict in ("ok", "started")]:
            records.remove(self.stack, self.name, half)

    # -- one problem

    def problem(self, problem: Problem) -> Outcome:
        self.name, self.rows, self.written = problem.name(), {}, {}
        self.progress(self.name)
        at_work: Key | None = None
        note = ""
        while True:
            try:
                child = self.running()
                at_work = None
                child.say({"problem": self.name, "settings": asdict(self.settings), "most": self.most, "budget_ms": self.budget_ms})
                offered = child.hear(self.deadline_s)["candidates"]
                child.say({"measure": [each for each in offered if (each[0], tuple(each[1])) in self.pick(offered)]})
                while "done" not in (answer := child.hear(self.deadline_s)):
                    if "begins" in answer:
                        at_work = (answer["begins"][0], tuple(answer["begins"][1]))
                        if not answer.get("again"):  # in turns with the others, after it was verified
                            self.write(Measured(self.name, *at_work, "started", error=_boot()))
                            child.say({"go": True})
                    else:
                        row = _row(self.name, answer)
                        self.rows[row.key], at_work = row, None
                for each in answer["done"]:
                    row = _row(self.name, each)
                    self.rows[row.key] = row
                break
            except DiedError as died:
                note = self.died(at_work, died)
                if note:
                    break
        self.write()
        self.written = {}
        rows = {**self.known.get(self.name, {}), **self.rows}
        self.known[self.name] = rows
        return Outcome(self.name, tuple(sorted(rows.values(), key=lambda row: (row.verdict != "ok", row.microseconds or 0.0))), len(self.rows), note)

    def pick(self, offered: Sequence[tuple[str, Sequence[str | int], float]]) -> set[Key]:
        """Nothing, where all is known; or else all that are not known to be bad: times are compared within one run only."""
        known = {} if self.again else self.known.get(self.name, {})
        bad = {key for key, row in {**known, **self.rows}.items() if row.verdict != "ok"}
        left = {(name, tuple(variant)) for name, variant, _ in offered if self.ended[name] < FAILURES} - bad
        return left if left - set(known) else set()

    def write(self, *begun: Measured) -> None:
        """One transaction before each candidate: what those before it came to, and that this one begins."""
        rows = [*(row for key, row in self.rows.items() if self.written.get(key) != row), *begun]
        self.written.update({row.key: row for row in rows})
        if rows and (why := records.record(self.stack, rows)) and not self.unwritten:
            self.unwritten = why
            self.progress(f"nothing can be stored: {why}")

    def died(self, at_work: Key | None, died: DiedError) -> str:
        """Write down whose fault it was; the answer is why the problem is given up, or nothing."""
        if self.child is not None:
            self.child.close()
            self.child = None
        if at_work is None:
            self.unexplained += 1
            if self.unexplained >= FAILURES:
                raise StoppedError(f"the measuring process ends before it measures: {died}")
            return "" if self.unexplained == 1 else f"nothing was measured: {died}"
        self.progress(f"{at_work[0]} {died.verdict}: {died}")
        self.rows[at_work] = Measured(self.name, *at_work, died.verdict, error=str(died))
        self.ended[at_work[0]] += 1
        return ""

    # -- the child

    def running(self) -> Child:
        """The child, started where there is none; what is stored about its stack is read then."""
        if self.child is None:
            self.child = Child(self.interpreter, "tune_child")
            self.child.say({"device": str(self.device)})
            stack = str(self.child.hear(START)["stack"])
            if stack != self.stack:
                self.stack = stack
                for row in records.read(stack):
                    if row.verdict == "started" and row.error == _boot():
                        continue  # the tuner was killed
                    judged = replace(row, verdict="hung", error="the machine went down while it ran") if row.verdict == "started" else row
                    self.known.setdefault(row.problem, {})[row.key] = judged
        return self.child


def _row(name: str, answer: dict[str, Any]) -> Measured:
    microseconds = answer.get("microseconds")
    return Measured(name, answer["algorithm"], tuple(answer["variant"]), answer["verdict"], microseconds, answer.get("error", ""), time.time())


def _boot() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"boot {file.read().strip()}"
    return "boot unknown"
