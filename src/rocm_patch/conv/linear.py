"""A window that is as large as the image: one output pixel, so a fully connected layer and one matrix product of the BLAS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .problem import Problem

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.groups != 1 or problem.kernel != problem.image or any(problem.padding) or set(problem.map) != {1}:
        return "the window is not the whole image"
    return ""


def prepare(problem: Problem) -> Run:
    width = problem.channels * problem.taps
    batch, filters = problem.batch, problem.filters

    def forward(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, matrix = image.view(batch, width), weight.view(filters, width).t()
        product = torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)
        return product.view(problem.map_shape)

    def backward_input(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        image = torch.mm(map_.view(batch, filters), weight.view(filters, width)).view(problem.image_shape)
        return image if bias is None else image.add_(bias.view(1, -1, *[1] * len(problem.kernel)))

    def backward_weight(map_: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
        return torch.mm(map_.view(batch, filters).t(), image.view(batch, width)).view(problem.weight_shape)

    return {"forward": forward, "input": backward_input, "weight": backward_weight}[problem.operation]
