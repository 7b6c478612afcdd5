"""Whether a candidate computes what it should: against float64, on fresh random numbers, with everything it allocates poisoned before.

The bound of the error. With u the unit roundoff in which sums are kept (float32 for half precision too), a result that is a sum of n products of
numbers without a mean has a rounding error of about 0.4 u S, S being the sum of the absolute products, however long n is: the partial sums walk
randomly and reach S / sqrt(n), and their n roundings add up like a walk again. Six standard deviations are 2.4 u S; BOUND is 16. It grows with n as S
does, and still notices one product too few among a million. The worst case, n u S, would notice nothing.

Half precision rounds the result once more, and a BLAS may round partial sums to it (PyTorch allows that by default), each of about S / sqrt(n).

Winograd's transformations amplify rounding and mix neighbours, so S is the largest of the whole result there, and the bound is multiplied by
AMPLIFICATION: the error of F(2x2) is near that of the direct method, that of F(4x4) about an order of magnitude above it
(https://arxiv.org/abs/1509.09308, https://arxiv.org/abs/1803.10986).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import im2col, native
from .algorithms import Variant
from .problem import Problem

BOUND = 16.0
AMPLIFICATION = {2: 2.0, 4: 16.0}
"""By the size of Winograd's tile of results."""
SMALL = 1 << 24
"""Multiplications of a reference that the CPU computes in a moment."""
CHUNK = 1 << 24
"""Elements compared at once, for the memory."""
ROUND = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Case:
    """Operands of a problem and the result they must give. Operands are in the order in which an algorithm takes them."""

    problem: Problem
    operands: tuple[Tensor, Tensor, Tensor | None]
    values: Tensor
    """float64"""
    sums: Tensor
    """Sums of the absolute products behind each value, float32."""
    canary: tuple[float, ...]
    """Sums of the operands: a candidate that writes into them is found out."""


def case(problem: Problem, seed: int) -> Case:
    """Fresh numbers and their float64 result: from the CPU where that is quick, or else by im2col on the device, where that can be had."""
    generator = torch.Generator(problem.device).manual_seed(seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=problem.device).uniform_(-1, 1, generator=generator).to(problem.dtype)

    shapes = {"forward": (problem.image_shape, problem.weight_shape), "input": (problem.map_shape, problem.weight_shape)}
    first, second = (random(shape) for shape in shapes.get(problem.operation, (problem.map_shape, problem.image_shape)))
    bias = random((problem.result_shape[1],)) if problem.bias else None
    operands = (first, second, bias)
    values, sums = _exact(problem, operands)
    return Case(problem, operands, values, sums, canary(operands))


def canary(operands: tuple[Tensor | None, ...]) -> tuple[float, ...]:
    """Changes, all but certainly, when an element does."""
    return tuple(float(tensor.sum(dtype=torch.float64)) for tensor in operands if tensor is not None)


