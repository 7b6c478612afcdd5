"""Training of whole networks through the engine, the vendor's library and the native path: the same losses, and the time of a step.

    python benchmarks/conv_models.py [--model NAME]... [--steps 50] [--own-kernels] [--small] [--out FOLDER]

Each network starts from the same weights and sees the same made-up batches; forward, backward and SGD with momentum, TF32 off.
Training multiplies rounding differences from step to step, so a curve is judged by what rounding does by itself: `nudged` is the
vendor's own run from weights that differ in the last bit, `again` its second run (some gradients are summed in no fixed order), and
the distance of every curve from one in float64 says which is nearer to the truth. `within rounding` means: no farther from the vendor's
curve than three times what nudging, repeating, or taking the native path moves it. Times are medians of blocks that take turns.
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
from torch import Tensor, nn
from torch.nn import functional

from rocm_patch.conv import bench, bench_report

BATCHES = 4  # fixed batches, seen in turn


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        plain = stride == 1 and before == after
        self.skip = nn.Identity() if plain else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.skip(x))


def resnet18(classes: int = 100) -> nn.Module:
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = (64, 64, 128, 256, 512)
    body = [block for i in range(4) for block in (Residual(widths[i], widths[i + 1], 1 if i == 0 else 2), Residual(widths[i + 1], widths[i + 1], 1))]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class Split(nn.Module):
    """YOLO's split block: half of the channels passes small residual convolutions, every stage is kept and merged."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.enter, self.leave = activated(before, after, 1), activated((2 + depth) * after // 2, after, 1)
        self.steps = nn.ModuleList(nn.Sequential(activated(after // 2, after // 2, 3), activated(after // 2, after // 2, 3)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


def activated(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after), nn.SiLU())


class SmallYolo(nn.Module):
    """Stem, three split stages, one level down from the coarsest map, heads of boxes and classes on both; 84 numbers a cell."""

    def __init__(self, width: int = 32, outputs: int = 84) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(activated(3, w, 3, 2), activated(w, 2 * w, 3, 2), Split(2 * w, 2 * w, 1))
        self.middle = nn.Sequential(activated(2 * w, 4 * w, 3, 2), Split(4 * w, 4 * w, 2))
        self.coarse = nn.Sequential(activated(4 * w, 8 * w, 3, 2), Split(8 * w, 8 * w, 1))
        self.merge = Split(12 * w, 4 * w, 1)
        self.fine_head = nn.Sequential(activated(4 * w, 2 * w, 3), nn.Conv2d(2 * w, outputs, 1))
        self.coarse_head = nn.Sequential(activated(8 * w, 2 * w, 3), nn.Conv2d(2 * w, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.middle(self.stem(x))
        coarse = self.coarse(fine)
        fine = self.merge(torch.cat([functional.interpolate(coarse, scale_factor=2.0), fine], 1))
        return torch.cat([self.fine_head(fine).flatten(2), self.coarse_head(coarse).flatten(2)], 2)


def eegnet(electrodes: int = 64, samples: int = 512, classes: int = 4) -> nn.Module:
    """EEGNet-8,2 (https://arxiv.org/abs/1611.08024) without its dropout, whose random numbers would be the only thing compared."""
    temporal = [nn.Conv2d(1, 8, (1, 64), padding=(0, 32), bias=False), nn.BatchNorm2d(8)]
    spatial = [nn.Conv2d(8, 16, (electrodes, 1), groups=8, bias=False), nn.BatchNorm2d(16), nn.ELU(), nn.AvgPool2d((1, 4))]
    separable = [nn.Conv2d(16, 16, (1, 16), padding=(0, 8), groups=16, bias=False), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ELU()]
    head = [nn.AvgPool2d((1, 8)), nn.Flatten(), nn.Linear(16 * (((samples + 1) // 4 + 1) // 8), classes)]
    return nn.Sequential(*temporal, *spatial, *separable, *head)


class UNet(nn.Module):
    def __init__(self, base: int = 64, depth: int = 5, classes: int = 2) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth)]
        self.down = nn.ModuleList(self.pair(before, after) for before, after in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths[:-1]))
        self.merge = nn.ModuleList(self.pair(2 * width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(base, classes, 1)

    @staticmethod
    def pair(before: int, after: int) -> nn.Module:
        layers = [(nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()) for width in (before, after)]
        return nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            kept.append(block(functional.max_pool2d(kept[-1], 2) if level else x))
        x = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


@dataclass(frozen=True)
class Model:
    """A network, the shape of its input with the batch, and its loss. Targets are made from the input, so that there is something to learn."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[Tensor, Tensor], Tensor]
    rate: float


def classified(classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Which class: by how bright the input is, in equal shares of the batch."""

    def loss(result: Tensor, x: Tensor) -> Tensor:
        order = x.flatten(1)[:, :1024].mean(1).argsort().argsort()
        return functional.cross_entropy(result, order * min(classes, len(x)) // len(x))

    return loss


def segmented(result: Tensor, x: Tensor) -> Tensor:
    return functional.cross_entropy(result, (functional.avg_pool2d(x, 5, 1, 2).mean(1) > 0).long())


def regressed(result: Tensor, x: Tensor) -> Tensor:
    """Every cell is to say how bright its row of the input is, in each of its numbers."""
    wanted = functional.adaptive_avg_pool1d(x.mean(1).flatten(1).unsqueeze(1), result.shape[2])
    return functional.mse_loss(result, 50 * wanted.expand_as(result))


MODELS = {
    "resnet18": Model(resnet18, (32, 3, 224, 224), classified(100), 0.001),
    "small_yolo": Model(SmallYolo, (8, 3, 320, 320), regressed, 0.01),
    "eegnet": Model(eegnet, (64, 1, 64, 512), classified(4), 0.02),
    "unet": Model(UNet, (4, 3, 256, 256), segmented, 0.01),
}
SMALL = {
    "resnet18": Model(lambda: resnet18(8), (8, 3, 32, 32), classified(8), 0.0005),
    "small_yolo": Model(lambda: SmallYolo(8, 10), (2, 3, 64, 64), regressed, 0.01),
    "eegnet": Model(lambda: eegnet(8, 128), (8, 1, 8, 128), classified(4), 0.02),
    "unet": Model(lambda: UNet(8, 3), (2, 3, 32, 32), segmented, 0.01),
}


class Training:
    """A network with its optimiser and data: `steps` trains on, `losses` is the curve so far."""

    def __init__(
        self, model: Model, alternative: str, device: str, dtype: torch.dtype = torch.float32, nudge: bool = False, blas: bool = True
    ) -> None:
        torch.manual_seed(20)
        self.network = model.build()
        data = [torch.randn(model.shape) for _ in range(BATCHES)]
        if nudge:
            signs = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for weight in self.network.parameters():
                    weight.mul_(1 + (torch.randint(0, 2, weight.shape, generator=signs) * 2 - 1) * 2.0**-23)
        self.network = self.network.to(device, dtype)
        self.data = [batch.to(device, dtype) for batch in data]
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=model.rate, momentum=0.9)
        self.loss, self.alternative, self.blas = model.loss, alternative, blas
        self.losses: list[Tensor] = []

    def step(self) -> None:
        batch = self.data[len(self.losses) % BATCHES]
        self.optimiser.zero_grad()
        loss = self.loss(self.network(batch), batch)
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.detach())

    def steps(self, count: int) -> float:
        """Trains on; seconds, with everything done on the device."""
        on_gpu = self.data[0].is_cuda
        with bench.switched(self.alternative, self.blas):
            start = time.perf_counter()
            for _ in range(count):
                self.step()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - start

    def curve(self) -> list[float]:
        return [float(loss) for loss in self.losses]


@dataclass(frozen=True)
class Result:
    model: str
    curves: dict[str, list[float]]
    distances: dict[str, float]  # largest relative difference of two curves over the steps
    step_ms: dict[str, float]
    within_rounding: bool | None


def distance(ours: list[float], theirs: list[float]) -> float:
    """Largest relative difference; where a loss has fallen under a tenth of the first, in units of that."""
    floor = abs(theirs[0]) / 10
    return max(abs(mine - other) / max(abs(other), floor) for mine, other in zip(ours, theirs, strict=True))


def compare(name: str, model: Model, alternatives: tuple[str, ...], steps: int, device: str, blas: bool, rounds: int = 5, block: int = 4) -> Result:
    curves = {}
    for label in (*alternatives, "again", "nudged", "float64"):
        alternative = label if label in alternatives else "native" if label == "float64" else "vendor"
        training = Training(model, alternative, device, torch.float64 if label == "float64" else torch.float32, label == "nudged", blas)
        training.steps(steps)
        curves[label] = training.curve()
        del training
    pairs = [(label, "vendor") for label in curves if label not in ("vendor", "float64")] + [(label, "float64") for label in alternatives]
    distances = {f"{ours} - {theirs}": distance(curves[ours], curves[theirs]) for ours, theirs in pairs}
    allowed = 3 * max(distances[f"{label} - vendor"] for label in ("again", "nudged", "native"))
    within = distances["engine - vendor"] <= allowed if "engine" in alternatives else None

    trainings = [Training(model, alternative, device, blas=blas) for alternative in alternatives]
    samples: dict[str, list[float]] = {alternative: [] for alternative in alternatives}
    for training in trainings:
        training.steps(3)
    for turn in range(rounds):
        for training in trainings if turn % 2 == 0 else reversed(trainings):
            samples[training.alternative].append(training.steps(block) / block * 1e3)
    return Result(name, curves, distances, {alternative: statistics.median(values) for alternative, values in samples.items()}, within)


def summary(results: list[Result], markdown: bool = False) -> str:
    pairs = list(dict.fromkeys(pair for result in results for pair in result.distances))
    head = ["model", "first loss", "last loss", *pairs, "within rounding"]
    words = {True: "yes", False: "NO", None: "-"}
    body = [
        [result.model, *(f"{result.curves['vendor'][step]:.4f}" for step in (0, -1)), *(f"{result.distances[pair]:.1e}" for pair in pairs),
         words[result.within_rounding]]
        for result in results
    ]  # fmt: skip
    names = list(results[0].step_ms)
    ratios = [("engine", "vendor"), ("engine", "native"), ("native", "vendor")]
    ratios = [pair for pair in ratios if set(pair) <= set(names)]
    times = [
        [result.model, *(f"{result.step_ms[name]:.2f}" for name in names), *(f"{result.step_ms[a] / result.step_ms[b]:.3f}" for a, b in ratios)]
        for result in results
    ]
    return "\n\n".join(
        [
            bench_report.table(head, body, markdown),
            bench_report.table(["model", *(f"{name} ms a step" for name in names), *(f"{a}/{b}" for a, b in ratios)], times, markdown),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--baseline", action="store_true", help="vendor and native only")
    parser.add_argument("--own-kernels", action="store_true", help="the engine without the vendor's BLAS")
    parser.add_argument("--small", action="store_true", help="small inputs, to try the script without a GPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()
    table = SMALL if options.small else MODELS
    alternatives = ("vendor", "native") if options.baseline else ("engine", "vendor", "native")
    results = []
    for name in options.model or table:
        results.append(compare(name, table[name], alternatives, options.steps, options.device, not options.own_kernels))
        print(f"{name} done", file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "conv_models.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    (options.out / "conv_models.md").write_text(summary(results, markdown=True) + "\n")
    print(summary(results))
    return 1 if any(result.within_rounding is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
