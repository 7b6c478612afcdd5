"""Where a prepared call must not be reused, where the surroundings of a call must not change its values, and what may lie in the cache folder."""

import os
import signal
import stat
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the engine works on torch's tensors")

import torch.nn.functional as F  # noqa: E402

from rocm_patch import conv  # noqa: E402
from rocm_patch.conv import choose, direct_shape, dispatch, launch, runtime, stack, winograd  # noqa: E402
from rocm_patch.conv.algorithms import ALGORITHMS  # noqa: E402
from rocm_patch.conv.problem import Problem  # noqa: E402

CANDIDATES = choose.candidates
PLAIN = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)


@pytest.fixture
def engine():
    dispatch.forget()
    with conv.engine(devices=("cpu",), tuned=False):
        yield
    dispatch.forget()


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("window", [1, 3])
def test_autocast_around_a_backward_changes_nothing(engine, window):
    image, weight = torch.randn(4, 8, 9, 9, requires_grad=True), torch.randn(8, 8, window, window, requires_grad=True)
    expected = torch.autograd.grad(F.conv2d(image, weight).sum(), (image, weight))
    result = F.conv2d(image, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(result.sum(), (image, weight))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_autocast_around_the_operator_itself_changes_nothing(engine):
    image, weight = torch.randn(4, 8, 9, 9), torch.randn(8, 8, 3, 3)
    expected = F.conv2d(image, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.ops.aten.convolution(image, weight, None, *PLAIN)
        layer = F.conv2d(image, weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert layer.dtype == torch.bfloat16  # a layer is autocast, above us


@pytest.mark.parametrize("turned_first", [False, True])
def test_the_format_of_one_channel_goes_by_its_strides(engine, turned_first):
    if not hasattr(torch._C, "_conv_determine_backend_memory_format"):
        pytest.skip("this torch does not say what format its convolution promises")
    weight, image = torch.randn(16, 1, 3, 3), torch.randn(2, 1, 8, 8)
    turned = image.as_strided(image.shape, (64, 1, 8, 1))
    assert image.is_contiguous()
    assert turned.is_contiguous()
    for each in (turned, image) if turned_first else (image, turned):
        ours = F.conv2d(each, weight).stride()
        conv.disable()
        theirs = F.conv2d(each, weight).stride()
        conv.enable(devices=("cpu",), tuned=False)
        assert ours == theirs


class Elsewhere(torch.Tensor):
    """Says that it lies on a second GPU."""

    def get_device(self):
        return 1


def test_a_prepared_call_is_not_for_a_weight_of_another_device(engine):
    """A kernel reads the weight by its address: of a module left on the CPU that would be a fault of the GPU."""
    image, weight, result = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(1, 6, 3, 3)
    dispatch.convolution(image, weight, None, *PLAIN)
    dispatch.convolution_backward(result, image, weight, None, *PLAIN, [True, True, False])
    before = len(dispatch._forward), len(dispatch._backward)
    there = weight.as_subclass(Elsewhere)
    dispatch.convolution(image, there, None, *PLAIN)
    dispatch.convolution_backward(result, image, there, None, *PLAIN, [True, True, False])
    dispatch.convolution_backward(result.as_subclass(Elsewhere), image, weight, None, *PLAIN, [True, True, False])
    assert (len(dispatch._forward), len(dispatch._backward)) == (before[0] + 1, before[1] + 2)


@pytest.mark.filterwarnings("ignore:rocm-patch")
@pytest.mark.parametrize("shape", [(1, 6, 7, 7), (1, 7, 3, 3)])
def test_a_gradient_of_another_shape_is_pytorchs_to_refuse(engine, shape):
    arguments = (torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), None, *PLAIN, [True, True, False])
    before = dispatch.fallbacks["a gradient of another shape than the result's"]
    with pytest.raises(RuntimeError, match=r"Expected a tensor|[Mm]ismatch|shape"):
        torch.ops.aten.convolution_backward(torch.randn(shape), *arguments)
    assert dispatch.fallbacks["a gradient of another shape than the result's"] == before + 1


@pytest.mark.filterwarnings("ignore:rocm-patch")
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_an_input_of_too_few_dimensions_is_refused_in_pytorchs_words(engine, shape):
    with pytest.raises(RuntimeError, match="Expected|dimension"):
        torch.ops.aten.convolution(torch.randn(shape), torch.randn(2, 3, 3, 3), None, *PLAIN)


@pytest.mark.filterwarnings("ignore:rocm-patch")
def test_gradients_of_an_empty_batch(engine):
    image, weight, bias = torch.randn(0, 4, 6, 6), torch.randn(5, 4, 3, 3, requires_grad=True), torch.randn(5, requires_grad=True)
    image.requires_grad_()
    F.conv2d(image, weight, bias).sum().backward()
    assert image.grad.shape == image.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros(5))


# ------------------------------------------------------------------ a process


def test_what_is_kept_of_shapes_that_never_come_again_is_bounded(engine, monkeypatch):
    monkeypatch.setattr(dispatch, "MOST_KEPT", 8)
    weight = torch.randn(1, 1, 3)
    for size in range(3, 40):
        F.conv1d(torch.randn(1, 1, size), weight)
    assert 0 < len(dispatch._forward) <= 8
    assert 0 < len(conv.problems()) <= 8


def test_a_worker_forked_while_a_kernel_is_compiled(engine):
    with choose._PREPARING:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            with choose._PREPARING:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("text", ["garbage", "-5", "1e3", "9" * 20, "٣"])
def test_a_workspace_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("ROCM_PATCH_CONV_WORKSPACE", text)
    with pytest.raises(ValueError, match="ROCM_PATCH_CONV_WORKSPACE"):
        conv.enable(devices=("cpu",))
    assert not conv.status()["enabled"]


def test_a_workspace_that_is_set_to_nothing(monkeypatch):
    monkeypatch.setenv("ROCM_PATCH_CONV_WORKSPACE", "")
    with conv.engine(devices=("cpu", "cpu")):
        assert dispatch._settings.workspace == 256 << 20
        assert conv.status()["devices"] == ["cpu"]


def test_what_the_program_says_of_the_vendors_switch_stays():
    before = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = False
        conv.enable(devices=("cuda",))
        torch.backends.cudnn.enabled = True
        conv.disable()
        assert torch.backends.cudnn.enabled
    finally:
        conv.disable()
        torch.backends.cudnn.enabled = before


# ------------------------------------------------------------------ compiled kernels are code


KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.keep(KEY, b"code")
    assert runtime.cached(KEY) == b"code"
    return runtime.cache_folder()


def test_a_kernel_under_another_ones_key_is_none(folder):
    os.replace(folder / KEY, folder / OTHER)
    assert runtime.cached(OTHER) is None


@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_a_kernel_that_others_may_write_is_none(folder, bit):
    os.chmod(folder / KEY, 0o600 | bit)
    assert runtime.cached(KEY) is None
    runtime.keep(KEY, b"code")
    assert runtime.cached(KEY) == b"code"


def test_a_kernel_of_another_user_is_none(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(folder / KEY, 65534, 65534)
    assert runtime.cached(KEY) is None


def test_a_pipe_in_the_place_of_a_kernel_holds_nobody_up(folder):
    os.mkfifo(folder / OTHER)
    code = f"from rocm_patch.conv import runtime; assert runtime.cached({OTHER!r}) is None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_a_home_nothing_is_written_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    runtime.keep(KEY, b"code")
    assert runtime.cached(KEY) is None
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ what a GPU refuses to launch


class Launched:
    """A kernel that does nothing but what a driver does first."""

    def launch(self, grid, block, arguments):
        assert max(grid[1:]) <= 65535


class Driver:
    target = "none"

    def kernel(self, source, name, defines):
        return Launched()


@pytest.mark.parametrize("operation", ["forward", "input", "weight"])
@pytest.mark.parametrize(
    ("groups", "width", "stride"), [(65536, 1, 1), (20000, 1, 2), (40000, 3, 1), (65535, 1, 1)], ids=["groups", "phases", "tiles", "most"]
)
def test_no_grid_is_larger_than_a_gpu_takes(monkeypatch, operation, groups, width, stride):
    monkeypatch.setitem(runtime.EXTRA, "cpu", Driver())
    runtime.runtime_of.cache_clear()
    runtime.missing.cache_clear()
    size, channels = (3 + stride - 1) // stride, groups * width
    problem = Problem(
        operation, torch.device("cpu"), torch.float32, 1, channels, channels, groups, (3, 3), (size, size), (3, 3), (stride,) * 2, (1, 1), (1, 1)
    )
    shapes = {"forward": (problem.image_shape, problem.weight_shape), "input": (problem.map_shape, problem.weight_shape)}
    first, second = (torch.zeros(shape) for shape in shapes.get(operation, (problem.map_shape, problem.image_shape)))
    ran = 0
    try:
        for row, variant in choose.candidates(problem, choose.Settings(tuned=False), most=8):
            if row.kernels:
                row.prepare(problem, variant, 256 << 20)(first, second, None)
                ran += 1
    finally:
        runtime.runtime_of.cache_clear()
        runtime.missing.cache_clear()
    assert ran or groups > 65535


class Refusing:
    """A driver that takes every kernel and launches none."""

    target = "refusing"

    def kernel(self, source, name, defines):
        return self

    def launch(self, grid, block, arguments):
        raise runtime.KernelError("the launch was refused with error 98")


def test_a_launch_that_is_refused_costs_one_row_and_no_training(monkeypatch):
    image, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)

    def step():
        result = F.conv2d(image, weight)
        return result, *torch.autograd.grad(result.sum(), (image, weight))

    expected = step()
    monkeypatch.setattr(choose, "_refused", {})
    monkeypatch.setattr(choose, "candidates", lambda *given: sorted(CANDIDATES(*given), key=lambda one: not one[0].kernels))
    monkeypatch.setitem(runtime.EXTRA, "cpu", Refusing())
    runtime.runtime_of.cache_clear()
    runtime.missing.cache_clear()
    dispatch.forget()
    try:
        with conv.engine(devices=("cpu",), tuned=False):
            with pytest.warns(RuntimeWarning, match="the launch was refused with error 98"):
                found = step()
            served = dict(dispatch.calls)
            step()  # without another warning, which would be an error
        new = {name for name, number in dispatch.calls.items() if number != served.get(name, 0)}
    finally:
        dispatch.forget()
        runtime.runtime_of.cache_clear()
        runtime.missing.cache_clear()
    assert new
    assert not any(row.kernels for row in ALGORITHMS if row.name in {name.split(":")[0] for name in new})
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [direct_shape, launch, winograd], ids=lambda module: module.__name__)
def test_a_measurement_does_not_outlive_the_code_that_was_measured(module, monkeypatch, tmp_path):
    changed = tmp_path / "changed.py"
    changed.write_text("# another launch\n")
    before = stack.kernels_hash.__wrapped__()
    monkeypatch.setattr(module, "__file__", str(changed))
    assert stack.kernels_hash.__wrapped__() != before
