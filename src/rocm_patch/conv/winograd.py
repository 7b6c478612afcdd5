"""Winograd's minimal filtering for 3x3 windows of step one: 2.25 or 4 times fewer multiplications, in three steps.

Image tiles become points, points are multiplied (one GEMM for each of the 16 or 36 points), points become the result. The GEMM is ours
(kernels/gather.cu, weight.cu) or the BLAS of torch. The batch is done in pieces, so that the points of a piece keep within the workspace;
a piece that fits the chip's last cache may be faster than one that fits the workspace, so its size is part of the variant.

float32 only: the points amplify rounding (by about 10 for tiles of 4), which half precision does not bear.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import runtime
from .implicit import GATHER_TILES, GRID, WEIGHT_TILES, GatherGemm, Tile, WeightGemm, _Phase, units_of
from .launch import ceil_div, divisor, packed, pointers
from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
PIECES = (16, 64, 224)
"""Workspace of a piece, MiB."""


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.kernel != (3, 3) or set(problem.stride) != {1} or set(problem.dilation) != {1} or problem.groups != 1:
        return "not a 3x3 window of step one"
    if problem.dtype != torch.float32:
        return "float32 only"
    if max(problem.channels, problem.filters) > GRID:
        return "more channels than a grid of blocks is high"
    if max(problem.padding) > 2:
        return "a border wider than the window"
    if 2 * max(math.prod(problem.image_shape), math.prod(problem.map_shape)) > 2**31 - 1:
        return "more than 2**31 elements"
    return ""


def _tiles(problem: Problem, size: int) -> tuple[int, int]:
    """Lines of tiles and tiles of a line, of the side that is cut into tiles of `size` outputs."""
    out = problem.image if problem.operation == "input" else problem.map
    return ceil_div(out[0], size), ceil_div(out[1], size)


def _pieces(problem: Problem, size: int, limit: int) -> tuple[int, ...]:
    """Sizes of a piece in MiB that differ in effect."""
    points = (size + 2) ** 2
    lines, across = _tiles(problem, size)
    whole = points * (problem.channels + problem.filters) * problem.batch * lines * across * 4
    fixed = 2 * points * problem.channels * problem.filters * 4
    if fixed > limit:
        return ()
    room = (limit - fixed) >> 20
    fitting = [piece for piece in PIECES if piece <= room]
    return tuple(fitting[: next((at + 1 for at, piece in enumerate(fitting) if piece << 20 >= whole), len(fitting))])


def _worth(problem: Problem, size: int) -> float:
    """Outputs over outputs computed: what the edges waste."""
    out = problem.image if problem.operation == "input" else problem.map
    lines, across = _tiles(problem, size)
    return (out[0] * out[1]) / (lines * across * size * size)


def variants(problem: Problem, limit: int) -> tuple[tuple[int | str, ...], ...]:
    """(tile of outputs, piece in MiB, tile of the GEMM, splits) for our own GEMM."""
    found: list[tuple[int | str, ...]] = []
    for size in (4, 2):
        lines, across = _tiles(problem, size)
        for piece in reversed(_pieces(problem, size, limit)):
            count = min(_piece_tiles(problem, size, piece), problem.batch * lines * across)
            for tile in _gemm_tiles(problem):
                splits = {1}
                if problem.operation == "weight":
                    blocks = ceil_div(problem.filters, tile.rows) * ceil_div(problem.channels, tile.columns) * (size + 2) ** 2
                    room = units_of(problem) * tile.resident
                    # Whole rounds of blocks: 1.2 rounds take as long as 2.
                    splits = {max(1, min(rounds * room // blocks, count // 64)) for rounds in (1, 2, 3)}
                found += [(size, piece, tile.name, split) for split in sorted(splits, reverse=True)]
    return tuple(variant for variant in found if workspace(problem, variant) <= limit)


def variants_blas(problem: Problem, limit: int) -> tuple[tuple[int | str, ...], ...]:
    """(tile of outputs, piece in MiB)."""
    found = ((size, piece) for size in (4, 2) for piece in reversed(_pieces(problem, size, limit)))
    return tuple(variant for variant in found if workspace(problem, variant) <= limit)


def workspace(problem: Problem, variant: tuple[int | str, ...]) -> int:
    """Bytes of the points of a piece, of the weights or of all splits' sums."""
    size = int(variant[0])
    cut = _Pieces(problem, size, int(variant[1]))
    splits = int(variant[3]) * len(cut.cuts) if len(variant) == 4 and problem.operation == "weight" else 1
    channels, filters = (ceil_div(length, 128) * 128 for length in (problem.channels, problem.filters))  # padded to whole tiles at most
    return (size + 2) ** 2 * 4 * ((problem.channels + problem.filters) * cut.pitch + splits * channels * filters)


