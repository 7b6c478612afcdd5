"""How the direct kernels see a problem: axes, the window that a thread reads, the macros that say so to the compiler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import runtime
from .launch import ceil_div
from .problem import Problem

Three = tuple[int, int, int]


class Variant(NamedTuple):
    """Results of a thread, taps taken at once, threads of a block, splits of a weight gradient (0: by the size)."""

    rows: int
    wide: int
    filters: int
    span1: int
    span2: int
    threads: int = 128
    splits: int = 0


def three(values: tuple[int, ...], fill: int) -> Three:
    filled = (fill,) * (3 - len(values)) + values
    return (filled[0], filled[1], filled[2])


@dataclass(frozen=True)
class Axis:
    """How the window of a thread lies on one axis; positions in elements of the tensor that is read."""

    span: int
    spans: int
    height: int  # elements that `results` neighbours need
    low: int  # first of them for the first result
    low_in_window: int  # BACK: what an index counts from
    phase: int
    move: int  # from one span to the next


def axis_of(kernel: int, step: int, delta: int, padding: int, results: int, span: int, back: bool) -> Axis:
    if not back:
        return Axis(span, ceil_div(kernel, span), (results - 1) * step + (span - 1) * delta + 1, -padding, 0, 0, span * delta)
    whole, phase = divmod(padding, step)
    lowest = (phase - (span - 1) * delta) // step
    return Axis(span, ceil_div(kernel, span), (results - 1 + phase) // step - lowest + 1, whole + lowest, lowest, phase, -(span * delta) // step)


@dataclass(frozen=True)
class Shape:
    """A problem as the kernels see it: three dimensions, a data gradient of step 1 as a forward with its taps reversed."""

    back: bool
    flip: bool
    sources: int
    sinks: int
    source: Three
    result: Three
    kernel: Three
    step: Three
    delta: Three
    padding: Three

    @staticmethod
    def of(problem: Problem) -> Shape:
        """Of a problem in any operation."""
        image, map_, kernel = three(problem.image, 1), three(problem.map, 1), three(problem.kernel, 1)
        step, delta, padding = three(problem.stride, 1), three(problem.dilation, 1), three(problem.padding, 0)
        channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
        if problem.operation != "input":
            return Shape(False, False, channels, filters, image, map_, kernel, step, delta, padding)
        if step != (1, 1, 1):
            return Shape(True, False, filters, channels, map_, image, kernel, step, delta, padding)
        turned = tuple(d * (k - 1) - p for d, k, p in zip(delta, kernel, padding, strict=True))
        return Shape(False, True, filters, channels, map_, image, kernel, step, delta, turned)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Window:
    """The macros of window.cu and what belongs to them."""

    one: Axis
    two: Axis
    vector: int
    store: int
    shift: int
    width: int

    @staticmethod
    def of(shape: Shape, variant: Variant) -> Window:
        """Of a thread of this variant."""
        axes = [
            axis_of(shape.kernel[i], shape.step[i], shape.delta[i], shape.padding[i], results, min(span, shape.kernel[i]), shape.back)
            for i, results, span in ((1, variant.rows, variant.span1), (2, variant.wide, variant.span2))
        ]
        base = variant.wide // shape.step[2] if shape.back else variant.wide * shape.step[2]
        vector = math.gcd(base, 4, shape.source[2])
        shift = axes[1].low % vector
        return Window(axes[0], axes[1], vector, math.gcd(variant.wide, 4, shape.result[2]), shift, ceil_div(shift + axes[1].height, vector) * vector)

    @property
    def chunked(self) -> bool:
        """Whether the kernel has more taps than are taken at once."""
        return self.one.spans > 1 or self.two.spans > 1

    @property
    def elements(self) -> int:
        """Registers that it takes."""
        return self.one.height * self.width

    @property
    def loads_vectors(self) -> bool:
        """Whether every window begins at a multiple of `vector`, as every line does."""
        return self.two.spans == 1 or self.two.move % self.vector == 0

    def defines(self, shape: Shape, variant: Variant, dtype: torch.dtype) -> dict[str, int]:
        """Macros of both kernels."""
        return {
            "ELEMENT": runtime.ELEMENTS[dtype], "DEPTH": int(max(shape.source[0], shape.result[0], shape.kernel[0]) > 1 or shape.padding[0] != 0),
            "ROWS": variant.rows, "WIDE": variant.wide, "FILTERS": variant.filters, "THREADS": variant.threads,
            "SPAN1": self.one.span, "SPAN2": self.two.span, "STEP1": shape.step[1], "STEP2": shape.step[2],
            "DELTA1": shape.delta[1], "DELTA2": shape.delta[2], "HEIGHT": self.one.height, "WIDTH": self.width,
            "COLUMNS": self.two.height, "SHIFT": self.shift, "VECTOR": self.vector, "STORE": self.store,
        }  # fmt: skip


def staged(variant: Variant) -> bool:
    return variant.filters % 4 == 0


def room(shape: Shape, variant: Variant, window: Window) -> int:
    """Weights of a tile in local memory, in elements: the next power of two, so that layers share code."""
    padded = shape.kernel[0] * window.one.span * window.one.spans * window.two.span * window.two.spans
    return max(1024, 1 << (shape.sources * padded * variant.filters - 1).bit_length())
