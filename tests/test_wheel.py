"""What is shipped: the wheel builds, carries its tables, and runs from elsewhere with the checkout out of sight."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from recorded_machines import MACHINES

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the checkout without its history."""
    pytest.importorskip("build", reason="the build front end is not installed")
    pytest.importorskip("hatchling", reason="the build back end is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source / name)
    shutil.copytree(CHECKOUT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return next(output.glob("*.whl"))


def test_the_wheel_carries_tables_types_and_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"rocm_patch", f"rocm_patch-{wheel.name.split('-')[1]}.dist-info"}
    for needed in ("rocm_patch/knowledge/gpus.toml", "rocm_patch/py.typed", "rocm_patch/probe/child.py", "rocm_patch/probe/probes.toml"):
        assert needed in names
    assert "rocm_patch/sources/patches/miopen-batchnorm-gfx101x/patch.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # What the autoload change copies into other environments, and the entry point that torch calls in this one.
    assert {"rocm_patch/autoload.py", "rocm_patch/conv/__init__.py"} <= set(names)
    assert any(name.startswith("rocm_patch/conv/kernels/") for name in names)
    (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    assert "[torch.backends]\nrocm_patch = rocm_patch.autoload:load\n" in zipfile.ZipFile(wheel).read(entry_points).decode() + "\n"


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(wheel, tmp_path):
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    site = next((place / "lib").glob("python3*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    # What it depends on comes from the environment that runs the tests; the package itself must not.
    import rocm_patch

    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n")
    ended = subprocess.run([python, "-c", "import rocm_patch; print(rocm_patch.__file__)"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip().startswith(str(site)), rocm_patch.__file__
    name = "rx5600xt-ubuntu2404-mission"
    command = [python, "-m", "rocm_patch", "doctor", "--root", str(MACHINES / name), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert json.loads(ended.stdout) == json.loads((MACHINES / f"{name}.expect.json").read_text())
