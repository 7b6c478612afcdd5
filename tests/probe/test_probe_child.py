"""child.py: what it computes and how it tells it. With a real torch where there is one, by pretence where it does not matter."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from probe_support import probe

from rocm_patch.probe import Kit, Table, child, load, parent, table, verdict

CHILD = str(Path(table.FOLDER, "child.py"))
LOAD = f"""
import importlib.util, math, os, sys, time
found = importlib.util.spec_from_file_location("child", {CHILD!r})
child = importlib.util.module_from_spec(found)
found.loader.exec_module(child)
"""


def pretended(folder: Path, body: str) -> Kit:
    """The real child with another `probe` function, so without torch; `body` may use `tell` and `spec`."""
    script = folder / "pretended.py"
    function = "def probe(tell, spec):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    script.write_text(f"{LOAD}{function}\nchild.probe = probe\nchild.main()\n")
    rows = load()
    brief = replace(rows.find("elementwise"), deadline=1.0, dtypes=("float32",))
    return Kit(replace(rows, probe=(rows.find("device"), brief)), str(script))


def run_torch(interpreter: str, body: str) -> str:
    done = subprocess.run([interpreter, "-c", LOAD + "import torch\n" + textwrap.dedent(body)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------ the language


def test_it_parses_as_python_3_8():
    ast.parse(Path(CHILD).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("name", ["python3.8", "python3.9", "python3.10", "python3.12", "python3.13", "python3.14"])
def test_other_pythons_run_it(bench, name):
    kept = sorted(Path(os.environ.get("PYENV_ROOT", "/nowhere")).glob(f"versions/*/bin/{name}"))
    found = str(kept[-1]) if kept else shutil.which(name)
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {name} here")
    wrapper = bench.folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {found} -S "$@"\n')  # without its site-packages, so without torch
    wrapper.chmod(0o755)
    trials = bench.run(Kit(), interpreter=str(wrapper), only=["elementwise"])
    assert (trials.trials[0].verdict, trials.trials[0].detail) == ("error", "in stage import: ModuleNotFoundError: No module named 'torch'")
    assert {trial.verdict for trial in trials.trials[1:]} == {"skipped"}


def test_it_imports_nothing_of_ours():
    names = {node.module if isinstance(node, ast.ImportFrom) else alias.name for node in ast.walk(ast.parse(Path(CHILD).read_text()))
             if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}  # fmt: skip
    assert names <= sys.stdlib_module_names | {"__future__"}


# ------------------------------------------------------------------ how it tells


def test_stages_facts_and_an_end(bench, tmp_path):
    body = """
    if spec["workload"] == "device":
        tell.line(event="facts", facts=dict(torch="0", built="cpu", kind="cpu", name="CPU", count=0))
        return
    with tell.stage("forward"):
        print("noise on stdout")
    tell.line(event="value", stage="forward", name="forward", error=1e-9, bound=1e-6, broken=0, elements=1)
    """
    trials = bench.run(pretended(tmp_path, body))
    assert [trial.verdict for trial in trials.trials] == ["passed", "passed"]
    assert (trials.trials[1].errors, trials.trials[1].bounds) == ({"forward": 1e-9}, {"forward": 1e-6})


@pytest.mark.parametrize(
    ("body", "word", "detail"),
    [
        ("with tell.stage('grad_bias'): raise RuntimeError('out of luck')", "error", "in stage grad_bias: RuntimeError: out of luck"),
        ("with tell.stage('forward'): raise RuntimeError('HIP error: unspecified launch failure')", "crash", "GPU fault in stage forward"),
        (
            "tell.line(event='begin', stage='copy'); tell.line(event='error', stage='copy', type='RuntimeError', text='cublasCreate failed');"
            "tell.line(event='after', text='CUDA error: an illegal memory access\\nwas encountered'); os._exit(1)",
            "crash",
            "GPU fault in stage copy: CUDA error: an illegal memory access was encountered",
        ),
        ("with tell.stage('grad_input'): os.abort()", "crash", "SIGABRT in stage grad_input"),
        ("with tell.stage('forward'): time.sleep(60)", "hang", "no end after 1 s, in stage forward"),
        ("with tell.stage('forward'): sys.exit(4)", "error", "exit code 4 in stage forward"),
    ],
)
def test_whatever_happens_is_ascribed_to_its_stage(bench, tmp_path, body, word, detail):
    facts = "if spec['workload'] == 'device': return tell.line(event='facts', facts=dict(torch='0', built='cpu', kind='cpu', name='CPU', count=0))\n"
    trial = bench.run(pretended(tmp_path, facts + body)).trials[1]
    assert (trial.verdict, trial.detail[: len(detail)]) == (word, detail)


def start(folder, body, **spec):
    """The real main() in a process of its own, whose parent is another that we can kill."""
    pretended(folder, body)
    spec = json.dumps({"fd": 1, "workload": "x", **spec})
    command = f"[sys.executable, {str(folder / 'pretended.py')!r}, {spec!r}]"
    script = f"import subprocess, sys; child = subprocess.Popen({command}); print(child.pid, flush=True); child.wait()"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if parent.remains(parent._stats(pid)) == "gone":
            return True
        time.sleep(0.02)
    return False


def test_it_dies_with_its_parent(tmp_path):
    with start(tmp_path, "with tell.stage('forward'): time.sleep(60)") as middle:
        pid = int(middle.stdout.readline())
        assert '"start"' in middle.stdout.readline()
        assert '"forward"' in middle.stdout.readline()
        assert not gone(pid, 0.2)
        middle.kill()
        assert gone(pid)


def test_it_sets_itself_an_alarm(tmp_path):
    """Should nobody be left to end it."""
    body = "print(int(__import__('signal').getitimer(0)[0] + 0.5), flush=True)"
    with start(tmp_path, body, deadline=12.5) as middle:
        assert "42" in middle.stdout.read().splitlines()


def test_term_shows_where_it_hangs(bench, tmp_path):
    script = pretended(tmp_path, "def wedge(): time.sleep(60)\nwedge()").child
    ending = parent.execute(
        lambda fd: [sys.executable, script, json.dumps({"fd": fd, "workload": "x"})],
        deadline=1, environment=bench.environment(), folder=str(tmp_path), memory=1 << 30,
    )  # fmt: skip
    assert ending.ended_by_us == "deadline"
    assert b"in wedge" in ending.output


# ------------------------------------------------------------------ the bound


def test_the_bound_grows_as_the_reasoning_says():
    assert child.bound("float32", 0) == 16 * 2.0**-24
    assert child.bound("float32", 576) == pytest.approx(9.25e-5, rel=0.01)
    assert child.bound("float16", 27) == pytest.approx(7.8e-3, rel=0.02)
    assert child.bound("float32", 4 * 576) - child.bound("float32", 0) == pytest.approx(2 * (child.bound("float32", 576) - child.bound("float32", 0)))
    for dtype in ("float32", "float16"):
        assert all(child.bound(dtype, 1 << 20) < limit for limit in (0.18, 1.0)), "one wrong channel of 64, nothing written"


@pytest.mark.torch
def test_compare_finds_what_is_wrong(torch_python):
    told = run_torch(torch_python, """
    torch.manual_seed(0)
    right = torch.randn(1, 64, 224, 224, dtype=torch.float64)
    def show(name, change, dtype=torch.float32):
        value = right.to(dtype)
        change(value)
        error, broken = child.compare(value, right)
        print(name, error, broken, child.bound(str(dtype).split(".")[1], 576))
    show("sound", lambda v: None)
    show("half", lambda v: None, torch.float16)
    show("element", lambda v: v[0, 3, 5, 7].add_(1.5))
    show("channel", lambda v: v[0, 9].zero_(), torch.float16)
    show("nothing", lambda v: v.zero_())
    show("shifted", lambda v: v.copy_(v.roll(1, 3)))
    show("nan", lambda v: v[0, 0, 0, 0].fill_(math.nan), torch.float16)
    show("inf", lambda v: v[0, 0, 0, :2].fill_(-math.inf), torch.float16)
    show("allnan", lambda v: v.fill_(math.nan))
    """)  # fmt: skip
    found = {name: (float(error), int(broken), float(bound)) for name, error, broken, bound in map(str.split, told.splitlines())}
    for name in ("sound", "half"):
        assert found[name][0] < found[name][2] / 10
        assert found[name][1] == 0
    for name in ("element", "channel", "nothing", "shifted", "allnan"):
        assert found[name][0] > found[name][2], name
    assert (found["nan"][1], found["inf"][1], found["allnan"][1]) == (1, 2, 64 * 224 * 224)
    assert found["nothing"][0] == found["allnan"][0] == 1.0


@pytest.mark.torch
def test_a_wrong_shape_is_an_error(torch_python):
    told = run_torch(torch_python, """
    try: child.compare(torch.zeros(3), torch.zeros(4))
    except ValueError as error: print(error)
    """)  # fmt: skip
    assert told.strip() == "shape (3,) where (4,) was promised"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([(0.0, 1)], "forward: 1 of 9 values are not finite"),
        ([(1.0, 0)], "forward: relative error 1 where rounding explains 1e-06 at most"),
        ([(1e-9, 0), (0.5, 0)], "forward: relative error 0.5 where rounding explains 1e-06 at most, and it differs when repeated"),
    ],
)
def test_wrong_values_are_told(values, words):
    lines = [{"event": "value", "stage": "forward", "name": "forward", "bound": 1e-6, "elements": 9, "error": e, "broken": b} for e, b in values]
    lines.append({"event": "end"})
    raw = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    ending = parent.Ending(0, "", False, 1.0, 1.0, "", 0, raw, False, b"", 0)
    trial = verdict.judge(probe(), "any", "float32", ending, 20)
    assert (trial.verdict, trial.detail) == ("wrong", words)


# ------------------------------------------------------------------ a real torch


def only_cpu(*names: str, **changes: object) -> Kit:
    rows = load()
    return Kit(Table(rows.schema, rows.date, rows.configuration, (rows.find("device"), *(replace(rows.find(name), **changes) for name in names))))


@pytest.mark.torch
@pytest.mark.slow
def test_the_quick_set_passes_on_the_cpu(bench, torch_python):
    trials = bench.run(Kit(), device="cpu", interpreter=torch_python, quick=True, environment=dict(os.environ, PROBE_TEST_MARK=bench.marked))
    assert {trial.verdict for trial in trials.trials} == {"passed"}, trials
    assert [(trial.probe, trial.configuration) for trial in trials.trials] == [
        ("device", "any"), ("elementwise", "any"), ("gemm", "any"), ("conv-32-3x64", "cpu"), ("conv-32-64x64", "cpu"),
        ("conv-44-3x64", "cpu"), ("conv-44-64x64", "cpu"), ("batch-norm", "cpu")]  # fmt: skip
    assert all(trial.errors[name] < trial.bounds[name] / 3 for trial in trials.trials for name in trial.errors), "room for another library"
    assert set(trials.trials[3].errors) == {"forward", "grad_input", "grad_weight", "grad_bias"}
    assert set(trials.trials[7].errors) == {"forward", "grad_input", "grad_weight", "grad_bias", "running_mean", "running_var"}


@pytest.mark.torch
def test_with_no_tolerance_sound_arithmetic_is_wrong(bench, torch_python):
    """So the comparison does look: float32 can never equal float64."""
    trials = bench.run(only_cpu("gemm", tolerance=0.0, dtypes=("float32",)), device="cpu", interpreter=torch_python)
    assert trials.trials[1].verdict == "wrong"
    assert trials.trials[1].detail.count("where rounding explains 0 at most") == 3


@pytest.mark.torch
def test_what_a_child_computes_is_the_same_each_time(bench, torch_python):
    first, second = (bench.run(only_cpu("conv-32-3x64", dtypes=("float32",)), device="cpu", interpreter=torch_python).trials[1] for _ in range(2))
    assert first.errors == second.errors
    assert all(0 < error < 1e-5 for error in first.errors.values()), "random inputs, not zeros"


@pytest.mark.torch
def test_a_cpu_torch_has_no_gpu(bench, torch_python):
    if run_torch(torch_python, "print(torch.version.hip or torch.version.cuda)").strip() != "None":
        pytest.skip("this torch is built for a GPU")
    trials = bench.run(Kit(), device="hip", interpreter=torch_python, only=["gemm"])
    assert [trial.verdict for trial in trials.trials] == ["error", "skipped", "skipped"]
    assert "has no GPU support; asked for was hip" in trials.trials[0].detail
    assert trials.device == "hip"


@pytest.mark.torch
def test_a_planted_wrong_result_and_a_planted_nan(bench, tmp_path, torch_python):
    """A workload that does what a miscompiled kernel does: on the second call its values are off."""
    script = tmp_path / "planted.py"
    script.write_text(LOAD + """
