"""What was measured: which algorithm is fastest for a problem, and which must not be tried again.

The file (`records`) holds one row for each candidate (algorithm and variant) for one problem on one stack (`stack.fingerprint`), with its verdict;
the fastest that is `ok` wins. It is read once a process, at the first look.

A table of choices measured elsewhere can be added as data: `conv/tuned/TARGET.json` or `TARGET-*.json` (`gfx1010.json`, `sm_90-h200.json`), in the
form that `rocm-patch bench --tune -o FILE` writes. It is taken for the card's own target whatever the versions of torch, driver and kernels, and
only for problems that were not measured here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from . import stack
from .algorithms import BY_NAME, Algorithm, Variant
from .problem import Problem
from .records import Key, Measured, measured, read, say

FAILED = ("wrong", "crashed", "hung", "started")
"""Never chosen, not even by estimate. What merely `failed` (no memory, say) cannot hurt."""
ORDINARY = 256 << 20
TUNED = Path(__file__).parent / "tuned"
Usable = Callable[[Algorithm, Variant], bool]
_process = os.getpid()
_loaded: dict[torch.device, dict[str, tuple[Measured, ...]]] = {}
_shipped: dict[torch.device, dict[str, tuple[Measured, ...]]] = {}


def best(problem: Problem, usable: Usable | None = None) -> Key | None:
    """The fastest (algorithm, variant) for a problem that was measured here, or else elsewhere; None for an estimate.

    Args:
        problem: what is to be computed.
        usable: whether a row may be taken under the caller's settings (a file may say anything: ask `offered` too); without it, `offered`.
    """
    here = _rows(problem)
    bad = {row.key for row in here if row.verdict in FAILED}
    for rows in (here, _shipped.get(problem.device, {}).get(problem.name(), ())):
        for row in sorted((row for row in rows if row.verdict == "ok" and row.key not in bad), key=lambda row: row.microseconds or math.inf):
            algorithm = BY_NAME.get(row.algorithm)
            if algorithm is None:
                continue
            if usable(algorithm, row.variant) if usable is not None else offered(algorithm, row.variant, problem):
                return row.key
    return None


def failed(problem: Problem) -> frozenset[Key]:
    """Candidates that gave wrong values, crashed or hung here."""
    return frozenset(row.key for row in _rows(problem) if row.verdict in FAILED)


def offered(algorithm: Algorithm, variant: Variant, problem: Problem, workspace: int = ORDINARY) -> bool:
    """Whether the algorithm itself has this variant for this problem, within so many bytes beside inputs and outputs."""
    return not algorithm.guard(problem) and variant in algorithm.variants(problem, workspace)


def forget() -> None:
    """Read again at the next look."""
    _loaded.clear()
    _shipped.clear()
    stack.fingerprint.cache_clear()


def _rows(problem: Problem) -> tuple[Measured, ...]:
    device = problem.device
    rows = _loaded.get(device)
    if rows is None:
        if not _may_read(device):
            return ()
        rows = _loaded[device] = _by_problem(read(stack.fingerprint(device)))
        _shipped[device] = _by_problem(_shipped_rows(stack.target(device)))
    return rows.get(problem.name(), ())


def _may_read(device: torch.device) -> bool:
    """Not while a graph is captured, and not in a forked worker that loads data; one that uses the GPU is a trainer of its own.

    A thread of the worker's parent may have been inside SQLite when it forked, with its locks held for ever in the worker.
    """
    return not torch.cuda.is_current_stream_capturing() if device.type == "cuda" else os.getpid() == _process


def _by_problem(rows: Iterable[Measured]) -> dict[str, tuple[Measured, ...]]:
    found: dict[str, list[Measured]] = {}
    for row in rows:
        found.setdefault(row.problem, []).append(row)
    return {name: tuple(each) for name, each in found.items()}


def _shipped_rows(card: str) -> list[Measured]:
    rows: list[Measured] = []
    for file in sorted([*TUNED.glob(f"{card}.json"), *TUNED.glob(f"{card}-*.json")]):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            found = document["rows"]
            rows += [row for each in found if isinstance(each, dict) and (row := measured(each)) is not None and row.verdict == "ok"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            say(f"{file.name} cannot be read: {error}")
    return rows


def table(fingerprint: str, card: str) -> dict[str, Any]:
    """The fastest row of every problem, in the form of a shipped table."""
    fastest: dict[str, Measured] = {}
    for row in read(fingerprint):
        before = fastest.get(row.problem)
        if row.verdict == "ok" and row.algorithm in BY_NAME and (before is None or (row.microseconds or 0) < (before.microseconds or 0)):
            fastest[row.problem] = row
    rows = [
        {"problem": row.problem, "algorithm": row.algorithm, "variant": list(row.variant), "verdict": "ok", "microseconds": row.microseconds}
        for _, row in sorted(fastest.items())
    ]
    return {"schema": 1, "target": card, "stack": fingerprint, "rows": rows}
