"""The override of `aten::convolution` and `aten::convolution_backward`: tensors -> Problem -> cached choice -> function -> tensor.

Autograd, autocast, vmap and torch.compile work above the backend keys that we override (CUDA, which is HIP too, and CPU), so nothing here knows
of them. Double backward is made by PyTorch of forward convolutions with the vendor switched off.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import native, runtime
from .choose import Choice, Settings, prepare, refuse
from .problem import DTYPES, Problem, fully, image_size, map_size

Gradients = tuple["Tensor | None", "Tensor | None", "Tensor | None"]
Function = Callable[..., Any]

calls: Counter[str] = Counter()
fallbacks: Counter[str] = Counter()
choices: dict[str, Choice] = {}
"""What was chosen, by the problem's name: for `bench` and for people who want to know."""
_forward: dict[tuple[Any, ...], Callable[..., Tensor]] = {}
_backward: dict[tuple[Any, ...], Callable[..., Gradients]] = {}
_settings = Settings()
MOST_KEPT = 4096
"""Prepared calls of one direction."""


def configure(settings: Settings) -> None:
    """Use these settings from the next call on; earlier choices are forgotten."""
    global _settings
    if settings != _settings:
        forget()
    _settings = settings


def forget() -> None:
    """Drop prepared calls, not the counts."""
    _forward.clear()
    _backward.clear()
    choices.clear()


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """`aten::convolution`."""
    shape, weight_shape = input.shape, weight.shape
    key = (
        shape, weight_shape, input.dtype, weight.dtype, input.get_device(), weight.get_device(), _kind(bias), groups, transposed,
        *stride, *padding, *dilation, *output_padding, _order(input, shape), _order(weight, weight_shape),
    )  # fmt: skip
    function = _forward.get(key)
    if function is None:
        function = _make_forward(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        if _full(input, stride, padding, dilation, output_padding):
            _keep(_forward, key, function)
    try:
        if _autocasts():
            with torch.autocast(input.device.type, enabled=False):
                return function(input, weight, bias)
        return function(input, weight, bias)
    except runtime.KernelError:  # `_counted` has refused that choice, so another serves
        _forward.pop(key, None)
        return convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int, output_mask: list[bool],
) -> Gradients:  # fmt: skip
    """`aten::convolution_backward`."""
    shape, weight_shape = input.shape, weight.shape
    key = (
        grad_output.shape, shape, weight_shape, input.dtype, weight.dtype, grad_output.dtype, input.get_device(), weight.get_device(),
        grad_output.get_device(), groups, transposed, *stride, *padding, *dilation, *output_padding, *output_mask,
        _order(input, shape), _order(weight, weight_shape),
    )  # fmt: skip
    function = _backward.get(key)
    if function is None:
        arguments = (grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask)
        function = _make_backward(*arguments)
        if _full(input, stride, padding, dilation, output_padding):
            _keep(_backward, key, function)
    try:
        if _autocasts():
            with torch.autocast(input.device.type, enabled=False):
                return function(grad_output, input, weight, bias_sizes)
        return function(grad_output, input, weight, bias_sizes)
    except runtime.KernelError:
        _backward.pop(key, None)
        geometry = (stride, padding, dilation, transposed, output_padding, groups)
        return convolution_backward(grad_output, input, weight, bias_sizes, *geometry, output_mask)


def _either_autocasts() -> bool:
    return bool(torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())


_autocasts: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _either_autocasts)
"""Whether products that we ask torch for would be made in half precision: a backward, or a convolution that no layer called, within autocast."""


def _order(tensor: Tensor, shape: torch.Size) -> Any:
    """What the memory format of the result depends on; nothing for the usual dense tensor.

    With one channel or one pixel the same tensor can be contiguous and channels_last, and PyTorch goes by the strides.
    """
    usual = len(shape) > 2 and shape[1] != 1 and shape[-1] != 1 and tensor.is_contiguous()
    return None if usual else tensor.stride()


def _kind(bias: Tensor | None) -> Any:
    """What a bias must have for a prepared call to take it: kernels read it by its address."""
    return None if bias is None else (bias.shape, bias.dtype, bias.get_device())


