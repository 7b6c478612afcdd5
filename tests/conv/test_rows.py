"""Every row of the table of algorithms on every problem that its guard accepts, against float64; kernels run emulated where there is no GPU."""

import dataclasses
import math
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="the engine serves torch")

import cases  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rocm_patch.conv.algorithms import ALGORITHMS  # noqa: E402
from rocm_patch.conv.problem import OPERATIONS, Problem  # noqa: E402


def dense(case, tensor, shift):
    """Contiguous, on the device, and where no vector may be loaded from if it is shifted."""
    tensor = tensor.to(case.dtype).contiguous().to(cases.DEVICE)
    return cases.laid(tensor, "shifted" if shift else "contiguous")


def geometry(case):
    """(image, map, channels, filters) of the problem that a case means, whichever way round."""
    size = case(torch.empty(case.input_shape, device="meta"), torch.empty(case.weight_shape, device="meta")).shape[-case.dimensions :]
    inputs, outputs = case.groups * case.channels, case.groups * case.filters
    return (tuple(size), case.image, outputs, inputs) if case.transposed else (case.image, tuple(size), inputs, outputs)


def every_row(case, seen, rows, pick, shift):
    """Each row that accepts the case's problems gives what float64 gives."""
    generator = torch.Generator().manual_seed(case.seed)
    image_size, map_size, channels, filters = geometry(case)
    # With a dilation, a transposed convolution may have an output padding that is larger than the step: then its map is a part of a map.
    part = tuple(slice(size) for size in map_size)
    straight = dataclasses.replace(case, transposed=False)

    def plain(image, weight):
        return straight(image, weight)[(..., *part)]

    image = cases.numbers(case, (case.batch, channels, *image_size), generator).requires_grad_()
    weight = cases.numbers(case, (filters, channels // case.groups, *case.kernel), generator).requires_grad_()
    map_ = cases.numbers(case, (case.batch, filters, *map_size), generator)
    sizes = [tensor.detach().abs().requires_grad_() for tensor in (image, weight)]
    forward, gradients = cases.derivatives(plain, (image, weight), map_)
    bound, bounds = cases.derivatives(plain, sizes, map_.abs())
    group = filters // case.groups
    taps, pixels = math.prod(case.kernel), math.prod(map_size)
    lengths = (taps * channels // case.groups, taps * group, case.batch * pixels)
    tensors = {"forward": (image, weight), "input": (map_, weight), "weight": (map_, image)}
    for operation, want, magnitude, length in zip(OPERATIONS, (forward, *gradients), (bound, *bounds), lengths, strict=True):
        want, magnitude, bias = want.detach(), magnitude.detach(), None
        if case.bias and operation != "weight":
            bias = cases.numbers(case, (want.shape[1],), generator)
            column = bias.view(1, -1, *[1] * case.dimensions)
            want, magnitude, bias = want + column, magnitude + column.abs(), dense(case, bias, shift)
        problem = Problem(
            operation, cases.DEVICE, case.dtype, case.batch, channels, filters, case.groups, image_size, map_size, case.kernel, case.stride,
            case.padding, case.dilation, bias is not None,
        )  # fmt: skip
        assert problem.reduction == length
        arguments = [dense(case, tensor.detach(), shift) for tensor in tensors[operation]]
        for row in rows:
            if row.guard(problem):
                continue
            variants = [variant for variant in row.variants(problem, cases.WORKSPACE) if pick(variant)]
            if not variants:
                continue
            variant = variants[case.seed % len(variants)]
            result = row.prepare(problem, variant, cases.WORKSPACE)(*arguments, bias)
            seen[row.name] += 1
            cases.check(
                f"{row.name} {variant} {problem.name()}", result, want, magnitude, case.dtype, length, max(taps, case.batch) + 3,
                case.whole_numbers, row.name.startswith("winograd"),
            )  # fmt: skip


def numeric(case):
    return case.batch and not isinstance(case.padding, str)


@pytest.mark.parametrize("part", range(2))
def test_every_row_without_kernels_against_float64(part):
    seen = Counter()
    rows = [row for row in ALGORITHMS if not row.kernels]

    @cases.drawn(150, part)
    @given(cases.cases().filter(numeric), st.booleans())
    def run(case, shift):
        every_row(case, seen, rows, lambda variant: True, shift)

    with cases.plain_arithmetic():
        run()
    served = {row.name for row in rows if not (row.name == "cpu" and cases.DEVICE.type == "cpu")}
    assert {name for name, count in seen.items() if count >= 20} == served


# Tiles of the GEMM that are tried on the emulator, where each takes a second to compile; a GPU tries them all.
EMULATED_TILES = ("64x64x16", "16x256x8", "32x32x16")


KERNEL_ROWS = [row for row in ALGORITHMS if row.kernels]


def emulated_part(variant):
    tiles = [part for part in variant if isinstance(part, str) and part.count("x") == 2]
    return "64x64x16" in variant or all(tile in EMULATED_TILES for tile in tiles)


@pytest.fixture
def kernels(request):
    """Whether they are emulated."""
    if cases.DEVICE.type == "cpu":
        request.getfixturevalue("emulated")
    return cases.DEVICE.type == "cpu"


@pytest.mark.parametrize(
    ("kind", "dtype", "examples", "must"),
    [
        ("any", torch.float32, 16, {"implicit", "scatter", "scatter-blas"}),
        ("pointwise", torch.float32, 8, {"implicit"}),
        ("three", torch.float32, 16, {"implicit", "winograd", "winograd-blas"}),
        ("any", torch.bfloat16, 8, {"implicit"}),
        ("any", torch.float64, 8, {"implicit"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_row_with_kernels_against_float64(kind, dtype, examples, must, kernels):
    seen = Counter()
    # The direct kernels compile for each shape anew: on the emulator they have tests of their own.
    rows = [row for row in KERNEL_ROWS if not (kernels and row.name == "direct")]

    @cases.drawn(examples if kernels else 150)
    @given(cases.cases((dtype,), (kind,), small=kernels and kind != "three").filter(numeric), st.booleans())
    def run(case, shift):
        every_row(case, seen, rows, emulated_part if kernels else lambda variant: True, shift)

    with cases.plain_arithmetic():
        run()
    assert must <= set(seen)


ONES, NONE = (1, 1), (0, 0)
EDGES = {
    "a pointwise map smaller than its image, by an output padding that the dilation allows": cases.Case(
        True, 2, 1, 8, 16, (4, 4), ONES, ONES, NONE, (5, 5), (4, 4), False, torch.float32, ("contiguous",) * 4, True, 1
    ),
    "the same of a 3x3 window": cases.Case(
        True, 2, 2, 2, 3, (4, 5), (3, 3), ONES, ONES, (2, 2), (1, 0), True, torch.float32, ("contiguous",) * 4, True, 2
    ),
    "a step that leaves lines of the image out": cases.Case(
        False, 2, 1, 3, 4, (9, 8), (2, 1), (3, 3), NONE, ONES, NONE, True, torch.float32, ("contiguous",) * 4, True, 3
    ),
    "a border around a single plane, which an H200 found": cases.Case(
        False, 1, 1, 1, 1, (1, 1, 1), (1, 1, 1), (3, 1, 1), (1, 0, 0), (1, 1, 1), (0, 0, 0), False, torch.float32, ("contiguous",) * 4, False, 0
    ),
    "a border wider than the window": cases.Case(
        False, 2, 1, 3, 4, (2, 1), (2, 3), (2, 1), (4, 5), ONES, NONE, True, torch.float32, ("contiguous",) * 4, True, 4
    ),
}  # fmt: skip


@pytest.mark.parametrize("shift", [False, True], ids=["aligned", "anywhere"])
@pytest.mark.parametrize("name", EDGES)
def test_edges(name, shift, kernels):
    seen = Counter()
    with cases.plain_arithmetic():
        every_row(EDGES[name], seen, ALGORITHMS, emulated_part if kernels else lambda variant: True, shift)
    assert {"im2col", "implicit", "direct"} <= set(seen)
