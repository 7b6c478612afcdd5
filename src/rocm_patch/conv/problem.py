"""One convolution in one direction: what every choice, kernel and cache is keyed by.

A convolution ties an image (batch, channels, ...) to a map (batch, filters, ...) by a weight (filters, channels / groups, ...). Three
operations are all there is: `forward` (image, weight -> map), `input` (map, weight -> image) and `weight` (map, image -> weight). A
transposed convolution is the same with the roles exchanged: its forward is `input`, its input gradient is `forward`. So no algorithm
here knows the word transposed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

OPERATIONS = ("forward", "input", "weight")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Problem:
    """Sizes in elements; tuples hold one number for each of the 1 to 3 spatial dimensions."""

    operation: str
    device: torch.device
    dtype: torch.dtype
    batch: int
    channels: int
    filters: int
    groups: int
    image: tuple[int, ...]
    map: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    bias: bool = False

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.image)

    @property
    def map_shape(self) -> tuple[int, ...]:
        return (self.batch, self.filters, *self.map)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.filters, self.channels // self.groups, *self.kernel)

    @property
    def taps(self) -> int:
        """Elements of the kernel window."""
        return math.prod(self.kernel)

    @property
    def reduction(self) -> int:
        """Products that are summed for one element of the result, at most."""
        if self.operation == "weight":
            return self.batch * math.prod(self.map)
        return self.taps * (self.channels if self.operation == "forward" else self.filters) // self.groups

    @property
    def multiplications(self) -> int:
        """Multiply-adds of the direct method, borders counted as if they were inside."""
        return self.batch * self.filters * math.prod(self.map) * (self.channels // self.groups) * self.taps

    @property
    def result_shape(self) -> tuple[int, ...]:
        return {"forward": self.map_shape, "input": self.image_shape, "weight": self.weight_shape}[self.operation]

    @property
    def empty(self) -> bool:
        return 0 in self.image_shape or 0 in self.map_shape or 0 in self.weight_shape

    def name(self) -> str:
        """Text that says all of it, as the store's key."""
        size = "x".join
        numbers = [size(map(str, part)) for part in (self.image, self.kernel, self.stride, self.padding, self.dilation, self.map)]
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.operation} {dtype} n{self.batch} c{self.channels} k{self.filters} g{self.groups} i{numbers[0]} w{numbers[1]} s{numbers[2]} "
            f"p{numbers[3]} d{numbers[4]} o{numbers[5]}{' bias' if self.bias else ''}"
        )


def parse(name: str, device: torch.device) -> Problem:
    """The problem of a name, on a device.

    Raises:
        ValueError: it is no name of a problem.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"no name of a convolution: {name[:200]!r}")
    operation, dtype, *texts, bias = found.groups()
    batch, channels, filters, groups = map(int, texts[:4])
    image, kernel, stride, padding, dilation, size = (tuple(map(int, text.split("x"))) for text in texts[4:])
    problem = Problem(
        operation, device, getattr(torch, dtype), batch, channels, filters, groups, image, size, kernel, stride, padding, dilation, bool(bias)
    )  # fmt: skip
    if len({len(part) for part in (image, size, kernel, stride, padding, dilation)}) > 1 or len(image) > 3:
        raise ValueError(f"sizes of different dimensions: {name!r}")
    if problem.empty or 0 in (*stride, *dilation) or not groups or channels % groups or filters % groups:
        raise ValueError(f"no such convolution: {name!r}")
    return problem


_SIZE = r"(\d{1,9}(?:x\d{1,9}){0,2})"
_NAME = re.compile(
    rf"({'|'.join(OPERATIONS)}) ({'|'.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}) "
    rf"n(\d{{1,9}}) c(\d{{1,9}}) k(\d{{1,9}}) g(\d{{1,9}}) i{_SIZE} w{_SIZE} s{_SIZE} p{_SIZE} d{_SIZE} o{_SIZE}( bias)?",
    re.ASCII,
)


def fully(value: list[int] | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """PyTorch allows one number for all dimensions."""
    values = tuple(int(each) for each in value)
    return values * dimensions if len(values) == 1 else values


Sizes = tuple[int, ...]


def map_size(image: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    """Spatial size of the map of a convolution that is not transposed."""
    return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True))


def image_size(size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, output_padding: Sizes) -> Sizes:
    """Spatial size of the result of a transposed convolution of a map of this size."""
    numbers = zip(size, kernel, stride, padding, dilation, output_padding, strict=True)
    return tuple((o - 1) * s - 2 * p + d * (k - 1) + extra + 1 for o, k, s, p, d, extra in numbers)
