"""An estimate of how long an algorithm takes, in microseconds: for the first step of a training run on a stack that nobody has measured.

Only the order of the rows matters. The model is the classic one: the larger of multiply-adds over the rate that an algorithm reaches and bytes
over the bandwidth, plus launches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from .problem import Problem

Variant = tuple[str | int, ...]


@functools.cache
def chip(device: torch.device) -> tuple[float, float]:
    """(multiply-adds, bytes) per microsecond."""
    if device.type != "cuda":
        return 20_000.0, 20_000.0
    properties = torch.cuda.get_device_properties(device)
    lanes = 64 if torch.version.hip else 128
    rate = properties.multi_processor_count * lanes * 1_800.0
    return rate, rate * 0.14  # 0.14 bytes a multiply-add: an H200 has 0.14, an RX 5700 XT 0.10, an RX 6800 XT 0.05


def microseconds(name: str, problem: Problem, variant: Variant) -> float:
    """Estimated time of one call."""
    rate, bandwidth = chip(problem.device)
    work = problem.multiplications
    size = 8 if problem.dtype == torch.float64 else 4 if problem.dtype == torch.float32 else 2
    moved = (math.prod(problem.image_shape) + math.prod(problem.map_shape)) * size
    return _MODELS[name](problem, variant, work / rate, moved / bandwidth)


def _pointwise(problem: Problem, variant: Variant, work: float, moved: float) -> float:
    small = min(problem.filters, problem.channels) // problem.groups
    strided = 3.0 if set(problem.stride) > {1} else 1.0
    return max(work / (0.7 * min(1.0, (small + 16) / 80)), moved * 1.3 * strided) + 6


def _implicit(problem: Problem, variant: Variant, work: float, moved: float) -> float:
    filters, channels = problem.filters // problem.groups, problem.channels // problem.groups
    rows = channels if problem.operation == "input" else filters
    return max(work / (0.6 * min(1.0, (rows + 4) / 68)), moved * 1.2) + 10


def _winograd(problem: Problem, variant: Variant, work: float, moved: float) -> float:
    size = int(variant[0])
    out = problem.image if problem.operation == "input" else problem.map
    waste = math.prod(-(-o // size) * size for o in out) / math.prod(out)
    small = min(problem.filters, problem.channels)
    points = (size + 2) ** 2 / size**2
    return work * waste * points / 9 / (0.65 * min(1.0, (small + 8) / 72)) + moved * waste * (1 + 2.5 * points) + 16


def _scatter(problem: Problem, work: float, moved: float) -> float:
    rows = problem.channels * problem.taps
    columns = moved * rows * math.prod(problem.map) * 2 / (problem.channels * math.prod(problem.image) + problem.filters * math.prod(problem.map))
    return max(work / (0.65 * min(1.0, (rows + 8) / 72)), moved) + columns + 12


_MODELS: dict[str, Callable[[Problem, Variant, float, float], float]] = {
    "pointwise": _pointwise,
    "implicit": _implicit,
    "linear": lambda problem, variant, work, moved: moved + 3,
    "scatter": lambda problem, variant, work, moved: _scatter(problem, work, moved) * 1.1,
    "scatter-blas": lambda problem, variant, work, moved: _scatter(problem, work, moved),
    "winograd": lambda problem, variant, work, moved: _winograd(problem, variant, work, moved) * 1.1,
    "winograd-blas": _winograd,
    "depthwise": lambda problem, variant, work, moved: moved * 1.5 + 5,
    "grouped": lambda problem, variant, work, moved: work / 0.3 + moved * 1.5 + 5,
    "temporal": lambda problem, variant, work, moved: work / 0.4 + moved * 1.5 + 5,
    "im2col": lambda problem, variant, work, moved: work / 0.5 + moved * (2.5 + 2.5 * problem.taps) + 30 * problem.batch**0.5,
    "native": lambda problem, variant, work, moved: work / 0.1 + moved * (10 + problem.taps) + 20 * problem.batch * problem.groups,
    "cpu": lambda problem, variant, work, moved: 1e4 + 1e3 * (work + moved),
}
