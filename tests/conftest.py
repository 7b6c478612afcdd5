"""Shared by all tests: the recorded machines and what may be written where."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from recorded_machines import MACHINES, NAMES


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the home of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in list(os.environ):
        if name.startswith(("XDG_", "HSA_", "MIOPEN_", "ROCM_", "HIP_", "ROCR_")) or name in ("VIRTUAL_ENV", "CONDA_PREFIX", "SUDO_UID"):
            if not name.startswith("ROCM_PATCH_TEST"):
                monkeypatch.delenv(name)
    return home


@pytest.fixture(params=NAMES)
def machine_name(request):
    """Each recorded machine in turn."""
    return request.param


@pytest.fixture
def expected(machine_name):
    """What `doctor --json` must say of it, to the letter."""
    return json.loads((MACHINES / f"{machine_name}.expect.json").read_text())


@pytest.fixture
def copy_of(tmp_path):
    """A writable copy of a recorded machine, links kept."""

    def copy(name):
        target = tmp_path / name
        shutil.copytree(MACHINES / name, target, symlinks=True)
        return target

    return copy
