"""Pointwise convolution as the matrix product that it is, by the BLAS that torch brings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def guard(problem: Problem) -> str:
    if problem.taps != 1 or any(problem.padding):
        return "not pointwise"
    return ""


def variants(problem: Problem) -> tuple[tuple[str, ...], ...]:
    """`batched`: a product for each image; `flat`: one long product over the batch (weight gradient), which costs two copies."""
    if problem.operation == "weight" and problem.batch > 1 and problem.groups == 1:
        return ("batched",), ("flat",)
    return (("batched",),)


def workspace(problem: Problem, variant: str) -> int:
    """Bytes beside the result."""
    size = 8 if problem.dtype == torch.float64 else 4
    total = 0
    if problem.image != problem.map:
        total += problem.batch * problem.channels * math.prod(problem.map) * size
    if problem.operation == "weight":
        if variant == "flat":
            total += problem.batch * (problem.channels + problem.filters) * math.prod(problem.map) * size
        elif problem.batch > 1:
            total += problem.batch * problem.filters * (problem.channels // problem.groups) * size
    return total


def prepare(problem: Problem, variant: str) -> Run:
    groups, batch = problem.groups, problem.batch
    channels, filters, pixels = problem.channels // groups, problem.filters // groups, math.prod(problem.map)
    # The map may be smaller than the image, step or no step: that of a transposed convolution with an output padding.
    strided = problem.image != problem.map
    picked = (slice(None), slice(None), *(slice(None, (m - 1) * stride + 1, stride) for m, stride in zip(problem.map, problem.stride, strict=True)))
    bias_shape = (1, -1, 1)
    image_dense = (batch * groups, channels, pixels) if batch == 1 or groups == 1 else (batch, groups, channels, pixels)
    single = groups == 1 or batch == 1

    def at_map(image: Tensor) -> Tensor:
        """The pixels that count, [batch * groups, channels, pixels] or [batch, groups, channels, pixels]."""
        return (image[picked] if strided else image).reshape(image_dense)

    def forward(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        columns = at_map(image)
        if single:
            matrix = weight.view(groups, filters, channels)
            if groups == 1 and batch > 1:
                matrix = matrix.expand(batch, filters, channels)
            product = torch.bmm(matrix, columns)
        else:
            product = torch.matmul(weight.view(1, groups, filters, channels), columns)
        if bias is not None:
            product = product.view(batch, problem.filters, pixels).add_(bias.view(bias_shape))
        return product.view(problem.map_shape)

    def backward_input(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if single:
            matrix = weight.view(groups, filters, channels).transpose(1, 2)
            if groups == 1 and batch > 1:
                matrix = matrix.expand(batch, channels, filters)
            product = torch.bmm(matrix, map_.view(batch * groups, filters, pixels))
        else:
            product = torch.matmul(weight.view(1, groups, filters, channels).transpose(2, 3), map_.view(batch, groups, filters, pixels))
        if strided:
            result = map_.new_zeros(problem.image_shape)
            result[picked] = product.view(batch, problem.channels, *problem.map)
        else:
            result = product.view(problem.image_shape)
        return result if bias is None else result.add_(bias.view(1, -1, *[1] * len(problem.kernel)))

    def backward_weight(map_: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
        columns = at_map(image)
        if variant == "flat":
            left = map_.view(batch, filters, pixels).transpose(0, 1).reshape(filters, batch * pixels)
            right = columns.transpose(0, 1).reshape(channels, batch * pixels)
            return torch.mm(left, right.t()).view(problem.weight_shape)
        if single:
            product = torch.bmm(map_.view(batch * groups, filters, pixels), columns.transpose(1, 2))
            product = product.view(batch, groups, filters, channels)
        else:
            product = torch.matmul(map_.view(batch, groups, filters, pixels), columns.transpose(2, 3))
        return (product.sum(0) if batch > 1 else product).reshape(problem.weight_shape)

    return {"forward": forward, "input": backward_input, "weight": backward_weight}[problem.operation]
