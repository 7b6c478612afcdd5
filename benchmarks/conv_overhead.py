"""What a call of the engine costs beside its arithmetic: time of the host, memory of the device, and whether it ever waits for it.

    python benchmarks/conv_overhead.py [--own-kernels] [--suite NAME]... [--out FOLDER]

- Host time: microseconds until a call on small tensors is enqueued, the device not waited for, engine and native path in turns.
- Waiting: every layer of the suites, forward and backward, is called while the device is busy with a long empty kernel. A call that
  returns before that kernel has ended did not wait, through PyTorch or past it; PyTorch's own check (`set_sync_debug_mode`) is on as well.
- Memory: the largest extra memory of any layer, beyond its inputs and results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rocm_patch.conv import bench, bench_report
from rocm_patch.conv.suites import SUITES, Layer


def small(
    name: str, inputs: int, size: tuple[int, ...], outputs: int, kernel: int, stride: int = 1, groups: int = 1, transposed: bool = False
) -> Layer:
    many = len(size)
    padding = (kernel // 2,) * many
    return Layer(
        "small", name, 2, inputs, size, outputs, (kernel,) * many, (stride,) * many, padding, (1,) * many, groups, transposed, (0,) * many, True, 1
    )


SMALL = (
    small("1x1", 16, (8, 8), 16, 1),
    small("3x3", 16, (8, 8), 16, 3),
    small("3x3 stride 2", 16, (8, 8), 16, 3, stride=2),
    small("3x3 depthwise", 16, (8, 8), 16, 3, groups=16),
    small("3x3 in 2 groups", 16, (8, 8), 16, 3, groups=2),
    small("1-D, 5", 16, (32,), 16, 5),
    small("3-D, 3x3x3", 8, (4, 4, 4), 8, 3),
    small("3x3 transposed", 16, (8, 8), 16, 3, stride=2, transposed=True),
)
CALLS = 100  # enqueued at a time: few enough that the device's queue never fills
ROUNDS = 21


@dataclass(frozen=True)
class Overhead:
    layer: str
    direction: str
    engine_us: float
    native_us: float
    algorithm: str


def host_times(layer: Layer, direction: str, device: str, blas: bool) -> Overhead:
    """Median microseconds of the host for one call."""
    call = bench.operation(layer, direction, device, torch.float32)
    timer = bench.Timer(device)
    samples: dict[str, list[float]] = {"engine": [], "native": []}
    algorithm = ""
    for turn in range(ROUNDS):
        for name in samples if turn % 2 == 0 else reversed(samples):
            with bench.switched(name, blas), torch.no_grad():
                for _ in range(5):
                    call()
                if name == "engine" and turn == 0:
                    algorithm = bench.algorithms_of(call)
                timer.synchronise()
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                samples[name].append((time.perf_counter() - start) / CALLS * 1e6)
                timer.synchronise()
    engine, native = (statistics.median(samples[name]) for name in ("engine", "native"))
    return Overhead(layer.layer, direction, engine, native, algorithm)


def waits(call: Callable[[], object], cycles: int) -> str:
    """How a call waits for the device; nothing if it does not. The first calls, which compile and allocate, may."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(cycles)
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        late = busy.query()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return "it returned only after what was enqueued before it" if late else ""


def sleep_cycles(seconds: float) -> int:
    """Argument of the sleeping kernel for so long on this device."""
    timer, trial = bench.Timer("cuda"), 10**7
    torch.cuda._sleep(trial)
    taken = timer.once(lambda: torch.cuda._sleep(trial))[1]
    return int(trial * seconds / taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--suite", action="append", choices=sorted({layer.suite for layer in SUITES}), help="for waiting and memory")
    parser.add_argument("--own-kernels", action="store_true", help="the engine without the vendor's BLAS")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()
    blas = not options.own_kernels

    overheads = [host_times(layer, direction, options.device, blas) for layer in SMALL for direction in bench.DIRECTIONS]
    waiting, memory = [], []
    if options.device == "cuda":
        timer, cycles = bench.Timer("cuda"), sleep_cycles(0.03)
        for layer in SUITES:
            if options.suite and layer.suite not in options.suite:
                continue
            for direction in bench.DIRECTIONS:
                call = bench.operation(layer, direction, "cuda", torch.float32)
                with bench.switched("engine", blas), torch.no_grad():
                    how = waits(call, cycles)
                    memory.append((bench.extra_memory(call, timer) or 0, layer, direction))
                if how:
                    waiting.append(f"{layer.suite} {layer.layer} {direction}: {how}")
            torch.cuda.empty_cache()
    memory.sort(key=lambda row: -row[0])

    documents = {
        "host": [asdict(row) for row in overheads],
        "waiting": waiting,
        "memory": [{"bytes": bytes_, "layer": asdict(layer), "direction": way} for bytes_, layer, way in memory[:20]],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "conv_overhead.json").write_text(json.dumps(documents, indent=1) + "\n")
    head = ["small layer", "direction", "engine us", "native us", "overhead us", "algorithm"]
    body = [
        [row.layer, row.direction, f"{row.engine_us:.1f}", f"{row.native_us:.1f}", f"{row.engine_us - row.native_us:.1f}", row.algorithm]
        for row in overheads
    ]
    print(bench_report.table(head, body))
    if memory:
        print(f"\ncalls that waited for the device: {len(waiting)} of {len(memory)}", *waiting[:20], sep="\n")
        print("\nlargest extra memory, MiB")
        rows = [[layer.suite, layer.layer, way, f"{bytes_ / 2**20:.1f}"] for bytes_, layer, way in memory[:5]]
        print(bench_report.table(["suite", "layer", "direction", "MiB"], rows))
    else:
        print("\nno GPU here: waiting and memory were not looked at")
    return 1 if waiting else 0


if __name__ == "__main__":
    sys.exit(main())
