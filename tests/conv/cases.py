"""Convolutions to try, as data: what hypothesis draws, the tensors that it means, and how far a right answer may be from float64's.

A convolution's every result is a sum of n products, n = `Case.lengths`. Summed in any order, by any tree, with fused multiply-adds or
without, its error is at most g(n) S with g(n) = n u / (1 - n u), u the unit roundoff of the arithmetic and S the sum of the products'
absolute values: Higham, Accuracy and Stability of Numerical Algorithms, 2002, theorem 3.1 and section 4.2. `allowed` is that bound, element
by element, with S computed as the same convolution of absolute values in float64, and these additions:

* 8 more operations, for a bias and for partial sums that are added at the end;
* the error of the float64 reference itself, by the same formula;
* fp16 and bf16 are summed in float32, but rounded to the dtype where something is stored: the result, a bias added to a stored result, a
  partial sum of each image that is then added (weight gradient), or of each tap (data gradient by col2im, as PyTorch's own has it);
* half of the least subnormal number, where a result underflows.

Worst-case bounds are loose for random numbers, by about the root of n. So half of the cases take their values from -1, 0 and 1: then every
partial sum in any order is a whole number of at most n, exact in a significand of p bits while n <= 2**p, and the result must be equal.

Winograd's minimal filtering computes other sums. For inputs of at most 1 its points and their products are bounded by the absolute row sums of
its three matrices; for tiles of 4 these make 2304 C in two dimensions where the direct sum has 9 C, and 2844 where the weight gradient's has 16:
an amplification of at most 256 (9 for tiles of 2). With it the linear bound would say nothing, so for Winograd n is replaced by 6 sqrt(n + 32), the
bound that holds but for a probability of 2 exp(-18) under rounding errors of mean zero (Higham and Mary 2019, https://doi.org/10.1137/18M1226312),
and S is the largest of the tensor, because points mix neighbours.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

DEVICE = torch.device(os.environ.get("ROCM_PATCH_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
"""Where the engine runs: the same tests serve a GPU. References are always made on the CPU."""
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LAYOUTS = ("contiguous", "channels_last", "expanded", "sliced", "transposed", "shifted")
KINDS = ("any", "any", "any", "pointwise", "whole", "three", "thin", "depthwise")
PRECISION = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Bits of the significand."""
WINOGRAD = 256
WORKSPACE = 64 << 20
SEED = int(os.environ.get("ROCM_PATCH_TEST_SEED", "0"))
"""Another number, other cases."""


def drawn(examples, part=0):
    """Decorator: so many cases, the same ones in every run."""

    def decorate(test):
        chosen = hypothesis.settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
        return hypothesis.seed(SEED * 1000 + part)(chosen(test))

    return decorate


