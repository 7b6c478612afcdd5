"""Data gradient as GEMM and gather: all products of filters and taps first, then each image pixel sums what reaches it (kernels/scatter.cu).

For few channels (the first layer of a network, the last of a generator): there an implicit GEMM has 3 rows, this one 3 times the taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import runtime
from .implicit import GATHER_TILES, GatherGemm, _Phase, three
from .launch import aligned, ceil_div, divisor, packed, pointers
from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
PIECES = (24, 96, 248)
"""MiB of columns at a time: what a last cache holds, and what the workspace allows."""
MOST_CHANNELS = 16


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.operation != "input" or problem.groups != 1 or problem.taps == 1:
        return "not a data gradient with a window"
    if problem.channels > MOST_CHANNELS:
        return f"more than {MOST_CHANNELS} channels"
    if problem.dtype != torch.float32:
        return "float32 only"
    if 2 * max(math.prod(problem.image_shape), math.prod(problem.map_shape)) > 2**31 - 1:
        return "more than 2**31 elements"
    return ""


def _bytes_of_one(problem: Problem) -> int:
    return problem.channels * problem.taps * math.prod(problem.map) * 4


def _pieces(problem: Problem, limit: int) -> tuple[int, ...]:
    """Images at a time."""
    one = _bytes_of_one(problem)
    room = limit - (1 << 22)
    counts = {min(problem.batch, max(1, (piece << 20) // one)) for piece in PIECES if max(one, piece << 20) <= room}
    return tuple(sorted(counts, reverse=True))


def variants(problem: Problem, limit: int) -> tuple[tuple[int | str, ...], ...]:
    """(images at a time, tile of our GEMM)."""
    rows = problem.channels * problem.taps
    tiles = sorted(GATHER_TILES, key=lambda tile: ceil_div(rows, tile.rows) * tile.rows * (1 + 2000 / (tile.rows * tile.columns + 2000)))[:2]
    return tuple((piece, tile.name) for piece in _pieces(problem, limit) for tile in tiles)


def variants_blas(problem: Problem, limit: int) -> tuple[tuple[int | str, ...], ...]:
    """(images at a time,)."""
    return tuple((piece,) for piece in _pieces(problem, limit))


def prepare(problem: Problem, variant: tuple[int | str, ...], limit: int) -> Run:
    """With our own GEMM, or with the BLAS of torch where the variant names no tile."""
    piece, rows, pixels = int(variant[0]), problem.channels * problem.taps, math.prod(problem.map)
    device, dtype, filters = problem.device, problem.dtype, problem.filters
    image, map_size = three(problem.image, 1), three(problem.map, 1)
    stride = three(problem.stride, 1)
    gemms: dict[int, GatherGemm] = {}
    padded_rows, padded_depth = rows, filters
    cuts = [(first, min(piece, problem.batch - first)) for first in range(0, problem.batch, piece)]
    if len(variant) == 2:
        tile = next(tile for tile in GATHER_TILES if tile.name == variant[1])
        one, flat = (1, 1, 1), (1, 1, pixels)
        phase = _Phase((0, 0, 0), flat, (0, 0, 0), (0, 0, 0), one, one)
        for images in {images for _, images in cuts}:
            gemms[images] = GatherGemm(
                device, dtype, tile, 1, batch=images, rows=rows, channels=filters, groups=1, in_size=flat, out_size=flat, phases=[phase],
                step=one, delta=one, out_step=one, is_plain=True,
            )  # fmt: skip
            padded_rows, padded_depth = gemms[images].rows_padded, gemms[images].slabs[0][1]
    kernel = runtime.runtime_of(device).kernel(runtime.source_of("scatter"), "scatter", (("ELEMENT", runtime.ELEMENTS[dtype]),))
    divisors = (image[2], image[1] * image[2], math.prod(image), problem.channels, *stride)
    tail = [problem.channels, *image, *map_size, *three(problem.kernel, 1), *stride, *three(problem.padding, 0), *three(problem.dilation, 1)]
    tail += [field for value in divisors for field in divisor(value)]
    each = problem.channels * math.prod(image)
    fields = {images: packed(images * each, *tail) for _, images in cuts}

    def run(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(problem.image_shape, dtype=dtype, device=device)
        columns = torch.empty((min(piece, problem.batch), rows, pixels), dtype=dtype, device=device)
        matrix = weight.view(filters, rows)
        if gemms:
            map_, matrix = aligned(map_), aligned(matrix)
        if gemms and (padded_rows, padded_depth) != (rows, filters):
            matrix = torch.zeros((padded_depth, padded_rows), dtype=dtype, device=device)
            matrix[:filters, :rows] = weight.view(filters, rows)
        source = map_.view(problem.batch, filters, pixels)
        for first, images in cuts:
            if gemms:
                gemms[images].run(map_.data_ptr() + 4 * first * filters * pixels, matrix.data_ptr(), 0, columns.data_ptr())
            else:
                torch.bmm(matrix.t().expand(images, rows, filters), source[first : first + images], out=columns[:images])
            head = pointers(columns.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr() + 4 * first * each)
            kernel.launch((ceil_div(images * each, 256), 1, 1), 256, head + fields[images])
        return result

    return run
