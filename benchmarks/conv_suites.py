"""Where the layer suites come from: builds each network without memory (meta tensors) and lists its convolutions.

    python benchmarks/conv_suites.py [--check] [SUITE...]

Prints the rows of `rocm_patch/conv/suites.py`; `--check` compares them with the ones there instead, and says which networks
could not be built here. Needs torch, and torchvision, ultralytics, diffusers and braindecode for the networks of theirs;
the others are written below in plain torch. Where each architecture was published:

- ResNet https://arxiv.org/abs/1512.03385, ResNeXt https://arxiv.org/abs/1611.05431
- MobileNetV2 https://arxiv.org/abs/1801.04381, EfficientNet https://arxiv.org/abs/1905.11946
- YOLOv8 https://docs.ultralytics.com/models/yolov8/
- U-Net https://arxiv.org/abs/1505.04597 (with padding, so that the output has the size of the input), 3-D: https://arxiv.org/abs/1606.06650
- EEGNet https://arxiv.org/abs/1611.08024, temporal convolutions https://arxiv.org/abs/1803.01271
- decoder of Stable Diffusion 1.5 https://arxiv.org/abs/2112.10752, DCGAN https://arxiv.org/abs/1511.06434
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rocm_patch.conv.suites import SUITES, Layer


class UNet(nn.Module):
    """Four levels down and up with transposed convolutions; batch norm, so the 3x3 layers have no bias."""

    def __init__(self, channels: int = 3, classes: int = 2, base: int = 64) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(5)]
        self.down = nn.ModuleList([self.pair(before, after) for before, after in zip([channels, *widths], widths, strict=False)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths[:-1])])
        self.merge = nn.ModuleList([self.pair(2 * width, width) for width in reversed(widths[:-1])])
        self.head = nn.Conv2d(base, classes, 1)

    @staticmethod
    def pair(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


class UNetBlock3d(nn.Module):
    """The upper two levels of a 3-D U-Net: down, bottom, up, head; with bias, as instance norm without weights follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.Conv3d(32, 64, 3, padding=1))
        self.bottom = nn.Sequential(nn.Conv3d(64, 64, 3, stride=2, padding=1), nn.Conv3d(64, 128, 3, padding=1), nn.Conv3d(128, 128, 3, padding=1))
        self.up = nn.ConvTranspose3d(128, 128, 2, 2)
        self.merge = nn.Sequential(nn.Conv3d(192, 64, 3, padding=1), nn.Conv3d(64, 64, 3, padding=1))
        self.head = nn.Conv3d(64, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.stem(x)
        return self.head(self.merge(torch.cat([skip, self.up(self.bottom(skip))], 1)))


class TemporalEeg(nn.Module):
    """A 1-D net over electrodes as channels: long first filters, dilated residual blocks, a separable layer, a head."""

    def __init__(self, channels: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, 64, 25, padding=12)
        self.reduce = nn.Conv1d(64, 64, 8, stride=2, padding=3)
        widths = (64, 64, 128, 128, 256)
        self.blocks = nn.ModuleList()
        self.skips = nn.ModuleList()
        for level, (before, after) in enumerate(zip((64, *widths), widths, strict=False)):
            step = 2**level
            layers = [nn.Conv1d(channel, after, 5, padding=2 * step, dilation=step) for channel in (before, after)]
            self.blocks.append(nn.Sequential(layers[0], nn.ReLU(), layers[1]))
            self.skips.append(nn.Conv1d(before, after, 1) if before != after else nn.Identity())
        self.separable = nn.Sequential(nn.Conv1d(256, 256, 31, padding=15, groups=256, bias=False), nn.Conv1d(256, 256, 1, bias=False))
        self.head = nn.Conv1d(256, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.reduce(self.stem(x))
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = torch.relu(block(x) + skip(x))
        return self.head(self.separable(x))


def dcgan_generator() -> nn.Module:
    """64x64 images from 100 random numbers; the widths of PyTorch's own example, half those of the paper."""
    widths = (100, 512, 256, 128, 64, 3)
    layers = [nn.ConvTranspose2d(a, b, 4, 1 if a == 100 else 2, 0 if a == 100 else 1, bias=False) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*layers)


def torchvision_net(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("torchvision.models"), name)(weights=None)


def yolo(name: str) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("ultralytics.nn.tasks").DetectionModel(f"{name}.yaml", verbose=False).train()


def vae_decoder() -> nn.Module:
    library = importlib.import_module("diffusers.models.autoencoders.autoencoder_kl")
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    whole = library.AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4
    )

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.post_quant, self.decoder = whole.post_quant_conv, whole.decoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.decoder(self.post_quant(x))

    return Decoder()


def eegnet() -> nn.Module:
    return importlib.import_module("braindecode.models").EEGNet(n_chans=64, n_outputs=4, n_times=512)


# suite: (batch, shape of one input, the network)
NETWORKS: dict[str, tuple[int, tuple[int, ...], Callable[[], nn.Module]]] = {
    "resnet18": (32, (3, 224, 224), torchvision_net("resnet18")),
    "resnet50": (32, (3, 224, 224), torchvision_net("resnet50")),
    "resnext50": (16, (3, 224, 224), torchvision_net("resnext50_32x4d")),
    "mobilenet_v2": (32, (3, 224, 224), torchvision_net("mobilenet_v2")),
    "efficientnet_b0": (32, (3, 224, 224), torchvision_net("efficientnet_b0")),
    "yolov8n": (16, (3, 640, 640), yolo("yolov8n")),
    "yolov8s": (8, (3, 640, 640), yolo("yolov8s")),
    "unet256": (4, (3, 256, 256), UNet),
    "eegnet": (64, (64, 512), eegnet),
    "eeg_temporal": (64, (64, 512), TemporalEeg),
    "sd15_vae_decoder": (1, (4, 64, 64), vae_decoder),
    "unet3d_block": (1, (1, 64, 64, 64), UNetBlock3d),
    "dcgan": (128, (100, 1, 1), dcgan_generator),
}


class Recorder(TorchDispatchMode):
    """Notes every convolution that passes the dispatcher, in order, under the name of the module that called it."""

    def __init__(self, suite: str) -> None:
        super().__init__()
        self.suite, self.name, self.found = suite, "", dict[Layer, Layer]()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator is torch.ops.aten.convolution.default:
            x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
            outputs = weight.shape[1] * groups if transposed else weight.shape[0]
            plain = Layer(self.suite, "", x.shape[0], x.shape[1], tuple(x.shape[2:]), outputs, tuple(weight.shape[2:]), tuple(stride),
                          tuple(padding), tuple(dilation), groups, transposed, tuple(output_padding), bias is not None, 0)  # fmt: skip
            first = self.found.get(plain, replace(plain, layer=self.name))
            self.found[plain] = replace(first, count=first.count + 1)
        return operator(*args, **(kwargs or {}))


def rows(suite: str) -> tuple[Layer, ...]:
    """The unique convolutions of a network, in the order of their first call."""
    batch, shape, build = NETWORKS[suite]
    recorder = Recorder(suite)
    network = build().to("meta")
    for name, module in network.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            recorder.name = re.sub(r"^(model|features)\.|\.parametrizations.*", "", name)

        if not list(module.children()):
            module.register_forward_pre_hook(enter)
    with recorder, torch.no_grad():
        network(torch.empty((batch, *shape), device="meta"))
    return tuple(recorder.found.values())


def line(layer: Layer) -> str:
    """One row as suites.py writes it; equal numbers of all dimensions are written once."""

    def short(values: tuple[int, ...]) -> str:
        return str(values[0]) if len(set(values)) == 1 else str(values)

    text = f'"{layer.layer}", {layer.inputs}, {layer.size}, {layer.outputs}, {short(layer.kernel)}'
    for name, values, default in (("stride", layer.stride, 1), ("padding", layer.padding, 0), ("dilation", layer.dilation, 1)):
        text += f", {name}={short(values)}" if set(values) != {default} else ""
    text += f", groups={layer.groups}" if layer.groups != 1 else ""
    text += ", transposed=True" if layer.transposed else ""
    text += f", output_padding={short(layer.output_padding)}" if any(layer.output_padding) else ""
    text += ", bias=True" if layer.bias else ""
    text += f", count={layer.count}" if layer.count != 1 else ""
    return f"        _row({text}),"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("suites", nargs="*", metavar="SUITE")
    options = parser.parse_args()
    wrong = 0
    for suite in options.suites or NETWORKS:
        try:
            found = rows(suite)
        except ImportError as error:
            print(f"{suite}: not built here: {error}")
            continue
        if options.check:
            ours = tuple(layer for layer in SUITES if layer.suite == suite)
            same = found == ours
            wrong += not same
            print(f"{suite}: {len(found)} shapes, {sum(layer.count for layer in found)} layers: {'equal' if same else 'DIFFERENT'}")
        else:
            print(f'    *_suite(\n        "{suite}",\n        {NETWORKS[suite][0]},', *map(line, found), "    ),", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
