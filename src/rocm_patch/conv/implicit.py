"""Implicit GEMM: forward, data gradient and weight gradient without an im2col buffer (kernels/gather.cu, weight.cu).

Its parameters are a tile and a number of splits of the reduction. Everything that a launch needs but the addresses is packed once, when a
problem is first seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import runtime
from .launch import aligned, ceil_div, divisor, packed, pointers
from .problem import Problem

Tap = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """Sums of a block (rows x columns), of a thread, and the step of the reduction."""

    rows: int
    columns: int
    step: int
    thread_rows: int
    thread_columns: int
    resident: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * self.columns // self.thread_columns

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}x{self.step}"

    def defines(self) -> tuple[tuple[str, int], ...]:
        names = ("BM", "BN", "BK", "TM", "TN", "RESIDENT")
        values = (self.rows, self.columns, self.step, self.thread_rows, self.thread_columns, self.resident)
        return tuple(zip(names, values, strict=True))


GATHER_TILES = (
    Tile(128, 128, 8, 8, 8, 2),
    Tile(128, 128, 16, 8, 8, 2),
    Tile(64, 128, 8, 8, 8, 4),
    Tile(64, 128, 16, 8, 8, 4),
    Tile(128, 64, 16, 8, 8, 4),
    Tile(64, 256, 8, 8, 8, 2),
    Tile(64, 64, 16, 8, 4, 4),
    Tile(32, 128, 16, 4, 8, 4),
    Tile(32, 256, 8, 8, 8, 4),
    Tile(16, 256, 8, 4, 8, 4),
    Tile(8, 256, 8, 4, 4, 4),
)
WEIGHT_TILES = (
    Tile(128, 128, 8, 8, 8, 2),
    Tile(128, 128, 16, 8, 8, 2),
    Tile(64, 128, 16, 8, 8, 4),
    Tile(128, 64, 16, 8, 8, 4),
    Tile(64, 64, 16, 8, 4, 4),
    Tile(32, 128, 16, 4, 8, 4),
    Tile(128, 32, 16, 8, 4, 4),
    Tile(32, 64, 16, 4, 4, 4),
    Tile(64, 32, 16, 4, 4, 4),
    Tile(32, 32, 16, 4, 4, 4),
    Tile(16, 64, 16, 4, 4, 4),
)
DOUBLE_TILE = Tile(64, 64, 16, 4, 4, 2)
"""float64 takes twice the registers and local memory."""

MAX_PHASES = 8
LIMIT = 2**31 - 1
GRID = 65535
"""Blocks of a launch in its second and third dimension, at most."""


def three(values: tuple[int, ...], fill: int) -> Tap:
    """One to three dimensions as three."""
    filled = (fill,) * (3 - len(values)) + values
    return (filled[0], filled[1], filled[2])


def strides_of(size: Tap) -> Tap:
    return (size[1] * size[2], size[2], 1)


@dataclass(frozen=True)
class _Phase:
    """Outputs `first + stride * o` of the result and the taps that reach them: taps `start + step * t`, t < count, per dimension."""

    first: Tap
    size: Tap
    base: Tap
    start: Tap
    step: Tap
    count: Tap


def _phases(problem: Problem) -> list[_Phase]:
    """One for a forward; for a data gradient one for each remainder of the stride that the image holds."""
    kernel, stride = three(problem.kernel, 1), three(problem.stride, 1)
    padding, dilation = three(problem.padding, 0), three(problem.dilation, 1)
    image = three(problem.image, 1)
    if problem.operation == "forward":
        return [_Phase((0, 0, 0), three(problem.map, 1), (-padding[0], -padding[1], -padding[2]), (0, 0, 0), (1, 1, 1), kernel)]
    each: list[list[tuple[int, int, int, int, int, int]]] = []
    for axis in range(3):
        rows = []
        k, s, p, d = kernel[axis], stride[axis], padding[axis], dilation[axis]
        step = s // math.gcd(s, d)
        for first in range(min(s, image[axis])):
            start = next((tap for tap in range(min(step, k)) if (first + p - tap * d) % s == 0), None)
            size = ceil_div(image[axis] - first, s)
            if start is None:
                rows.append((first, size, 0, 0, step, 0))
            else:
                rows.append((first, size, (first + p - start * d) // s, start, step, ceil_div(k - start, step)))
        each.append(rows)
    phases = [_Phase(*zip(*combination, strict=True)) for combination in itertools.product(*each)]  # type: ignore[arg-type, unused-ignore]
    # Blocks of phases with many taps start first, so that the short ones fill the end.
    return sorted(phases, key=lambda phase: -math.prod(phase.count))


def guard_gather(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.operation == "weight":
        return "another operation"
    return _too_large(problem)


def guard_weight(problem: Problem) -> str:
    if problem.operation != "weight":
        return "another operation"
    if any((k - 1) * d > 511 for k, d in zip(problem.kernel, problem.dilation, strict=True)):
        return "a kernel window of more than 512"
    return _too_large(problem)


def _too_large(problem: Problem) -> str:
    largest = max(math.prod(problem.image_shape), math.prod(problem.map_shape), math.prod(problem.weight_shape))
    reach = sum((k + 1) * d + p for k, d, p in zip(problem.kernel, problem.dilation, problem.padding, strict=True))
    if problem.groups * (min(MAX_PHASES, math.prod(problem.stride)) if problem.operation == "input" else 1) > GRID:
        return "more groups than a grid of blocks is deep"
    return "more than 2**31 elements" if largest * 2 > LIMIT or reach > 2**20 or problem.taps > 1024 else ""


def plain(problem: Problem) -> bool:
    """A GEMM as it lies: one tap, no border, step one, and no output padding of a transposed convolution."""
    return problem.taps == 1 and not any(problem.padding) and set(problem.stride) <= {1} and problem.image == problem.map


class GatherGemm:
    """A launch of kernels/gather.cu that is ready but for the addresses."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, tile: Tile, splits: int, *, batch: int, rows: int, channels: int, groups: int,
        in_size: Tap, out_size: Tap, phases: list[_Phase], step: Tap, delta: Tap, out_step: Tap, is_plain: bool,
    ) -> None:  # fmt: skip
        self.tile, self.splits, self.device, self.dtype = tile, splits, device, dtype
        self.rows_padded = ceil_div(rows, tile.rows) * tile.rows
        self.groups = groups
        in_stride, out_stride = strides_of(in_size), strides_of(out_size)
        in_pixels, out_pixels = math.prod(in_size), math.prod(out_size)
        self.fours = len(phases) == 1 and out_step == (1, 1, 1) and out_pixels % 4 == 0
        uniform = 2 if is_plain and in_pixels % 4 == 0 else 1 if channels % tile.step == 0 else 0
        dimensions = 3 if in_size[0] > 1 or out_size[0] > 1 or any(phase.count[0] > 1 or phase.base[0] for phase in phases) else 2
        self.output_elements = batch * groups * rows * out_pixels
        self.partial_elements = splits * self.output_elements if splits > 1 else 0
        self.pixels = out_pixels
        self.all_rows = rows * groups
        self.launches: list[tuple[runtime.Kernel, tuple[int, int, int], bytes]] = []
        self.slabs: list[tuple[int, int]] = []  # of each phase: where its packed weights begin, and their padded depth
        begin = 0
        self.padded = self.rows_padded != rows
        for phase in phases:
            depth = math.prod(phase.count) * channels
            padded = ceil_div(depth, tile.step) * tile.step
            self.padded = self.padded or padded != depth
            self.slabs.append((begin, padded))
            begin += padded * self.rows_padded * groups
        self.weight_elements = begin
        head = [batch, rows, self.rows_padded, channels, groups, splits, *in_size]
        head += [groups * channels * in_pixels, in_pixels, in_stride[0], in_stride[1], *step, *delta]
        head += [self.all_rows * out_pixels, out_pixels, *(s * o for s, o in zip(out_stride, out_step, strict=True)), int(self.fours)]
        head += [self.output_elements, *divisor(channels)]
        live = [(phase, slab) for phase, slab in zip(phases, self.slabs, strict=True) if math.prod(phase.size)]
        for part in (live[at : at + MAX_PHASES] for at in range(0, len(live), MAX_PHASES)):
            table = 1 if len(phases) == 1 else MAX_PHASES
            fields = list(head)
            for phase, (weights, depth) in [*part, *[part[0]] * (table - len(part))]:
                first = sum(f * s for f, s in zip(phase.first, out_stride, strict=True))
                taps = phase.count
                fields += [*phase.size, *phase.base, *taps, weights, depth, first]
                fields += [*divisor(math.prod(phase.size)), *divisor(phase.size[1] * phase.size[2]), *divisor(phase.size[2])]
                fields += [*divisor(max(1, taps[1] * taps[2])), *divisor(max(1, taps[2]))]
            defines = (*tile.defines(), ("ELEMENT", runtime.ELEMENTS[dtype]), ("UNIFORM", uniform), ("DIMENSIONS", dimensions), ("PHASES", table))
            kernel = runtime.runtime_of(device).kernel(runtime.source_of("gather"), "gather", defines)
            columns = max(batch * math.prod(phase.size) for phase, _ in part)
            grid = (ceil_div(columns, tile.columns), self.rows_padded // tile.rows, splits * groups * len(part))
            self.launches.append((kernel, grid, packed(*fields)))
        self._reduce = _reduction(device, dtype, 0) if splits > 1 else None
        self._reduce_fields = packed(
            self.output_elements, splits, 0, 0, *divisor(out_pixels), *divisor(self.all_rows), *divisor(1), *divisor(1)
        )  # fmt: skip

    def run(self, source: int, weight: int, bias: int, result: int) -> None:
        """Addresses of dense tensors; weight as packed for this tile."""
        partial = 0
        if self.splits > 1:
            sums = torch.empty(self.partial_elements, dtype=_real(self.dtype), device=self.device)
            partial = sums.data_ptr()
        head = pointers(source, weight, 0 if self.splits > 1 else bias, result, partial)
        for kernel, grid, fields in self.launches:
            kernel.launch(grid, self.tile.threads, head + fields)
        if self._reduce is not None:
            grid = (ceil_div(self.output_elements, 256), 1, 1)
            self._reduce.launch(grid, 256, pointers(partial, bias, result) + self._reduce_fields)


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _reduction(device: torch.device, dtype: torch.dtype, order: int) -> runtime.Kernel:
    defines = (("ELEMENT", runtime.ELEMENTS[dtype]), ("ORDER", order))
    return runtime.runtime_of(device).kernel(runtime.source_of("reduce"), "reduce", defines)


def prepare_gather(problem: Problem, tile: Tile, splits: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Forward and data gradient: run(source, weight, bias) -> result, all dense."""
    forward = problem.operation == "forward"
    rows, channels = problem.filters // problem.groups, problem.channels // problem.groups
    if not forward:
        rows, channels = channels, rows
    phases = _phases(problem)
    stride, ones = three(problem.stride, 1), (1, 1, 1)
    gemm = GatherGemm(
        problem.device, problem.dtype, tile, splits, batch=problem.batch, rows=rows, channels=channels, groups=problem.groups,
        in_size=three(problem.image if forward else problem.map, 1), out_size=three(problem.map if forward else problem.image, 1), phases=phases,
        step=stride if forward else ones, out_step=ones if forward else stride, is_plain=plain(problem), delta=_delta(problem, phases),
    )  # fmt: skip
    pack = Packing(problem, gemm, phases, rows, channels)
    shape, dtype, device, is_plain = problem.result_shape, problem.dtype, problem.device, plain(problem)

    def run(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=device)
        ready = pack.run(weight)
        source = aligned(source) if is_plain else source
        gemm.run(source.data_ptr(), ready.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr())
        return result

    return run


def _delta(problem: Problem, phases: list[_Phase]) -> Tap:
    """How far the input moves from one tap to the next."""
    dilation, stride = three(problem.dilation, 1), three(problem.stride, 1)
    if problem.operation == "forward":
        return dilation
    step = phases[0].step  # the same in every phase
    return (-step[0] * dilation[0] // stride[0], -step[1] * dilation[1] // stride[1], -step[2] * dilation[2] // stride[2])


class Packing:
    """A launch of kernels/pack.cu."""

    def __init__(self, problem: Problem, gemm: GatherGemm, phases: list[_Phase], rows: int, channels: int) -> None:
        forward = problem.operation == "forward"
        kernel = three(problem.kernel, 1)
        slab, group_stride = [-1] * problem.taps, [0] * problem.taps
        for phase, (begin, depth) in zip(phases, gemm.slabs, strict=True):
            for order, (t0, t1, t2) in enumerate(itertools.product(*(range(count) for count in phase.count))):
                tap = tuple(s + step * t for s, step, t in zip(phase.start, phase.step, (t0, t1, t2), strict=True))
                at = (tap[0] * kernel[1] + tap[1]) * kernel[2] + tap[2]
                slab[at] = begin + order * channels * gemm.rows_padded
                group_stride[at] = depth * gemm.rows_padded
        room = next(size for size in (32, 128, 512, 1024) if size >= problem.taps)
        fill = [0] * (room - problem.taps)
        self.fields = packed(
            problem.filters // problem.groups, problem.channels // problem.groups, problem.taps, gemm.rows_padded, 0, int(forward),
            *slab, *fill, *group_stride, *fill,
        )  # fmt: skip
        defines = (("ELEMENT", runtime.ELEMENTS[problem.dtype]), ("MAX_TAPS", room))
        self.kernel = runtime.runtime_of(problem.device).kernel(runtime.source_of("pack"), "pack", defines)
        if forward:
            self.grid = (ceil_div(channels * problem.taps, 32), ceil_div(gemm.rows_padded, 32), problem.groups)
        else:
            self.grid = (ceil_div(gemm.rows_padded, 32), min(ceil_div(channels, 8), 256), problem.groups)
        self.elements = gemm.weight_elements
        # Rows beyond the last are written as zeros; the rest of a step of the reduction is not.
        self.make = torch.zeros if gemm.padded else torch.empty
        self.device, self.dtype = problem.device, problem.dtype

    def run(self, weight: Tensor) -> Tensor:
        ready = self.make(self.elements, dtype=self.dtype, device=self.device)
        self.kernel.launch(self.grid, 256, pointers(weight.data_ptr(), ready.data_ptr()) + self.fields)
        return ready


class WeightGemm:
    """A launch of kernels/weight.cu and of the reduction after it, ready but for the addresses."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, tile: Tile, splits: int, *, batch: int, filters: int, channels: int, groups: int,
        in_size: Tap, map_size: Tap, kernel: Tap, stride: Tap, padding: Tap, dilation: Tap,
    ) -> None:  # fmt: skip
        in_stride = strides_of(in_size)
        in_pixels, pixels = math.prod(in_size), math.prod(map_size)
        taps = math.prod(kernel)
        is_plain = taps == 1 and padding == (0, 0, 0) and stride == (1, 1, 1) and in_size == map_size and pixels % 4 == 0
        uniform = 2 if is_plain else 1 if channels % tile.columns == 0 else 0
        chunks = ceil_div(batch * pixels, tile.step)
        self.splits = max(1, min(splits, chunks))
        self.tile, self.device, self.dtype = tile, device, dtype
        self.size = groups * filters * channels * taps
        fields = [
            batch,
            filters,
            channels,
            taps,
            groups,
            self.splits,
            chunks,
            *in_size,
            groups * channels * in_pixels,
            in_pixels,
            in_stride[0],
            in_stride[1],
        ]
        fields += [groups * filters * pixels, pixels, *stride, *(-p for p in padding), *dilation]
        fields += [*divisor(pixels), *divisor(map_size[1] * map_size[2]), *divisor(map_size[2]), *divisor(channels)]
        fields += [*divisor(kernel[1] * kernel[2]), *divisor(kernel[2])]
        self.fields = packed(*fields)
        defines = (*tile.defines(), ("ELEMENT", runtime.ELEMENTS[dtype]), ("UNIFORM", uniform))
        self.kernel = runtime.runtime_of(device).kernel(runtime.source_of("weight"), "weight", defines)
        self.grid = (ceil_div(taps * channels, tile.columns), ceil_div(filters, tile.rows), self.splits * groups)
        # With one tap or one channel the sums lie as the result does.
        self.direct = self.splits == 1 and 1 in (taps, channels) and dtype == _real(dtype)
        self.reduce = None if self.direct else _reduction(device, dtype, 1)
        self.reduce_fields = packed(
            self.size, self.splits, channels, taps, *divisor(1), *divisor(1), *divisor(taps * channels), *divisor(channels)
        )  # fmt: skip

    def sums(self, image: int, map_: int, partial: int) -> None:
        """The sums of each split, [split][group][filter][tap][channel], not added yet."""
        self.kernel.launch(self.grid, self.tile.threads, pointers(image, map_, partial) + self.fields)

    def run(self, image: int, map_: int, result: int) -> None:
        partial = result
        if not self.direct:
            sums = torch.empty(self.splits * self.size, dtype=_real(self.dtype), device=self.device)
            partial = sums.data_ptr()
        self.sums(image, map_, partial)
        if self.reduce is not None:
            self.reduce.launch((ceil_div(self.size, 256), 1, 1), 256, pointers(partial, 0, result) + self.reduce_fields)


def prepare_weight(problem: Problem, tile: Tile, splits: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Weight gradient: run(map, image, None) -> weight, all dense."""
    gemm = WeightGemm(
        problem.device, problem.dtype, tile, splits, batch=problem.batch, filters=problem.filters // problem.groups,
        channels=problem.channels // problem.groups, groups=problem.groups, in_size=three(problem.image, 1), map_size=three(problem.map, 1),
        kernel=three(problem.kernel, 1), stride=three(problem.stride, 1), padding=three(problem.padding, 0), dilation=three(problem.dilation, 1),
    )  # fmt: skip
    shape, dtype, device, is_plain = problem.weight_shape, problem.dtype, problem.device, plain(problem)

    def run(map_: Tensor, image: Tensor, bias: Tensor | None = None) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=device)
        if is_plain:
            map_, image = aligned(map_), aligned(image)
        gemm.run(image.data_ptr(), map_.data_ptr(), result.data_ptr())
        return result

    return run


# ------------------------------------------------------------------ rows of the table


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    return guard_weight(problem) if problem.operation == "weight" else guard_gather(problem)


def variants(problem: Problem, limit: int) -> tuple[tuple[str | int, ...], ...]:
    """(tile, splits), those that should be fastest first."""
    if problem.dtype == torch.float64:
        return ((DOUBLE_TILE.name, _splits(problem, DOUBLE_TILE)[0]),)
    tiles = WEIGHT_TILES if problem.operation == "weight" else GATHER_TILES
    units = units_of(problem)
    found = [(cost(problem, tile.name, splits, units), (tile.name, splits)) for tile in tiles for splits in _splits(problem, tile)]
    fitting = [row for row in sorted(found) if row[1][1] == 1 or row[1][1] * math.prod(problem.result_shape) * 4 <= limit // 2]
    return tuple(variant for _, variant in fitting)


def prepare(problem: Problem, variant: tuple[str | int, ...]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    tiles = WEIGHT_TILES if problem.operation == "weight" else GATHER_TILES
    tile = next((tile for tile in tiles if tile.name == variant[0]), DOUBLE_TILE)
    if problem.dtype == torch.float64:
        tile = DOUBLE_TILE
    return prepare_weight(problem, tile, int(variant[1])) if problem.operation == "weight" else prepare_gather(problem, tile, int(variant[1]))


def _shape(problem: Problem) -> tuple[int, int, int, int]:
    """(rows, columns, reduction, independent products) of the GEMM; the reduction of a strided data gradient is that of a mean phase."""
    filters, channels = problem.filters // problem.groups, problem.channels // problem.groups
    if problem.operation == "forward":
        return filters, problem.batch * math.prod(problem.map), channels * problem.taps, problem.groups
    if problem.operation == "input":
        phases = math.prod(problem.stride)
        columns = problem.batch * math.prod(problem.image)
        return channels, ceil_div(columns, phases), max(1, filters * problem.taps // phases), problem.groups * phases
    return filters, channels * problem.taps, problem.batch * math.prod(problem.map), problem.groups


def units_of(problem: Problem) -> int:
    """Multiprocessors or compute units of the device."""
    if problem.device.type != "cuda":
        return 4
    count: int = torch.cuda.get_device_properties(problem.device).multi_processor_count
    return count


def _blocks(problem: Problem, tile: Tile) -> int:
    rows, columns, _, products = _shape(problem)
    return ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * products


def _splits(problem: Problem, tile: Tile) -> tuple[int, ...]:
    """Cuts of the reduction that fill the device about once, twice and four times; 1 where it is full already."""
    blocks, room = _blocks(problem, tile), units_of(problem) * tile.resident
    depth = _shape(problem)[2] // tile.step
    most = max(1, depth // (8 if problem.operation == "weight" else 16))
    wanted = {max(1, min(most, round(room * times / blocks))) for times in (1, 2, 4)} | {1}
    return tuple(sorted(wanted, reverse=True)) if problem.operation == "weight" else tuple(sorted(wanted)[:3])


_GATHER_EFFICIENCY = {
    "128x128x16": 0.75, "128x128x8": 0.63, "128x64x16": 0.68, "64x128x16": 0.73, "64x128x8": 0.63, "64x256x8": 0.58, "64x64x16": 0.70,
    "32x128x16": 0.78, "32x256x8": 0.56, "16x256x8": 0.56, "8x256x8": 0.44,
}  # fmt: skip
_WEIGHT_EFFICIENCY = {
    "128x128x16": 0.69, "128x128x8": 0.62, "64x128x16": 0.62, "128x64x16": 0.68, "64x64x16": 0.63, "32x128x16": 0.58, "128x32x16": 0.61,
    "32x64x16": 0.53, "64x32x16": 0.46, "32x32x16": 0.46, "16x64x16": 0.44,
}  # fmt: skip
"""Share of the multiply-add peak that a tile's inner loop reaches with enough blocks, fitted to measurements on an H200."""


def share_of_peak(blocks: float, size: float) -> float:
    """What of its best rate a unit reaches with so many blocks of so many 4096 sums: few threads hide less of each other's waiting."""
    return min(1.0, 0.32 + 0.17 * math.sqrt(max(1.0, blocks) * size * 2))


def cost(problem: Problem, tile_name: str, splits: int, units: int) -> float:
    """Multiply-adds of the device's time: the unit with most blocks, and the partial sums written and read again."""
    tile = next((tile for tile in (*GATHER_TILES, *WEIGHT_TILES) if tile.name == tile_name), DOUBLE_TILE)
    depth = ceil_div(ceil_div(_shape(problem)[2], splits), tile.step) * tile.step + 4 * tile.step
    blocks = _blocks(problem, tile) * splits
    share = share_of_peak(min(tile.resident, blocks / units), tile.rows * tile.columns / 4096)
    best = (_WEIGHT_EFFICIENCY if problem.operation == "weight" else _GATHER_EFFICIENCY).get(tile.name, 0.5)
    work = ceil_div(blocks, units) * units * tile.rows * tile.columns * depth / (best * share)
    return work + (splits > 1) * (splits + 1) * math.prod(problem.result_shape) * 60.0