def _exact(problem: Problem, operands: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    if problem.device.type != "cpu" and problem.multiplications > SMALL:
        with contextlib.suppress(RuntimeError):  # no memory, or no BLAS that works
            values, sums = _float64(problem, operands, problem.device)
            if confirmed(problem, operands, values):
                return values, sums
    values, sums = _float64(problem, operands, torch.device("cpu"))
    return values.to(problem.device), sums.to(problem.device)


def confirmed(problem: Problem, operands: tuple[Tensor, Tensor, Tensor | None], values: Tensor) -> bool:
    """Whether the CPU finds one plane of the result as well: on a stack under suspicion the device's float64 is no better than the rest."""
    group = problem.groups - 1
    first, second, bias = operands
    channels = slice(group * problem.channels // problem.groups, (group + 1) * problem.channels // problem.groups)
    filters = slice(group * problem.filters // problem.groups, (group + 1) * problem.filters // problem.groups)
    image, plane = problem.batch - 1, channels.start if problem.operation == "input" else filters.start
    if problem.operation == "weight":
        cut = (first[:, filters.start : filters.start + 1], second[:, channels.start : channels.start + 1])
        small = dataclasses.replace(problem, groups=1, channels=1, filters=1)
        found = values[filters.start, 0]
    else:
        forward = problem.operation == "forward"
        cut = (first[image:, channels if forward else filters], second[filters.start : filters.start + 1] if forward else second[filters, :1])
        sizes = (channels.stop - channels.start, 1) if forward else (1, filters.stop - filters.start)
        small = dataclasses.replace(problem, groups=1, batch=1, channels=sizes[0], filters=sizes[1])
        found = values[image, plane]
    part = (cut[0].contiguous(), cut[1].contiguous(), None if bias is None else bias[plane : plane + 1])
    expected, sums = _float64(small, part, torch.device("cpu"))
    bound = 2 * BOUND * ROUND[torch.float64] * sums.double() + torch.finfo(torch.float64).tiny
    return bool(((found.cpu() - expected.reshape(found.shape)).abs() <= bound.reshape(found.shape)).all())


def _float64(problem: Problem, operands: tuple[Tensor, Tensor, Tensor | None], device: torch.device) -> tuple[Tensor, Tensor]:
    there = dataclasses.replace(problem, device=device, dtype=torch.float64)
    on_cpu = device.type == "cpu" and not native.guard(there)
    run = native.prepare(there) if on_cpu else im2col.prepare(there, 256 << 20)

    def result(magnitudes: bool) -> Tensor:
        wide = [None if tensor is None else tensor.to(device, torch.float64) for tensor in operands]
        first, second, bias = (tensor.abs() if tensor is not None and magnitudes else tensor for tensor in wide)
        assert first is not None
        assert second is not None
        return run(first, second, bias)

    return result(magnitudes=False), result(magnitudes=True).float()


def error(case: Case, result: Tensor, algorithm: str, variant: Variant) -> float:
    """The largest error in units of its bound: at most 1 is right; infinity for values that are not finite."""
    problem = case.problem
    amplification = AMPLIFICATION[int(variant[0])] if algorithm.startswith("winograd") else 1.0
    largest = float(case.sums.max()) if amplification > 1 else None
    unit, own = max(ROUND[torch.float64], min(ROUND[problem.dtype], ROUND[torch.float32])), ROUND[problem.dtype]
    half = own > unit
    worst = 0.0
    pairs = (torch.split(tensor.flatten(), CHUNK) for tensor in (result, case.values, case.sums))
    for got, value, total in zip(*pairs, strict=True):
        bound = BOUND * unit * amplification * (total.double() if largest is None else largest)
        bound = bound + torch.finfo(problem.dtype).tiny
        if half:
            bound = bound + 2 * own * value.abs() + 8 * own * total / math.sqrt(max(1, problem.reduction))
        here = float(((got.double() - value).abs() / bound).max())
        worst = max(worst, here if math.isfinite(here) else math.inf)
    return worst


def check(case: Case, result: Tensor, algorithm: str, variant: Variant) -> str:
    """What is wrong with a result, or nothing."""
    problem = case.problem
    if tuple(result.shape) != problem.result_shape or result.dtype != problem.dtype or result.device.type != problem.device.type:
        return f"a result of {tuple(result.shape)}, {result.dtype} on {result.device}"
    if (found := error(case, result, algorithm, variant)) > 1:
        return "values that are not finite" if math.isinf(found) else f"an error of {found:.3g} times its bound"
    if canary(case.operands) != case.canary:
        return "it changed its operands"
    return ""


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """What `torch.empty` and `Tensor.new_empty` give inside is not a number, so that whatever is not written shows. For a child of our own."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    def poisoned_empty(*arguments: Any, **options: Any) -> Tensor:
        return poison(empty(*arguments, **options))

    def poisoned_new_empty(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return poison(new_empty(self, *arguments, **options))

    torch.empty, torch.Tensor.new_empty = poisoned_empty, poisoned_new_empty  # type: ignore[assignment, method-assign, unused-ignore]
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = empty, new_empty  # type: ignore[method-assign, unused-ignore]
