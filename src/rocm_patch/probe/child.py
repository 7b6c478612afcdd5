"""One probe in one process: `PYTHON -I -B child.py SPEC`, SPEC being JSON. Run by any interpreter from 3.8 on.

The standard library and torch only; nothing of ours, since this runs in the user's environment, not in ours.
Results go as JSON lines to the inherited descriptor `spec["fd"]`, one line when a stage begins and one when it is
done, so that whatever kills this process is ascribed to the stage in which it happened. Standard output and standard
error are free for whatever the libraries have to say.

How a value is judged
---------------------
Inputs are drawn from a seeded normal distribution and rounded to the probed dtype; the reference is computed from the
*rounded* inputs in float64 on the CPU, so rounding the inputs costs nothing. What remains is

* the rounding of intermediate and final values to the dtype, a fixed number of units of roundoff `u`, and
* the accumulation of `n` products in float32 (every library accumulates half precision in float32 or better). Errors
  of random sign make a random walk: relative to the sum, which itself grows like sqrt(n), the error of a plain loop is
  about u32 * sqrt(n) / 2.4, of a blocked or pairwise sum far less.

    bound(dtype, n) = 16 * u(dtype) + 64 * u32 * sqrt(n)            in relative L2 norm over the whole tensor

64 instead of 1 / 2.4 leaves room for Winograd transforms, which enlarge the error of a direct sum by up to about ten
times for 4x4 tiles of a 3x3 filter and more for larger ones (Lavin and Gray, arXiv:1509.09308), and 16 for
transforms that are themselves rounded to half precision; 16 * u16 = 7.8e-3 is also what MIOpen's own driver accepts in
half precision (8.2e-3). What comes out wrong is much worse than this: an unwritten output has error 1, one wrong
output channel of 64 has 0.18, one wrong element of the 3.2 million at 224 px has about 8e-4 against a float32 bound
of 9e-5. Non-finite values are counted apart and are never accepted. TF32 is switched off, so float32 means float32.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import math
import os
import signal
import site
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDINGS = 16
WALK = 64


def bound(dtype: str, length: int) -> float:
    """The largest relative L2 error that sound arithmetic may have after summing `length` products."""
    return ROUNDINGS * UNIT[dtype] + WALK * max(UNIT["float32"], UNIT[dtype] if dtype == "float64" else 0.0) * math.sqrt(length)


def compare(actual: Any, reference: Any) -> Tuple[float, int]:
    """Relative L2 error against a float64 CPU tensor, and the number of non-finite values; those count as wholly wrong."""
    if tuple(actual.shape) != tuple(reference.shape):
        raise ValueError(f"shape {tuple(actual.shape)} where {tuple(reference.shape)} was promised")
    actual = actual.detach().to("cpu").double()
    broken = ~(actual.abs() < math.inf)
    actual = actual.masked_fill(broken, 0.0)
    size = float(reference.norm())
    difference = float((actual - reference).norm())
    return (difference / size if size else difference), int(broken.sum())


class Teller:
    """Writes the lines. One write call a line: a line is there whole or not at all."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.at = "start"

    def line(self, **what: Any) -> None:
        """Write one."""
        os.write(self.descriptor, (json.dumps(what) + "\n").encode())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and that it is done unless it raises or dies."""
        self.at = name
        self.line(event="begin", stage=name)
        began = time.monotonic()
        yield
        self.line(event="done", stage=name, seconds=round(time.monotonic() - began, 4))


class Problem(NamedTuple):
    """A workload in terms that do not depend on device or precision.

    `function` maps the inputs to named outputs, of which "forward" is differentiated with respect to the inputs whose
    stage name is not empty, with `gradient` as the incoming gradient. `lengths`: products summed for each output.
    """

    inputs: List[Tuple[str, Any]]
    function: Callable[..., Dict[str, Any]]
    gradient: Any
    lengths: Dict[str, int]


Draw = Callable[..., Any]


def elementwise(_torch: Any, spec: Dict[str, Any], draw: Draw) -> Problem:
    """A product and a sum on each element: the least that a GPU must be able to do."""
    size = spec["size"]
    return Problem([("", draw(size)), ("", draw(size)), ("", draw(size))], lambda a, b, c: {"forward": a * b + c}, None, {"forward": 2})


def gemm(torch: Any, spec: Dict[str, Any], draw: Draw) -> Problem:
    """A matrix product and its two gradients: the three transpositions that training calls."""
    m, k, n = spec["size"]
    return Problem(
        [("grad_left", draw(m, k)), ("grad_right", draw(k, n))],
        lambda a, b: {"forward": torch.matmul(a, b)},
        draw(m, n),
        {"forward": k, "grad_left": n, "grad_right": m},
    )


def conv2d(torch: Any, spec: Dict[str, Any], draw: Draw) -> Problem:
    """A 3x3 convolution with padding 1 and its three gradients."""
    (inside, outside), size, batch = spec["channels"], spec["size"], spec["batch"]
    pixels = batch * size * size
    return Problem(
        [
            ("grad_input", draw(batch, inside, size, size)),
            ("grad_weight", draw(outside, inside, 3, 3, scale=(9 * inside) ** -0.5)),
            ("grad_bias", draw(outside)),
        ],
        lambda x, weight, bias: {"forward": torch.nn.functional.conv2d(x, weight, bias, padding=1)},
        draw(batch, outside, size, size),
        {"forward": 9 * inside, "grad_input": 9 * outside, "grad_weight": pixels, "grad_bias": pixels},
    )


def batch_norm(torch: Any, spec: Dict[str, Any], draw: Draw) -> Problem:
    """Batch norm in training mode with its gradients and running statistics; parameters stay float32, as under autocast."""
    (channels, _), size, batch = spec["channels"], spec["size"], spec["batch"]
    pixels = batch * size * size

    def function(x: Any, weight: Any, bias: Any) -> Dict[str, Any]:
        mean, variance = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
        out = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, training=True, momentum=0.1, eps=1e-5)
        return {"forward": out, "running_mean": mean, "running_var": variance}

    return Problem(
        [
            ("grad_input", draw(batch, channels, size, size, shift=0.5)),
            ("grad_weight", draw(channels, dtype="float32", shift=1.0, scale=0.25)),
            ("grad_bias", draw(channels, dtype="float32")),
        ],
        function,
        draw(batch, channels, size, size),
        dict.fromkeys(("forward", "running_mean", "running_var", "grad_input", "grad_weight", "grad_bias"), pixels),
    )


WORKLOADS = {"elementwise": elementwise, "gemm": gemm, "conv2d": conv2d, "batch_norm": batch_norm}


def load_torch() -> Any:
    """Import torch; `-I` hides the user's own site-packages, where `pip install --user` puts things, so look there second."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        site.addsitedir(site.getusersitepackages())
        return importlib.import_module("torch")


