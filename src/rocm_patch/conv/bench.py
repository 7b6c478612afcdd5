"""How long one convolution takes through the engine, the vendor's library and PyTorch's native path, measured in turns.

On a GPU each measured call is preceded by writes to a large buffer: they empty the device's cache, as the layers of a network do for
each other, and keep the device busy while the host enqueues the call, so that the host's own time is not in the figure
(`benchmarks/conv_overhead.py` measures that). Alternatives take turns in short blocks of one run, so that clocks and neighbours
disturb them alike; the figure is the median. TF32 is off. Nothing is printed here.
"""

from __future__ import annotations

import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from .suites import Layer

DIRECTIONS = ("forward", "forward+backward")
ALTERNATIVES = ("engine", "vendor", "native", "cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
ROUNDS = 5  # blocks of each alternative
FLUSH_BYTES = 256 * 2**20  # well over the last-level cache of every card that this serves: 128 MiB on gfx1030
MOST_SAMPLES = 50
LONGEST_LEAD = 1e-3  # seconds of device work put before a call: a path that launches for longer than that is held up by the host anywhere


@dataclass(frozen=True)
class Row:
    """One layer in one direction. Times are medians in milliseconds; None was not measured, and the note says why where it was tried."""

    suite: str
    layer: str
    dtype: str
    direction: str
    gflop: float  # arithmetic of the call, in 1e9 operations; a backward pass has two convolutions more
    engine_ms: float | None = None
    vendor_ms: float | None = None
    native_ms: float | None = None
    cpu_ms: float | None = None
    algorithm: str = ""  # which the engine took, joined by "+"
    peak_bytes: int | None = None  # the engine's memory beyond inputs and results
    difference: float | None = None  # between the first and the last alternative: relative distance (Frobenius norm), of the worst tensor
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """How to measure. `blas` goes to the engine: whether the vendor's matrix product may be used."""

    device: str = "cuda"
    dtype: str = "float32"
    alternatives: tuple[str, ...] = ("engine", "vendor", "native")
    directions: tuple[str, ...] = DIRECTIONS
    budget_ms: float = 20.0  # measured work for each alternative; at least ROUNDS calls, at most MOST_SAMPLES
    blas: bool = True


@contextmanager
def switched(alternative: str, blas: bool = True) -> Iterator[None]:
    """Everything inside runs through one alternative, in plain arithmetic (no TF32). An engine that is on already is on again after it."""
    from . import engine

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    vendor = alternative in ("vendor", "cpu")
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    onednn = torch._C._get_mkldnn_enabled()  # its public switch, mkldnn.flags, also sets TF32 and warns of it on most machines
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
    torch._C._set_mkldnn_enabled(vendor)
    try:
        with engine(("cuda", "cpu") if alternative == "engine" else (), blas=blas):
            enabled = cudnn.enabled
            cudnn.enabled = vendor
            try:
                yield
            finally:
                cudnn.enabled = enabled
    finally:
        torch._C._set_mkldnn_enabled(onednn)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


Call = Callable[[], tuple[torch.Tensor, ...]]


def operation(layer: Layer, direction: str, device: str, dtype: torch.dtype) -> Call:
    """A function that runs the layer once on fixed random tensors; it returns the output and, with backward, all gradients."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{layer.suite}/{layer.layer}".encode()))

    def random(shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
        # From float32 whatever the type, so that every type measures the same numbers.
        values = torch.empty(shape).uniform_(-1, 1, generator=generator) if math.prod(shape) < 2**20 else _large(shape, generator, device)
        return (values * scale).to(device=device, dtype=dtype)

    x = random(layer.input_shape)
    weight = random(layer.weight_shape, (layer.inputs / layer.groups * math.prod(layer.kernel)) ** -0.5)
    bias = random((layer.outputs,)) if layer.bias else None
    name = f"conv{'_transpose' if layer.transposed else ''}{len(layer.size)}d"
    function = getattr(torch.nn.functional, name)
    extra = {"output_padding": layer.output_padding} if layer.transposed else {}

    def forward() -> tuple[torch.Tensor, ...]:
        return (function(x, weight, bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups, **extra),)

    if direction == "forward":
        return forward
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    gradient = random(layer.output_shape)

    def both() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            (result,) = forward()
            return (result.detach(), *torch.autograd.grad(result, inputs, gradient))

    return both


def _large(shape: tuple[int, ...], generator: torch.Generator, device: str) -> torch.Tensor:
    """Random numbers made where they are needed: the host would take longer over them than the device over the layer."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return torch.empty(shape, device=device).uniform_(-1, 1, generator=torch.Generator(device).manual_seed(seed))


class Timer:
    """Seconds of calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.buffer = torch.empty(FLUSH_BYTES if self.on_gpu else 0, dtype=torch.int8, device=self.device)
        self.flush_s = statistics.median(self._events(self.buffer.zero_, 0) for _ in range(5)) if self.on_gpu else 0.0

    def synchronise(self) -> None:
        """Waits until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one call: until the host has it enqueued, and until it is done."""
        self.synchronise()
        start = time.perf_counter()
        call()
        enqueued = time.perf_counter()
        self.synchronise()
        return enqueued - start, time.perf_counter() - start

    def flushes(self, lead_s: float) -> int:
        """How many writes of the buffer keep the device busy for so long; one at least, to empty its cache."""
        return math.ceil(max(min(lead_s, LONGEST_LEAD), 1e-9) / self.flush_s) if self.flush_s else 0

    def samples(self, call: Callable[[], object], count: int, flushes: int) -> list[float]:
        """Seconds of each of several calls."""
        if not self.on_gpu:
            return [self.once(call)[1] for _ in range(count)]
        return [self._events(call, flushes) for _ in range(count)]

    def _events(self, call: Callable[[], object], flushes: int) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(flushes):
            self.buffer.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


@dataclass
class Timed:
    """One of several calls that are measured in turns, and the alternative that it runs through."""

    name: str
    alternative: str
    call: Callable[[], object]
    host_s: float = 0.0  # until the host has it enqueued
    done_s: float = 0.0  # until the device has done it
    samples: list[float] = field(default_factory=list)

    def prepare(self, timer: Timer) -> None:
        """Runs it until its times are steady enough to plan by: the first call compiles, finds, allocates."""
        self.call()
        self.host_s, self.done_s = min((timer.once(self.call) for _ in range(2)), key=lambda pair: pair[1])


def _unwatched(_alternative: str) -> None:
    """For whoever need not know what is at work."""


def in_turns(
    timed: Sequence[Timed], timer: Timer, budget_ms: float, blas: bool = True, begins: Callable[[str], object] = _unwatched
) -> dict[str, float]:
    """Median milliseconds of each prepared call, by name. The blocks go to and fro, so that no call always follows the same one."""
    lead = timer.flushes(1.3 * max((one.host_s for one in timed), default=0.0) + 2e-5)
    for turn in range(ROUNDS):
        for one in timed if turn % 2 == 0 else reversed(timed):
            count = min(MOST_SAMPLES, math.ceil(budget_ms / 1e3 / max(one.done_s, 1e-6)))
            begins(one.alternative)
            with switched(one.alternative, blas), torch.no_grad():
                one.samples += timer.samples(one.call, math.ceil(count / ROUNDS), lead)
    return {one.name: statistics.median(one.samples) * 1e3 for one in timed}


def measure(layer: Layer, direction: str, settings: Settings, timer: Timer, begins: Callable[[str], object] = _unwatched) -> Row:
    """One layer in one direction through every alternative. One that fails is left out, and the note says so.

    `begins` is told each alternative's name before it runs, so that whoever watches knows which one was at work.
    """
    dtype = DTYPES[settings.dtype]
    call = operation(layer, direction, settings.device, dtype)
    gflop = layer.flops / 1e9 * (1 if direction == "forward" else 3)
    row = Row(layer.suite, layer.layer, settings.dtype, direction, gflop)
    timed: list[Timed] = []
    notes: list[str] = []
    first: tuple[torch.Tensor, ...] = ()
    for name in settings.alternatives:
        begins(name)
        if name == "cpu":
            row = replace(row, cpu_ms=_on_cpu(layer, direction, dtype))
            continue
        one = Timed(name, name, call)
        try:
            with switched(name, settings.blas), torch.no_grad():
                one.prepare(timer)
                results = call()
                if first:
                    row = replace(row, difference=_distance(first, results))
                first = first or results
                del results
                if name == "engine":
                    row = replace(row, algorithm=algorithms_of(call), peak_bytes=extra_memory(call, timer))
            timed.append(one)
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            notes.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
    first = ()
    times = in_turns(timed, timer, settings.budget_ms, settings.blas, begins)
    return replace(row, note="; ".join(notes), **{f"{name}_ms": value for name, value in times.items()})  # type: ignore[arg-type]


def algorithms_of(call: Callable[[], object]) -> str:
    """Which algorithms one call of the engine takes."""
    from . import status

    before = dict(status()["calls"])
    call()
    after = status()["calls"]
    return "+".join(sorted(name for name in after if after[name] > before.get(name, 0)))


def extra_memory(call: Call, timer: Timer) -> int | None:
    """Bytes that one call needs at its peak beyond its inputs and results; None where the device does not count."""
    if not timer.on_gpu:
        return None
    timer.synchronise()
    torch.cuda.reset_peak_memory_stats(timer.device)
    allocated: int = torch.cuda.memory_allocated(timer.device)
    results = call()
    timer.synchronise()
    kept: int = sum(-(-tensor.numel() * tensor.element_size() // 512) * 512 for tensor in results)  # the allocator deals in 512 bytes
    peak: int = torch.cuda.max_memory_allocated(timer.device)
    return max(0, peak - allocated - kept)


def _distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest relative distance between two tensors of the same place."""
    return max(
        float(torch.dist(mine.float(), other.float())) / (float(torch.linalg.vector_norm(other.float())) or 1.0)
        for mine, other in zip(ours, theirs, strict=True)
    )


def _on_cpu(layer: Layer, direction: str, dtype: torch.dtype) -> float:
    """Milliseconds on the host's processor, where the mission's fallback would run it: the median of three calls."""
    call, timer = operation(layer, direction, "cpu", dtype), Timer("cpu")
    with switched("cpu"), torch.no_grad():
        call()
        return statistics.median(timer.samples(call, 3, 0)) * 1e3


def run(layers: Sequence[Layer], settings: Settings) -> Iterator[Row]:
    """Every layer in every direction, one row after the other as they are measured."""
    from . import engine

    timer = Timer(settings.device)
    with engine((), blas=settings.blas):  # an engine that was on with other settings would forget its choices with every turn
        for layer in layers:
            for direction in settings.directions:
                yield measure(layer, direction, settings, timer)
                if timer.on_gpu:
                    torch.cuda.empty_cache()  # the next layer's sizes are others; a small card needs the room
