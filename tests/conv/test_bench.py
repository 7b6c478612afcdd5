"""Measuring convolutions, on the CPU and with shapes that take no time; the figures themselves are nobody's test."""

import contextlib
import json
import math
import os
import signal
from dataclasses import asdict, replace

import pytest

torch = pytest.importorskip("torch", reason="the bench measures torch")

from rocm_patch import conv  # noqa: E402
from rocm_patch.conv import bench, bench_isolated, bench_report  # noqa: E402
from rocm_patch.conv.bench import Row, Settings, Timer  # noqa: E402
from rocm_patch.conv.suites import Layer  # noqa: E402

LAYER = Layer("made", "conv", 2, 4, (6, 5), 6, (3, 2), (1, 1), (1, 0), (1, 1), 2, False, (0, 0), True, 1)
SMALL = (
    LAYER,
    Layer("made", "line", 2, 3, (9,), 4, (3,), (2,), (0,), (2,), 1, False, (0,), False, 1),
    Layer("made", "cube", 1, 2, (4, 4, 4), 3, (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1, False, (0, 0, 0), True, 2),
    Layer("other", "up", 2, 4, (3, 3), 2, (3, 3), (2, 2), (1, 1), (1, 1), 1, True, (1, 1), True, 1),
)
CPU = Settings(device="cpu", alternatives=("vendor", "native"), budget_ms=0.1)


def switches():
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch._C._get_mkldnn_enabled()


@pytest.mark.parametrize("alternative", bench.ALTERNATIVES)
def test_an_alternative_switches_and_restores(alternative):
    before = switches()
    inside = []
    with contextlib.suppress(ZeroDivisionError), bench.switched(alternative):
        inside = switches()
        raise ZeroDivisionError
    enabled, _, *tf32, onednn = inside
    assert (enabled, onednn) == ((True, True) if alternative in ("vendor", "cpu") else (False, False))
    assert tf32 == [False, False]
    assert switches() == before


@pytest.mark.parametrize("alternative", ["vendor", "native", "engine"])
def test_an_engine_that_is_on_is_on_again_after(alternative):
    before = switches()
    with conv.engine(workspace=2**20):
        inside = switches()
        with bench.switched(alternative):
            assert conv.status()["devices"] == (["cuda", "cpu"] if alternative == "engine" else [])
        assert conv.status()["devices"] == ["cuda", "cpu"]
        next(bench.run([LAYER], replace(CPU, alternatives=(alternative,))))
        assert conv.status()["devices"] == ["cuda", "cpu"]
        assert switches() == inside
    assert not conv.status()["enabled"]
    assert switches() == before


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.layer)
def test_the_operation_gives_the_layer_and_its_gradients(layer):
    (forward,) = bench.operation(layer, "forward", "cpu", torch.float64)()
    assert tuple(forward.shape) == layer.output_shape
    assert not forward.requires_grad
    result, *gradients = bench.operation(layer, "forward+backward", "cpu", torch.float64)()
    assert torch.equal(result, forward)  # the same numbers every time
    assert [tuple(gradient.shape) for gradient in gradients] == [layer.input_shape, layer.weight_shape, *([(layer.outputs,)] if layer.bias else [])]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_rows_of_every_layer_and_direction():
    rows = list(bench.run(SMALL, CPU))
    assert [(row.suite, row.layer, row.direction) for row in rows] == [(layer.suite, layer.layer, way) for layer in SMALL for way in bench.DIRECTIONS]
    for row in rows:
        assert row.vendor_ms > 0
        assert row.native_ms > 0
        assert row.engine_ms is None
        assert row.difference < 1e-5
        assert row.note == ""
    assert rows[1].gflop == pytest.approx(3 * LAYER.flops / 1e9)


@pytest.mark.parametrize("blas", [True, False])
def test_the_engine_is_measured_and_says_what_it_took(blas):
    rows = list(bench.run(SMALL, replace(CPU, alternatives=("engine", "native"), blas=blas)))
    for row in rows:
        assert row.note == ""
        assert row.engine_ms > 0
        assert row.algorithm
        assert row.peak_bytes is None  # the CPU's allocator does not count
        assert row.difference < 1e-5


def test_an_alternative_that_raises_is_a_note():
    wrong = replace(LAYER, groups=3)
    row = bench.measure(wrong, "forward", CPU, Timer("cpu"))
    assert row.vendor_ms is None
    assert row.native_ms is None
    assert "vendor: RuntimeError" in row.note
    assert "native: RuntimeError" in row.note


def test_calls_take_turns():
    order = []
    timed = [bench.Timed(name, "native", lambda name=name: order.append(name)) for name in "ab"]
    timer = Timer("cpu")
    for one in timed:
        one.done_s = 1.0
    times = bench.in_turns(timed, timer, 1.0)
    assert "".join(order) == "abbaabbaab"
    assert set(times) == {"a", "b"}


