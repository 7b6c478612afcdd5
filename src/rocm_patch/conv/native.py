"""PyTorch's own convolution, reached past our override, and the CPU as the last resort."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import im2col
from .problem import Problem, map_size

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

# `aten::convolution` has one kernel for all backends ("CompositeExplicitAutograd"); our override replaces it for CUDA and CPU alone. Asked
# for a backend nobody has, the dispatcher still finds the original, which looks at the tensors and not at the key.
SPARE_KEYS = ("HPU", "VE", "Lazy", "IPU", "PrivateUse3")


@functools.lru_cache(maxsize=1)
def _spare() -> Any:
    """A set with one dispatch key whose table entry is still the original; None where this torch cannot redispatch."""
    if not hasattr(torch.ops.aten.convolution.default, "redispatch") or not hasattr(torch._C, "DispatchKeySet"):
        return None
    key = next((getattr(torch._C.DispatchKey, name) for name in SPARE_KEYS if hasattr(torch._C.DispatchKey, name)), None)
    return None if key is None else torch._C.DispatchKeySet(key)


def convolution(*arguments: Any) -> Tensor:
    """`aten::convolution` as it was before our override, same arguments."""
    keys = _spare()
    if keys is not None:
        result: Tensor = torch.ops.aten.convolution.default.redispatch(keys, *arguments)
        return result
    # _convolution is not overridden, and takes its switches as arguments: benchmark, deterministic, cudnn_enabled, allow_tf32.
    flags = torch.backends.cudnn
    second: Tensor = torch.ops.aten._convolution(*arguments, flags.benchmark, flags.deterministic, flags.enabled, flags.allow_tf32)
    return second


def can_do_backward() -> bool:
    return _spare() is not None


def convolution_backward(*arguments: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten::convolution_backward` as it was before our override, same arguments.

    Raises:
        RuntimeError: torch before 2.5 or so cannot be asked for it. What is empty needs no asking; it leaves dtypes that those versions have no
            convolutions for either.
    """
    keys = _spare()
    if keys is not None:
        result: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward.default.redispatch(keys, *arguments)
        return result
    grad_output, *operands = arguments[:3]
    mask = arguments[-1]
    if all(tensor.numel() for tensor in (grad_output, *operands)):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (grad_output, *operands))
        raise RuntimeError(f"torch {torch.__version__} has no way past rocm-patch to its own {grad_output.dtype} gradient of the shapes {shapes}")
    first, second = (torch.zeros_like(tensor) if wanted else None for tensor, wanted in zip(operands, mask[:2], strict=True))
    return first, second, grad_output.sum((0, *range(2, grad_output.dim()))) if mask[2] else None


def guard(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.map != map_size(problem.image, problem.kernel, problem.stride, problem.padding, problem.dilation):
        return "an output padding that is not below the step"  # PyTorch would have to be asked for the transposed convolution
    return "" if problem.operation == "forward" or can_do_backward() else "this torch cannot be asked for its own backward"


def prepare(problem: Problem) -> Run:
    """PyTorch's own code for one direction."""
    dimensions = len(problem.kernel)
    geometry = (list(problem.stride), list(problem.padding), list(problem.dilation), False, [0] * dimensions, problem.groups)
    if problem.operation == "forward":
        return lambda image, weight, bias: convolution(image, weight, bias, *geometry)
    mask = [problem.operation == "input", problem.operation == "weight", False]
    shape, dtype, device = problem.image_shape, problem.dtype, problem.device
    weight_shape = problem.weight_shape

    def run_input(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        image = torch.empty(1, dtype=dtype, device=device).expand(shape)  # its shape is all that is asked of it
        result = convolution_backward(map_, image, weight, None, *geometry, mask)[0]
        assert result is not None
        return result if bias is None else result + bias.view(1, -1, *[1] * dimensions)

    def run_weight(map_: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
        weight = torch.empty(1, dtype=dtype, device=device).expand(weight_shape)
        result = convolution_backward(map_, image, weight, None, *geometry, mask)[1]
        assert result is not None
        return result

    return run_input if problem.operation == "input" else run_weight


def guard_cpu(problem: Problem) -> str:
    return "" if problem.device.type != "cpu" else "it is on the CPU already"


def prepare_cpu(problem: Problem) -> Run:
    """Over the bus to the CPU and back: slow, and always there."""
    there = dataclasses.replace(problem, device=torch.device("cpu"))
    inner = prepare(there) if not guard(there) else im2col.prepare(there, 1 << 28)
    device = problem.device

    def run(first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
        return inner(first.cpu(), second.cpu(), None if bias is None else bias.cpu()).to(device)

    return run
