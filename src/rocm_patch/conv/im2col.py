"""im2col and GEMM for every shape, dtype and device, in pieces of the batch that keep within the workspace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def workspace(problem: Problem, limit: int) -> int:
    """Bytes of the columns of one piece."""
    return _piece(problem, limit) * _columns_of_one(problem)


def _columns_of_one(problem: Problem) -> int:
    return problem.channels * problem.taps * math.prod(problem.map) * problem.dtype.itemsize if hasattr(problem.dtype, "itemsize") else (
        problem.channels * problem.taps * math.prod(problem.map) * 4
    )  # fmt: skip


def _piece(problem: Problem, limit: int) -> int:
    """Images at a time; one at least, whatever the limit: without it there is no result."""
    return max(1, min(problem.batch, limit // max(1, 2 * _columns_of_one(problem))))


def _views(problem: Problem, padded: Tensor) -> list[Tensor]:
    """For each tap the part of the padded image that it meets, of the map's size."""
    views = []
    for tap in itertools.product(*(range(size) for size in problem.kernel)):
        view = padded
        for axis, (at, stride, dilation, size) in enumerate(zip(tap, problem.stride, problem.dilation, problem.map, strict=True)):
            begin = at * dilation
            view = view.narrow(2 + axis, begin, (size - 1) * stride + 1)
            if stride > 1:
                view = view[(slice(None),) * (2 + axis) + (slice(None, None, stride),)]
        views.append(view)
    return views


def _padded_shape(problem: Problem, images: int) -> tuple[int, ...]:
    return (images, problem.channels, *(size + 2 * pad for size, pad in zip(problem.image, problem.padding, strict=True)))


def _inner(problem: Problem, padded: Tensor) -> Tensor:
    for axis, (size, pad) in enumerate(zip(problem.image, problem.padding, strict=True)):
        if pad:
            padded = padded.narrow(2 + axis, pad, size)
    return padded


def prepare(problem: Problem, limit: int) -> Run:
    """run(image or map, weight or image, bias) for the problem's operation."""
    groups, taps = problem.groups, problem.taps
    pixels = math.prod(problem.map)
    channels, filters = problem.channels // groups, problem.filters // groups
    piece = _piece(problem, limit)
    dimensions = len(problem.kernel)
    bias_shape = (1, -1, *[1] * dimensions)

    def columns(image: Tensor) -> Tensor:
        """[images, groups, channels * taps, pixels]"""
        images = image.shape[0]
        padded = image
        if any(problem.padding):
            padded = image.new_zeros(_padded_shape(problem, images))
            _inner(problem, padded).copy_(image)
        stacked = torch.stack(_views(problem, padded), 2)
        return stacked.view(images, groups, channels * taps, pixels)

    def forward(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrix = weight.reshape(1, groups, filters, channels * taps)
        result = image.new_empty(problem.map_shape)
        for begin in range(0, problem.batch, piece):
            part = columns(image[begin : begin + piece])
            product = torch.matmul(matrix, part)
            result[begin : begin + piece] = product.view(part.shape[0], problem.filters, *problem.map)
        return result if bias is None else result.add_(bias.view(bias_shape))

    def backward_input(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrix = weight.reshape(1, groups, filters, channels * taps).transpose(2, 3)
        result = map_.new_empty(problem.image_shape)
        for begin in range(0, problem.batch, piece):
            part = map_[begin : begin + piece]
            images = part.shape[0]
            product = torch.matmul(matrix, part.reshape(images, groups, filters, pixels))
            spread = product.view(images, problem.channels, taps, *problem.map).unbind(2)
            padded = map_.new_zeros(_padded_shape(problem, images))
            for view, addend in zip(_views(problem, padded), spread, strict=True):
                view.add_(addend)
            result[begin : begin + piece] = _inner(problem, padded)
        return result if bias is None else result.add_(bias.view(bias_shape))

    def backward_weight(map_: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
        # Low precision is summed over the pieces in float32.
        sums = torch.float64 if problem.dtype == torch.float64 else torch.float32
        result = torch.zeros((groups, filters, channels * taps), dtype=sums, device=map_.device)
        for begin in range(0, problem.batch, piece):
            part = map_[begin : begin + piece]
            left = part.reshape(part.shape[0], groups, filters, pixels)
            right = columns(image[begin : begin + piece]).transpose(2, 3)
            result += torch.matmul(left, right).sum(0, dtype=sums)
        return result.to(problem.dtype).view(problem.weight_shape)

    return {"forward": forward, "input": backward_input, "weight": backward_weight}[problem.operation]
