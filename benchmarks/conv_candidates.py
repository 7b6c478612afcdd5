"""Every candidate of every layer and operation, next to the vendor's library: what the estimates of conv/estimate.py are held against.

    PYTHONPATH=src python benchmarks/conv_candidates.py --out FOLDER [--suite NAME ...] [--operation forward] [--most 6]

Writes candidates.json (rows: problem, operation, algorithm, variant, microseconds, relative error against float64) and prints the best of each
problem beside the vendor, and how far the first guess of the engine is from its best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

from rocm_patch.conv import choose
from rocm_patch.conv import problem as problems
from rocm_patch.conv.bench import Timer
from rocm_patch.conv.suites import SUITES, Layer


def problems_of(layer: Layer, dtype: torch.dtype, device: torch.device) -> list[problems.Problem]:
    shape_in, shape_out = tuple(layer.input_shape), tuple(layer.output_shape)
    image, map_ = (shape_out, shape_in) if layer.transposed else (shape_in, shape_out)
    found = []
    for operation in problems.OPERATIONS:
        bias = layer.bias and operation == ("input" if layer.transposed else "forward")
        sizes = (tuple(image[2:]), tuple(map_[2:]), tuple(layer.kernel), tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation))
        found.append(problems.Problem(operation, device, dtype, image[0], image[1], map_[1], layer.groups, *sizes, bias))
    return found


def reference(problem: problems.Problem, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None):
    """A call of PyTorch's own operator (with whatever vendor library is switched on)."""
    geometry = (list(problem.stride), list(problem.padding), list(problem.dilation), False, [0] * len(problem.kernel), problem.groups)
    if problem.operation == "forward":
        return lambda: torch.ops.aten.convolution(first, second, bias, *geometry)
    mask = [problem.operation == "input", problem.operation == "weight", False]
    at = 0 if problem.operation == "input" else 1
    image = second if problem.operation == "weight" else torch.empty(problem.image_shape, dtype=first.dtype, device=first.device)
    weight = second if problem.operation == "input" else torch.empty(problem.weight_shape, dtype=first.dtype, device=first.device)

    def call():
        result = torch.ops.aten.convolution_backward(first, image, weight, None, *geometry, mask)[at]
        return result if bias is None else result.add_(bias.view(1, -1, *[1] * len(problem.kernel)))

    return call


def timed(timer: Timer, call, samples: int) -> float:
    call()
    host, done = min(timer.once(call) for _ in range(2))
    if done > 0.02:
        return done * 1e6
    return statistics.median(timer.samples(call, samples, timer.flushes(1.3 * host + 2e-5))) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append")
    parser.add_argument("--operation", action="append", choices=problems.OPERATIONS)
    parser.add_argument("--most", type=int, default=6)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--skip", default="native,cpu,im2col")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device, dtype = torch.device("cuda", 0), torch.float32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    settings = choose.Settings(tuned=False)
    timer, started = Timer("cuda"), time.monotonic()
    seen, rows = set(), []
    layers = [layer for layer in SUITES if not options.suite or layer.suite in options.suite]
    for layer in layers:
        for problem in problems_of(layer, dtype, device):
            if problem in seen or (options.operation and problem.operation not in options.operation):
                continue
            seen.add(problem)
            if time.monotonic() - started > options.seconds:
                break
            rows += measure(problem, layer, settings, timer, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "candidates.json").write_text(json.dumps(rows))
    report(rows, time.monotonic() - started)


def measure(problem, layer, settings, timer, options):
    generator = torch.Generator("cuda").manual_seed(1)

    def random(shape, scale=1.0):
        return torch.empty(shape, device="cuda").uniform_(-1, 1, generator=generator) * scale

    weight_scale = (problem.channels // problem.groups * problem.taps) ** -0.5
    image, map_, weight = random(problem.image_shape), random(problem.map_shape), random(problem.weight_shape, weight_scale)
    first, second = {"forward": (image, weight), "input": (map_, weight), "weight": (map_, image)}[problem.operation]
    bias = random((problem.filters if problem.operation == "forward" else problem.channels,)) if problem.bias else None
    base = {"suite": layer.suite, "layer": layer.layer, "operation": problem.operation, "problem": problem.name(), "work": problem.multiplications}
    wide = reference(problem, first.double(), second.double(), None if bias is None else bias.double())()
    found = [{**base, "algorithm": "vendor", "variant": [], "us": timed(timer, reference(problem, first, second, bias), options.samples)}]
    skipped = options.skip.split(",")
    for order, (algorithm, variant) in enumerate(choose.candidates(problem, settings, options.most)):
        if algorithm.name in skipped:
            continue
        row = {**base, "algorithm": algorithm.name, "variant": list(variant), "order": order}
        try:
            run = algorithm.prepare(problem, variant, settings.workspace)
            error = ((run(first, second, bias).double() - wide).norm() / wide.norm()).item()
            found.append({**row, "us": timed(timer, lambda run=run: run(first, second, bias), options.samples), "error": error})
        except Exception as error:  # a candidate that fails is a row, not the end
            torch.cuda.synchronize()
            found.append({**row, "us": None, "failed": f"{type(error).__name__}: {str(error)[:1500]}"})
    return found


def report(rows, seconds) -> None:
    by_problem: dict[str, list] = {}
    for row in rows:
        by_problem.setdefault(row["problem"], []).append(row)
    for row in [row for row in rows if row["us"] is None or not row.get("error", 0) < 1e-4][:12]:
        print("BAD", row["algorithm"], row["variant"], row.get("error"), row.get("failed", "")[:700], row["problem"])
    lines, ratios, regrets = [], {}, []
    for name, group in by_problem.items():
        vendor = next(row for row in group if row["algorithm"] == "vendor")
        good = [row for row in group if row["us"] and row["algorithm"] != "vendor" and row["error"] < 1e-4]
        if not good:
            continue
        best = min(good, key=lambda row: row["us"])
        guess = min(good, key=lambda row: row["order"])
        regrets.append(guess["us"] / best["us"])
        ratios.setdefault(vendor["operation"], []).append(best["us"] / vendor["us"])
        own = {row["algorithm"]: row for row in sorted(good, key=lambda row: -row["us"])}
        others = " ".join(f"{key}={row['us']:.0f}({'/'.join(map(str, row['variant']))})" for key, row in own.items())
        rate = vendor["work"] * 2 / best["us"] / 1e6
        share = best["us"] / vendor["us"]
        head = f"{share:.2f} vendor={vendor['us']:.0f} best={rate:.1f}TF guess={guess['us'] / best['us']:.2f}"
        lines.append((share, f"{head} {others} | {vendor['layer']} {name}"))
    for _, line in sorted(lines, key=lambda pair: pair[0]):
        print(line)
    for operation, values in ratios.items():
        print(operation, len(values), "geometric mean best/vendor", round(math.exp(statistics.fmean(map(math.log, values))), 3))
    print("first guess / best:", round(math.exp(statistics.fmean(map(math.log, regrets))), 3), f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
