"""What `rocm-patch bench` runs in the Python that has torch: one request, one line of JSON, on standard input; answers line by line.

"about" and "total" come first, then a "row" (bench) or an "outcome" (tune) for each step, with "at" in between for what begins, and the "document"
last, also when it is interrupted; or an "error".
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import IO, Any

import torch

from . import bench, bench_isolated, bench_report, records, stack, tune
from .bench import ALTERNATIVES, DTYPES
from .choose import Settings
from .problem import Problem, parse
from .suites import SUITES, Layer

_PR_SET_PDEATHSIG = 1
Say = Callable[[dict[str, Any]], None]
Answers = Generator[dict[str, Any], None, None]


def device_of(word: str) -> str:
    """auto, cpu or cuda (which a torch for ROCm calls its GPUs as well)."""
    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if word == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} finds no GPU that it can use")
    return word


def layers_of(request: dict[str, Any]) -> list[Layer]:
    """Layers of the named suites whose `suite/layer` the expression finds."""
    names = list(dict.fromkeys(layer.suite for layer in SUITES))
    if unknown := [name for name in request["suites"] if name not in names]:
        raise ValueError(f"no suite {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = request["suites"] or names
    found = [layer for layer in SUITES if layer.suite in wanted and re.search(request["layer"], f"{layer.suite}/{layer.layer}")]
    if not found:
        raise ValueError(f"no layer of {', '.join(wanted)} is called like {request['layer']!r}")
    return found


def about(device: str, request: dict[str, Any]) -> dict[str, Any]:
    """What is measured, and on what."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "vendor_library": ("MIOpen" if torch.version.hip else "cuDNN") if device == "cuda" else "oneDNN",
        "vendor_version": torch.backends.cudnn.version() if device == "cuda" else None,  # type: ignore[no-untyped-call, unused-ignore]
        "dtype": request["dtype"],
        "blas": request["blas"],
    }


def run_bench(request: dict[str, Any], _say: Say) -> Answers:
    """Every layer through every alternative, in a child that may die."""
    device = device_of(request["device"])
    layers = layers_of(request)
    # On ROCm the vendor's library may hang the card: only when it is asked for by name.
    vendor = request["vendor"] == "yes" or (request["vendor"] == "auto" and not torch.version.hip)
    left_out = {name for name, wanted in (("vendor", vendor), ("cpu", request["cpu"] and device != "cpu")) if not wanted}
    alternatives = tuple(name for name in ALTERNATIVES if name not in left_out)
    settings = bench.Settings(device, request["dtype"], alternatives, tuple(request["directions"]), request["budget_ms"], request["blas"])
    facts = about(device, request)
    yield {"about": facts, "total": len(layers) * len(settings.directions)}
    rows: list[bench.Row] = []
    began = time.monotonic()
    try:
        for row in bench_isolated.run(layers, settings, request["deadline_s"]):
            rows.append(row)
            yield {"row": asdict(row)}
    except KeyboardInterrupt:
        pass
    document = json.loads(bench_report.document(rows, {**facts, "seconds": round(time.monotonic() - began, 1)}))
    words = [bench_report.layers_table(rows), bench_report.means_table(rows)] if rows else []
    yield {"document": document, "words": "\n\n".join(words)}


def run_tune(request: dict[str, Any], say: Say) -> Answers:
    """Every problem of the layers, or those that are named."""
    device = torch.device(device_of(request["device"]))
    if device.type == "cuda":
        device = torch.device("cuda", 0)
    problems: dict[str, Problem]
    if request["problems"] is not None:
        problems = {name: parse(name, device) for name in request["problems"]}
    else:
        backward = "forward+backward" in request["directions"]
        each = [problem for layer in layers_of(request) for problem in tune.problems_of(layer, DTYPES[request["dtype"]], device, backward=backward)]
        problems = {problem.name(): problem for problem in each}
    yield {"about": about(device.type, request), "total": len(problems)}
    outcomes: list[dict[str, Any]] = []
    stopped = ""
    settings = Settings(blas=request["blas"])
    try:
        found = tune.tune(
            list(problems.values()), settings=settings, most=request["most"], again=request["again"], deadline_s=request["deadline_s"],
            progress=lambda text: say({"at": text}),
        )  # fmt: skip
        for outcome in found:
            outcomes.append({**asdict(outcome), "rows": [asdict(row) for row in outcome.rows]})
            yield {"outcome": outcomes[-1]}
    except tune.StoppedError as error:
        stopped = str(error)
    except KeyboardInterrupt:
        pass
    rows = [
        {"problem": each["problem"], **{name: each["rows"][0][name] for name in ("algorithm", "variant", "verdict", "microseconds")}}
        for each in outcomes
        if each["rows"] and each["rows"][0]["verdict"] == "ok"
    ]
    target = stack.target(device)
    document = {
        "schema": 1,
        "target": target,
        "about": about(device.type, request),
        "stored_in": str(records.path()),
        "rows": rows,
        "outcomes": outcomes,
    }
    yield {"document": document, "stopped": stopped}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer the one request."""

    def say(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=answers, flush=True)

    request = json.loads(requests.readline())
    answering = {"bench": run_bench, "tune": run_tune}[request["verb"]](request, say)
    try:
        while True:
            try:
                say(next(answering))
            except KeyboardInterrupt:  # between two steps: within one, the step knows what to do
                say(answering.throw(KeyboardInterrupt()))
    except StopIteration:
        return
    except ValueError as error:
        say({"error": str(error)})


def _interrupted(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    """Ends when the command ends; a signal interrupts, and what was measured is said all the same."""
    signal.signal(signal.SIGTERM, _interrupted)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        return
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, private)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


if __name__ == "__main__":
    main()