def _full(input: Tensor, *geometry: list[int]) -> bool:
    """Whether there is a number for each dimension. PyTorch takes one for all too, but then keys of different calls could be the same numbers."""
    return all(len(each) == input.dim() - 2 for each in geometry)


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    """A program that never repeats a shape must not grow for ever."""
    if len(cache) >= MOST_KEPT:
        cache.clear()
    cache[key] = value


# ------------------------------------------------------------------ made once for a problem


def _unserved(*tensors: Tensor | None) -> str:
    """Why the engine does not take this call, or nothing."""
    first = tensors[0]
    assert first is not None
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.layout != torch.strided:
            return f"layout {tensor.layout}"
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}"
        if tensor.dtype != first.dtype or tensor.device != first.device:
            return "tensors of different dtypes or devices"
        if tensor.is_neg() or tensor.is_conj():
            return "a lazily negated or conjugated tensor"
    return "" if 3 <= first.dim() <= 5 else f"{first.dim()} dimensions"


def _fall_back(reason: str) -> None:
    """Loudly once, then counted."""
    if not fallbacks[reason]:
        warnings.warn(f"rocm-patch: PyTorch's own convolution serves a call with {reason}", RuntimeWarning, stacklevel=4)
    fallbacks[reason] += 1


def _problem(
    operation: str, image: tuple[int, ...], map_: tuple[int, ...], weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int, bias: bool,
) -> Problem:  # fmt: skip
    dimensions = weight.dim() - 2
    return Problem(
        operation, weight.device, weight.dtype, image[0], image[1], map_[1], groups, tuple(image[2:]), tuple(map_[2:]), tuple(weight.shape[2:]),
        fully(stride, dimensions), fully(padding, dimensions), fully(dilation, dimensions), bias,
    )  # fmt: skip


def _choose(problem: Problem) -> Choice:
    choice = prepare(problem, _settings)
    reasons = list(choice.refused)
    if problem.device.type == "cuda" and (why := runtime.missing(problem.device)):
        reasons.append(f"no kernels of ours on this GPU: {why}")
    for reason in reasons:
        if not fallbacks[reason]:
            warnings.warn(f"rocm-patch: {reason}", RuntimeWarning, stacklevel=5)
        fallbacks[reason] += 1
    _keep(choices, problem.name(), choice)
    return choice