@contextlib.contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No product of PyTorch's own with fewer bits than the dtype has, and no Winograd of its own: `allowed` knows of neither.

    One thread, because for sizes as small as these others only wait.
    """
    owner, before, threads = torch.backends.cuda.matmul, {}, torch.get_num_threads()
    for name in ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        with contextlib.suppress(AttributeError, AssertionError):  # old torches have not all of them
            before[name] = getattr(owner, name)
    vendor = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False  # its TF32 is on by default
    nnpack = getattr(torch.backends, "nnpack", None)
    nnpack_before = nnpack.set_flags(False) if nnpack is not None else None
    torch.set_num_threads(1)
    for name in before:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
        torch.backends.cudnn.enabled = vendor
        torch.set_num_threads(threads)
        if nnpack is not None:
            nnpack.set_flags(*nnpack_before)


def derivatives(function, tensors, map_):
    """The result and its gradients by every tensor there is."""
    result = function(*tensors)
    return result, torch.autograd.grad(result, [tensor for tensor in tensors if tensor is not None], map_)


def _multiplies(dtype):
    """Whether this torch can multiply matrices of a dtype on the device: old ones cannot on the CPU in fp16, and sum bf16 in bf16."""
    try:
        long = torch.ones(1, 2, 600, dtype=dtype, device=DEVICE)
        F.conv1d(long, long[..., :1].contiguous())
        return torch.bmm(long, torch.ones(1, 600, 2, dtype=dtype, device=DEVICE)).flatten()[0].item() == 600
    except RuntimeError:
        return False


DTYPES = tuple(dtype for dtype in PRECISION if _multiplies(dtype))


@dataclass(frozen=True)
class Case:
    """A call of torch.nn.functional; `image` is the input of the call, transposed or not. batch None: unbatched."""

    transposed: bool
    batch: int | None
    groups: int
    channels: int
    filters: int
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    bias: bool
    dtype: torch.dtype
    layouts: tuple[str, str, str, str]
    whole_numbers: bool
    seed: int

    @property
    def dimensions(self):
        return len(self.image)

    @property
    def input_shape(self):
        return (*([] if self.batch is None else [self.batch]), self.groups * self.channels, *self.image)

    @property
    def weight_shape(self):
        inputs, outputs = self.groups * self.channels, self.groups * self.filters
        return (inputs, self.filters, *self.kernel) if self.transposed else (outputs, self.channels, *self.kernel)

    @property
    def has_winograd(self):
        return self.kernel == (3, 3) and {*self.stride, *self.dilation, self.groups} == {1} and self.dtype == torch.float32

    def __call__(self, x, weight, bias=None):
        if self.transposed:
            geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return TRANSPOSED[self.dimensions](x, weight, bias, *geometry)
        return CONVOLUTIONS[self.dimensions](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def lengths(self, result):
        """Products that are summed for one element: of the result, of the gradients of input, weight and bias."""
        taps, pixels = math.prod(self.kernel), math.prod(self.image if self.transposed else result.shape[-self.dimensions :])
        return taps * self.channels, taps * self.filters, (self.batch or 1) * pixels, result.numel() // max(1, self.groups * self.filters)

    def roundings(self, length):
        """Times that something is rounded to the dtype on the way, for each of the four."""
        taps, images = math.prod(self.kernel), self.batch or 1
        data, forward = (3, taps + 3) if self.transposed else (taps + 3, 3)
        return forward, data, images + 3, 3


# ------------------------------------------------------------------ what is drawn


@st.composite
def cases(draw, dtypes=DTYPES, kinds=KINDS, small=False):
    """Any convolution that PyTorch takes, small."""
    kind = draw(st.sampled_from(kinds))
    dimensions = 2 if kind == "three" else draw(st.sampled_from((1, 2, 2, 3)))
    spread = {1: 12, 2: 6, 3: 3}[dimensions] // (2 if small else 1)

    def sizes(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * dimensions))

    ones = (1,) * dimensions
    kernel, stride, dilation = sizes(1, {1: 9, 2: 4, 3: 3}[dimensions]), sizes(1, 3), sizes(1, 2)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels, filters = draw(st.sampled_from((1, 2, 3, 4, 8))), draw(st.sampled_from((1, 2, 3, 4, 8, 17)))
    transposed = draw(st.booleans())
    if kind == "three":
        kernel, stride, dilation, groups = (3, 3), ones, ones, 1
    elif kind == "pointwise":
        kernel, dilation = ones, ones
    elif kind == "whole":
        stride, dilation, groups, transposed = ones, ones, 1, False
    elif kind == "thin":
        groups, channels = 1, draw(st.integers(1, 3))
    elif kind == "depthwise":
        groups, channels, filters = draw(st.sampled_from((2, 4, 5))), 1, draw(st.sampled_from((1, 1, 2)))
        if transposed:
            channels, filters = filters, channels
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    output_padding = (0,) * dimensions
    padding = (0,) * dimensions if kind in ("pointwise", "whole") else sizes(0, 2)
    if transposed:
        output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        least = [1 + max(0, -(-(2 * p - r - o) // s)) for p, r, o, s in zip(padding, reach, output_padding, stride, strict=True)]
    else:
        least = [max(1, r + 1 - 2 * p) for r, p in zip(reach, padding, strict=True)]
    image = tuple(low + draw(st.integers(0, spread)) for low in least)
    if kind == "whole":
        image = kernel
    elif not transposed and stride == ones and draw(st.integers(0, 7)) == 0:
        padding = draw(st.sampled_from(("same", "valid")))
        image = tuple(max(i, r + 1) for i, r in zip(image, reach, strict=True))
    return Case(
        transposed, draw(st.sampled_from((None, 0, 1, 1, 2, 3) if not small else (1, 2))), groups, channels, filters, image, kernel, stride, padding,
        dilation, output_padding, draw(st.booleans()), draw(st.sampled_from(dtypes)), draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 4)),
        draw(st.booleans()), draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


# ------------------------------------------------------------------ the tensors of a case


def laid(tensor, layout):
    """The same values (but for `expanded`, which repeats the first image) at other strides."""
    if layout == "channels_last" and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "expanded" and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    if layout == "sliced":
        wide = tensor.new_zeros((*(2 * size for size in tensor.shape[:-1]), tensor.shape[-1] + 3))
        part = wide[(*(slice(None, None, 2),) * (tensor.dim() - 1), slice(1, -2))]
        return part.copy_(tensor)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "shifted":  # dense, at an address that no vector may be loaded from
        return tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    return tensor


def numbers(case, shape, generator):
    """Values that the dtype holds exactly, as float64 on the CPU."""
    if case.whole_numbers:
        return torch.randint(-1, 2, shape, generator=generator).double()
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype).double()


def allowed(dtype, length, roundings, magnitude, amplification=0):
    """The largest error that is only rounding, for each element; the derivation is at the top."""
    steps = 6 * math.sqrt(length + 32) if amplification else length + 8
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def growth(unit, count):
        return count * unit / (1 - count * unit)

    share = growth(2.0 ** -PRECISION[real], steps) * max(1, amplification) + growth(2.0**-53, length + 8)
    if dtype != real:
        share += growth(2.0 ** -PRECISION[dtype], roundings)
    if amplification and magnitude.numel():
        magnitude = magnitude.max()
    information = torch.finfo(dtype)
    return share * magnitude + information.tiny * information.eps


def check(what, result, reference, magnitude, dtype, length, roundings, whole_numbers, winograd=False):
    """Assert that a result is the reference but for rounding."""
    assert result.dtype == dtype, what
    assert result.shape == reference.shape, what
    result = result.detach().cpu().double()
    if whole_numbers and length + 1 <= 2 ** PRECISION[dtype] and not winograd:
        assert torch.equal(result, reference), f"{what}: not the whole numbers that it must be\n{result}\n{reference}"
        return
    error = (result - reference).abs()
    bound = allowed(dtype, length, roundings, magnitude, WINOGRAD if winograd else 0)
    wrong = ~(error <= bound)
    assert not wrong.any(), f"{what}: off by {error[wrong].max():.3g} where {bound.expand_as(error)[wrong].min():.3g} is rounding"
