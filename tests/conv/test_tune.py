"""Tuning on the CPU: real children, some of which crash, hang, or compute nonsense."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="tuning measures torch")

from rocm_patch.conv import algorithms, choose, records, stack, store, tune, verify  # noqa: E402
from rocm_patch.conv.problem import parse  # noqa: E402
from rocm_patch.conv.suites import Layer  # noqa: E402

CPU = torch.device("cpu")
PROBLEM = parse("forward float32 n2 c4 k6 g1 i8x7 w3x3 s1x1 p1x1 d1x1 o8x7 bias", CPU)
OTHER = parse("weight float32 n2 c4 k6 g2 i9 w3 s2 p0 d1 o4", CPU)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and nothing known of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records._said.clear()
    store.forget()
    yield tmp_path
    store.forget()


def tuned(*problems, **options):
    return list(tune.tune(problems, budget_ms=0.1, **options))


def verdicts(outcome):
    return {row.algorithm: row.verdict for row in outcome.rows}


def errors(outcome):
    return {row.algorithm: row.error for row in outcome.rows}


@pytest.fixture
def sabotage(tmp_path, monkeypatch):
    """Let im2col do something else in every child from now on; each time it does leaves a line in `deeds`."""

    def put(deed):
        body = "\n            ".join(deed.splitlines())
        (tmp_path / "sitecustomize.py").write_text(f"""
import sys
if any("tune_child" in argument for argument in sys.orig_argv):
    import ctypes, os, time, torch
    from rocm_patch.conv import im2col
    real = im2col.prepare
    runs = [0]
    def prepare(problem, limit):
        inner = real(problem, limit)
        if problem.dtype == torch.float64:
            return inner
        def run(first, second, bias):
            runs[0] += 1
            print("im2col", file=open({str(tmp_path / "deeds")!r}, "a"))
            {body}
            return inner(first, second, bias)
        return run
    im2col.prepare = prepare
