"""The rate of our GEMM kernels beside the BLAS of torch at the same M, N, K, float32.

PYTHONPATH=src python benchmarks/gemm_rate.py
"""

from __future__ import annotations

import statistics

import torch

from rocm_patch.conv import implicit
from rocm_patch.conv.bench import Timer
from rocm_patch.conv.implicit import GATHER_TILES, WEIGHT_TILES, GatherGemm, WeightGemm, _Phase

SIZES = (
    (4096, 4096, 4096),
    (512, 6272, 4608),
    (256, 25088, 2304),
    (128, 100352, 1152),
    (64, 100352, 576),
    (512, 6272, 512),
    (2048, 1568, 512),
    (256, 100352, 64),
)
ONE, ZERO = (1, 1, 1), (0, 0, 0)


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    device, timer = torch.device("cuda", 0), Timer("cuda")
    print("      M       N       K | torch.mm  TFLOP/s | TN kernel (forward): best, share | NT kernel (weight): best, share")
    for rows, columns, depth in SIZES:
        left, right = torch.randn(depth, rows, device=device), torch.randn(depth, columns, device=device)
        out = torch.empty(rows, columns, device=device)
        scale = 2e-12 * rows * columns * depth

        def rate(call):
            call()
            return scale / statistics.median(timer.samples(call, 9, 2))

        blas = rate(lambda: torch.mm(left.t(), right, out=out))
        wanted = out.double()
        line = f"{rows:7d} {columns:7d} {depth:7d} | {blas:8.1f}"
        found = []
        for tile in GATHER_TILES:
            if tile.rows > 2 * rows:
                continue
            flat = (1, 1, columns)
            gemm = GatherGemm(device, torch.float32, tile, 1, batch=1, rows=rows, channels=depth, groups=1, in_size=flat, out_size=flat,
                              phases=[_Phase(ZERO, flat, ZERO, ZERO, ONE, ONE)], step=ONE, delta=ONE, out_step=ONE, is_plain=True)  # fmt: skip
            if gemm.rows_padded != rows:
                continue
            result = torch.empty_like(out)
            call = lambda gemm=gemm, result=result: gemm.run(right.data_ptr(), left.data_ptr(), 0, result.data_ptr())  # noqa: E731
            found.append((rate(call), tile.name, ((result.double() - wanted).norm() / wanted.norm()).item()))
        best = max(found)
        line += f" | {best[0]:6.1f} {best[1]:10s} {best[0] / blas:5.2f} {best[2]:.0e} [{' '.join(f'{name}:{value:.1f}' for value, name, _ in found)}]"
        image, map_ = right.t().contiguous().t().contiguous().t(), left  # [N][K] and [M][K] below
        image, map_ = right.t().contiguous(), left.t().contiguous()
        blas = rate(lambda: torch.mm(map_, image.t(), out=out))
        found = []
        for tile in WEIGHT_TILES:
            if tile.rows > 2 * rows:
                continue
            blocks = -(-rows // tile.rows) * -(-columns // tile.columns)
            flat = (1, 1, depth)
            gemm = WeightGemm(device, torch.float32, tile, max(1, 264 // blocks), batch=1, filters=rows, channels=columns, groups=1, in_size=flat, map_size=flat,
                              kernel=ONE, stride=ONE, padding=ZERO, dilation=ONE)  # fmt: skip
            result = torch.empty_like(out)
            call = lambda gemm=gemm, result=result: gemm.run(image.data_ptr(), map_.data_ptr(), result.data_ptr())  # noqa: E731
            found.append((rate(call), tile.name, ((result.double() - wanted).norm() / wanted.norm()).item()))
        best = max(found)
        line += f" | mm {blas:.1f} {best[0]:6.1f} {best[1]:10s} {best[0] / blas:5.2f} {best[2]:.0e} [{' '.join(f'{name}:{value:.1f}' for value, name, _ in found)}]"
        print(line)
    del implicit


if __name__ == "__main__":
    main()