def torch_facts(torch: Any) -> Dict[str, Any]:
    """What this torch is; asks no device."""
    return {
        "torch": str(torch.__version__),
        "git": str(torch.version.git_version)[:10],
        "built": "hip" if torch.version.hip else ("cuda" if torch.version.cuda else "cpu"),
        "toolkit": torch.version.hip or torch.version.cuda or "",
        "python": "%d.%d.%d" % sys.version_info[:3],
    }


def device_facts(torch: Any, wanted: str) -> Dict[str, Any]:
    """Which device answers; runs no kernel. `wanted`: auto, cpu, cuda or hip, the latter with :N."""
    kind, _, index = wanted.partition(":")
    facts: Dict[str, Any] = {"kind": "cpu", "name": "CPU", "arch": "", "count": 0}
    built = torch_facts(torch)["built"]
    if kind == "cpu" or built == "cpu" or not torch.cuda.is_available():
        return facts
    facts["count"] = torch.cuda.device_count()
    number = int(index or 0)
    if number < facts["count"]:
        properties = torch.cuda.get_device_properties(number)
        facts["kind"] = built
        facts["name"] = properties.name
        facts["arch"] = getattr(properties, "gcnArchName", "") if built == "hip" else "sm_%d%d" % (properties.major, properties.minor)
    return facts


