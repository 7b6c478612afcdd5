"""PyTorch's own samples of its convolutions (OpInfo) with the engine on, and its own test file where a checkout is named.

The samples and the calls that must be refused come with torch itself, in `torch.testing._internal`.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine serves torch")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    own = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", reason="this torch's own samples need another package", exc_type=ImportError
    )
# PyTorch's own tests do without its switches, and say so for the whole process.
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

import cases  # noqa: E402

from rocm_patch import conv  # noqa: E402
from rocm_patch.conv import dispatch  # noqa: E402

DEVICE = cases.DEVICE
OPERATORS = {operator.name.rpartition(".")[2]: operator for operator in own.op_db if operator.name.startswith("nn.functional.conv")}
DTYPES = (*cases.DTYPES, torch.complex64, torch.complex128)
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_whole_family_is_there():
    assert {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"} <= set(OPERATORS)


def tensors_of(sample):
    return [sample.input, *(argument for argument in sample.args if isinstance(argument, torch.Tensor))]


def results(operator, sample, tensors, map_=None):
    """The result and the gradients by all tensors, for given ones in the sample's place."""
    rest = sample.args[len(tensors) - 1 :]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = operator(leaves[0], *leaves[1:], *rest, **sample.kwargs)
    map_ = torch.ones_like(result) if map_ is None else map_.to(result)
    return result.detach(), *torch.autograd.grad(result, leaves, map_)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_against_float64(name, dtype):
    operator = OPERATORS[name]
    if dtype not in operator.supported_dtypes(DEVICE.type):
        pytest.skip(f"PyTorch has no {name} of {dtype} here")
    samples = list(operator.sample_inputs(DEVICE, dtype, requires_grad=True))
    before = sum(dispatch.calls.values())
    with cases.plain_arithmetic():
        for sample in samples:
            tensors = [tensor.detach() for tensor in tensors_of(sample)]
            exactly = torch.complex128 if dtype.is_complex else torch.float64
            exact = results(operator.op, sample, [tensor.cpu().to(exactly) for tensor in tensors])
            bounds = results(operator.op, sample, [tensor.cpu().abs().double() for tensor in tensors])
            with conv.engine((DEVICE.type,)):
                ours = results(operator.op, sample, tensors)
            length = max(tensors[0].numel(), tensors[1].numel(), exact[0].numel())  # no sum is longer
            for one, other, magnitude in zip(ours, exact, bounds, strict=True):
                compare(one.cpu(), other, magnitude, length, tensors[1])
    assert samples
    assert sum(dispatch.calls.values()) > before


def compare(ours, exact, magnitude, length, weight):
    """Within rounding; complex numbers are made of three convolutions of sums of parts."""
    assert ours.shape == exact.shape
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(ours.dtype, ours.dtype)
    taps = weight[0, 0].numel()
    allowed = cases.allowed(real, length, taps + 6, magnitude * (4 if ours.is_complex() else 1))
    if real == torch.float32 and weight.shape[2:] == (3, 3) and DEVICE.type == "cuda":
        allowed = cases.allowed(real, length, taps + 6, magnitude * 4, cases.WINOGRAD)
    assert ((ours.to(exact.dtype) - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_second_derivatives_of_samples(name):
    operator = OPERATORS[name]
    with cases.plain_arithmetic(), conv.engine((DEVICE.type,)):
        samples = list(operator.sample_inputs(DEVICE, torch.float64, requires_grad=True))
        for sample in sorted(samples, key=lambda sample: sample.input.numel() * sample.args[0].numel())[:4]:
            tensors = [tensor.detach().requires_grad_() for tensor in tensors_of(sample)]
            rest = sample.args[len(tensors) - 1 :]

            def function(*leaves, rest=rest, sample=sample):
                return operator.op(*leaves, *rest, **sample.kwargs)

            assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_calls_that_must_be_refused(name):
    operator = OPERATORS[name]
    if operator.error_inputs_func is None:
        pytest.skip(f"torch names no wrong calls of {name}")
    tried = 0
    for wrong in operator.error_inputs(DEVICE):
        sample = wrong.sample_input
        with conv.engine((DEVICE.type,)), pytest.raises(wrong.error_type, match=wrong.error_regex):
            operator.op(sample.input, *sample.args, **sample.kwargs)
        tried += 1
    assert tried


@pytest.mark.slow
def test_pytorch_s_own_test_file(tmp_path):
    """ROCM_PATCH_TEST_PYTORCH: the folder `test` of a checkout of PyTorch."""
    folder = os.environ.get("ROCM_PATCH_TEST_PYTORCH")
    if not folder:
        pytest.skip("ROCM_PATCH_TEST_PYTORCH names no folder with PyTorch's own tests, which are not in its wheels")
    tool = Path(__file__).parents[2] / "tools" / "pytorch_tests.py"
    ended = subprocess.run([sys.executable, str(tool), folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Served by the engine: {'" in ended.stdout
