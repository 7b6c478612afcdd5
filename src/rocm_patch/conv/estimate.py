"""An estimate of how long an algorithm takes, in microseconds: for the first step of a training run on a stack that nobody has measured.

Only the order of the rows matters. The model is the plain one: multiply-adds in whole rounds of blocks over the rate that a kernel reaches, or bytes
over the bandwidth, whichever is longer, and a few microseconds for each launch. Its constants were fitted to what
`benchmarks/conv_candidates.py` measured on an H200; docs/performance.md says how far the first guess is from the best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import implicit
from .launch import ceil_div
from .problem import Problem

Variant = tuple["str | int", ...]
LAUNCH = 2.5
"""Microseconds of a launch that has little to do."""


@dataclass(frozen=True)
class Chip:
    """A device, in units of a microsecond."""

    units: int
    rate: float
    """Multiply-adds."""
    bandwidth: float
    """Bytes."""
    cache: float
    """Bytes that the last cache holds."""


@functools.cache
def chip(device: torch.device) -> Chip:
    """What is known of a device; torch does not say its bandwidth."""
    if device.type != "cuda":
        return Chip(4, 20_000.0, 20_000.0, 1e7)
    properties = torch.cuda.get_device_properties(device)
    units: int = properties.multi_processor_count
    rate = units * (64 if torch.version.hip else 128) * 1_800.0
    # 0.14 bytes a multiply-add: an H200 has 0.14, an RX 5700 XT 0.10, an RX 6800 XT 0.05.
    return Chip(units, rate, rate * 0.14, float(getattr(properties, "L2_cache_size", 4 << 20)))


def microseconds(name: str, problem: Problem, variant: Variant) -> float:
    """Estimated time of one call."""
    return _MODELS[name](problem, variant, chip(problem.device))


def _size(problem: Problem) -> int:
    return 8 if problem.dtype == torch.float64 else 4 if problem.dtype == torch.float32 else 2


def _moved(problem: Problem) -> float:
    """Bytes of the image, the map and the weight."""
    return (math.prod(problem.image_shape) + math.prod(problem.map_shape) + math.prod(problem.weight_shape)) * _size(problem)


def _product(chip: Chip, products: int, rows: int, columns: int, depth: int) -> float:
    """Microseconds of the multiply-adds of `products` equal matrix products by a BLAS that takes tiles of 32 to 128."""
    tall, wide = (next(size for size in (32, 64, 128) if size >= min(length, 96) or size == 128) for length in (rows, columns))
    blocks = products * ceil_div(rows, tall) * ceil_div(columns, wide)
    share = implicit.share_of_peak(blocks / chip.units, tall * wide / 4096)
    return ceil_div(blocks, chip.units) * chip.units * tall * wide * (depth + 32) / (0.76 * share * chip.rate)


def _pointwise(problem: Problem, variant: Variant, chip: Chip) -> float:
    filters, channels, pixels = problem.filters // problem.groups, problem.channels // problem.groups, math.prod(problem.map)
    products = problem.batch * problem.groups
    bytes_ = _moved(problem)
    if set(problem.stride) > {1}:
        bytes_ += 2 * problem.batch * problem.channels * pixels * _size(problem)
        bytes_ += math.prod(problem.image_shape) * _size(problem) * (problem.operation == "input")
    launches = 2 if set(problem.stride) != {1} else 1
    if pixels < 8 and problem.operation != "weight":  # products of matrices and vectors: bound by the bytes
        return products * filters * channels * _size(problem) / chip.bandwidth + (1 + launches) * LAUNCH
    if problem.operation != "weight":
        rows, depth = (filters, channels) if problem.operation == "forward" else (channels, filters)
        if problem.bias:
            launches += 1
            bytes_ += 2 * math.prod(problem.result_shape) * _size(problem)
        return max(_product(chip, products, rows, pixels, depth), bytes_ * 1.15 / chip.bandwidth) + LAUNCH * launches
    if variant and variant[0] == "flat":
        # One long product: a BLAS cuts its reduction.
        work = problem.batch * pixels * ceil_div(filters, 64) * ceil_div(channels, 64) * 4096
        return work / (0.5 * chip.rate) + 4 * bytes_ / chip.bandwidth + LAUNCH * (launches + 1)
    result = 3 * products * filters * channels * 4 / chip.bandwidth
    return max(_product(chip, products, filters, channels, pixels), bytes_ / chip.bandwidth) + result + LAUNCH * (launches + 1)


def _implicit(problem: Problem, variant: Variant, chip: Chip) -> float:
    work = implicit.cost(problem, str(variant[0]), int(variant[1]), chip.units) / chip.rate
    if problem.operation == "input" and problem.taps == 1 and set(problem.stride) != {1}:
        work *= 2.2  # all of it is in one phase of several
    packing = 3 * math.prod(problem.weight_shape) * _size(problem) / chip.bandwidth
    return max(work, _moved(problem) * 1.1 / chip.bandwidth) + packing + LAUNCH * (1 + (problem.operation != "weight") + (int(variant[1]) > 1))


def _winograd(problem: Problem, variant: Variant, chip: Chip) -> float:
    size, piece = int(variant[0]), int(variant[1]) << 20
    points = (size + 2) ** 2
    out = problem.image if problem.operation == "input" else problem.map
    tiles = problem.batch * math.prod(ceil_div(o, size) for o in out)
    rows, channels = (problem.channels, problem.filters) if problem.operation == "input" else (problem.filters, problem.channels)
    spread = points * (rows + channels) * tiles * 4.0
    pieces = max(1, round(spread / piece + 0.49))
    # Points are written and read once each; a piece that fits the cache does not go to memory.
    traffic = 2 * spread * (0.35 if min(spread, piece) < 0.7 * chip.cache else 1.0) + _moved(problem)
    fixed = points * rows * channels * 4.0
    each = ceil_div(tiles, pieces)
    if problem.operation == "weight":
        splits = int(variant[3]) if len(variant) == 4 else 1
        product = pieces * _product(chip, points * splits, rows, channels, ceil_div(each, splits))
        traffic += fixed * (2 * splits * pieces if len(variant) == 4 else 2)
    else:
        product = pieces * _product(chip, points, rows, each, channels)
        traffic += 2 * fixed
    return product * (0.75 if len(variant) == 2 else 1.06) + traffic / chip.bandwidth + LAUNCH * (1.5 + 3 * pieces)


def _scatter(problem: Problem, variant: Variant, chip: Chip) -> float:
    rows, pixels = problem.channels * problem.taps, math.prod(problem.map)
    columns = problem.batch * rows * pixels * 4.0
    piece = int(variant[0]) * rows * pixels * 4.0
    traffic = 2 * columns * (0.4 if piece < 0.7 * chip.cache else 1.0) + _moved(problem)
    pieces = ceil_div(problem.batch, int(variant[0]))
    return _product(chip, problem.batch, rows, pixels, problem.filters) + traffic / chip.bandwidth + LAUNCH * (1 + 2 * pieces)


def _direct(problem: Problem, variant: Variant, chip: Chip) -> float:
    weight, summed = problem.operation == "weight", (problem.filters if problem.operation == "input" else problem.channels) // problem.groups
    slow = (6.0 if problem.taps > 1 else 20.0) if weight else 3.3 if summed < 32 else 4.8
    if problem.groups == 1 and problem.operation == "input":
        slow *= 1.4
    return max((2.3 if weight else 1.9) * _moved(problem) / chip.bandwidth, slow * problem.multiplications / chip.rate) + 1.6 * LAUNCH * (1 + weight)


def _linear(problem: Problem, variant: Variant, chip: Chip) -> float:
    # Few rows: a BLAS goes through the whole depth in a few blocks.
    depth = {"forward": problem.channels * problem.taps, "input": problem.filters, "weight": 0}[problem.operation]
    work: float = max(_moved(problem) / chip.bandwidth, problem.multiplications / (0.5 * chip.rate))
    return work + 6.0 + 0.015 * depth + LAUNCH * problem.bias


def _im2col(problem: Problem, variant: Variant, chip: Chip) -> float:
    columns = problem.batch * problem.channels * problem.taps * math.prod(problem.map) * _size(problem)
    return problem.multiplications / (0.5 * chip.rate) + (3 * _moved(problem) + 3 * columns) / chip.bandwidth + 30 * math.sqrt(problem.batch)


def _native(problem: Problem, variant: Variant, chip: Chip) -> float:
    return 4 * _im2col(problem, variant, chip) + 20.0 * problem.batch * problem.groups


_MODELS: dict[str, Callable[[Problem, Variant, Chip], float]] = {
    "pointwise": _pointwise,
    "linear": _linear,
    "implicit": _implicit,
    "winograd": _winograd,
    "winograd-blas": _winograd,
    "scatter": _scatter,
    "scatter-blas": _scatter,
    "direct": _direct,
    "im2col": _im2col,
    "native": _native,
    "cpu": lambda problem, variant, chip: 1e5 + 1e3 * problem.multiplications / chip.rate,
}
