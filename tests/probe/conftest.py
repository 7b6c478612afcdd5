"""Fixtures of the probe tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from probe_support import new_bench

from rocm_patch.probe import record


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A place to run children in; nothing of them may be left at the end."""
    lock = tmp_path / "gpu"
    lock.mkdir()
    monkeypatch.setattr(record, "GPU_LOCKS", (str(lock),))  # the suite may run beside itself
    found = new_bench(tmp_path)
    yield found
    assert found.left() == []


@pytest.fixture(scope="session")
def torch_python():
    """An interpreter with torch: ROCM_PATCH_TEST_TORCH, or this one."""
    named = os.environ.get("ROCM_PATCH_TEST_TORCH")
    if named:
        return named
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch in this interpreter, and ROCM_PATCH_TEST_TORCH names no other")
    return sys.executable


@pytest.fixture(scope="session")
def gpu_python(torch_python):
    """An interpreter whose torch has a GPU that answers."""
    asked = subprocess.run([torch_python, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True, check=False)
    if asked.stdout.strip() != "True":
        pytest.skip(f"the torch of {torch_python} finds no GPU")
    return torch_python
