"""From `build` to a torch that uses the result, and back to the byte: every command as the one before it says it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "changes"))
sys.path.insert(0, str(Path(__file__).parent))
import build_project as project
import rocm_stand_in as stand
from changes_support import snapshot

import rocm_patch
from rocm_patch.changes import prefix_reach
from rocm_patch.changes.prefix_manifest import manifest_of
from rocm_patch.cli import app
from rocm_patch.root import Root
from rocm_patch.sources import build_recipe

pytestmark = pytest.mark.skipif(not shutil.which("ninja") or not shutil.which("cc"), reason="needs cc and ninja")
NAME = "libhsa-runtime64"
LOOK = "import torch, json; print(json.dumps(torch.which()))"


@pytest.fixture
def home(tmp_path):
    """A home with a virtual environment that has a wheel of the kind that keeps its own libraries."""
    home = tmp_path / "home of me"
    site = home / f"venv/lib/python3.{sys.version_info.minor}/site-packages"
    stand.wheel(site, tmp_path / "stub")
    (home / "venv/bin").mkdir()
    (home / "venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    (home / "venv/pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\nversion = {sys.version.split()[0]}\n")
    return home


@pytest.fixture
def home_without_blank(home):
    """LD_PRELOAD has no way to name a path with a blank."""
    return home.rename(home.parent / "home")


def alone(home, tmp_path, monkeypatch):
    """Nothing of the user's own counts."""
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "SUDO_UID", "LD_PRELOAD", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(Path(rocm_patch.__file__).parent.parent))  # for children that work in another folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no build where a path has a blank


def built(home, tmp_path, monkeypatch, soname="1"):
    """`rocm-patch build` of a small ROCr; returns what it says."""
    alone(home, tmp_path, monkeypatch)
    source = project.plant(tmp_path / "source")
    (source / "rocr.c").write_text('const char *rocr_which(void) { return "patched"; }\n')
    for script in ("configure", "install"):
        text = (source / script).read_text().replace("libsmall.so.1", f"libsmall.so.{soname}").replace("libsmall", NAME)
        (source / script).write_text(text)
    changes = {"libsmall.so.1": f"libsmall.so.{soname}", "libsmall": NAME}
    monkeypatch.setattr(build_recipe, "load", lambda: project.recipes(**changes))
    ended = CliRunner().invoke(app, ["build", "rocr", "--version", "1.2.3-4", "--source", str(source), "--prefix", "/opt/small", "--allow-root"])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def offered(text, what):
    """The command behind these words, word by word."""
    return shlex.split(re.search(rf"^{what}: (.*)$", text, re.MULTILINE)[1])


def command(words, code=0):
    assert words[0] == "rocm-patch"
    ended = CliRunner().invoke(app, words[1:])
    assert ended.exit_code == code, ended.output
    return ended


def torch_of(home, before=()):
    """What a torch says of itself, and the files that the loader initialised for it."""
    log = home.parent / "log"
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    seen = subprocess.run(
        [*before, str(home / "venv/bin/python"), "-c", LOOK],
        capture_output=True, text=True, check=True, env={**os.environ, "LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": f"{log}/d"},
    )  # fmt: skip
    lines = [line for path in log.iterdir() for line in path.read_text(errors="replace").splitlines() if f"calling init: {home}" in line]
    return json.loads(seen.stdout.splitlines()[-1]), {line.partition("calling init: ")[2] for line in lines if NAME in line}


