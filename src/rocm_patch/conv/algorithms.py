"""The table of algorithms: what each can do, what it needs, and in which variants it comes. The last row takes everything.

To add one: a module with a guard and a `prepare`, and a row here; the tests run every row on every problem that its guard accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import direct, gemm, im2col, implicit, linear, native, scatter, winograd
from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""forward: (image, weight, bias) -> map. input: (map, weight, bias) -> image. weight: (map, image, None) -> weight. All dense."""
Variant = tuple[str | int, ...]


@dataclass(frozen=True)
class Algorithm:
    """One row. `guard` says why it cannot serve a problem, or nothing; `variants` come with the best guess first."""

    name: str
    guard: Callable[[Problem], str]
    variants: Callable[[Problem, int], tuple[Variant, ...]]
    prepare: Callable[[Problem, Variant, int], Run]
    kernels: bool = False
    """It needs kernels of ours, so a GPU that we can compile for."""
    blas: bool = False
    """It calls the BLAS that torch brings."""


def _one(problem: Problem, limit: int) -> tuple[Variant, ...]:
    return ((),)


def _direct(problem: Problem, limit: int) -> tuple[Variant, ...]:
    return tuple(tuple(variant) for variant in direct.variants(problem) if direct.workspace(problem, variant) <= limit)


ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        "pointwise", gemm.guard,
        lambda problem, limit: tuple(variant for variant in gemm.variants(problem) if gemm.workspace(problem, variant[0]) <= limit),
        lambda problem, variant, limit: gemm.prepare(problem, str(variant[0])), blas=True,
    ),
    Algorithm("linear", linear.guard, _one, lambda problem, variant, limit: linear.prepare(problem), blas=True),
    Algorithm("direct", direct.guard, _direct, lambda problem, variant, limit: direct.prepare(problem, tuple(map(int, variant))), kernels=True),
    Algorithm("implicit", implicit.guard, implicit.variants, lambda problem, variant, limit: implicit.prepare(problem, variant), kernels=True),
    Algorithm("winograd", winograd.guard, winograd.variants, winograd.prepare, kernels=True),
    Algorithm("winograd-blas", winograd.guard, winograd.variants_blas, winograd.prepare, kernels=True, blas=True),
    Algorithm("scatter", scatter.guard, scatter.variants, scatter.prepare, kernels=True),
    Algorithm("scatter-blas", scatter.guard, scatter.variants_blas, scatter.prepare, kernels=True, blas=True),
    Algorithm("im2col", lambda problem: "", _one, lambda problem, variant, limit: im2col.prepare(problem, limit), blas=True),
    Algorithm("native", native.guard, _one, lambda problem, variant, limit: native.prepare(problem)),
    Algorithm("cpu", native.guard_cpu, _one, lambda problem, variant, limit: native.prepare_cpu(problem)),
)  # fmt: skip
BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}
