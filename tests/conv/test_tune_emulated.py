"""Tuning of kernels of ours, which the emulator runs in the child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="tuning measures torch")

from rocm_patch.conv import algorithms, runtime, stack, store, tune  # noqa: E402
from rocm_patch.conv.problem import Problem  # noqa: E402

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["forward", "weight"])
def test_kernels_of_ours_are_tuned_by_way_of_the_emulator(operation, tmp_path, monkeypatch, emulated):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store.forget()
    problem = Problem(operation, torch.device("cpu"), torch.float32, 1, 4, 8, 1, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), False)
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys
if any("tune_child" in argument for argument in sys.orig_argv):
    sys.path.insert(0, {str(HERE)!r})
    import emulator
    from rocm_patch.conv import runtime
    runtime.EXTRA["cpu"] = emulator.Emulator({str(emulated.folder)!r})
""")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (outcome,) = tune.tune([problem], most=1, deadline_s=240.0, budget_ms=0.1)
    kernels = {row.algorithm for row in outcome.rows if algorithms.BY_NAME[row.algorithm].kernels}
    assert {"implicit", "winograd"} <= kernels
    assert {row.verdict for row in outcome.rows if row.algorithm in kernels and "not tried" not in row.error} == {"ok"}
    assert runtime.EXTRA["cpu"].target in stack.fingerprint(problem.device)
    assert store.best(problem) == outcome.best.key
    store.forget()