""")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    return put


def deeds(cache):
    path = cache / "deeds"
    return len(path.read_text().splitlines()) if path.exists() else 0


# ------------------------------------------------------------------ what comes of it


def test_the_fastest_right_candidate_is_kept_and_chosen():
    before = choose.prepare(PROBLEM, choose.Settings()).name
    outcomes = tuned(PROBLEM, OTHER, PROBLEM)
    assert [outcome.problem for outcome in outcomes] == [PROBLEM.name(), OTHER.name()]
    for outcome, problem in zip(outcomes, (PROBLEM, OTHER), strict=True):
        offered = {algorithm.name for algorithm, _ in choose.candidates(problem, choose.Settings(), 6)}
        assert set(verdicts(outcome)) == offered
        assert outcome.measured == len(outcome.rows) >= 2
        assert outcome.best.verdict == "ok"
        assert outcome.best.microseconds == min(row.microseconds for row in outcome.rows if row.verdict == "ok")
        assert store.best(problem) == outcome.best.key
        choice = choose.prepare(problem, choose.Settings())
        assert (choice.algorithm, choice.variant) == outcome.best.key
    assert choose.prepare(PROBLEM, choose.Settings(tuned=False)).name == before


def test_what_is_stored_is_not_measured_again_unless_asked():
    first = tuned(PROBLEM)[0]
    second = tuned(PROBLEM)[0]
    assert second.measured == 0
    assert second.rows == first.rows
    third = tuned(PROBLEM, again=True)[0]
    assert third.measured == first.measured
    assert third.rows != first.rows


def test_layers_become_the_problems_that_the_engine_will_ask_for():
    from rocm_patch import conv

    plain = Layer("made", "conv", 2, 4, (9, 8), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, (0, 0), True, 1)
    turned = Layer("made", "up", 2, 4, (5,), 6, (3,), (2,), (1,), (1,), 2, True, (1,), True, 1)
    for layer in (plain, turned):
        function = getattr(torch.nn.functional, f"conv{'_transpose' if layer.transposed else ''}{len(layer.size)}d")
        extra = {"output_padding": layer.output_padding} if layer.transposed else {}
        x, weight, bias = (torch.rand(shape, requires_grad=True) for shape in (layer.input_shape, layer.weight_shape, (layer.outputs,)))
        with conv.engine(("cpu",)):
            function(
                x, weight, bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups, **extra
            ).sum().backward()
            seen = conv.problems()[-3:]
        assert seen == [problem.name() for problem in tune.problems_of(layer, torch.float32, CPU)]
    assert len(tune.problems_of(plain, torch.float32, CPU, backward=False)) == 1


# ------------------------------------------------------------------ candidates that fail


@pytest.mark.parametrize(
    ("deed", "verdict", "words"),
    [
        ("ctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("os._exit(3)", "crashed", "exit status 3"),
        ("time.sleep(600)", "hung", "no answer in 6 s"),
        ("raise torch.cuda.OutOfMemoryError('all gone')", "failed", "all gone"),
        ("return inner(first, second, bias) * 1.0001", "wrong", "times its bound"),
        ("return inner(first, second, bias).double()", "wrong", "float64"),
        ("return torch.empty(problem.result_shape)", "wrong", "not finite"),
        ("first.view(-1)[5] += 1", "wrong", "bound"),
        ("result = inner(first, second, bias); first.view(-1)[5] += 1; return result", "wrong", "changed its operands"),
        ("if runs[0] == 2: return inner(first, second, bias) + 1", "wrong", "times its bound"),
    ],
)
def test_one_that_fails_is_remembered_and_the_others_go_on(sabotage, cache, deed, verdict, words):
    sabotage(deed)
    outcome = tuned(PROBLEM, deadline_s=6.0)[0]
    assert verdicts(outcome) == {"im2col": verdict, **{name: "ok" for name in verdicts(outcome) if name != "im2col"}}
    assert words in errors(outcome)["im2col"]
    assert outcome.best.algorithm != "im2col"
    done = deeds(cache)
    assert done >= 1
    assert tuned(PROBLEM)[0].measured == 0
    assert deeds(cache) == done  # it was not tried again
    assert choose.prepare(PROBLEM, choose.Settings()).algorithm != "im2col"
    assert tuned(PROBLEM, again=True, deadline_s=6.0)[0].measured >= 2
    assert deeds(cache) > done


def test_one_that_is_right_only_at_first_is_found_at_the_end(sabotage):
    sabotage("if runs[0] > 2:\n    result = inner(first, second, bias)\n    return result + 1 if result.numel() else result")
    outcome = tuned(PROBLEM)[0]
    row = next(row for row in outcome.rows if row.algorithm == "im2col")
    assert (row.verdict, row.error[:15]) == ("wrong", "not every time:") or outcome.best.algorithm != "im2col"


def test_an_algorithm_that_ends_the_child_again_and_again_is_left_out(sabotage, cache):
    sabotage("os.kill(os.getpid(), 9)")
    names = [f"forward float32 n1 c4 k{filters} g1 i8x7 w3x3 s1x1 p1x1 d1x1 o8x7" for filters in range(2, 6)]
    outcomes = tuned(*[parse(name, CPU) for name in names])
    assert [verdicts(outcome).get("im2col") for outcome in outcomes] == ["crashed"] * tune.FAILURES + [None]
    assert all(outcome.best for outcome in outcomes)
    assert deeds(cache) == tune.FAILURES


def test_a_child_that_cannot_even_begin_stops_it(cache, monkeypatch):
    with pytest.raises(tune.StoppedError, match="cannot be run"):
        tuned(PROBLEM, interpreter=(str(cache / "no-python"),))
    (cache / "sitecustomize.py").write_text("import sys\nif 'rocm_patch.conv.tune_child' in sys.orig_argv: sys.exit('no torch today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(cache), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(tune.StoppedError, match="before it measures"):
        tuned(PROBLEM, OTHER, dataclasses.replace(PROBLEM, batch=3))


# ------------------------------------------------------------------ ends of a run


def begun(problem, algorithm, boot):
    records.record(stack.fingerprint(CPU), [records.Measured(problem.name(), algorithm, (), "started", error=boot)])


def test_what_was_begun_in_another_boot_took_the_machine_down():
    begun(PROBLEM, "im2col", "boot of yesterday")
    outcome = tuned(PROBLEM)[0]
    assert verdicts(outcome)["im2col"] == "hung"
    assert "machine went down" in errors(outcome)["im2col"]
    assert outcome.best.algorithm != "im2col"


def test_what_was_begun_in_this_boot_was_interrupted():
    begun(PROBLEM, "im2col", tune._boot())
    assert verdicts(tuned(PROBLEM)[0])["im2col"] == "ok"


def test_ctrl_c_keeps_what_is_done_and_nothing_that_is_not():
    def progress(text):
        if text == OTHER.name():
            raise KeyboardInterrupt

    run = tune.tune([PROBLEM, OTHER], budget_ms=0.1, progress=progress)
    first = next(run)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    rows = records.read(stack.fingerprint(CPU))
    assert {row.problem for row in rows} == {first.problem}
    assert tuned(PROBLEM)[0].measured == 0


def test_closing_in_the_middle_takes_back_what_was_begun(sabotage):
    sabotage("time.sleep(3)")
    seen = []

    class Watcher(tune._Tuner):
        def write(self, *begun):
            super().write(*begun)
            if begun and begun[0].algorithm == "im2col":
                seen.append({row.algorithm for row in records.read(self.stack)})
                raise KeyboardInterrupt

    tuner = Watcher(CPU, choose.Settings(), 6, False, 30.0, 0.1, lambda text: None, (sys.executable,))
    with pytest.raises(KeyboardInterrupt):
        tuner.problem(PROBLEM)
    process = tuner.child.process
    tuner.close()
    assert "im2col" in seen[0]  # on disk before it began
    assert records.read(tuner.stack) == []
    assert process.returncode == -signal.SIGKILL


def test_the_child_dies_with_a_tuner_that_is_killed(sabotage, cache):
    sabotage(f"open({str(cache / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    code = "import torch; from rocm_patch.conv import tune, problem\n"
    code += f"list(tune.tune([problem.parse({PROBLEM.name()!r}, torch.device('cpu'))]))"
    tuner = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not ((cache / "pid").exists() and (cache / "pid").read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    child = int((cache / "pid").read_text())
    tuner.kill()
    tuner.wait()
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < until, "it outlived its parent"
        time.sleep(0.05)
    begun = [row for row in records.read(stack.fingerprint(CPU)) if row.verdict == "started"]
    assert [row.algorithm for row in begun] == ["im2col"]


def test_nothing_can_be_stored_and_that_is_said(monkeypatch, cache):
    (cache / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "occupied"))
    said = []
    outcome = tuned(PROBLEM, progress=said.append)[0]
    assert outcome.best is not None
    assert [text for text in said if "nothing can be stored" in text] == said[1:2]


# ------------------------------------------------------------------ right and wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "forward float32 n2 c8 k6 g2 i9x8 w3x3 s1x1 p1x1 d1x1 o9x8 bias",
        "input float32 n2 c8 k6 g2 i9x8 w3x3 s2x2 p1x1 d1x1 o5x4 bias",
        "weight float32 n4 c3 k5 g1 i40x40 w3x3 s1x1 p1x1 d1x1 o40x40",
        "forward float32 n1 c512 k2 g1 i6x6 w3x3 s1x1 p1x1 d1x1 o6x6",
    ],
)
def test_right_results_are_well_within_the_bound_and_one_product_too_few_is_not(name, dtype):
    problem = dataclasses.replace(parse(name, CPU), dtype=dtype)
    case = verify.case(problem, 3)
    result = case.values.to(dtype)
    assert verify.check(case, result, "native", ()) == ""
    for algorithm, variant in choose.candidates(problem, choose.Settings(), 6):
        found = verify.error(case, algorithm.prepare(problem, variant, 1 << 28)(*case.operands), algorithm.name, variant)
        assert found < 0.7, (algorithm.name, found)
    if dtype in (torch.float32, torch.float64):
        missing = case.values - case.sums.double() / problem.reduction
        assert verify.error(case, missing.to(dtype), "native", ()) > 1
    nan = result.clone()
    nan.view(-1)[-1] = math.nan
    assert "not finite" in verify.check(case, nan, "native", ())


def test_the_reference_is_another_computation():
    """im2col in float64, which serves large problems on a GPU, against PyTorch's own."""
    problem = dataclasses.replace(PROBLEM, dtype=torch.float64)
    case = verify.case(problem, 5)
    run = algorithms.BY_NAME["im2col"].prepare(problem, (), 1 << 28)
    assert verify.check(case, run(*case.operands), "im2col", ()) == ""


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("operation", ["forward", "input", "weight"])
def test_a_reference_of_the_device_is_confirmed_by_the_cpu_or_not_taken(operation, groups):
    problem = parse(f"{operation} float32 n3 c8 k6 g{groups} i9x8 w3x2 s2x1 p1x0 d1x1 o5x7{' bias' * (operation != 'weight')}", CPU)
    case = verify.case(problem, 7)
    assert verify.confirmed(problem, case.operands, case.values)
    assert not verify.confirmed(problem, case.operands, case.values * (1 + 1e-9))


def test_poison_shows_and_is_gone_after():
    with verify.poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty((2, 2), dtype=torch.float16).isnan().all()
        assert torch.ones(2).new_empty(4).isnan().all()
        assert torch.empty(2, dtype=torch.int32).shape == (2,)
    assert torch.empty.__name__ == "empty"
    torch.ones(1).new_empty(2)
