"""Direct kernels, where few channels meet: depthwise, small groups, thin stems, 1-D filters (kernels/direct.cu, direct_weight.cu).

A thread keeps its results in registers: `rows` x `wide` of `filters` planes, or all the taps of `filters` filters in a weight gradient.
These problems are bound by memory, or by too few channels for a matrix product; nothing of the input is copied before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from . import runtime
from .launch import ceil_div, divisor, packed, pointers
from .problem import Problem

Tensor = torch.Tensor
Three = tuple[int, int, int]

LIMIT = 2**31 - 1
LOCAL_BYTES = 32 * 1024
BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.float64: 8}
WINDOW = 112
"""Elements of the window that a thread may hold."""
WEIGHT_SUMS = 80
"""Sums that a thread of the weight gradient may hold."""
BLOCKS = 2048
"""Blocks of a weight gradient that splits aim at: a large chip filled, a small one not drowned in partial sums."""


@dataclass(frozen=True)
class Variant:
    """Results of a thread, taps taken at once (0: all of the kernel), threads of a block, splits of a weight gradient (0: by the size)."""

    rows: int
    wide: int
    filters: int
    span1: int = 0
    span2: int = 0
    threads: int = 128
    splits: int = 0


def _three(values: tuple[int, ...], fill: int) -> Three:
    filled = (fill,) * (3 - len(values)) + values
    return (filled[0], filled[1], filled[2])


@dataclass(frozen=True)
class _Axis:
    """How the window of a thread lies on one axis; positions in elements of the tensor that is read."""

    span: int
    spans: int
    height: int  # elements that `results` neighbours need
    low: int  # first of them for the first result
    low_in_window: int  # BACK: what an index counts from
    phase: int
    move: int  # from one span to the next


def _axis(kernel: int, step: int, delta: int, padding: int, results: int, span: int, back: bool) -> _Axis:
    if not back:
        return _Axis(span, ceil_div(kernel, span), (results - 1) * step + (span - 1) * delta + 1, -padding, 0, 0, span * delta)
    whole, phase = divmod(padding, step)
    lowest = (phase - (span - 1) * delta) // step
    return _Axis(span, ceil_div(kernel, span), (results - 1 + phase) // step - lowest + 1, whole + lowest, lowest, phase, -(span * delta) // step)


@dataclass(frozen=True)
class _Shape:
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
    def of(problem: Problem) -> _Shape:
        image, map_, kernel = _three(problem.image, 1), _three(problem.map, 1), _three(problem.kernel, 1)
        step, delta, padding = _three(problem.stride, 1), _three(problem.dilation, 1), _three(problem.padding, 0)
        channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
        if problem.operation != "input":
            return _Shape(False, False, channels, filters, image, map_, kernel, step, delta, padding)
        if step != (1, 1, 1):
            return _Shape(True, False, filters, channels, map_, image, kernel, step, delta, padding)
        turned = tuple(d * (k - 1) - p for d, k, p in zip(delta, kernel, padding, strict=True))
        return _Shape(False, True, filters, channels, map_, image, kernel, step, delta, turned)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Window:
    """The macros of window.cu and what belongs to them."""

    one: _Axis
    two: _Axis
    vector: int
    shift: int
    width: int

    @staticmethod
    def of(shape: _Shape, variant: Variant) -> _Window:
        axes = [
            _axis(shape.kernel[i], shape.step[i], shape.delta[i], shape.padding[i], results, span or shape.kernel[i], shape.back)
            for i, results, span in ((1, variant.rows, variant.span1), (2, variant.wide, variant.span2))
        ]
        base = variant.wide // shape.step[2] if shape.back else variant.wide * shape.step[2]
        vector = math.gcd(base, 4)
        shift = axes[1].low % vector
        return _Window(axes[0], axes[1], vector, shift, ceil_div(shift + axes[1].height, vector) * vector)

    @property
    def chunked(self) -> bool:
        return self.one.spans > 1 or self.two.spans > 1

    @property
    def elements(self) -> int:
        return self.one.height * self.width

    def loads_vectors(self, line: int) -> bool:
        """Whether every window begins at a multiple of `vector` when every line does."""
        return self.vector > 1 and line % self.vector == 0 and (self.two.spans == 1 or self.two.move % self.vector == 0)

    def defines(self, shape: _Shape, variant: Variant, dtype: torch.dtype) -> dict[str, int]:
        return {
            "ELEMENT": runtime.ELEMENTS[dtype], "DEPTH": int(max(shape.source[0], shape.result[0], shape.kernel[0]) > 1),
            "ROWS": variant.rows, "WIDE": variant.wide, "FILTERS": variant.filters, "THREADS": variant.threads,
            "SPAN1": self.one.span, "SPAN2": self.two.span, "STEP1": shape.step[1], "STEP2": shape.step[2],
            "DELTA1": shape.delta[1], "DELTA2": shape.delta[2], "HEIGHT": self.one.height, "WIDTH": self.width,
            "COLUMNS": self.two.height, "SHIFT": self.shift, "VECTOR": self.vector, "STORE": math.gcd(variant.wide, 4),
        }  # fmt: skip


def _staged(variant: Variant) -> bool:
    return variant.filters % 4 == 0


def _room(shape: _Shape, variant: Variant, window: _Window) -> int:
    """Weights of a tile in local memory, in elements: the next power of two, so that layers share code."""
    padded = shape.kernel[0] * window.one.span * window.one.spans * window.two.span * window.two.spans
    return max(1024, 1 << (shape.sources * padded * variant.filters - 1).bit_length())


def _kernel(problem: Problem, name: str, defines: dict[str, int]) -> runtime.Kernel:
    source = runtime.source_of("window") + (runtime.FOLDER / f"{name}.cu").read_text(encoding="ascii")
    return runtime.runtime_of(problem.device).kernel(source, name, tuple(defines.items()))


def _too_large(problem: Problem) -> str:
    largest = max(math.prod(problem.image_shape), math.prod(problem.map_shape), math.prod(problem.weight_shape))
    reach = sum((k + 16) * d + p for k, d, p in zip(problem.kernel, problem.dilation, problem.padding, strict=True))
    return "more than 2**31 elements" if largest * 2 > LIMIT or reach > 2**20 else ""


def guard_direct(problem: Problem) -> str:
    """Why no variant fits, or nothing: any operation, one to three dimensions."""
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    summed = filters if problem.operation == "input" else channels
    if summed > 32 or (problem.operation == "weight" and channels * filters > 1024):
        return "more than 32 channels to be summed"
    if problem.operation == "input" and max(problem.stride) > 8:
        return "a stride of more than 8"
    if problem.groups * ceil_div(filters, 4) > 65535 or problem.groups * ceil_div(channels, 4) > 65535:
        return "more than 65535 groups"
    return _too_large(problem) or ("" if variants(problem) else "too many weights for local memory")


# ------------------------------------------------------------------ forward and data gradient


def prepare_direct(problem: Problem, variant: Variant) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Forward and data gradient: run(source, weight, bias) -> result, all dense."""
    shape = _Shape.of(problem)
    window = _Window.of(shape, variant)
    one, two = window.one, window.two
    staged = _staged(variant)
    tiles = ceil_div(shape.sinks, variant.filters)
    blocks = (ceil_div(shape.result[1], variant.rows), ceil_div(shape.result[2], variant.wide))
    items = problem.batch * shape.result[0] * math.prod(blocks) * (1 if staged else problem.groups * tiles)
    taps, forward = problem.taps, problem.operation == "forward"
    group_channels, group_filters = problem.channels // problem.groups, problem.filters // problem.groups
    by_filter, by_channel = group_channels * taps, taps
    defines = window.defines(shape, variant, problem.dtype) | {
        "BACK": int(shape.back), "CHUNKED": int(window.chunked), "STAGED": int(staged),
        "ROOM": _room(shape, variant, window) if staged else 0,
        "PHASE1": one.phase, "PHASE2": two.phase, "LOW1": one.low_in_window, "LOW2": two.low_in_window,
    }  # fmt: skip
    kernel = _kernel(problem, "direct", defines)
    padded1, padded2 = one.span * one.spans, two.span * two.spans
    head = [items, problem.groups, shape.sources, shape.sinks, tiles, *shape.source, *shape.result]
    head += [-shape.padding[0], one.low, two.low - window.shift, one.move, two.move, *shape.kernel, shape.step[0], shape.delta[0], shape.padding[0]]
    head += [padded1, padded2, group_filters * group_channels * taps, by_filter if forward else by_channel, by_channel if forward else by_filter]
    head += [taps - 1 if shape.flip else 0, -1 if shape.flip else 1]
    tail = [*divisor(blocks[0]), *divisor(blocks[1]), *divisor(shape.result[0]), *divisor(tiles), *divisor(problem.groups)]
    tail += [*divisor(padded1 * padded2), *divisor(padded2)]
    vector_out = int(shape.result[2] % math.gcd(variant.wide, 4) == 0)
    # A view may begin anywhere: without the alignment, the same kernel reads one element at a time.
    aligned, anywhere = (packed(*head, int(window.loads_vectors(shape.source[2]) and vectors), vector_out, *tail) for vectors in (True, False))
    unit = window.vector * BYTES[problem.dtype]
    grid = (ceil_div(items, variant.threads), problem.groups * tiles if staged else 1, 1)
    threads, result_shape, dtype, device = variant.threads, problem.result_shape, problem.dtype, problem.device

    def run(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(result_shape, dtype=dtype, device=device)
        address = source.data_ptr()
        addresses = pointers(address, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr())
        kernel.launch(grid, threads, addresses + (anywhere if address % unit else aligned))
        return result

    return run


# ------------------------------------------------------------------ weight gradient


def prepare_direct_weight(problem: Problem, variant: Variant) -> Callable[[Tensor, Tensor], Tensor]:
    """Weight gradient: run(map, image) -> weight, all dense."""
    shape = _Shape.of(problem)
    window = _Window.of(shape, variant)
    one, two = window.one, window.two
    tiles = ceil_div(shape.sinks, variant.filters)
    blocks = (ceil_div(shape.result[1], variant.rows), ceil_div(shape.result[2], variant.wide))
    items = problem.batch * shape.result[0] * math.prod(blocks)
    size = math.prod(problem.weight_shape)
    across, down = shape.sources * shape.kernel[0] * one.spans * two.spans, problem.groups * tiles
    splits = variant.splits or max(1, min(ceil_div(BLOCKS, across * down), items // (variant.threads * 4), 256))
    real = torch.float64 if problem.dtype == torch.float64 else torch.float32
    kernel = _kernel(problem, "direct_weight", window.defines(shape, variant, problem.dtype))
    store = math.gcd(variant.wide, 4)
    head = [items, splits, size, problem.groups, shape.sources, shape.sinks, tiles, *shape.source, *shape.result]
    head += [
        -shape.padding[0],
        one.low,
        two.low - window.shift,
        one.move,
        two.move,
        *shape.kernel,
        shape.step[0],
        shape.delta[0],
        one.spans,
        two.spans,
    ]
    tail = [*divisor(blocks[0]), *divisor(blocks[1]), *divisor(shape.result[0])]
    fields = {
        (image, map_): packed(*head, int(window.loads_vectors(shape.source[2]) and image), int(shape.result[2] % store == 0 and map_), *tail)
        for image in (True, False) for map_ in (True, False)
    }  # fmt: skip
    image_unit, map_unit = window.vector * BYTES[problem.dtype], store * BYTES[problem.dtype]
    grid, threads = (across, down, splits), variant.threads
    result_shape, dtype, device = problem.weight_shape, problem.dtype, problem.device
    reduce: runtime.Kernel | None = None
    if splits > 1 or dtype != real:
        defines = (("ELEMENT", runtime.ELEMENTS[dtype]), ("ORDER", 0))
        reduce = runtime.runtime_of(device).kernel(runtime.source_of("reduce"), "reduce", defines)
    reduce_fields, reduce_grid = packed(size, splits, 0, 0, *divisor(1) * 4), (ceil_div(size, 256), 1, 1)

    def run(map_: Tensor, image: Tensor) -> Tensor:
        result = torch.empty(result_shape, dtype=dtype, device=device)
        partial = result if reduce is None else torch.empty(splits * size, dtype=real, device=device)
        at_image, at_map, sums = image.data_ptr(), map_.data_ptr(), partial.data_ptr()
        kernel.launch(grid, threads, pointers(at_image, at_map, sums) + fields[at_image % image_unit == 0, at_map % map_unit == 0])
        if reduce is not None:
            reduce.launch(reduce_grid, 256, pointers(sums, 0, result.data_ptr()) + reduce_fields)
        return result

    return run


def workspace_direct(problem: Problem, variant: Variant) -> int:
    """Bytes beyond the result."""
    if problem.operation != "weight":
        return 0
    shape = _Shape.of(problem)
    window = _Window.of(shape, variant)
    blocks = shape.sources * shape.kernel[0] * window.one.spans * window.two.spans * problem.groups * ceil_div(shape.sinks, variant.filters)
    splits = variant.splits or max(1, min(ceil_div(BLOCKS, blocks), 256))
    return splits * math.prod(problem.weight_shape) * (8 if problem.dtype == torch.float64 else 4)


# ------------------------------------------------------------------ which variants


def variants(problem: Problem) -> tuple[Variant, ...]:
    """Best guess first."""
    shape = _Shape.of(problem)
    found = []
    for guess in _guesses(problem, shape):
        fitting = _fitted(problem, shape, guess)
        if fitting is not None and fitting not in found:
            found.append(fitting)
    return tuple(found)


def _guesses(problem: Problem, shape: _Shape) -> list[Variant]:
    flat = shape.result[1] == 1
    small = shape.result[2] <= 4
    strided = not shape.back and shape.step[2] > 1  # a window four times as large as its results
    lonely = shape.result[2] % 4 > 0 and shape.kernel[2] == 1  # nothing to share between neighbours, and lines that begin anywhere
    if problem.operation == "weight":
        filters = 1 if shape.sinks == 1 else 2 if shape.sinks < 4 else 4
        shapes = [(1, 1), (1, 2)] if lonely else [(1, 8), (1, 4)] if flat else [(1, 4), (2, 4)] if strided else [(2, 4), (1, 4), (4, 4), (1, 8)]
        pixels = problem.batch * math.prod(shape.result)
        sizes = (64, 128, 256) if pixels < 2**14 else (256, 128, 64)
        more = [filters * 2] if shape.sinks >= 8 else []
        return [Variant(rows, wide, f, threads=threads) for f in (filters, *more) for threads in sizes for rows, wide in shapes]
    filters = shape.sinks if shape.sinks < 3 else 4 if shape.sinks <= 4 else 8
    if filters >= 4:
        shapes = [(1, 8), (1, 4), (1, 2)] if flat else [(1, 4), (2, 4), (2, 2)] if strided else [(2, 4), (1, 8), (1, 4), (4, 4)]
    elif lonely:
        shapes = [(1, 1), (2, 1), (1, 2)]
    else:
        shapes = [(1, 8), (1, 4)] if flat else [(1, 4), (2, 4), (2, 2)] if strided else [(2, 4), (4, 4), (1, 4), (2, 8)]
    if shape.back and shape.step[2] > 1:
        shapes = [(rows, wide * 2) for rows, wide in shapes] + shapes
    if small:
        shapes = [(rows, min(wide, 4)) for rows, wide in shapes]
    more = [4] if filters == 8 else []
    return [Variant(rows, wide, f, threads=threads) for f in (filters, *more) for threads in (128, 256) for rows, wide in shapes]


def _fitted(problem: Problem, shape: _Shape, guess: Variant) -> Variant | None:
    """The guess with its spans cut until the window fits into registers, and its blocks rounded to the step; or None."""
    steps = [shape.step[1], shape.step[2]] if shape.back else [1, 1]
    # A span moves the window of a data gradient by whole elements only if it is a multiple of this.
    units = [step // math.gcd(step, delta) for step, delta in zip(steps, shape.delta[1:], strict=True)]
    variant = replace(guess, rows=ceil_div(guess.rows, steps[0]) * steps[0], wide=ceil_div(guess.wide, steps[1]) * steps[1])
    spans = [
        kernel if kernel <= whole else ceil_div(part, unit) * unit
        for kernel, whole, part, unit in zip(shape.kernel[1:], (7, 8), (8, 16), units, strict=True)
    ]
    while True:
        variant = replace(variant, span1=spans[0], span2=spans[1])
        window = _Window.of(shape, variant)
        sums = spans[0] * spans[1] * variant.filters if problem.operation == "weight" else 0
        if window.elements <= WINDOW and sums <= WEIGHT_SUMS:
            break
        axis = 0 if spans[0] > units[0] and (spans[0] >= spans[1] or spans[1] <= units[1]) else 1
        if spans[axis] <= units[axis]:
            return None
        spans[axis] = max(units[axis], spans[axis] // 2 // units[axis] * units[axis])
    size = 8 if problem.dtype == torch.float64 else 4
    if problem.operation == "weight":
        taps = spans[0] * spans[1]
        return variant if taps * (variant.threads + 4) * size <= LOCAL_BYTES else None
    return variant if not _staged(variant) or _room(shape, variant, window) * size <= LOCAL_BYTES else None
