"""The rate of our GEMM kernels beside the BLAS of torch at the same M, N, K, float32.

    PYTHONPATH=src python benchmarks/gemm_rate.py

TN is what a forward and a data gradient ask of a GEMM (kernels/gather.cu), NT what a weight gradient does (kernels/weight.cu). Times are taken
with a cold cache, the median of nine; each product is compared with the BLAS's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rocm_patch.conv.bench import Timer
from rocm_patch.conv.implicit import GATHER_TILES, WEIGHT_TILES, GatherGemm, Tile, WeightGemm, _Phase

SIZES = (
    (4096, 4096, 4096), (512, 6272, 4608), (256, 25088, 2304), (128, 100352, 1152), (64, 100352, 576), (512, 6272, 512), (2048, 1568, 512),
    (256, 100352, 64),
)  # fmt: skip
ONE, ZERO = (1, 1, 1), (0, 0, 0)
Call = Callable[[], object]


def forward_calls(left: Tensor, right: Tensor, out: Tensor) -> Iterator[tuple[Tile, Call]]:
    """left [depth, rows], right [depth, columns]."""
    (depth, rows), columns = left.shape, right.shape[1]
    flat = (1, 1, columns)
    for tile in GATHER_TILES:
        if rows % tile.rows == 0:
            gemm = GatherGemm(
                left.device, left.dtype, tile, 1, batch=1, rows=rows, channels=depth, groups=1, in_size=flat, out_size=flat,
                phases=[_Phase(ZERO, flat, ZERO, ZERO, ONE, ONE)], step=ONE, delta=ONE, out_step=ONE, is_plain=True,
            )  # fmt: skip
            yield tile, lambda gemm=gemm: gemm.run(right.data_ptr(), left.data_ptr(), 0, out.data_ptr())


def weight_calls(left: Tensor, right: Tensor, out: Tensor) -> Iterator[tuple[Tile, Call]]:
    """left [rows, depth], right [columns, depth]."""
    (rows, depth), columns = left.shape, right.shape[0]
    flat = (1, 1, depth)
    for tile in WEIGHT_TILES:
        if rows % tile.rows == 0:
            splits = max(1, 264 // (rows // tile.rows * -(-columns // tile.columns)))
            gemm = WeightGemm(
                left.device, left.dtype, tile, splits, batch=1, filters=rows, channels=columns, groups=1, in_size=flat, map_size=flat,
                kernel=ONE, stride=ONE, padding=ZERO, dilation=ONE,
            )  # fmt: skip
            yield tile, lambda gemm=gemm: gemm.run(right.data_ptr(), left.data_ptr(), out.data_ptr())


def rate(timer: Timer, call: Call, operations: float) -> float:
    """TFLOP/s."""
    call()
    return operations / statistics.median(timer.samples(call, 9, 2)) / 1e12


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    timer = Timer("cuda")
    print("kind       M       N       K   BLAS TFLOP/s   ours  share  tile        difference  (all tiles)")
    for rows, columns, depth in SIZES:
        left, right = torch.randn(depth, rows, device="cuda"), torch.randn(depth, columns, device="cuda")
        for kind, a, b, calls in (("TN", left.t(), right, forward_calls), ("NT", left.t().contiguous(), right.t().contiguous().t(), weight_calls)):
            wanted, ours = torch.mm(a, b), torch.empty(rows, columns, device="cuda")
            blas = rate(timer, lambda a=a, b=b, out=wanted: torch.mm(a, b, out=out), 2.0 * rows * columns * depth)
            found = []
            for tile, call in calls(a.t() if kind == "TN" else a, b if kind == "TN" else b.t(), ours):
                value = rate(timer, call, 2.0 * rows * columns * depth)
                found.append((value, tile.name, float((ours - wanted).norm() / wanted.norm())))
            value, name, difference = max(found)
            every = " ".join(f"{name}={value:.1f}" for value, name, _ in found)
            print(
                f"{kind}   {rows:7d} {columns:7d} {depth:7d} {blas:14.1f} {value:6.1f} {value / blas:6.2f}  {name:11s} {difference:10.1e}  ({every})"
            )


if __name__ == "__main__":
    main()