honest = child.gemm
def planted(torch, spec, draw):
    problem, calls = honest(torch, spec, draw), []
    def function(a, b):
        calls.append(1)
        out = problem.function(a, b)["forward"]
        if len(calls) > 2 + (spec["dtype"] == "float16"):
            out = out.clone()
            out[3, 5] = math.nan if spec["dtype"] == "float16" else out[3, 5] + 40
        return {"forward": out}
    return problem._replace(function=function)
child.WORKLOADS["gemm"] = planted
child.main()
""")  # fmt: skip
    trials = bench.run(replace(only_cpu("gemm"), child=str(script)), device="cpu", interpreter=torch_python)
    single, half = trials.trials[1:]
    assert (single.verdict, half.verdict) == ("wrong", "wrong")
    assert "forward: relative error" in single.detail
    assert "forward: 1 of 327680 values are not finite" in half.detail


@pytest.mark.torch
def test_user_site_packages_are_found(bench, tmp_path, torch_python):
    """`pip install --user torch`: -I hides it, the child looks there all the same."""
    command = [torch_python, "-c", "import site; print(site.getusersitepackages())"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})
    place = Path(asked.stdout.strip())
    place.mkdir(parents=True)
    (place / "torch.py").write_text("raise ImportError('found in the user site')\n")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {torch_python} -S "$@"\n')
    wrapper.chmod(0o755)
    trials = bench.run(Kit(), interpreter=str(wrapper), environment=bench.environment(HOME=str(tmp_path)), only=["elementwise"])
    assert "found in the user site" in trials.trials[0].detail


def test_the_end_of_the_interpreter_is_not_probed(bench, tmp_path):
    """Threads of a library that end the process badly after the work is done are no verdict on the work."""
    body = """
    if spec["workload"] == "device":
        return tell.line(event="facts", facts=dict(torch="0", built="cpu", kind="cpu", name="CPU", count=0))
    tell.line(event="value", stage="forward", name="forward", error=1e-9, bound=1e-6, broken=0, elements=1)
    __import__("atexit").register(os.abort)
    """
    assert bench.run(pretended(tmp_path, body)).trials[1].verdict == "passed"


@pytest.mark.torch
def test_an_exception_on_a_sound_device_stays_an_error(torch_python):
    """`look_after` asks the device; nothing to ask without one, and nothing is made up."""
    told = run_torch(torch_python, """
    read, write = os.pipe()
    child.look_after(child.Teller(write), {"device": "cpu", "workload": "gemm"})
    torch.cuda.synchronize = lambda: None
    child.look_after(child.Teller(write), {"device": "cuda:0", "workload": "gemm"})
    os.close(write)
    print(os.read(read, 100))
    """)  # fmt: skip
    assert told == "b''\n"
