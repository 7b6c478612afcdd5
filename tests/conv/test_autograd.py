"""What lies above and below the override: autograd, autocast, vmap, torch.compile, threads, graphs; switching on and off; what is not served."""

import contextlib
import copy
import threading
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the engine serves torch")

import cases  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from hypothesis import given  # noqa: E402
from torch import nn  # noqa: E402

from rocm_patch import conv  # noqa: E402
from rocm_patch.conv import dispatch  # noqa: E402

DEVICE = cases.DEVICE
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
engine = lambda **options: conv.engine((DEVICE.type,), **options)  # noqa: E731


@pytest.fixture(autouse=True)
def fresh():
    """Counts from nothing, the same random numbers, and nothing left on."""
    torch.manual_seed(0)
    dispatch.forget()
    dispatch.calls.clear()
    dispatch.fallbacks.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for sizes as small as these others only wait
    # What is compared with is PyTorch without its vendor's library, as beneath the engine: cuDNN rounds to TF32 and has words of its own.
    vendor = torch.backends.cudnn.enabled
    torch._C._set_cudnn_enabled(vendor and DEVICE.type != "cuda")
    yield
    torch._C._set_cudnn_enabled(vendor)
    torch.set_num_threads(threads)
    dispatch.forget()  # the layout that PyTorch promises depends on the threads
    assert not conv.status()["enabled"]


def random(*shape, dtype=torch.float32, grad=False):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE).requires_grad_(grad)


def close(ours, theirs, tolerance=1e-4):
    """Of two ways to round the same sums of a few hundred products."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    difference = (ours.detach() - theirs.detach()).abs()
    assert difference.numel() == 0 or difference.max() <= tolerance * max(1.0, theirs.detach().abs().max()), difference.max()


# ------------------------------------------------------------------ derivatives

GEOMETRIES = {
    "1-D": (F.conv1d, (2, 4, 9), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "2-D": (F.conv2d, (2, 3, 5, 6), (4, 3, 3, 2), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "2-D depthwise": (F.conv2d, (1, 3, 5, 5), (6, 1, 3, 3), {"padding": 1, "groups": 3}),
    "2-D pointwise": (F.conv2d, (2, 3, 4, 4), (5, 3, 1, 1), {}),
    "2-D whole image": (F.conv2d, (2, 3, 3, 4), (5, 3, 3, 4), {}),
    "3-D": (F.conv3d, (1, 2, 4, 3, 4), (3, 2, 2, 2, 3), {"padding": 1}),
    "1-D transposed": (F.conv_transpose1d, (2, 4, 5), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "2-D transposed": (F.conv_transpose2d, (2, 3, 4, 3), (3, 2, 3, 3), {"stride": (2, 1), "dilation": (1, 2), "output_padding": (1, 1)}),
    "3-D transposed": (F.conv_transpose3d, (1, 2, 3, 2, 2), (2, 2, 2, 2, 2), {"stride": 2}),
}


def filters(function, weight, options):
    return weight[1] * options.get("groups", 1) if "transpose" in function.__name__ else weight[0]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_first_and_second_derivatives(name):
    function, image, weight, options = GEOMETRIES[name]
    inputs = [random(*shape, dtype=torch.float64, grad=True) for shape in (image, weight, (filters(function, weight, options),))]
    with engine():
        assert torch.autograd.gradcheck(lambda x, w, b: function(x, w, b, **options), inputs, nondet_tol=0.0)
        assert torch.autograd.gradgradcheck(lambda x, w, b: function(x, w, b, **options), inputs)
    assert dispatch.calls


@pytest.mark.parametrize("mask", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)], ids=str)
def test_only_the_gradients_that_are_asked_for(mask):
    tensors = [random(2, 3, 6, 6), random(4, 3, 3, 3), random(4)]
    for tensor, wanted in zip(tensors, mask, strict=True):
        tensor.requires_grad_(wanted)
    with engine():
        F.conv2d(*tensors).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(mask)


def test_channels_last_gradients_are_those_of_the_usual_order():
    x, weight = random(2, 4, 6, 6), random(8, 4, 3, 3)
    results = []
    for format_ in (torch.contiguous_format, torch.channels_last):
        leaves = [tensor.clone(memory_format=format_).requires_grad_() for tensor in (x, weight)]
        with engine():
            result = F.conv2d(*leaves, padding=1)
            results.append((result, *torch.autograd.grad(result.square().sum(), leaves)))
    for one, other in zip(*results, strict=True):
        close(other, one)


# ------------------------------------------------------------------ layers above


@pytest.mark.parametrize("dtype", [torch.float16] if DEVICE.type == "cuda" else [torch.bfloat16], ids=str)
def test_autocast(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1, padding=1)).to(DEVICE)
    x = random(2, 3, 8, 8, grad=True)
    with engine(), torch.autocast(DEVICE.type, dtype=dtype):
        result = net(x)
    result.float().sum().backward()
    assert result.dtype == dtype
    assert x.grad.dtype == net[0].weight.grad.dtype == torch.float32
    assert {problem.split()[1] for problem in dispatch.choices} == {str(dtype).removeprefix("torch.")}
    close(result.float(), net(x), 0.05)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(mode):
    x, weight = random(1, 3, 5, 5), random(2, 3, 3, 3)
    theirs = F.conv2d(x, weight)
    with mode(), engine():
        ours = F.conv2d(x, weight)
    close(ours, theirs)
    assert ours.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_modules(layer, padding_mode):
    if layer is nn.Conv3d and padding_mode == "reflect" and VERSION < (1, 10):
        pytest.skip("no reflect padding in 3-D")
    dimensions = int(layer.__name__[-2])
    module = layer(2, 4, 3, padding=1, padding_mode=padding_mode).to(DEVICE)
    x = random(2, 2, *[5] * dimensions)
    theirs = module(x)
    with engine():
        close(module(x), theirs)
        same = layer(2, 4, 3, dilation=2, padding="same", padding_mode=padding_mode).to(DEVICE)
        ours = same(x)
    close(ours, same(x))
    assert ours.shape[2:] == x.shape[2:]


@pytest.mark.parametrize("layer", [nn.LazyConv2d, nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_more_modules(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules call themselves new
        module = nn.LazyConv2d(4, 3) if layer is nn.LazyConv2d else layer(2, 4, 3, stride=2, output_padding=1)
    module = module.to(DEVICE)
    x = random(1, 2, *[5] * int(layer.__name__[-2]))
    with engine():
        ours = module(x)
    close(ours, module(x))


def functional():
    """torch.func, by whatever name this torch has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch.func" if VERSION >= (2, 0) else "functorch", reason="functorch is a package of its own here")