ROWS = [
    Row("one", "x", "float32", "forward", 2.0, 1.0, 2.0, 4.0, algorithm="implicit", peak_bytes=2**20, difference=1e-7),
    Row("one", "y", "float32", "forward", 2.0, 8.0, 1.0, 4.0, algorithm="gemm"),
    Row("two", "z", "float32", "forward", 2.0, 2.0, None, 4.0, note="vendor: signal SIGSEGV"),
]


def test_means_and_worst():
    assert bench_report.mean_ratio(ROWS, "engine", "vendor") == pytest.approx(math.sqrt(0.5 * 8))
    assert bench_report.mean_ratio(ROWS, "engine", "native") == pytest.approx((0.25 * 2 * 0.5) ** (1 / 3))
    assert bench_report.mean_ratio(ROWS[2:], "engine", "vendor") is None
    assert [row.layer for _, row in bench_report.worst(ROWS, "engine", "vendor", 5)] == ["y", "x"]


def test_tables_hold_every_row():
    text = bench_report.layers_table(ROWS)
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [["one", "x"], ["one", "y"], ["two", "z"]]
    assert "SIGSEGV" in text
    markdown = bench_report.layers_table(ROWS, markdown=True).splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert set(markdown[1]) <= set("| -:")
    assert bench_report.means_table(ROWS).splitlines()[1].split()[:4] == ["all", "forward", "3", "2.000"]


def test_the_document_has_rows_with_the_contract_s_names():
    document = json.loads(bench_report.document(ROWS, {"device": "none"}))
    assert document["geometric_means"]["forward"]["engine/vendor"] == pytest.approx(2.0)
    names = {"suite", "layer", "dtype", "direction", "engine_ms", "vendor_ms", "native_ms", "algorithm", "peak_bytes"}
    assert names <= set(document["rows"][0])
    assert [Row(**row) for row in document["rows"]] == ROWS


def test_isolated_rows_are_the_same_ones():
    rows = list(bench_isolated.run(SMALL[:2], CPU))
    assert [(row.layer, row.direction) for row in rows] == [(layer.layer, way) for layer in SMALL[:2] for way in bench.DIRECTIONS]
    assert all(row.vendor_ms > 0 and row.native_ms > 0 and row.note == "" for row in rows)


# What the child runs: the real module, and a vendor's library that kills it, exits, hangs, or prints to standard output first.
FATAL = """
import os, signal, sys, time
from rocm_patch.conv import bench
real = bench.switched
def switched(alternative, blas=True):
    if alternative == "vendor":
        {deed}
    return real(alternative, blas)
bench.switched = switched
"""


@pytest.mark.parametrize(
    ("deed", "word", "deadline_s"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "vendor: signal SIGSEGV", 60.0),
        ("print('{\"row\": 1}'); print('bad luck', file=sys.stderr); os._exit(7)", "vendor: exit status 7: bad luck", 60.0),
        ("time.sleep(600)", "vendor: no answer in 6 s", 6.0),
    ],
)
def test_a_vendor_that_ends_the_child_costs_its_own_figure_only(deed, word, deadline_s, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FATAL.format(deed=deed))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    rows = list(bench_isolated.run([LAYER], replace(CPU, directions=("forward",)), deadline_s))
    assert len(rows) == 1
    assert rows[0].vendor_ms is None
    assert rows[0].native_ms > 0
    assert rows[0].note.startswith(word)


def test_an_alternative_that_fails_again_and_again_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FATAL.format(deed="os.kill(os.getpid(), signal.SIGKILL)"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    layers = [replace(LAYER, layer=str(index)) for index in range(bench_isolated.FAILURES + 1)]
    rows = list(bench_isolated.run(layers, replace(CPU, directions=("forward",)), 60.0))
    assert [row.note.split(";")[0] for row in rows] == ["vendor: signal SIGKILL"] * 3 + ["vendor: not tried, it failed on 3 layers"]
    assert all(row.native_ms > 0 for row in rows)


def test_no_child_is_left_behind():
    child = bench_isolated.Child(CPU)
    child.measure(LAYER, "forward", ("native",), 60.0)
    child.end()
    with pytest.raises(ProcessLookupError):
        os.kill(child.process.pid, 0)  # waited for, so its number is free
    assert child.process.returncode == -signal.SIGKILL
    child.errors.close()


def test_requests_and_answers_are_json():
    request = json.loads(json.dumps({"layer": asdict(LAYER), "settings": asdict(CPU)}))
    assert Layer(**bench_isolated._tuples(request["layer"])) == LAYER
    assert Settings(**bench_isolated._tuples(request["settings"])) == CPU
