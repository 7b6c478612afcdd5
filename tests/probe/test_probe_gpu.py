"""On a GPU that is known to be good: the whole matrix passes, and a real fault is a crash that harms nothing else."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from test_probe_child import LOAD

from rocm_patch.probe import Kit, Table, load

pytestmark = pytest.mark.gpu

FAULT = """
import ctypes
PTX = b'''
.version 6.3
.target sm_70
.address_size 64
.visible .entry wild()
{
    .reg .b64 %far;
    .reg .b32 %one;
    mov.u64 %far, 0x0000dead00000000;
    mov.u32 %one, 1;
    st.global.u32 [%far], %one;
    ret;
}
'''
def wild(torch, spec, draw):
    def function(a, b):
        if a.is_cuda:
            driver = ctypes.CDLL("libcuda.so.1")
            module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
            assert driver.cuModuleLoadData(ctypes.byref(module), PTX) == 0
            assert driver.cuModuleGetFunction(ctypes.byref(kernel), module, b"wild") == 0
            assert driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
        return {"forward": torch.matmul(a, b)}
    return child.gemm(torch, spec, draw)._replace(function=function)
def spin(torch, spec, draw):
    def function(a, b):
        while a.is_cuda:
            torch.matmul(a, b)
        return {"forward": torch.matmul(a, b)}
    return child.gemm(torch, spec, draw)._replace(function=function)
child.WORKLOADS.update(wild=wild, spin=spin)
child.main()
"""


def show(trials, seconds):
    """For the log: the table of a run that cannot be repeated at will."""
    print(f"\n{trials.device_name}: {trials.stack}; {seconds:.1f} s; notes: {trials.notes}")
    for trial in trials.trials:
        worst = max((trial.errors[name] / trial.bounds[name] for name in trial.errors), default=0.0)
        key = f"{trial.verdict:8} {trial.probe:26} {trial.configuration:10} {trial.dtype:8}"
        print(f"  {key} {trial.seconds:6.2f} s  worst {worst:.4f} of the bound  {trial.detail}")
        for line in trial.kernel_log:
            print(f"           {line}")


@pytest.mark.slow
def test_the_whole_matrix_passes(bench, gpu_python):
    began = time.monotonic()
    trials = bench.run(Kit(), interpreter=gpu_python, environment=dict(os.environ, PROBE_TEST_MARK=bench.marked), allow="disruptive")
    show(trials, time.monotonic() - began)
    assert trials.device in ("cuda", "hip")
    assert {trial.verdict for trial in trials.trials} == {"passed"}
    assert len({trial.configuration for trial in trials.trials}) == (3 if trials.device == "cuda" else 4)
    assert len(trials.trials) >= 5 + 20 * 2 + 4
    assert all(trial.errors[name] < trial.bounds[name] / 3 for trial in trials.trials for name in trial.errors), "room for another library"


def test_a_real_fault_and_a_real_hang(bench, gpu_python, tmp_path):
    rows = load()
    script = tmp_path / "faulty.py"
    script.write_text(LOAD + FAULT)
    gemm = rows.find("gemm")
    faulty = [replace(gemm, id=name, workload=name, deadline=deadline, dtypes=("float32",)) for name, deadline in (("wild", 90.0), ("spin", 20.0))]
    table = Table(rows.schema, rows.date, rows.configuration, (rows.find("device"), rows.find("elementwise"), *faulty, gemm))
    environment = dict(os.environ, PROBE_TEST_MARK=bench.marked)
    began = time.monotonic()
    trials = bench.run(Kit(table, str(script)), device="cuda", interpreter=gpu_python, environment=environment)
    show(trials, time.monotonic() - began)
    found = {(trial.probe, trial.dtype): trial for trial in trials.trials}
    if trials.device != "cuda":
        pytest.skip("the faulty kernel is PTX")
    assert found["wild", "float32"].verdict == "crash"
    assert "illegal memory access" in found["wild", "float32"].detail
    assert "stage forward" in found["wild", "float32"].detail
    assert found["spin", "float32"].verdict == "hang"
    assert 20 <= found["spin", "float32"].seconds < 21
    assert found["gemm", "float32"].verdict == found["gemm", "float16"].verdict == "passed", "the next probe is none the worse"