def test_vmap_and_functional_gradients():
    func = functional()
    xs, weights = random(3, 2, 4, 6, 6), random(3, 5, 4, 3, 3)
    theirs = torch.stack([F.conv2d(x, weight, padding=1) for x, weight in zip(xs, weights, strict=True)])
    with engine():
        close(func.vmap(lambda x, weight: F.conv2d(x, weight, padding=1))(xs, weights), theirs)
        close(func.vmap(lambda x: F.conv2d(x, weights[0], padding=1))(xs)[0], theirs[0])
        each = func.vmap(func.grad(lambda weight, x: F.conv2d(x, weight, padding=1).square().sum()), in_dims=(None, 0))(weights[0], xs)
    for x, ours in zip(xs, each, strict=True):
        weight = weights[0].clone().requires_grad_()
        F.conv2d(x, weight, padding=1).square().sum().backward()
        close(ours, weight.grad, 1e-3)


def test_unbatched():
    x, weight = random(3, 6, 5, grad=True), random(4, 3, 2, 3)
    with engine():
        ours = F.conv2d(x, weight)
        (gradient,) = torch.autograd.grad(ours.square().sum(), x)
    theirs = F.conv2d(x, weight)
    close(ours, theirs)
    close(gradient, torch.autograd.grad(theirs.square().sum(), x)[0])


@pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d], ids=["conv2d", "conv_transpose2d"])
def test_complex_numbers(function):
    if function is F.conv_transpose2d and VERSION < (2, 0):
        pytest.skip("this torch has no complex transposed convolution")
    x, weight = torch.complex(random(2, 3, 5, 5), random(2, 3, 5, 5)), torch.complex(random(3, 3, 3, 3), random(3, 3, 3, 3))
    theirs = function(x, weight), function(x.conj(), weight)
    with engine(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours = function(x, weight), function(x.conj(), weight)
    for one, other in zip(ours, theirs, strict=True):
        close(torch.view_as_real(one), torch.view_as_real(other))


# ------------------------------------------------------------------ torch.compile


class Net(nn.Module):
    """Every kind of convolution, and what follows depends on the strides."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)

    def forward(self, x):
        middle = torch.relu(self.pointwise(self.depthwise(torch.relu(self.first(x)))))
        return self.up(middle), middle


def compiles():
    if VERSION < (2, 1):
        pytest.skip("torch.compile of this torch does not know this Python")
    return torch.compile


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled(backend, format_, tmp_path, monkeypatch):
    compile_ = compiles()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    net = Net().to(DEVICE).to(memory_format=format_)
    x = random(2, 3, 16, 16).to(memory_format=format_).requires_grad_()
    other, y = copy.deepcopy(net), x.detach().clone().requires_grad_()
    try:
        with engine():
            uncompiled = net(x)
            dispatch.calls.clear()
            ours = compile_(net, backend=backend)(x)
            sum(each.square().sum() for each in ours).backward()
    except Exception as error:
        if any(word in repr(error) for word in ("InvalidCxxCompiler", "Python.h", "TritonMissing", "Cannot find a working triton")):
            pytest.skip("inductor has no compiler here")
        raise
    assert dispatch.calls
    for one, eager in zip(ours, uncompiled, strict=True):
        assert one.stride() == eager.stride()
        close(one, eager)
    with torch.no_grad():
        assert uncompiled[1].stride() == other(y)[1].stride()  # on a GPU without its vendor's library PyTorch promises the usual order
    sum(each.square().sum() for each in other(y)).backward()
    for (name, one), (_, another) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        close(one.grad, another.grad, 1e-3), name
    close(x.grad, y.grad, 1e-3)


@pytest.mark.parametrize("part", range(2))
@pytest.mark.filterwarnings("ignore:rocm-patch:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_strides_are_those_that_fake_tensors_promise(part):
    """What inductor compiles into its code: sizes and strides by the rules of the fake tensors."""
    if VERSION < (2, 1):
        pytest.skip("fake tensors of this torch promise no strides")
    if DEVICE.type == "cuda" and VERSION < (2, 4):
        pytest.skip("fake tensors of this torch take the GPU's own library for granted")
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run_all(case, tensors):
        x, weight, bias, map_ = tensors
        result = case(x, weight, bias)
        leaves = [tensor for tensor in (x, weight, bias) if tensor is not None]
        return result, *torch.autograd.grad(result, leaves, map_ if map_ is not None else torch.ones_like(result))

    @cases.drawn(150, part)
    @given(cases.cases((torch.float32,)))
    def run(case):
        generator = torch.Generator().manual_seed(case.seed)
        shapes = (case.input_shape, case.weight_shape, (case.groups * case.filters,) if case.bias else None)
        plain = [None if shape is None else cases.numbers(case, shape, generator).float() for shape in shapes]
        tensors = [None if each is None else cases.laid(each, layout) for each, layout in zip(plain, case.layouts, strict=False)]
        tensors = [None if tensor is None else tensor.to(DEVICE).requires_grad_() for tensor in tensors]
        with engine():
            real = run_all(case, [*tensors, None])
            with FakeTensorMode() as mode:
                fake = run_all(case, [*[None if tensor is None else mode.from_tensor(tensor) for tensor in tensors], None])
        for one, promised in zip(real, fake, strict=True):
            assert one.shape == promised.shape
            if 0 not in case.input_shape:  # PyTorch's own serves what is empty; strides of a dimension of one are never used
                assert [s for s, n in zip(one.stride(), one.shape, strict=True) if n > 1] == [
                    s for s, n in zip(promised.stride(), promised.shape, strict=True) if n > 1
                ]

    run()


# ------------------------------------------------------------------ threads, streams, graphs


def test_threads():
    weights = [random(4, 3, size, size) for size in (1, 2, 3)]
    x = random(2, 3, 8, 8)
    wanted = [F.conv2d(x, weight) for weight in weights]
    wrong = []

    def work(shift):
        for turn in range(30):
            at = (turn + shift) % len(weights)
            leaf = x.clone().requires_grad_()
            result = F.conv2d(leaf, weights[at])
            result.sum().backward()
            if not torch.allclose(result, wanted[at], atol=1e-4) or leaf.grad is None:
                wrong.append(at)

    with engine():
        threads = [threading.Thread(target=work, args=(shift,)) for shift in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@gpu
def test_streams():
    x, weight = random(4, 16, 64, 64), random(16, 16, 3, 3)
    wanted = F.conv2d(x, weight)
    streams = [torch.cuda.Stream() for _ in range(4)]
    with engine():
        F.conv2d(x, weight)
        torch.cuda.synchronize()
        results = []
        for turn in range(40):
            with torch.cuda.stream(streams[turn % 4]):
                results.append(F.conv2d(x, weight))
        torch.cuda.synchronize()
    for result in results:
        close(result, wanted, 1e-3)


@gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node:UserWarning")
def test_graphs():
    net = Net().to(DEVICE)
    x = random(2, 3, 32, 32)
    with engine():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                net.zero_grad(set_to_none=True)
                net(x)[0].square().sum().backward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        net.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            result = net(x)[0]
            result.square().sum().backward()
        x.copy_(random(2, 3, 32, 32))
        graph.replay()
        torch.cuda.synchronize()
        replayed, gradient = result.clone(), net.first.weight.grad.clone()
        net.zero_grad(set_to_none=True)
        eager = net(x)[0]
        eager.square().sum().backward()
    close(replayed, eager)
    close(gradient, net.first.weight.grad, 1e-3)


# ------------------------------------------------------------------ what does not fit

WRONG = {
    "channels": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 2, 3, 3)),
    "groups": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), groups=3),
    "window larger than the image": lambda: F.conv2d(random(1, 3, 2, 2), random(4, 3, 3, 3)),
    "bias": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), random(5)),
    "bias of a matrix": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), random(4, 1)),
    "dtypes": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3, dtype=torch.float64)),
    "dtype of the bias": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), random(4, dtype=torch.float64)),
    "dimensions": lambda: F.conv2d(random(1, 3, 5), random(4, 3, 3)),
    "negative padding": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), padding=-1),
    "no stride": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), stride=0),
    "no dilation": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), dilation=0),
    "no groups": lambda: F.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), groups=0),
    "too many strides": lambda: torch.conv2d(random(1, 3, 5, 5), random(4, 3, 3, 3), None, [1, 1, 1]),
    "output padding": lambda: F.conv_transpose2d(random(1, 3, 5, 5), random(3, 4, 3, 3), stride=2, output_padding=2),
    "transposed channels": lambda: F.conv_transpose1d(random(1, 3, 5), random(4, 3, 3)),
    "transposed to nothing": lambda: F.conv_transpose2d(random(1, 3, 1, 1), random(3, 4, 1, 1), padding=2),
    "filters not of the groups": lambda: F.conv1d(random(1, 4, 5), random(3, 2, 3), groups=2),
    "no channels in the window": lambda: F.conv2d(random(1, 0, 5, 5), random(4, 0, 3, 3)),
}


def outcome(call):
    """The kind and the words of an error, or the shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(call().shape)
        except Exception as error:  # whatever PyTorch raises
            return type(error), str(error).splitlines()[0]


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_pytorch_s_words(name):
    right = F.conv2d
    theirs = outcome(WRONG[name])
    with engine():
        right(random(1, 3, 5, 5), random(4, 3, 3, 3), random(4))  # a prepared call that wrong ones must not meet
        right(random(1, 3, 5, 5), random(4, 3, 3, 3))
        assert outcome(WRONG[name]) == theirs
        assert outcome(WRONG[name]) == theirs


def test_numbers_that_read_alike_are_different_calls():
    x, weight = random(1, 2, 9, 9), random(3, 2, 2, 2)
    calls = [{"stride": [1], "padding": [2, 2], "dilation": [1]}, {"stride": [1, 2], "padding": [2], "dilation": [1]}]
    wanted = [torch.conv2d(x, weight, None, *options.values()) for options in calls]
    with engine():
        for options, theirs in zip(calls, wanted, strict=True):
            close(torch.conv2d(x, weight, None, *options.values()), theirs)


def test_a_bias_of_any_stride():
    x, weight, bias = random(1, 2, 5, 5), random(6, 2, 3, 3), random(12)
    with engine():
        ours = [F.conv2d(x, weight, each) for each in (bias[:6], bias[::2], bias[:1].expand(6))]
    for one, each in zip(ours, (bias[:6], bias[::2], bias[:1].expand(6)), strict=True):
        close(one, F.conv2d(x, weight, each))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 5, 0), (0, 3, 0, 5)], ids=str)
