"""The layer suites through the engine, the vendor's library and PyTorch's native path on this device.

    python benchmarks/conv_speed.py [--suite NAME]... [--layers REGEX] [--directions forward] [--own-kernels] [--out FOLDER]

    python benchmarks/conv_speed.py --gemm [--suite NAME]... [--layers REGEX] [--vendor-blas] [--out FOLDER]

Writes `conv_speed.json`, `.md` and `.txt` (every layer) into the folder, and prints the means and the worst layers last.
`--own-kernels` keeps the vendor's matrix product out of the engine; `--baseline` leaves the engine out. How it measures: `rocm_patch/conv/bench.py`.

`--gemm` asks how good the kernels are as matrix products: each of the three operations of a layer (forward, input gradient, weight
gradient) is a product of an M x K and a K x N matrix in disguise; the engine's own kernels do it beside `torch.mm` of exactly that size,
which has its operands ready in memory and no image to walk. The share is the rate of the first in that of the second. Ungrouped layers of
at least 1 GFLOP are taken, each size once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rocm_patch.conv import bench, bench_report
from rocm_patch.conv.suites import SUITES, Layer


def about(settings: bench.Settings, seconds: float) -> dict[str, object]:
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "cpu"
    vendor = torch.backends.cudnn.version() if settings.device == "cuda" else None
    return {
        "device": device,
        "torch": torch.__version__,
        "vendor library": vendor,
        "blas": settings.blas,
        "dtype": settings.dtype,
        "seconds": round(seconds, 1),
    }


def counts(rows: Sequence[bench.Row]) -> str:
    """What the means do not show: how many layers are too slow, the grouped ones, the memory, the values."""
    grouped = {(layer.suite, layer.layer) for layer in SUITES if layer.groups > 1}
    lines = []
    for theirs, limit in (("vendor", 1.5), ("native", 1.0)):
        over = [value for row in rows if (value := bench_report.ratio(row, "engine", theirs)) is not None]
        lines.append(f"slower than {limit} x {theirs}: {sum(value > limit for value in over)} of {len(over)}")
    for direction in bench.DIRECTIONS:
        chosen = [row for row in rows if (row.suite, row.layer) in grouped and row.direction == direction]
        ratios = [value for row in chosen if (value := bench_report.ratio(row, "native", "engine")) is not None]
        if ratios:
            mean, least = bench_report.geometric_mean(ratios), min(ratios)
            lines.append(f"grouped, {direction}: {mean:.1f} x faster than native, {least:.1f} x at least, {len(ratios)} shapes")
    peaks = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    if peaks:
        lines.append(f"largest extra memory: {max(peaks) / 2**20:.0f} MiB")
    differences = [row.difference for row in rows if row.difference is not None]
    if differences:
        lines.append(f"largest difference of values: {max(differences):.1e}")
    failed = [f"{row.suite} {row.layer} {row.direction}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *failed])


def summary(rows: Sequence[bench.Row]) -> str:
    pairs = bench_report.comparisons(rows)
    shown = [pair for pair in pairs if pair[0] == "engine"] or pairs
    parts = [f"worst {ours}/{theirs}\n{bench_report.worst_table(rows, ours, theirs)}" for ours, theirs in shown]
    return "\n\n".join([*parts, bench_report.means_table(rows), counts(rows)])


@dataclass(frozen=True)
class Product:
    """One operation of a layer as a matrix product."""

    suite: str
    layer: str
    operation: str
    m: int
    n: int
    k: int
    engine_ms: float
    mm_ms: float
    algorithm: str

    @property
    def share(self) -> float:
        return self.mm_ms / self.engine_ms

    @property
    def tflops(self) -> float:
        return 2 * self.m * self.n * self.k / self.engine_ms / 1e9


def products(layer: Layer, settings: bench.Settings, timer: bench.Timer, known: set[tuple[object, ...]]) -> Iterator[Product]:
    """The three operations of a layer; those whose problem is in `known` are left out, the others are put there."""
    device = settings.device
    forward = bench.operation(layer, "forward", device, torch.float32)
    x, weight, gradient = (torch.rand(shape, device=device) - 0.5 for shape in (layer.input_shape, layer.weight_shape, layer.output_shape))
    numbers = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)

    def backward(mask: list[bool]) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(gradient, x, weight, None, *numbers, mask)

    pixels_in, pixels_out = layer.batch * math.prod(layer.size), layer.batch * math.prod(layer.output_shape[2:])
    total = layer.flops // 2
    sizes = {
        "forward": (layer.outputs, pixels_out, total // (layer.outputs * pixels_out)),
        "input gradient": (layer.inputs, pixels_in, total // (layer.inputs * pixels_in)),
        "weight gradient": (layer.outputs, total // (layer.outputs * min(pixels_in, pixels_out)), min(pixels_in, pixels_out)),
    }
    calls = {"forward": forward, "input gradient": backward([True, False, False]), "weight gradient": backward([False, True, False])}
    for operation, (m, n, k) in sizes.items():
        key = (operation, layer.input_shape, layer.weight_shape, layer.bias and operation == "forward", *numbers)
        if key in known:
            continue
        known.add(key)
        a, b = torch.rand((m, k), device=device) - 0.5, torch.rand((k, n), device=device) - 0.5
        timed = [bench.Timed("engine", "engine", calls[operation]), bench.Timed("mm", "native", lambda a=a, b=b: torch.mm(a, b))]
        for one in timed:
            with bench.switched(one.alternative, settings.blas), torch.no_grad():
                one.prepare(timer)
                if one.name == "engine":
                    algorithm = bench.algorithms_of(one.call)
        times = bench.in_turns(timed, timer, settings.budget_ms, settings.blas)
        yield Product(layer.suite, layer.layer, operation, m, n, k, times["engine"], times["mm"], algorithm)


def products_summary(rows: Sequence[Product], markdown: bool = False) -> str:
    groups = {"all": list(rows)}
    for row in rows:
        groups.setdefault(row.operation, []).append(row)
        groups.setdefault(row.algorithm, []).append(row)
    means = [
        [name, str(len(chosen)), f"{bench_report.geometric_mean(row.share for row in chosen):.3f}", f"{min(row.share for row in chosen):.3f}",
         str(sum(row.share >= 0.75 for row in chosen))]
        for name, chosen in groups.items()
    ]  # fmt: skip
    body = [
        [f"{row.share:.2f}", row.suite, row.layer, row.operation, str(row.m), str(row.n), str(row.k), f"{row.engine_ms:.4f}", f"{row.mm_ms:.4f}",
         f"{row.tflops:.1f}", row.algorithm]
        for row in sorted(rows, key=lambda row: row.share)
    ]  # fmt: skip
    head = ["share", "suite", "layer", "operation", "M", "N", "K", "engine ms", "mm ms", "TFLOP/s", "algorithm"]
    worst = body if markdown else body[:15]
    first = bench_report.table(["of", "products", "share of mm", "least", "over 0.75"], means, markdown)
    return f"{first}\n\n{bench_report.table(head, worst, markdown)}"


def measure_products(layers: Sequence[Layer], settings: bench.Settings, out: Path) -> int:
    timer, known = bench.Timer(settings.device), set[tuple[object, ...]]()
    rows: list[Product] = []
    for layer in layers:
        if layer.groups == 1 and layer.flops >= 1e9:
            try:
                rows += products(layer, settings, timer, known)
                print(f"{layer.suite} {layer.layer}", file=sys.stderr, flush=True)
            except torch.cuda.OutOfMemoryError as error:  # the product's operands are as large as the unfolded image
                print(f"{layer.suite} {layer.layer}: left out: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    (out / "conv_gemm.json").write_text(json.dumps([{**asdict(row), "share": row.share} for row in rows], indent=1) + "\n")
    (out / "conv_gemm.md").write_text(products_summary(rows, markdown=True) + "\n")
    print(products_summary(rows))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(layer.suite for layer in SUITES))
    parser.add_argument("--suite", action="append", choices=names)
    parser.add_argument("--layers", default="", metavar="REGEX", help="only layers whose 'suite/layer' it finds")
    parser.add_argument("--directions", nargs="+", choices=bench.DIRECTIONS, default=bench.DIRECTIONS)
    parser.add_argument("--dtype", choices=bench.DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--baseline", action="store_true", help="vendor and native only")
    parser.add_argument("--cpu", action="store_true", help="the host's processor as well")
    parser.add_argument("--own-kernels", action="store_true", help="the engine without the vendor's BLAS")
    parser.add_argument("--gemm", action="store_true", help="the engine's own kernels beside torch.mm of the same size")
    parser.add_argument("--vendor-blas", action="store_true", help="with --gemm: the engine may use the vendor's BLAS as well")
    parser.add_argument("--budget-ms", type=float, default=20.0, help="measured work for each alternative of a layer")
    parser.add_argument("--deadline", type=float, default=math.inf, metavar="SECONDS", help="start no layer after that")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()

    alternatives = tuple(name for name in bench.ALTERNATIVES if not (name == "engine" and options.baseline) and (name != "cpu" or options.cpu))
    settings = bench.Settings(options.device, options.dtype, alternatives, tuple(options.directions), options.budget_ms, not options.own_kernels)
    layers = [layer for layer in SUITES if layer.suite in (options.suite or names) and re.search(options.layers, f"{layer.suite}/{layer.layer}")]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.gemm:
        return measure_products(layers, replace(settings, blas=options.vendor_blas), options.out)
    start = time.monotonic()
    rows = []
    for row in bench.run(layers, settings):
        rows.append(row)
        elapsed = time.monotonic() - start
        print(f"{elapsed:6.1f} s  {row.suite} {row.layer} {row.direction} {row.note}", file=sys.stderr, flush=True)
        if elapsed > options.deadline:
            print(f"stopped by the deadline after {len(rows)} of {len(layers) * len(settings.directions)} rows", file=sys.stderr)
            break
    facts = about(settings, time.monotonic() - start)

    (options.out / "conv_speed.json").write_text(bench_report.document(rows, facts))
    (options.out / "conv_speed.txt").write_text(f"{facts}\n\n{bench_report.layers_table(rows)}\n")
    (options.out / "conv_speed.md").write_text(
        f"{bench_report.means_table(rows, markdown=True)}\n\n{bench_report.layers_table(rows, markdown=True)}\n"
    )
    print(f"{facts}\n\n{summary(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
