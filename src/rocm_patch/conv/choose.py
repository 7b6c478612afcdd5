"""Which algorithm serves a problem: what was measured on this stack, or else an estimate; the first of them that can be prepared."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from . import estimate, runtime, store
from .algorithms import ALGORITHMS, BY_NAME, Algorithm, Run, Variant
from .problem import Problem


@dataclass(frozen=True)
class Settings:
    """What the engine may use."""

    workspace: int = 256 << 20
    """Bytes beside inputs and outputs."""
    blas: bool = True
    """Whether the BLAS that torch brings may be called; False leaves our own kernels, native and the CPU."""
    tuned: bool = True
    """Whether measured choices are read."""


@dataclass(frozen=True)
class Choice:
    """What runs for a problem."""

    algorithm: str
    variant: Variant
    run: Run
    refused: tuple[str, ...] = ()
    """Why rows that were tried before it could not be prepared."""

    @property
    def name(self) -> str:
        return ":".join([self.algorithm, *map(str, self.variant)])


def allowed(algorithm: Algorithm, problem: Problem, settings: Settings) -> bool:
    """Whether the row serves the problem under these settings, kernels permitting."""
    if algorithm.blas and not settings.blas and problem.device.type != "cpu":
        return False
    if algorithm.kernels and runtime.missing(problem.device):
        return False
    return not algorithm.guard(problem)


def candidates(problem: Problem, settings: Settings, most: int = 1) -> list[tuple[Algorithm, Variant]]:
    """Rows and variants by estimated time, the best first, at most so many variants of a row."""
    found = []
    for place, algorithm in enumerate(ALGORITHMS):
        if allowed(algorithm, problem, settings):
            for order, variant in enumerate(algorithm.variants(problem, settings.workspace)[:most]):
                found.append((estimate.microseconds(algorithm.name, problem, variant), order, place, algorithm, variant))
    return [(algorithm, variant) for *_, algorithm, variant in sorted(found, key=lambda row: row[:3])]


_refused: dict[Problem, dict[tuple[str, Variant], str]] = {}
"""What the driver would not launch although it could be prepared, and why: not tried again in this process."""


def refuse(problem: Problem, choice: Choice, why: str) -> None:
    """Leave this choice out from now on."""
    _refused.setdefault(problem, {})[choice.algorithm, choice.variant] = f"{choice.algorithm}: {why}"


def prepare(problem: Problem, settings: Settings) -> Choice:
    """The choice for a problem; the last row takes everything, so there always is one.

    Raises:
        RuntimeError: not even the last row could be prepared.
    """
    order = candidates(problem, settings)
    if settings.tuned:
        bad = store.failed(problem)
        order = [(algorithm, variant) for algorithm, variant in order if (algorithm.name, variant) not in bad] or order[-1:]

        def usable(algorithm: Algorithm, variant: Variant) -> bool:
            return allowed(algorithm, problem, settings) and store.offered(algorithm, variant, problem, settings.workspace)

        if (best := store.best(problem, usable)) is not None:
            order.insert(0, (BY_NAME[best[0]], best[1]))
    refused = []
    for algorithm, variant in order:
        if why := _refused.get(problem, {}).get((algorithm.name, variant)):
            refused.append(why)
            continue
        try:
            with _PREPARING:
                run = algorithm.prepare(problem, variant, settings.workspace)
        except (runtime.UnavailableError, runtime.KernelError) as error:
            refused.append(f"{algorithm.name}: {error}")
            continue
        return Choice(algorithm.name, variant, run, tuple(refused))
    raise RuntimeError(f"no algorithm for {problem.name()}: {'; '.join(refused)}")


_PREPARING = threading.Lock()
"""Kernels are compiled once, not once a thread."""


def _forked() -> None:
    """A thread of the parent may have held the lock; it is none of the child's, and would be held there for ever."""
    global _PREPARING
    _PREPARING = threading.Lock()


os.register_at_fork(after_in_child=_forked)