def _counted(choice: Choice, problem: Problem) -> Function:
    """The choice's function, which counts its calls.

    Raises:
        KernelError: the driver refused a launch, which is rare after it took the kernel; the choice is not made again.
    """
    run, name = choice.run, choice.name

    def counted(first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
        try:
            result = run(first, second, bias)
        except runtime.KernelError as error:
            refuse(problem, choice, str(error))
            raise
        calls[name] += 1
        return result

    return counted


def _format(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> torch.memory_format | None:
    """The memory format that PyTorch promises of the result (torch.compile relies on it); None for dense in order.

    Raises:
        RuntimeError: sizes that do not fit together; PyTorch checks most of that where it selects a backend.
    """
    backend = torch._C._select_conv_backend(input, weight, bias, *geometry)
    determine = getattr(torch._C, "_conv_determine_backend_memory_format", None)
    if determine is None or input.dim() == 3:
        return None
    promised: torch.memory_format = determine(input, weight, backend)
    return None if promised == torch.contiguous_format else promised


def _result_shape(input: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> tuple[int, ...] | None:
    """None for numbers that no convolution has. Some torches divide by them where they select a backend, so this comes before `_format`."""
    lists, transposed, groups = (*geometry[:3], geometry[4]), geometry[3], geometry[5]
    size, kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
    stride, padding, dilation, output_padding = each = tuple(fully(values, len(kernel)) for values in lists)
    if len(size) != len(kernel) or any(len(values) != len(size) for values in each) or min(groups, *stride, *dilation) < 1 or min(padding) < 0:
        return None
    if transposed:
        spatial = image_size(size, kernel, stride, padding, dilation, output_padding)
        fits = all(0 <= extra < max(s, d) for extra, s, d in zip(output_padding, stride, dilation, strict=True))
        filters = weight.shape[1] * groups
    else:
        spatial, fits, filters = map_size(size, kernel, stride, padding, dilation), True, weight.shape[0]
    return (input.shape[0], filters, *spatial) if fits and min(spatial) > 0 else None


def _make_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int], transposed: bool,
    output_padding: list[int], groups: int,
) -> Function:  # fmt: skip
    geometry = (stride, padding, dilation, transposed, output_padding, groups)

    def own(reason: str) -> Function:
        def function(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            _fall_back(reason)
            return native.convolution(input, weight, bias, *geometry)

        return function

    if reason := _unserved(input, weight, bias):
        return own(reason)
    format_, result = None, _result_shape(input, weight, geometry)
    if result is not None:
        try:
            format_ = _format(input, weight, bias, geometry)
        except RuntimeError:
            result = None
    if result is None:

        def refused(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result = native.convolution(input, weight, bias, *geometry)  # raises, in PyTorch's own words
            _fall_back("sizes that do not fit")
            return result

        return refused
    operation = "input" if transposed else "forward"
    image, map_ = (result, input.shape) if transposed else (input.shape, result)
    problem = _problem(operation, image, map_, weight, stride, padding, dilation, groups, bias is not None)
    if problem.empty:
        return own("an empty tensor")
    run, device = _counted(_choose(problem), problem), input.get_device()
    several = device >= 0 and torch.cuda.device_count() > 1

    def function(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if device >= 0 and device not in _thread.ready:
            _thread.begin(device)
        if several:
            with torch.cuda.device(device):
                result = run(input.contiguous(), weight.contiguous(), bias if bias is None else bias.contiguous())
        else:
            result = run(input.contiguous(), weight.contiguous(), bias if bias is None else bias.contiguous())
        return result if format_ is None else result.contiguous(memory_format=format_)

    return function


class _Thread(threading.local):
    """What a thread has to do once a device: autograd's own threads have no context of it until PyTorch launches something there."""

    def __init__(self) -> None:
        self.ready: set[int] = set()

    def begin(self, device: int) -> None:
        torch.zeros(1, device=torch.device("cuda", device))
        self.ready.add(device)


_thread = _Thread()


def _make_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int, output_mask: list[bool],
) -> Function:  # fmt: skip
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    reason = _unserved(grad_output, input, weight)
    image, map_ = (grad_output.shape, input.shape) if transposed else (input.shape, grad_output.shape)
    if not reason:
        problem = _problem("weight", image, map_, weight, stride, padding, dilation, groups, False)
        reason = "an empty tensor" if problem.empty else ""
    if not reason and tuple(grad_output.shape) != _result_shape(input, weight, geometry):
        reason = "a gradient of another shape than the result's"
    if reason:

        def own(grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: list[int] | None) -> Gradients:
            _fall_back(reason)
            return native.convolution_backward(grad_output, input, weight, bias_sizes, *geometry, output_mask)

        return own
    format_ = _format(input, weight, None, geometry)
    data = weights = None
    if output_mask[0]:
        operation = "forward" if transposed else "input"
        asked = _problem(operation, image, map_, weight, stride, padding, dilation, groups, False)
        data = _counted(_choose(asked), asked)
    if output_mask[1]:
        weights = _counted(_choose(problem), problem)
    sums = (0, *range(2, grad_output.dim()))
    device = input.get_device()
    several = device >= 0 and torch.cuda.device_count() > 1

    def function(grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: list[int] | None) -> Gradients:
        if device >= 0 and device not in _thread.ready:
            _thread.begin(device)
        if several:
            with torch.cuda.device(device):
                return gradients(grad_output, input, weight)
        return gradients(grad_output, input, weight)

    def gradients(grad_output: Tensor, input: Tensor, weight: Tensor) -> Gradients:
        grad_output = grad_output.contiguous()
        grad_input = grad_weight = grad_bias = None
        if data is not None:
            grad_input = data(grad_output, weight.contiguous(), None)
        if weights is not None:
            input = input.contiguous()
            grad_weight = weights(input, grad_output, None) if transposed else weights(grad_output, input, None)
        if output_mask[2]:
            grad_bias = grad_output.sum(sums)
        if format_ is not None:
            grad_input = None if grad_input is None else grad_input.contiguous(memory_format=format_)
            grad_weight = None if grad_weight is None else grad_weight.contiguous(memory_format=format_)
        return grad_input, grad_weight, grad_bias

    return function