def test_from_a_build_to_a_torch_that_uses_it_and_back(home_without_blank, tmp_path, monkeypatch):
    home = home_without_blank
    said, before = built(home, tmp_path, monkeypatch), snapshot(home)
    assert torch_of(home)[0]["rocr"] == "wheel"

    planned = command([*offered(said, "nothing is installed yet"), "--set", f"torch={home}/venv", "--python", str(home / "venv")])
    own = f"{home}/venv/lib/python3.{sys.version_info.minor}/site-packages/torch/lib/{NAME}.so"
    assert f"has its own, held by DT_RPATH: {own}" in planned.stdout
    assert "LD_LIBRARY_PATH does nothing there; `rocm-patch run --prefix` sets LD_PRELOAD" in planned.stdout
    assert snapshot(home) == before

    applied = command([*offered(said, "to put it there"), "--yes"])
    assert own in applied.stdout  # said again before anything is written
    status = json.loads(command(["rocm-patch", "status", "--json"]).stdout)
    held = [line for scope in status["scopes"] for line in scope["in_force"] if line["name"] == "prefix"]
    assert [line["holds"] for line in held] == [True]
    assert held[0]["found"].startswith("rocr-1.2.3-4-")

    use = offered(said, "to use it")
    assert use[-2:] == ["python", "PROGRAM.py"]
    answers, loaded = torch_of(home, [sys.executable, "-m", "rocm_patch", *use[1:-2]])
    assert answers == {"miopen": "wheel", "hip": "wheel", "rocr": "patched", "miopen_hip": "wheel"}
    assert loaded == {f"{home}/.local/share/rocm-patch/prefixes/current/lib/{NAME}.so"}
    assert torch_of(home)[0]["rocr"] == "wheel"  # nothing else has changed

    command([*offered(said, "to take it back"), "--yes"])
    assert snapshot(home) == before


def plan_of(folder, *more):
    """A plan for what lies in a folder, as a build would have staged it."""
    text = manifest_of(str(folder))
    (folder / "manifest").write_bytes(text)
    words = ["name=hip", "version=6.4.3", f"sha256={hashlib.sha256(text).hexdigest()}", f"source={folder}", *more]
    return ["rocm-patch", "plan", "--remedy", "patched-prefix", *(part for word in words for part in ("--set", word))]


def shown(folder, words):
    """What `run --dry-run` says of a command, from within the home."""
    argv = [sys.executable, "-m", "rocm_patch", "run", "--dry-run", "--prefix", str(folder), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=folder.parent).stderr


def test_whose_torch_is_meant_is_said_by_the_command_or_by_python(home_without_blank, tmp_path, monkeypatch):
    home = home_without_blank
    alone(home, tmp_path, monkeypatch)
    stand.patched(home / "hip", tmp_path / "stub2", "hip")
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to(os.path.realpath(sys.executable))  # one that has no torch
    for words in (["true"], [f"{home}/bin/python3"], ["--python", "bin/python3", "true"]):
        text = shown(home / "hip", words)
        assert "LD_PRELOAD=" not in text, words
        assert "is not known to be this command's; --python PATH names it" in text, words
    for words in (["venv/bin/python"], [f"{home}/venv/bin/python"], ["--python", "venv/bin/python", "true"], ["--python", "venv", "true"]):
        text = shown(home / "hip", words)
        assert "LD_PRELOAD=" in text, words
        assert "--python PATH" not in text, words
    assert "warning: LD_PRELOAD stays" in shown(home / "hip", ["--keep", "LD_PRELOAD", "venv/bin/python"])


def test_where_nothing_of_ours_reaches_the_plan_says_so_and_what_does(home, tmp_path, monkeypatch):
    alone(home, tmp_path, monkeypatch)
    stand.patched(tmp_path / "hip", tmp_path / "stub2", "hip")
    planned = command([*plan_of(tmp_path / "hip", f"torch={home}/venv"), "--python", str(home / "venv")])
    assert "also: nothing of ours reaches the torch in" in planned.stdout  # it needs the wheel's ROCr, by a path with a blank
    assert "By hand: mv '" in planned.stdout
    nobody = command(plan_of(tmp_path / "hip", "torch=system"))
    assert ("whether they fit is not known" in nobody.stdout) == (prefix_reach.place(Root("/"), "system") is None)
    ended = command([*plan_of(tmp_path / "hip", f"torch={tmp_path}/none")], code=2)
    assert "no torch is known there" in ended.stderr


def test_a_build_of_another_major_is_refused_before_anything_is_written(home, tmp_path, monkeypatch):
    said, before = built(home, tmp_path, monkeypatch, soname="2"), snapshot(home)
    words = [*offered(said, "nothing is installed yet"), "--set", f"torch={home}/venv/bin/python", "--python", str(home / "venv/bin/python")]
    ended = command(words, code=5)
    assert f"this is {NAME}.so.2, and the torch in" in " ".join(ended.stderr.split())
    assert f"uses {NAME}.so.1" in " ".join(ended.stderr.split())
    assert not (tmp_path / "patched.json").exists()
    assert snapshot(home) == before