def _gemm_tiles(problem: Problem) -> list[Tile]:
    """The largest tiles that waste few rows and columns."""
    rows, columns = (problem.channels, 1 << 20) if problem.operation == "input" else (problem.filters, 1 << 20)
    tiles = GATHER_TILES
    if problem.operation == "weight":
        columns, tiles = problem.channels, WEIGHT_TILES

    def waste(tile: Tile) -> float:
        done = ceil_div(rows, tile.rows) * tile.rows * ceil_div(columns, tile.columns) * tile.columns
        return done / (rows * columns) * (1 + 2000 / (tile.rows * tile.columns + 2000))

    return sorted(tiles, key=waste)[:2]


def _piece_tiles(problem: Problem, size: int, piece: int) -> int:
    each = (size + 2) ** 2 * (problem.channels + problem.filters) * 4
    return max(128, (piece << 20) // each // 128 * 128)


class _Pieces:
    """The tiles of a problem, cut into pieces: (first tile, tiles, pitch) each."""

    def __init__(self, problem: Problem, size: int, piece: int) -> None:
        self.lines, self.across = _tiles(problem, size)
        self.total = problem.batch * self.lines * self.across
        step = _piece_tiles(problem, size, piece)
        parts = max(1, ceil_div(self.total, step))
        step = ceil_div(ceil_div(self.total, parts), 4) * 4
        self.cuts = [(first, min(step, self.total - first)) for first in range(0, self.total, step)]
        self.pitch = step
        self.divisors = (*divisor(self.lines * self.across), *divisor(self.across))


def prepare(problem: Problem, variant: tuple[int | str, ...], limit: int) -> Run:
    """With our own GEMM, or with the BLAS of torch where the variant names no tile."""
    size, piece = int(variant[0]), int(variant[1])
    if problem.operation == "weight":
        return _prepare_weight(problem, size, piece, variant)
    return _prepare_data(problem, size, piece, variant)


def _kernel(problem: Problem, name: str, size: int) -> runtime.Kernel:
    defines = (("ELEMENT", runtime.ELEMENTS[problem.dtype]), ("M", size))
    return runtime.runtime_of(problem.device).kernel(runtime.source_of(name), name, defines)


def _prepare_data(problem: Problem, size: int, piece: int, variant: tuple[int | str, ...]) -> Run:
    forward = problem.operation == "forward"
    rows, channels = (problem.filters, problem.channels) if forward else (problem.channels, problem.filters)
    source_size, result_size = (problem.image, problem.map) if forward else (problem.map, problem.image)
    border = problem.padding if forward else tuple(2 - pad for pad in problem.padding)
    points = (size + 2) ** 2
    cut = _Pieces(problem, size, piece)
    device, dtype, shape = problem.device, problem.dtype, problem.result_shape
    gemm: GatherGemm | None = None
    padded_rows, padded_depth = rows, channels
    if len(variant) == 4:
        tile = next(tile for tile in GATHER_TILES if tile.name == variant[2])
        one = (1, 1, 1)
        flat = (1, 1, cut.pitch)
        phase = _Phase((0, 0, 0), flat, (0, 0, 0), (0, 0, 0), one, one)
        gemm = GatherGemm(
            device, dtype, tile, 1, batch=1, rows=rows, channels=channels, groups=points, in_size=flat, out_size=flat, phases=[phase],
            step=one, delta=one, out_step=one, is_plain=True,
        )  # fmt: skip
        padded_rows, padded_depth = gemm.rows_padded, gemm.slabs[0][1]
    to_points, to_result, filter_points = (_kernel(problem, f"winograd_{name}", size) for name in ("data", "output", "filter"))
    filter_fields = packed(problem.filters, problem.channels, padded_rows, padded_depth, int(not forward))
    filter_grid = (ceil_div(padded_rows, 128), channels, 1)
    fours = int(result_size[1] % 4 == 0)
    launches = [
        (
            packed(channels, *source_size, *border, first, tiles, cut.pitch, *cut.divisors, cut.total),
            packed(rows, *result_size, first, tiles, cut.pitch, fours, *cut.divisors),
            (ceil_div(cut.pitch, 128), channels, 1),
            (ceil_div(tiles, 128), rows, 1),
        )
        for first, tiles in cut.cuts
    ]
    make = torch.zeros if padded_depth != channels else torch.empty

    def run(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=device)
        left = make((points, padded_depth, padded_rows), dtype=dtype, device=device)
        right = torch.empty((points, channels, cut.pitch), dtype=dtype, device=device)
        product = torch.empty((points, rows, cut.pitch), dtype=dtype, device=device)
        filter_points.launch(filter_grid, 128, pointers(weight.data_ptr(), left.data_ptr()) + filter_fields)
        head_data = pointers(source.data_ptr(), right.data_ptr())
        head_result = pointers(product.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr())
        for data_fields, result_fields, data_grid, result_grid in launches:
            to_points.launch(data_grid, 128, head_data + data_fields)
            if gemm is None:
                torch.bmm(left.transpose(1, 2), right, out=product)
            else:
                gemm.run(right.data_ptr(), left.data_ptr(), 0, product.data_ptr())
            to_result.launch(result_grid, 128, head_result + result_fields)
        return result

    return run


def _prepare_weight(problem: Problem, size: int, piece: int, variant: tuple[int | str, ...]) -> Run:
    points = (size + 2) ** 2
    filters, channels = problem.filters, problem.channels
    cut = _Pieces(problem, size, piece)
    device, dtype = problem.device, problem.dtype
    image_points, map_points, to_weight = (_kernel(problem, f"winograd_{name}", size) for name in ("data", "map", "weight"))
    gemm: WeightGemm | None = None
    splits = 1
    if len(variant) == 4:
        tile = next(tile for tile in WEIGHT_TILES if tile.name == variant[2])
        one, flat = (1, 1, 1), (1, 1, cut.pitch)
        gemm = WeightGemm(
            device, dtype, tile, int(variant[3]), batch=1, filters=filters, channels=channels, groups=points, in_size=flat, map_size=flat,
            kernel=one, stride=one, padding=(0, 0, 0), dilation=one,
        )  # fmt: skip
        splits = gemm.splits * len(cut.cuts)
    size_of_split = points * filters * channels
    weight_fields = packed(filters * channels, splits)
    launches = [
        (
            packed(channels, *problem.image, *problem.padding, first, tiles, cut.pitch, *cut.divisors, cut.total),
            packed(filters, *problem.map, first, tiles, cut.pitch, *cut.divisors, cut.total),
        )
        for first, tiles in cut.cuts
    ]
    blocks = ceil_div(cut.pitch, 128)

    def run(map_: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
        result = torch.empty(problem.weight_shape, dtype=dtype, device=device)
        left = torch.empty((points, filters, cut.pitch), dtype=dtype, device=device)
        right = torch.empty((points, channels, cut.pitch), dtype=dtype, device=device)
        sums = torch.empty((splits, points, filters, channels), dtype=dtype, device=device)
        for number, (image_fields, map_fields) in enumerate(launches):
            image_points.launch((blocks, channels, 1), 128, pointers(image.data_ptr(), right.data_ptr()) + image_fields)
            map_points.launch((blocks, filters, 1), 128, pointers(map_.data_ptr(), left.data_ptr()) + map_fields)
            if gemm is not None:
                gemm.sums(right.data_ptr(), left.data_ptr(), sums.data_ptr() + 4 * number * gemm.splits * size_of_split)
            elif number:
                torch.baddbmm(sums[0], left, right.transpose(1, 2), out=sums[0])
            else:
                torch.bmm(left, right.transpose(1, 2), out=sums[0])
        to_weight.launch((ceil_div(filters * channels, 32), 1, 1), 32 * (size + 2), pointers(sums.data_ptr(), result.data_ptr()) + weight_fields)
        return result

    return run
