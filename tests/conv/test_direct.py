"""The direct kernels against float64, on the emulator: every operation, dtype, border, step and dilation."""

import pytest

torch = pytest.importorskip("torch", reason="the kernels work on torch's tensors")

import torch.nn.functional as F  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rocm_patch.conv import direct  # noqa: E402
from rocm_patch.conv.problem import OPERATIONS, Problem, map_size  # noqa: E402

pytestmark = pytest.mark.usefixtures("emulated")

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
F16, F32, F64, BF16 = torch.float16, torch.float32, torch.float64, torch.bfloat16

# name: dtype, batch, channels, filters, groups, image, kernel, stride, padding, dilation
PROBLEMS = {
    "depthwise 3x3": (F32, 2, 3, 3, 3, (9, 12), (3, 3), (1, 1), (1, 1), (1, 1)),
    "depthwise 3x3 step 2, lines in twos": (BF16, 3, 2, 2, 2, (14, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    "depthwise 5x5 on 7x7": (F16, 2, 5, 5, 5, (7, 7), (5, 5), (1, 1), (2, 2), (1, 1)),
    "depthwise float64": (F64, 2, 2, 2, 2, (6, 8), (3, 3), (2, 2), (0, 1), (1, 1)),
    "two filters each, the whole height": (F32, 2, 3, 6, 3, (19, 9), (19, 1), (1, 1), (0, 0), (1, 1)),
    "long and flat": (F32, 2, 3, 3, 3, (21,), (19,), (1,), (9,), (1,)),
    "groups of 4": (F32, 2, 8, 8, 2, (6, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups of 8, step 2": (F16, 2, 16, 16, 2, (7, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    "thin stem": (F32, 1, 3, 9, 1, (11, 12), (5, 5), (2, 2), (3, 3), (1, 1)),
    "temporal": (F32, 2, 1, 8, 1, (3, 16), (1, 20), (1, 1), (0, 10), (1, 1)),
    "steps, borders and dilations that differ": (F32, 2, 4, 6, 2, (13, 11), (3, 4), (2, 3), (4, 1), (3, 2)),
    "three dimensions": (F32, 2, 4, 4, 4, (5, 4, 6), (3, 3, 3), (2, 1, 2), (1, 1, 1), (1, 1, 1)),
}


def problem_of(row, operation, bias=False):
    dtype, batch, channels, filters, groups, image, kernel, stride, padding, dilation = row
    size = map_size(image, kernel, stride, padding, dilation)
    return Problem(
        operation, torch.device("cpu"), dtype, batch, channels, filters, groups, image, size, kernel, stride, padding, dilation, bias
    )  # fmt: skip


def exact(problem, image, weight, map_, bias):
    """The result in float64."""
    image, weight = image.double().requires_grad_(), weight.double().requires_grad_()
    plus = None if bias is None else bias.double()
    result = CONVOLUTION[len(problem.image)](image, weight, plus, problem.stride, problem.padding, problem.dilation, problem.groups)
    if problem.operation == "forward":
        return result.detach()
    return torch.autograd.grad(result, image if problem.operation == "input" else weight, map_.double())[0]


def check(problem, variant, seed=0, skip=0):
    """Every element within the rounding of the sums and of the result; `skip`: elements that the tensors begin after an aligned address."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(shape):
        flat = torch.randn(skip + torch.Size(shape).numel(), dtype=F64, generator=generator).to(problem.dtype)
        return flat[skip:].view(shape)

    image, weight, map_ = tensor(problem.image_shape), tensor(problem.weight_shape), tensor(problem.map_shape)
    bias = tensor((problem.filters,)) if problem.bias else None
    run = direct.prepare(problem, variant)
    inputs = {"forward": (image, weight, bias), "input": (map_, weight, None), "weight": (map_, image, None)}[problem.operation]
    result = run(*inputs)
    assert (result.shape, result.dtype) == (problem.result_shape, problem.dtype)
    expected = exact(problem, image, weight, map_, bias)
    size = exact(problem, image.abs(), weight.abs(), map_.abs(), None if bias is None else bias.abs())
    epsilon = torch.finfo(F64 if problem.dtype == F64 else F32).eps
    bound = epsilon * (problem.reduction + 4) * size + torch.finfo(problem.dtype).eps * expected.abs() + torch.finfo(problem.dtype).tiny
    worst = ((result.double() - expected).abs() / bound).max()
    assert worst <= 1, (problem.name(), variant, float(worst))
    return result


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_first_guess_is_right(name, operation):
    problem = problem_of(PROBLEMS[name], operation, bias=operation == "forward" and len(name) % 2 == 0)
    assert direct.guard(problem) == ""
    check(problem, direct.variants(problem)[0])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_variants_agree(operation):
    problem = problem_of(PROBLEMS["groups of 8, step 2"], operation)
    variants = [variant for variant in direct.variants(problem) if variant.threads == 128]
    assert len(variants) > 4
    for variant in variants[1:4]:
        check(problem, variant)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_view_may_begin_anywhere(operation):
    problem = problem_of(PROBLEMS["depthwise 3x3"], operation)
    check(problem, direct.variants(problem)[0], skip=1)


@pytest.mark.parametrize("splits", [2, 5, 10_000])
def test_splits_add_up_and_the_same_bits_come_every_time(splits):
    problem = problem_of(PROBLEMS["depthwise 3x3"], "weight")
    variant = direct.variants(problem)[0]._replace(splits=splits)
    results = [check(problem, tuple(variant)) for _ in range(2)]
    assert torch.equal(*results)
    assert direct.workspace(problem, variant) >= min(splits, 2) * results[0].numel() * 4


def test_nothing_is_read_or_written_beyond_the_tensors():
    problem = problem_of(PROBLEMS["depthwise 3x3"], "forward")
    image, weight = torch.full(problem.image_shape, float("nan")), torch.ones(problem.weight_shape)
    image[1, 1] = 1
    result = direct.prepare(problem, direct.variants(problem)[0])(image, weight, None)
    assert (result[1, 1].min(), result[1, 1].max(), result[1, 1, 0, 0]) == (4, 9, 4)
    result[1, 1] = float("nan")
    assert result.isnan().all()


def test_what_the_guard_refuses():
    wide = problem_of((F32, 1, 64, 64, 1, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)), "forward")
    assert direct.guard(wide) == "more than 32 channels to be summed"
    long_steps = problem_of((F32, 1, 2, 2, 2, (40, 40), (3, 3), (9, 9), (1, 1), (1, 1)), "input")
    assert direct.guard(long_steps) == "a stride of more than 8"
    huge = problem_of((F32, 64, 64, 64, 64, (1024, 1024), (3, 3), (1, 1), (1, 1), (1, 1)), "forward")
    assert direct.guard(huge) == "more than 2**31 elements"


@st.composite
def rows(draw):
    """Small problems; the map has at least one element."""
    dimensions = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dimensions))

    groups = draw(st.integers(1, 3))
    channels, filters = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 9))
    kernel, stride, dilation, padding = each(1, 4), each(1, 3), each(1, 3), each(0, 4)
    image = tuple(
        max(size, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i, size in enumerate(each(3, 9 if dimensions == 3 else 17))
    )  # fmt: skip
    return draw(st.sampled_from((F32, F16, BF16, F64))), draw(st.integers(1, 3)), channels, filters, groups, image, kernel, stride, padding, dilation


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(row=rows(), operation=st.sampled_from(OPERATIONS), choice=st.integers(0, 20), bias=st.booleans())
def test_any_small_problem(row, operation, choice, bias):
    problem = problem_of(row, operation, bias and operation == "forward")
    variants = direct.variants(problem)
    assert direct.guard(problem) or check(problem, variants[choice % len(variants)], seed=choice) is not None
