"""The convolution layers of well-known networks, with the batch sizes that train or run on a card of 6 to 8 GB.

Every shape that a network uses is one row, as often as it occurs; a shape that two networks share is in both. The rows were
read off the networks themselves: `benchmarks/conv_suites.py` builds them again and compares, and cites where each was published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layer:
    """One convolution of a network. Sizes are given for each spatial dimension, in elements."""

    suite: str
    layer: str
    batch: int
    inputs: int  # channels
    size: tuple[int, ...]  # of the input: (samples), (height, width) or (depth, height, width)
    outputs: int  # channels
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    bias: bool
    count: int  # how often the network has it

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input tensor: batch, channels, spatial sizes."""
        return (self.batch, self.inputs, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as torch lays it out: a transposed layer's begins with the input channels."""
        first, second = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return (first, second // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output tensor."""
        sizes = []
        for size, kernel, stride, padding, dilation, extra in zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        ):
            reach = dilation * (kernel - 1)
            if self.transposed:
                sizes.append((size - 1) * stride - 2 * padding + reach + extra + 1)
            else:
                sizes.append((size + 2 * padding - reach - 1) // stride + 1)
        return (self.batch, self.outputs, *sizes)

    @property
    def flops(self) -> int:
        """Floating-point operations of one forward pass: a multiplication and an addition for each weight and position."""
        positions = self.input_shape if self.transposed else self.output_shape
        result = 2
        for factor in (positions[0], *positions[2:], *self.weight_shape):
            result *= factor
        return result


def _row(
    layer: str,
    inputs: int,
    size: tuple[int, ...],
    outputs: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: int | tuple[int, ...] = 0,
    bias: bool = False,
    count: int = 1,
) -> Layer:
    """A row with what is the rule left out; one number stands for every dimension."""

    def each(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(size) if isinstance(value, int) else value

    return Layer(
        "",
        layer,
        0,
        inputs,
        size,
        outputs,
        each(kernel),
        each(stride),
        each(padding),
        each(dilation),
        groups,
        transposed,
        each(output_padding),
        bias,
        count,
    )


def _suite(name: str, batch: int, *rows: Layer) -> Iterator[Layer]:
    return (replace(row, suite=name, batch=batch) for row in rows)


SUITES: tuple[Layer, ...] = (
    *_suite(
        "resnet18",
        32,
        _row("conv1", 3, (224, 224), 64, 7, stride=2, padding=3),
        _row("layer1.0.conv1", 64, (56, 56), 64, 3, padding=1, count=4),
        _row("layer2.0.conv1", 64, (56, 56), 128, 3, stride=2, padding=1),
        _row("layer2.0.conv2", 128, (28, 28), 128, 3, padding=1, count=3),
        _row("layer2.0.downsample.0", 64, (56, 56), 128, 1, stride=2),
        _row("layer3.0.conv1", 128, (28, 28), 256, 3, stride=2, padding=1),
        _row("layer3.0.conv2", 256, (14, 14), 256, 3, padding=1, count=3),
        _row("layer3.0.downsample.0", 128, (28, 28), 256, 1, stride=2),
        _row("layer4.0.conv1", 256, (14, 14), 512, 3, stride=2, padding=1),
        _row("layer4.0.conv2", 512, (7, 7), 512, 3, padding=1, count=3),
        _row("layer4.0.downsample.0", 256, (14, 14), 512, 1, stride=2),
    ),
    *_suite(
        "resnet50",
        32,
        _row("conv1", 3, (224, 224), 64, 7, stride=2, padding=3),
        _row("layer1.0.conv1", 64, (56, 56), 64, 1),
        _row("layer1.0.conv2", 64, (56, 56), 64, 3, padding=1, count=3),
        _row("layer1.0.conv3", 64, (56, 56), 256, 1, count=4),
        _row("layer1.1.conv1", 256, (56, 56), 64, 1, count=2),
        _row("layer2.0.conv1", 256, (56, 56), 128, 1),
        _row("layer2.0.conv2", 128, (56, 56), 128, 3, stride=2, padding=1),
        _row("layer2.0.conv3", 128, (28, 28), 512, 1, count=4),
        _row("layer2.0.downsample.0", 256, (56, 56), 512, 1, stride=2),
        _row("layer2.1.conv1", 512, (28, 28), 128, 1, count=3),
        _row("layer2.1.conv2", 128, (28, 28), 128, 3, padding=1, count=3),
        _row("layer3.0.conv1", 512, (28, 28), 256, 1),
        _row("layer3.0.conv2", 256, (28, 28), 256, 3, stride=2, padding=1),
        _row("layer3.0.conv3", 256, (14, 14), 1024, 1, count=6),
        _row("layer3.0.downsample.0", 512, (28, 28), 1024, 1, stride=2),
        _row("layer3.1.conv1", 1024, (14, 14), 256, 1, count=5),
        _row("layer3.1.conv2", 256, (14, 14), 256, 3, padding=1, count=5),
        _row("layer4.0.conv1", 1024, (14, 14), 512, 1),
        _row("layer4.0.conv2", 512, (14, 14), 512, 3, stride=2, padding=1),
        _row("layer4.0.conv3", 512, (7, 7), 2048, 1, count=3),
        _row("layer4.0.downsample.0", 1024, (14, 14), 2048, 1, stride=2),
        _row("layer4.1.conv1", 2048, (7, 7), 512, 1, count=2),
        _row("layer4.1.conv2", 512, (7, 7), 512, 3, padding=1, count=2),
    ),
    *_suite(
        "resnext50",
        16,
        _row("conv1", 3, (224, 224), 64, 7, stride=2, padding=3),
        _row("layer1.0.conv1", 64, (56, 56), 128, 1),
        _row("layer1.0.conv2", 128, (56, 56), 128, 3, padding=1, groups=32, count=3),
        _row("layer1.0.conv3", 128, (56, 56), 256, 1, count=3),
        _row("layer1.0.downsample.0", 64, (56, 56), 256, 1),
        _row("layer1.1.conv1", 256, (56, 56), 128, 1, count=2),
        _row("layer2.0.conv1", 256, (56, 56), 256, 1),
        _row("layer2.0.conv2", 256, (56, 56), 256, 3, stride=2, padding=1, groups=32),
        _row("layer2.0.conv3", 256, (28, 28), 512, 1, count=4),
        _row("layer2.0.downsample.0", 256, (56, 56), 512, 1, stride=2),
        _row("layer2.1.conv1", 512, (28, 28), 256, 1, count=3),
        _row("layer2.1.conv2", 256, (28, 28), 256, 3, padding=1, groups=32, count=3),
        _row("layer3.0.conv1", 512, (28, 28), 512, 1),
        _row("layer3.0.conv2", 512, (28, 28), 512, 3, stride=2, padding=1, groups=32),
        _row("layer3.0.conv3", 512, (14, 14), 1024, 1, count=6),
        _row("layer3.0.downsample.0", 512, (28, 28), 1024, 1, stride=2),
        _row("layer3.1.conv1", 1024, (14, 14), 512, 1, count=5),
        _row("layer3.1.conv2", 512, (14, 14), 512, 3, padding=1, groups=32, count=5),
        _row("layer4.0.conv1", 1024, (14, 14), 1024, 1),
        _row("layer4.0.conv2", 1024, (14, 14), 1024, 3, stride=2, padding=1, groups=32),
        _row("layer4.0.conv3", 1024, (7, 7), 2048, 1, count=3),
        _row("layer4.0.downsample.0", 1024, (14, 14), 2048, 1, stride=2),
        _row("layer4.1.conv1", 2048, (7, 7), 1024, 1, count=2),
        _row("layer4.1.conv2", 1024, (7, 7), 1024, 3, padding=1, groups=32, count=2),
    ),
    *_suite(
        "mobilenet_v2",
        32,
        _row("0.0", 3, (224, 224), 32, 3, stride=2, padding=1),
        _row("1.conv.0.0", 32, (112, 112), 32, 3, padding=1, groups=32),
        _row("1.conv.1", 32, (112, 112), 16, 1),
        _row("2.conv.0.0", 16, (112, 112), 96, 1),
        _row("2.conv.1.0", 96, (112, 112), 96, 3, stride=2, padding=1, groups=96),
        _row("2.conv.2", 96, (56, 56), 24, 1),
        _row("3.conv.0.0", 24, (56, 56), 144, 1, count=2),
        _row("3.conv.1.0", 144, (56, 56), 144, 3, padding=1, groups=144),
        _row("3.conv.2", 144, (56, 56), 24, 1),
        _row("4.conv.1.0", 144, (56, 56), 144, 3, stride=2, padding=1, groups=144),
        _row("4.conv.2", 144, (28, 28), 32, 1),
        _row("5.conv.0.0", 32, (28, 28), 192, 1, count=3),
        _row("5.conv.1.0", 192, (28, 28), 192, 3, padding=1, groups=192, count=2),
        _row("5.conv.2", 192, (28, 28), 32, 1, count=2),
        _row("7.conv.1.0", 192, (28, 28), 192, 3, stride=2, padding=1, groups=192),
        _row("7.conv.2", 192, (14, 14), 64, 1),
        _row("8.conv.0.0", 64, (14, 14), 384, 1, count=4),
        _row("8.conv.1.0", 384, (14, 14), 384, 3, padding=1, groups=384, count=4),
        _row("8.conv.2", 384, (14, 14), 64, 1, count=3),
        _row("11.conv.2", 384, (14, 14), 96, 1),
        _row("12.conv.0.0", 96, (14, 14), 576, 1, count=3),
        _row("12.conv.1.0", 576, (14, 14), 576, 3, padding=1, groups=576, count=2),
        _row("12.conv.2", 576, (14, 14), 96, 1, count=2),
        _row("14.conv.1.0", 576, (14, 14), 576, 3, stride=2, padding=1, groups=576),
        _row("14.conv.2", 576, (7, 7), 160, 1),
        _row("15.conv.0.0", 160, (7, 7), 960, 1, count=3),
        _row("15.conv.1.0", 960, (7, 7), 960, 3, padding=1, groups=960, count=3),
        _row("15.conv.2", 960, (7, 7), 160, 1, count=2),
        _row("17.conv.2", 960, (7, 7), 320, 1),
        _row("18.0", 320, (7, 7), 1280, 1),
    ),
    *_suite(
        "efficientnet_b0",
        32,
        _row("0.0", 3, (224, 224), 32, 3, stride=2, padding=1),
        _row("1.0.block.0.0", 32, (112, 112), 32, 3, padding=1, groups=32),
        _row("1.0.block.1.fc1", 32, (1, 1), 8, 1, bias=True),
        _row("1.0.block.1.fc2", 8, (1, 1), 32, 1, bias=True),
        _row("1.0.block.2.0", 32, (112, 112), 16, 1),
        _row("2.0.block.0.0", 16, (112, 112), 96, 1),
        _row("2.0.block.1.0", 96, (112, 112), 96, 3, stride=2, padding=1, groups=96),
        _row("2.0.block.2.fc1", 96, (1, 1), 4, 1, bias=True),
        _row("2.0.block.2.fc2", 4, (1, 1), 96, 1, bias=True),
        _row("2.0.block.3.0", 96, (56, 56), 24, 1),
        _row("2.1.block.0.0", 24, (56, 56), 144, 1, count=2),
        _row("2.1.block.1.0", 144, (56, 56), 144, 3, padding=1, groups=144),
        _row("2.1.block.2.fc1", 144, (1, 1), 6, 1, bias=True, count=2),
        _row("2.1.block.2.fc2", 6, (1, 1), 144, 1, bias=True, count=2),
        _row("2.1.block.3.0", 144, (56, 56), 24, 1),
        _row("3.0.block.1.0", 144, (56, 56), 144, 5, stride=2, padding=2, groups=144),
        _row("3.0.block.3.0", 144, (28, 28), 40, 1),
        _row("3.1.block.0.0", 40, (28, 28), 240, 1, count=2),
        _row("3.1.block.1.0", 240, (28, 28), 240, 5, padding=2, groups=240),
        _row("3.1.block.2.fc1", 240, (1, 1), 10, 1, bias=True, count=2),
        _row("3.1.block.2.fc2", 10, (1, 1), 240, 1, bias=True, count=2),
        _row("3.1.block.3.0", 240, (28, 28), 40, 1),
        _row("4.0.block.1.0", 240, (28, 28), 240, 3, stride=2, padding=1, groups=240),
        _row("4.0.block.3.0", 240, (14, 14), 80, 1),
        _row("4.1.block.0.0", 80, (14, 14), 480, 1, count=3),
        _row("4.1.block.1.0", 480, (14, 14), 480, 3, padding=1, groups=480, count=2),
        _row("4.1.block.2.fc1", 480, (1, 1), 20, 1, bias=True, count=3),
        _row("4.1.block.2.fc2", 20, (1, 1), 480, 1, bias=True, count=3),
        _row("4.1.block.3.0", 480, (14, 14), 80, 1, count=2),
        _row("5.0.block.1.0", 480, (14, 14), 480, 5, padding=2, groups=480),
        _row("5.0.block.3.0", 480, (14, 14), 112, 1),
        _row("5.1.block.0.0", 112, (14, 14), 672, 1, count=3),
        _row("5.1.block.1.0", 672, (14, 14), 672, 5, padding=2, groups=672, count=2),
        _row("5.1.block.2.fc1", 672, (1, 1), 28, 1, bias=True, count=3),
        _row("5.1.block.2.fc2", 28, (1, 1), 672, 1, bias=True, count=3),
        _row("5.1.block.3.0", 672, (14, 14), 112, 1, count=2),
        _row("6.0.block.1.0", 672, (14, 14), 672, 5, stride=2, padding=2, groups=672),
        _row("6.0.block.3.0", 672, (7, 7), 192, 1),
        _row("6.1.block.0.0", 192, (7, 7), 1152, 1, count=4),
        _row("6.1.block.1.0", 1152, (7, 7), 1152, 5, padding=2, groups=1152, count=3),
        _row("6.1.block.2.fc1", 1152, (1, 1), 48, 1, bias=True, count=4),
        _row("6.1.block.2.fc2", 48, (1, 1), 1152, 1, bias=True, count=4),
        _row("6.1.block.3.0", 1152, (7, 7), 192, 1, count=3),
        _row("7.0.block.1.0", 1152, (7, 7), 1152, 3, padding=1, groups=1152),
        _row("7.0.block.3.0", 1152, (7, 7), 320, 1),
        _row("8.0", 320, (7, 7), 1280, 1),
    ),
    *_suite(
        "yolov8n",
        16,
        _row("0.conv", 3, (640, 640), 16, 3, stride=2, padding=1),
        _row("1.conv", 16, (320, 320), 32, 3, stride=2, padding=1),
        _row("2.cv1.conv", 32, (160, 160), 32, 1),
        _row("2.m.0.cv1.conv", 16, (160, 160), 16, 3, padding=1, count=2),
        _row("2.cv2.conv", 48, (160, 160), 32, 1),
        _row("3.conv", 32, (160, 160), 64, 3, stride=2, padding=1),
        _row("4.cv1.conv", 64, (80, 80), 64, 1),
        _row("4.m.0.cv1.conv", 32, (80, 80), 32, 3, padding=1, count=6),
        _row("4.cv2.conv", 128, (80, 80), 64, 1),
        _row("5.conv", 64, (80, 80), 128, 3, stride=2, padding=1),
        _row("6.cv1.conv", 128, (40, 40), 128, 1),
        _row("6.m.0.cv1.conv", 64, (40, 40), 64, 3, padding=1, count=9),
        _row("6.cv2.conv", 256, (40, 40), 128, 1),
        _row("7.conv", 128, (40, 40), 256, 3, stride=2, padding=1),
        _row("8.cv1.conv", 256, (20, 20), 256, 1),
        _row("8.m.0.cv1.conv", 128, (20, 20), 128, 3, padding=1, count=4),
        _row("8.cv2.conv", 384, (20, 20), 256, 1, count=3),
        _row("9.cv1.conv", 256, (20, 20), 128, 1),
        _row("9.cv2.conv", 512, (20, 20), 256, 1),
        _row("12.cv1.conv", 384, (40, 40), 128, 1),
        _row("12.cv2.conv", 192, (40, 40), 128, 1, count=3),
        _row("15.cv1.conv", 192, (80, 80), 64, 1),
        _row("15.cv2.conv", 96, (80, 80), 64, 1),
        _row("16.conv", 64, (80, 80), 64, 3, stride=2, padding=1),
        _row("19.conv", 128, (40, 40), 128, 3, stride=2, padding=1),
        _row("22.cv2.0.0.conv", 64, (80, 80), 64, 3, padding=1, count=2),
        _row("22.cv2.0.2", 64, (80, 80), 64, 1, bias=True),
        _row("22.cv2.1.0.conv", 128, (40, 40), 64, 3, padding=1),
        _row("22.cv2.1.2", 64, (40, 40), 64, 1, bias=True),
        _row("22.cv2.2.0.conv", 256, (20, 20), 64, 3, padding=1),
        _row("22.cv2.2.1.conv", 64, (20, 20), 64, 3, padding=1),
        _row("22.cv2.2.2", 64, (20, 20), 64, 1, bias=True),
        _row("22.cv3.0.0.conv", 64, (80, 80), 80, 3, padding=1),
        _row("22.cv3.0.1.conv", 80, (80, 80), 80, 3, padding=1),
        _row("22.cv3.0.2", 80, (80, 80), 80, 1, bias=True),
        _row("22.cv3.1.0.conv", 128, (40, 40), 80, 3, padding=1),
        _row("22.cv3.1.1.conv", 80, (40, 40), 80, 3, padding=1),
        _row("22.cv3.1.2", 80, (40, 40), 80, 1, bias=True),
        _row("22.cv3.2.0.conv", 256, (20, 20), 80, 3, padding=1),
        _row("22.cv3.2.1.conv", 80, (20, 20), 80, 3, padding=1),
        _row("22.cv3.2.2", 80, (20, 20), 80, 1, bias=True),
    ),
    *_suite(
        "yolov8s",
        8,
        _row("0.conv", 3, (640, 640), 32, 3, stride=2, padding=1),
        _row("1.conv", 32, (320, 320), 64, 3, stride=2, padding=1),
        _row("2.cv1.conv", 64, (160, 160), 64, 1),
        _row("2.m.0.cv1.conv", 32, (160, 160), 32, 3, padding=1, count=2),
        _row("2.cv2.conv", 96, (160, 160), 64, 1),
        _row("3.conv", 64, (160, 160), 128, 3, stride=2, padding=1),
        _row("4.cv1.conv", 128, (80, 80), 128, 1),
        _row("4.m.0.cv1.conv", 64, (80, 80), 64, 3, padding=1, count=7),
        _row("4.cv2.conv", 256, (80, 80), 128, 1),
        _row("5.conv", 128, (80, 80), 256, 3, stride=2, padding=1),
        _row("6.cv1.conv", 256, (40, 40), 256, 1),
        _row("6.m.0.cv1.conv", 128, (40, 40), 128, 3, padding=1, count=9),
        _row("6.cv2.conv", 512, (40, 40), 256, 1),
        _row("7.conv", 256, (40, 40), 512, 3, stride=2, padding=1),
        _row("8.cv1.conv", 512, (20, 20), 512, 1),
        _row("8.m.0.cv1.conv", 256, (20, 20), 256, 3, padding=1, count=4),
        _row("8.cv2.conv", 768, (20, 20), 512, 1, count=3),
        _row("9.cv1.conv", 512, (20, 20), 256, 1),
        _row("9.cv2.conv", 1024, (20, 20), 512, 1),
        _row("12.cv1.conv", 768, (40, 40), 256, 1),
        _row("12.cv2.conv", 384, (40, 40), 256, 1, count=3),
        _row("15.cv1.conv", 384, (80, 80), 128, 1),
        _row("15.cv2.conv", 192, (80, 80), 128, 1),
        _row("16.conv", 128, (80, 80), 128, 3, stride=2, padding=1),
        _row("19.conv", 256, (40, 40), 256, 3, stride=2, padding=1),
        _row("22.cv2.0.0.conv", 128, (80, 80), 64, 3, padding=1),
        _row("22.cv2.0.2", 64, (80, 80), 64, 1, bias=True),
        _row("22.cv2.1.0.conv", 256, (40, 40), 64, 3, padding=1),
        _row("22.cv2.1.1.conv", 64, (40, 40), 64, 3, padding=1),
        _row("22.cv2.1.2", 64, (40, 40), 64, 1, bias=True),
        _row("22.cv2.2.0.conv", 512, (20, 20), 64, 3, padding=1),
        _row("22.cv2.2.1.conv", 64, (20, 20), 64, 3, padding=1),
        _row("22.cv2.2.2", 64, (20, 20), 64, 1, bias=True),
        _row("22.cv3.0.0.conv", 128, (80, 80), 128, 3, padding=1, count=2),
        _row("22.cv3.0.2", 128, (80, 80), 80, 1, bias=True),
        _row("22.cv3.1.0.conv", 256, (40, 40), 128, 3, padding=1),
        _row("22.cv3.1.2", 128, (40, 40), 80, 1, bias=True),
        _row("22.cv3.2.0.conv", 512, (20, 20), 128, 3, padding=1),
        _row("22.cv3.2.1.conv", 128, (20, 20), 128, 3, padding=1),
        _row("22.cv3.2.2", 128, (20, 20), 80, 1, bias=True),
    ),
    *_suite(
        "unet256",
        4,
        _row("down.0.0", 3, (256, 256), 64, 3, padding=1),
        _row("down.0.2", 64, (256, 256), 64, 3, padding=1, count=2),
        _row("down.1.0", 64, (128, 128), 128, 3, padding=1),
        _row("down.1.2", 128, (128, 128), 128, 3, padding=1, count=2),
        _row("down.2.0", 128, (64, 64), 256, 3, padding=1),
        _row("down.2.2", 256, (64, 64), 256, 3, padding=1, count=2),
        _row("down.3.0", 256, (32, 32), 512, 3, padding=1),
        _row("down.3.2", 512, (32, 32), 512, 3, padding=1, count=2),
        _row("down.4.0", 512, (16, 16), 1024, 3, padding=1),
        _row("down.4.2", 1024, (16, 16), 1024, 3, padding=1),
        _row("up.0", 1024, (16, 16), 512, 2, stride=2, transposed=True, bias=True),
        _row("merge.0.0", 1024, (32, 32), 512, 3, padding=1),
        _row("up.1", 512, (32, 32), 256, 2, stride=2, transposed=True, bias=True),
        _row("merge.1.0", 512, (64, 64), 256, 3, padding=1),
        _row("up.2", 256, (64, 64), 128, 2, stride=2, transposed=True, bias=True),
        _row("merge.2.0", 256, (128, 128), 128, 3, padding=1),
        _row("up.3", 128, (128, 128), 64, 2, stride=2, transposed=True, bias=True),
        _row("merge.3.0", 128, (256, 256), 64, 3, padding=1),
        _row("head", 64, (256, 256), 2, 1, bias=True),
    ),
    *_suite(
        "eegnet",
        64,
        _row("conv_temporal", 1, (64, 512), 8, (1, 64), padding=(0, 32)),
        _row("conv_spatial", 8, (64, 513), 16, (64, 1), groups=8),
        _row("conv_separable_depth", 16, (1, 128), 16, (1, 16), padding=(0, 8), groups=16),
        _row("conv_separable_point", 16, (1, 129), 16, 1),
        _row("final_layer.conv_classifier", 16, (1, 16), 4, (1, 16), bias=True),
    ),
    *_suite(
        "eeg_temporal",
        64,
        _row("stem", 64, (512,), 64, 25, padding=12, bias=True),
        _row("reduce", 64, (512,), 64, 8, stride=2, padding=3, bias=True),
        _row("blocks.0.0", 64, (256,), 64, 5, padding=2, bias=True, count=2),
        _row("blocks.1.0", 64, (256,), 64, 5, padding=4, dilation=2, bias=True, count=2),
        _row("blocks.2.0", 64, (256,), 128, 5, padding=8, dilation=4, bias=True),
        _row("blocks.2.2", 128, (256,), 128, 5, padding=8, dilation=4, bias=True),
        _row("skips.2", 64, (256,), 128, 1, bias=True),
        _row("blocks.3.0", 128, (256,), 128, 5, padding=16, dilation=8, bias=True, count=2),
        _row("blocks.4.0", 128, (256,), 256, 5, padding=32, dilation=16, bias=True),
        _row("blocks.4.2", 256, (256,), 256, 5, padding=32, dilation=16, bias=True),
        _row("skips.4", 128, (256,), 256, 1, bias=True),
        _row("separable.0", 256, (256,), 256, 31, padding=15, groups=256),
        _row("separable.1", 256, (256,), 256, 1),
        _row("head", 256, (256,), 4, 1, bias=True),
    ),
    *_suite(
        "sd15_vae_decoder",
        1,
        _row("post_quant", 4, (64, 64), 4, 1, bias=True),
        _row("decoder.conv_in", 4, (64, 64), 512, 3, padding=1, bias=True),
        _row("decoder.mid_block.resnets.0.conv1", 512, (64, 64), 512, 3, padding=1, bias=True, count=10),
        _row("decoder.up_blocks.0.upsamplers.0.conv", 512, (128, 128), 512, 3, padding=1, bias=True, count=7),
        _row("decoder.up_blocks.1.upsamplers.0.conv", 512, (256, 256), 512, 3, padding=1, bias=True),
        _row("decoder.up_blocks.2.resnets.0.conv1", 512, (256, 256), 256, 3, padding=1, bias=True),
        _row("decoder.up_blocks.2.resnets.0.conv2", 256, (256, 256), 256, 3, padding=1, bias=True, count=5),
        _row("decoder.up_blocks.2.resnets.0.conv_shortcut", 512, (256, 256), 256, 1, bias=True),
        _row("decoder.up_blocks.2.upsamplers.0.conv", 256, (512, 512), 256, 3, padding=1, bias=True),
        _row("decoder.up_blocks.3.resnets.0.conv1", 256, (512, 512), 128, 3, padding=1, bias=True),
        _row("decoder.up_blocks.3.resnets.0.conv2", 128, (512, 512), 128, 3, padding=1, bias=True, count=5),
        _row("decoder.up_blocks.3.resnets.0.conv_shortcut", 256, (512, 512), 128, 1, bias=True),
        _row("decoder.conv_out", 128, (512, 512), 3, 3, padding=1, bias=True),
    ),
    *_suite(
        "unet3d_block",
        1,
        _row("stem.0", 1, (64, 64, 64), 32, 3, padding=1, bias=True),
        _row("stem.1", 32, (64, 64, 64), 64, 3, padding=1, bias=True),
        _row("bottom.0", 64, (64, 64, 64), 64, 3, stride=2, padding=1, bias=True),
        _row("bottom.1", 64, (32, 32, 32), 128, 3, padding=1, bias=True),
        _row("bottom.2", 128, (32, 32, 32), 128, 3, padding=1, bias=True),
        _row("up", 128, (32, 32, 32), 128, 2, stride=2, transposed=True, bias=True),
        _row("merge.0", 192, (64, 64, 64), 64, 3, padding=1, bias=True),
        _row("merge.1", 64, (64, 64, 64), 64, 3, padding=1, bias=True),
        _row("head", 64, (64, 64, 64), 3, 1, bias=True),
    ),
    *_suite(
        "dcgan",
        128,
        _row("0", 100, (1, 1), 512, 4, transposed=True),
        _row("1", 512, (4, 4), 256, 4, stride=2, padding=1, transposed=True),
        _row("2", 256, (8, 8), 128, 4, stride=2, padding=1, transposed=True),
        _row("3", 128, (16, 16), 64, 4, stride=2, padding=1, transposed=True),
        _row("4", 64, (32, 32), 3, 4, stride=2, padding=1, transposed=True),
    ),
)
