"""2,000 convolutions through torch.nn.functional with the engine on, forward and all gradients, against float64.

On a machine with a GPU the same tests run there (`cases.DEVICE`). Parts can run in processes beside one another: -k "[0]", -k "[1]" and so on.
"""

from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="the engine serves torch")

import cases  # noqa: E402
from hypothesis import given  # noqa: E402

from rocm_patch import conv  # noqa: E402
from rocm_patch.conv import dispatch  # noqa: E402

PARTS = 8
EACH = 255
pytestmark = [
    pytest.mark.filterwarnings("ignore:rocm-patch:RuntimeWarning"),  # empty tensors are PyTorch's to serve
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

# ------------------------------------------------------------------ through torch.nn.functional


def agree(case):
    """Forward and gradients of one case, engine against float64."""
    generator = torch.Generator().manual_seed(case.seed)
    plain = [cases.numbers(case, shape, generator) for shape in (case.input_shape, case.weight_shape)]
    plain.append(cases.numbers(case, (case.groups * case.filters,), generator) if case.bias else None)
    # PyTorch 1.13 itself refuses some strides of a weight that meets nothing.
    layouts = case.layouts if case.batch != 0 else ("contiguous",) * 4
    ours = [
        None if tensor is None else cases.laid(tensor.to(case.dtype), layout).to(cases.DEVICE).requires_grad_()
        for tensor, layout in zip(plain, layouts, strict=False)
    ]
    exact = [None if tensor is None else tensor.detach().cpu().double().contiguous().requires_grad_() for tensor in ours]
    sizes = [None if tensor is None else tensor.detach().abs().requires_grad_() for tensor in exact]
    shape = case(*exact).shape
    map_ = cases.laid(cases.numbers(case, shape, generator).to(case.dtype), layouts[3])
    exact_map = map_.double().contiguous()
    wanted, gradients = cases.derivatives(case, exact, exact_map)
    bound, bounds = cases.derivatives(case, sizes, exact_map.abs())

    before = Counter(dispatch.calls)
    with conv.engine((cases.DEVICE.type,), workspace=cases.WORKSPACE):
        result, found = cases.derivatives(case, ours, map_.to(cases.DEVICE))
    used = Counter(dispatch.calls) - before
    empty = 0 in case.input_shape
    assert bool(used) != empty, f"the engine served {dict(used)}"

    names = ("result", "input's gradient", "weight's gradient", *(["bias's gradient"] if case.bias else []))
    lengths = case.lengths(wanted)
    for name, got, want, magnitude, length, roundings in zip(
        names, (result, *found), (wanted, *gradients), (bound, *bounds), lengths, case.roundings(lengths), strict=False
    ):
        winograd = any(key.startswith("winograd") for key in used)
        cases.check(name, got, want.detach(), magnitude.detach(), case.dtype, length, roundings, case.whole_numbers, winograd)


@pytest.mark.parametrize("part", range(PARTS))
def test_2000_convolutions_against_float64(part):
    @cases.drawn(EACH, part)
    @given(cases.cases())
    def run(case):
        ran.append(agree(case))

    ran = []
    with cases.plain_arithmetic():
        run()
    assert len(ran) >= min(EACH, 2000 // PARTS)