def configure(torch: Any, spec: Dict[str, Any]) -> None:
    """Make results comparable: no TF32, no reduced-precision reductions, the convolution library as asked."""
    torch.backends.cudnn.enabled = bool(spec.get("cudnn", True))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if hasattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"):
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def probe(tell: Teller, spec: Dict[str, Any]) -> None:
    """Run one workload and tell the errors of everything that it computes."""
    with tell.stage("import"):
        torch = load_torch()
    device = spec["device"]
    if spec["workload"] == "device":
        tell.line(event="facts", facts=torch_facts(torch))
        with tell.stage("device"):
            facts = device_facts(torch, device)
        tell.line(event="facts", facts=facts)
        return
    configure(torch, spec)
    dtype = spec["dtype"]

    def synchronize() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    with tell.stage("device"):
        torch.empty(1, device=device)
        synchronize()
    with tell.stage("reference"):
        generator = torch.Generator().manual_seed(spec["seed"])

        def draw(*shape: int, dtype: str = dtype, scale: float = 1.0, shift: float = 0.0) -> Any:
            return (torch.randn(*shape, generator=generator) * scale + shift).to(getattr(torch, dtype))

        problem = WORKLOADS[spec["workload"]](torch, spec, draw)
        wide = [value.double().requires_grad_(bool(name)) for name, value in problem.inputs]
        expected = {name: value.detach() for name, value in problem.function(*wide).items()}
        names = [name for name, _ in problem.inputs if name]
        if names:
            grads = torch.autograd.grad(problem.function(*wide)["forward"], [v for v in wide if v.requires_grad], problem.gradient.double())
            expected.update(zip(names, grads))  # noqa: B905 - this file also runs on Python 3.8

    def check(stage: str, name: str, value: Any) -> None:
        error, broken = compare(value, expected[name])
        precision = str(value.dtype).split(".")[-1]
        allowed = spec.get("tolerance", 1.0) * max(bound(precision, problem.lengths[name]), bound(dtype, problem.lengths[name]))
        tell.line(event="value", stage=stage, name=name, error=error, bound=allowed, broken=broken, elements=value.numel())

    def place(value: Any) -> Any:
        value = value.to(device)
        if spec.get("channels_last") and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    with tell.stage("copy"):
        inputs = [place(value.clone()).requires_grad_(bool(name)) for name, value in problem.inputs]
        gradient = None if problem.gradient is None else place(problem.gradient)
        synchronize()
    for _ in range(spec.get("repeats", 1)):
        with tell.stage("forward"):
            outputs = problem.function(*inputs)
            synchronize()
            found = {name: value.detach().to("cpu") for name, value in outputs.items()}
        for name, value in found.items():
            check("forward", name, value)
        for (name, _), value in zip(problem.inputs, inputs):  # noqa: B905
            if name:
                with tell.stage(name):
                    (result,) = torch.autograd.grad(outputs["forward"], [value], gradient, retain_graph=True)
                    synchronize()
                    result = result.to("cpu")
                check(name, name, result)


def look_after(tell: Teller, spec: Dict[str, Any]) -> None:
    """After an exception: a GPU that faulted says so at every later call, while the first may speak of something else (cublasCreate)."""
    torch = sys.modules.get("torch")
    if torch is None or spec["device"] == "cpu" or spec["workload"] == "device":
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:
        tell.line(event="after", text=str(error)[:2000])


def main() -> None:
    """Run the probe that the first argument describes. Does not return."""
    spec = json.loads(sys.argv[1])
    tell = Teller(spec["fd"])
    os.set_inheritable(spec["fd"], False)
    faulthandler.enable(all_threads=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)  # the deadline's TERM shows where it hung
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody waits for us any more
    if hasattr(signal, "alarm"):
        signal.alarm(int(spec.get("deadline", 0)) and int(spec["deadline"]) + 30)  # nobody came to end us: SIGALRM does
    tell.line(event="begin", stage="start")
    try:
        probe(tell, spec)
        tell.line(event="end")
        code = 0
    except Exception as error:
        tell.line(event="error", stage=tell.at, type=type(error).__name__, text=str(error)[:2000])
        sys.excepthook(*sys.exc_info())
        look_after(tell, spec)
        code = 1
    # Straight out: a race between torch's threads and the end of the interpreter aborts one run in some dozens on sound
    # hardware ("terminate called without an active exception"), and the work that we ask about is done and told.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