def test_empty(shape):
    x, weight, bias = random(*shape, grad=True), random(4, 3, 3, 3, grad=True), random(4, grad=True)
    theirs = outcome(lambda: F.conv2d(x, weight, bias, padding=2))
    with engine(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert outcome(lambda: F.conv2d(x, weight, bias, padding=2)) == theirs
        with contextlib.suppress(RuntimeError):
            result = F.conv2d(x, weight, bias, padding=2)
            result.sum().backward()
            assert weight.grad.shape == weight.shape
            assert (weight.grad == 0).all() or result.numel()
    assert "an empty tensor" in conv.status()["fallbacks"] or theirs[0] is RuntimeError


# ------------------------------------------------------------------ on, off, status


def dumps():
    names = ("aten::convolution", "aten::convolution_backward", "aten::_convolution", "aten::convolution_overrideable")
    return [torch._C._dispatch_dump(name) for name in names] + [torch._C._dispatch_dump_table(name) for name in names[:2]]


def test_off_is_exactly_as_before():
    before, switch = dumps(), torch.backends.cudnn.enabled
    for _ in range(3):
        conv.enable()
        assert dumps() != before
        conv.enable()
        conv.disable()
        assert dumps() == before
        conv.disable()
        assert torch.backends.cudnn.enabled == switch
    assert dumps() == before


def test_on_and_off_where_pytorch_s_switches_are_locked(monkeypatch):
    monkeypatch.setitem(torch.backends.disable_global_flags.__globals__, "__allow_nonbracketed_mutation_flag", False)
    before = torch.backends.cudnn.enabled
    with conv.engine():
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before


def test_engines_inside_engines():
    before = dumps()
    x, weight = random(1, 2, 4, 4), random(2, 2, 3, 3)
    with conv.engine(("cpu", "cuda"), workspace=1 << 20):
        outer = conv.status()["devices"]
        with conv.engine(("cuda",), blas=False):
            assert conv.status()["devices"] == ["cuda"]
            with contextlib.suppress(ZeroDivisionError), conv.engine((DEVICE.type,)):
                F.conv2d(x, weight)
                raise ZeroDivisionError
            assert conv.status()["devices"] == ["cuda"]
            assert not dispatch._settings.blas
        assert conv.status()["devices"] == outer
        assert dispatch._settings.workspace == 1 << 20
    assert dumps() == before


def test_no_such_device_type():
    with pytest.raises(ValueError, match="xpu"):
        conv.enable(("cpu", "xpu"))
    assert not conv.status()["enabled"]


def test_aliases():
    conv.patch_conv2d()
    try:
        assert conv.status()["enabled"]
        assert conv.get_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        conv.disable()


def test_switching_on_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with conv.engine():
            pass


def test_status_counts_calls_by_algorithm():
    x, weight = random(1, 3, 5, 5, grad=True), random(4, 3, 3, 3, grad=True)
    assert conv.status() == {"enabled": False, "devices": [], "calls": {}, "fallbacks": {}}
    with engine():
        for _ in range(3):
            F.conv2d(x, weight).sum().backward()
        status = conv.status()
    assert status["enabled"]
    assert status["devices"] == [DEVICE.type]
    assert sum(status["calls"].values()) == 9  # forward and two gradients, three times
    assert status["fallbacks"] == {}
    F.conv2d(x, weight)
    assert sum(conv.status()["calls"].values()) == 9


@pytest.mark.skipif(DEVICE.type == "cuda", reason="no integer convolution on GPUs, by nobody")
def test_what_is_not_served_is_said_once_and_counted():
    x, weight = torch.ones(1, 2, 4, 4, dtype=torch.int64), torch.ones(3, 2, 2, 2, dtype=torch.int64)
    with engine(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            assert (F.conv2d(x, weight) == 8).all()
        assert (F.conv2d(x[..., 1:], weight) == 8).all()
    assert [str(warning.message) for warning in caught] == ["rocm-patch: PyTorch's own convolution serves a call with dtype torch.int64"]
    assert conv.status()["fallbacks"] == {"dtype torch.int64": 5}
    assert conv.status()["calls"] == {}
