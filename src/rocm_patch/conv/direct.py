"""Direct kernels, where few channels meet: depthwise, small groups, thin stems, 1-D filters (kernels/direct.cu, direct_weight.cu).

A thread keeps its results in registers: `rows` x `wide` of `filters` planes, or all the taps of `filters` filters in a weight gradient.
These problems are bound by memory, or by too few channels for a matrix product; nothing of the input is copied before it is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import runtime
from .direct_shape import Shape, Variant, Window, room, staged
from .launch import ceil_div, divisor, packed, pointers
from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

LIMIT = 2**31 - 1
LOCAL_BYTES = 32 * 1024
BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.float64: 8}
WINDOW = 112
"""Elements of the window that a thread may hold."""
WEIGHT_SUMS = 80
"""Sums that a thread of the weight gradient may hold."""
PROCESSORS, REGISTERS = 132, 65536
"""Of a large chip, registers for each processor: how many blocks run at once, which the splits of a weight gradient should fill."""


@functools.cache
def _source(name: str) -> str:
    return "\n".join((runtime.FOLDER / part).read_text(encoding="ascii") for part in ("common.h", "window.h", f"{name}.cu"))


def _kernel(problem: Problem, name: str, defines: dict[str, int]) -> runtime.Kernel:
    return runtime.runtime_of(problem.device).kernel(_source(name), name, tuple(defines.items()))


def _too_large(problem: Problem) -> str:
    largest = max(math.prod(problem.image_shape), math.prod(problem.map_shape), math.prod(problem.weight_shape))
    reach = sum((k + 16) * d + p for k, d, p in zip(problem.kernel, problem.dilation, problem.padding, strict=True))
    return "more than 2**31 elements" if largest * 2 > LIMIT or reach > 2**20 else ""


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    channels, filters = problem.channels // problem.groups, problem.filters // problem.groups
    summed = filters if problem.operation == "input" else channels
    if summed > 32 or (problem.operation == "weight" and channels * filters > 1024):
        return "more than 32 channels to be summed"
    if problem.operation == "input" and max(problem.stride) > 8:
        return "a stride of more than 8"
    if problem.groups * ceil_div(max(filters, channels), 2) > 65535:  # tiles of two filters at least, or of one that is all there is
        return "more than 65535 groups"
    return _too_large(problem) or ("" if variants(problem) else "too many taps for registers and local memory")


def prepare(problem: Problem, variant: tuple[int, ...]) -> Run:
    """Forward and data gradient: run(source, weight, bias). Weight gradient: run(map, image, None). All dense, at any address."""
    return (_prepare_weight if problem.operation == "weight" else _prepare)(problem, Variant(*variant))


def _prepare(problem: Problem, variant: Variant) -> Run:
    shape = Shape.of(problem)
    window = Window.of(shape, variant)
    one, two = window.one, window.two
    in_local = staged(variant)
    tiles = ceil_div(shape.sinks, variant.filters)
    blocks = (ceil_div(shape.result[1], variant.rows), ceil_div(shape.result[2], variant.wide))
    items = problem.batch * shape.result[0] * math.prod(blocks) * (1 if in_local else problem.groups * tiles)
    taps, forward = problem.taps, problem.operation == "forward"
    group_channels, group_filters = problem.channels // problem.groups, problem.filters // problem.groups
    by_filter, by_channel = group_channels * taps, taps
    defines = window.defines(shape, variant, problem.dtype) | {
        "BACK": int(shape.back), "CHUNKED": int(window.chunked), "STAGED": int(in_local), "FLIP": int(shape.flip and not in_local),
        "ROOM": room(shape, variant, window) if in_local else 0,
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
    # A view may begin anywhere: without the alignment, the same kernel reads one element at a time.
    aligned, anywhere = (packed(*head, int(window.loads_vectors and vectors), *tail) for vectors in (True, False))
    unit = window.vector * BYTES[problem.dtype]
    grid = (ceil_div(items, variant.threads), problem.groups * tiles if in_local else 1, 1)
    threads, result_shape, dtype, device = variant.threads, problem.result_shape, problem.dtype, problem.device

    def run(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(result_shape, dtype=dtype, device=device)
        address = source.data_ptr()
        addresses = pointers(address, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr())
        kernel.launch(grid, threads, addresses + (anywhere if address % unit else aligned))
        return result

    return run


def _prepare_weight(problem: Problem, variant: Variant) -> Run:
    shape = Shape.of(problem)
    window = Window.of(shape, variant)
    one, two = window.one, window.two
    tiles = ceil_div(shape.sinks, variant.filters)
    blocks = (ceil_div(shape.result[1], variant.rows), ceil_div(shape.result[2], variant.wide))
    items = problem.batch * shape.result[0] * math.prod(blocks)
    size = math.prod(problem.weight_shape)
    across, down = shape.sources * shape.kernel[0] * one.spans * two.spans, problem.groups * tiles
    splits = _splits(problem, shape, window, variant)
    real = torch.float64 if problem.dtype == torch.float64 else torch.float32
    kernel = _kernel(problem, "direct_weight", window.defines(shape, variant, problem.dtype))
    head = [items, splits, size, problem.groups, shape.sources, shape.sinks, tiles, *shape.source, *shape.result]
    head += [-shape.padding[0], one.low, two.low - window.shift, one.move, two.move, *shape.kernel]
    head += [shape.step[0], shape.delta[0], one.spans, two.spans]
    tail = [*divisor(blocks[0]), *divisor(blocks[1]), *divisor(shape.result[0])]
    fields = {
        (image, map_): packed(*head, int(window.loads_vectors and image), int(map_), *tail)
        for image in (True, False) for map_ in (True, False)
    }  # fmt: skip
    image_unit, map_unit = window.vector * BYTES[problem.dtype], window.store * BYTES[problem.dtype]
    grid, threads = (across, down, splits), variant.threads
    result_shape, dtype, device = problem.weight_shape, problem.dtype, problem.device
    reduce: runtime.Kernel | None = None
    if splits > 1 or dtype != real:
        defines = (("ELEMENT", runtime.ELEMENTS[dtype]), ("ORDER", 0))
        reduce = runtime.runtime_of(device).kernel(runtime.source_of("reduce"), "reduce", defines)
    reduce_fields, reduce_grid = packed(size, splits, 0, 0, *divisor(1) * 4), (ceil_div(size, 256), 1, 1)

    def run(map_: Tensor, image: Tensor, _: Tensor | None) -> Tensor:
        result = torch.empty(result_shape, dtype=dtype, device=device)
        partial = result if reduce is None else torch.empty(splits * size, dtype=real, device=device)
        at_image, at_map, sums = image.data_ptr(), map_.data_ptr(), partial.data_ptr()
        kernel.launch(grid, threads, pointers(at_image, at_map, sums) + fields[at_image % image_unit == 0, at_map % map_unit == 0])
        if reduce is not None:
            reduce.launch(reduce_grid, 256, pointers(sums, 0, result.data_ptr()) + reduce_fields)
        return result

    return run


def _splits(problem: Problem, shape: Shape, window: Window, variant: Variant) -> int:
    """Splits of a weight gradient: rounds of blocks times the steps of a block, the sum over its threads counted as three."""
    items = problem.batch * shape.result[0] * ceil_div(shape.result[1], variant.rows) * ceil_div(shape.result[2], variant.wide)
    if variant.splits:
        return min(variant.splits, items)
    blocks = shape.sources * shape.kernel[0] * window.one.spans * window.two.spans * problem.groups * ceil_div(shape.sinks, variant.filters)
    registers = window.elements + window.one.span * window.two.span * variant.filters + 30
    at_once = PROCESSORS * max(1, REGISTERS // (registers * variant.threads))
    most = max(1, min(items // variant.threads, 256))
    return min(range(1, most + 1), key=lambda splits: ceil_div(splits * blocks, at_once) * (ceil_div(items, variant.threads * splits) + 3))


def workspace(problem: Problem, variant: tuple[int, ...]) -> int:
    """Bytes beyond the result: the sums of the splits of a weight gradient."""
    if problem.operation != "weight":
        return 0
    shape, typed = Shape.of(problem), Variant(*variant)
    splits = _splits(problem, shape, Window.of(shape, typed), typed)
    return splits * math.prod(problem.weight_shape) * (8 if problem.dtype == torch.float64 else 4)


# ------------------------------------------------------------------ which variants


def variants(problem: Problem) -> tuple[Variant, ...]:
    """Best guess first."""
    shape = Shape.of(problem)
    found = []
    for guess in _guesses(problem, shape):
        fitting = _fitted(problem, shape, guess)
        if fitting is not None and fitting not in found:
            found.append(fitting)
    return tuple(found)


def _guesses(problem: Problem, shape: Shape) -> list[Variant]:
    """Best first, as measured on one large GPU (float32); spans are those of the whole kernel."""
    spans, width = shape.kernel[1:], shape.result[2]
    weight, strided, tall = problem.operation == "weight", shape.step[2] > 1, min(shape.result[1], 7)
    sizes: tuple[int, ...] = (128, 256)
    if weight:
        filters = [1] if shape.sinks == 1 else [2] if shape.sinks < 4 else [4, 8] if shape.sinks >= 8 else [4]
        # Few blocks of the map to a thread, and the sums of the threads cost more than the rest.
        sizes = (32, 64, 128) if problem.batch * math.prod(shape.result) < 2**12 and shape.sinks > 1 else (128, 256, 64)
    else:
        filters = [shape.sinks] if shape.sinks < 3 else [4] if shape.sinks <= 4 else [8, 4]
    if shape.kernel[2] > 8:  # neighbours share most of what they read
        blocks = [(1, 8), (1, 4), (2, 4)] if weight or shape.result[1] == 1 else [(1, 4), (2, 4), (1, 8)]
    elif shape.kernel[2] == 1 and width % 4:
        blocks = [(1, 2), (1, 1), (2, 1)]
    elif shape.result[1] == 1:
        blocks = [(1, 4), (1, 8), (1, 2)]
    elif shape.back and strided:
        blocks = [(2, 4), (4, 4), (2, 8), (2, 2), (4, 2), (8, 2)]
    elif weight and shape.sinks >= 4 and (not strided or width % 4):
        blocks = [(1, 8), (4, 4), (2, 4), (1, 4), (2, 2), (tall, 1)]
    elif width % 4 == 0:
        if strided:
            blocks = [(2, 4), (1, 4), (2, 2)] if weight or max(spans) > 5 else [(1, 4), (2, 4), (2, 2)]
        else:
            blocks = [(4, 4), (2, 4), (1, 8), (1, 4)] if filters[0] < 4 else [(2, 4), (1, 8), (1, 4), (4, 4)]
    elif strided and max(spans) < 5:
        blocks = [(2, 2), (1, 4), (1, 8), (4, 1), (tall, 1)] if weight else [(1, 4), (2, 2), (tall, 1), (2, 4), (1, 8)]
    elif filters[0] >= 4:
        blocks = [(2, 2), (tall, 1), (1, 4), (2, 4), (1, 8)] if width % 2 else [(1, 4), (2, 2), (tall, 1), (2, 4), (1, 8)]
    elif max(spans) < 5 and (width % 2 == 0 or not weight):
        blocks = [(1, 8), (2, 4), (2, 2), (tall, 1), (tall, 2), (1, 4)]
    else:  # columns: what neighbours read lies side by side
        blocks = [(tall, 2), (tall, 1), (1, 8), (2, 2), (2, 4), (4, 1)] if width % 2 == 0 else [(tall, 1), (1, 8), (tall, 2), (4, 1), (2, 2), (1, 4)]
    return [Variant(rows, wide, each, *spans, threads) for each in filters for threads in sizes for rows, wide in blocks]


def _fitted(problem: Problem, shape: Shape, guess: Variant) -> Variant | None:
    """The guess with its spans cut until the window fits into registers, and its blocks rounded to the step; or None."""
    steps = [shape.step[1], shape.step[2]] if shape.back else [1, 1]
    # A span moves the window of a data gradient by whole elements only if it is a multiple of this.
    units = [step // math.gcd(step, delta) for step, delta in zip(steps, shape.delta[1:], strict=True)]
    variant = guess._replace(rows=ceil_div(guess.rows, steps[0]) * steps[0], wide=ceil_div(guess.wide, steps[1]) * steps[1])
    spans = [
        kernel if kernel <= whole else ceil_div(part, unit) * unit
        for kernel, whole, part, unit in zip(shape.kernel[1:], (7, 8), (8, 16), units, strict=True)
    ]
    if problem.operation != "weight" and not shape.back:
        spans[0] = min(spans[0], shape.source[1])  # no result meets more taps than there are lines
    while True:
        variant = variant._replace(span1=spans[0], span2=spans[1])
        window = Window.of(shape, variant)
        sums = spans[0] * spans[1] * variant.filters if problem.operation == "weight" else 0
        if window.elements <= WINDOW and sums <= WEIGHT_SUMS:
            break
        axis = 0 if spans[0] > units[0] and (spans[0] >= spans[1] or spans[1] <= units[1]) else 1
        if spans[axis] <= units[axis]:
            return None
        spans[axis] = max(units[axis], spans[axis] // 2 // units[axis] * units[axis])
    size = 8 if problem.dtype == torch.float64 else 4
    if problem.operation == "weight":
        if shape.sources > 1 and window.one.spans * window.two.spans > 4:
            return None  # the map would be read once for each channel and span: a matrix product is better
        return variant if spans[0] * spans[1] * (variant.threads + 4) * size <= LOCAL_BYTES else None
    return variant if not staged(variant) or room(shape, variant, window) * size <= LOCAL_BYTES else None
