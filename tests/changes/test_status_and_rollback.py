"""What `status` tells, the forms of `rollback`, and both for a mounted system: by the command itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import snapshot

from recorded_machines import MACHINES
from rocm_patch.changes import Locations, leftovers

NAME = "rx5600xt-ubuntu2404-mission"
LOGIN = "etc/profile.d/zz-rocm-patch.sh"


def command(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "rocm_patch", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


@pytest.fixture
def mounted(tmp_path):
    """A recorded machine as it would be mounted by a live system."""
    return Path(shutil.copytree(MACHINES / NAME, tmp_path / "mnt", symlinks=True))


def plan_and_apply(root, *words):
    plan = f"{root}.plan.json"
    said = command("plan", "--root", root, *words, "-o", plan)
    command("apply", "--root", root, plan, "--yes")
    return said


def test_a_mounted_system_there_and_back(mounted):
    """Both scopes, with the home of that system's user, none of this one's."""
    before = snapshot(mounted)
    home_before = sorted(Path(os.environ["HOME"]).rglob("*"))
    said = plan_and_apply(mounted, "--remedy", "environment-profile", "--set", "profile=non-coherent", "--set", "when=card")
    assert "harmful on gfx1010" in said.stderr
    assert "instead: native-wheel" in said.stderr
    plan_and_apply(mounted, "--remedy", "miopen-find-fast")
    shown = json.loads(command("status", "--root", mounted, "--json").stdout)
    user, system = shown["scopes"]
    assert (user["in_force"][0]["name"], user["in_force"][0]["holds"]) == ("MIOPEN_FIND_MODE", None)
    assert {file["state"] for scope in (user, system) for file in scope["files"]} == {"as left"}
    others = {(item["name"], item["value"]): item["does"] for item in shown["others"]}
    assert others["HSA_OVERRIDE_GFX_VERSION", "10.3.0"] == "harmful"
    assert others["HIP_FORCE_COARSE_GRAIN", "1"] == "no effect"
    assert not any("rocm-patch" in item["path"] for item in shown["others"])
    command("rollback", "--root", mounted, "--scope", "system", "--all", "--yes")
    assert [len(scope["transactions"]) for scope in json.loads(command("status", "--root", mounted, "--json").stdout)["scopes"]] == [1, 0]
    command("rollback", "--root", mounted, "--all", "--yes")
    command("recover", "--root", mounted)
    assert snapshot(mounted) == before
    assert sorted(Path(os.environ["HOME"]).rglob("*")) == home_before


def test_what_somebody_changed_is_shown_twice_and_stays(mounted):
    plan_and_apply(mounted, "--remedy", "environment-profile", "--set", "set=HSA_ENABLE_SDMA=0")
    with open(mounted / LOGIN, "a") as file:
        file.write("export MINE=1\n")
    done = command("rollback", "--root", mounted, "--all", "--yes", code=5)
    assert "(as rocm-patch left it)" in done.stdout
    assert "+export MINE=1" in done.stdout
    assert "export MINE=1\n" in (mounted / LOGIN).read_text()
    assert os.path.isdir(mounted / "var/lib/rocm-patch")  # what was there before us is still known
    done = command("rollback", "--root", mounted, "--full", "--yes", "--json", code=5)
    shown = json.loads(done.stdout)["receipts"][0]["differences"][0]
    assert "+[13 characters]" in shown  # where and how much: a document is kept, and what others wrote may be a password
    assert "MINE" not in shown
    assert "export MINE=1\n" in (mounted / LOGIN).read_text()
    assert not os.path.exists(mounted / "var/lib/rocm-patch")


def test_full_takes_our_caches_and_no_link(mounted):
    home = next((mounted / "home").iterdir())
    (home / ".cache/rocm-patch/conv").mkdir(parents=True)
    (home / ".cache/rocm-patch/conv/kernel").write_text("x")
    (home / ".local/state").mkdir(parents=True, exist_ok=True)
    (home / "elsewhere").mkdir()
    (home / ".local/state/rocm-patch-probes").symlink_to(home / "elsewhere")
    command("rollback", "--root", mounted, "--all", "--yes")
    assert (home / ".cache/rocm-patch/conv/kernel").exists()
    assert "removed:" in command("rollback", "--root", mounted, "--full", "--yes").stderr
    assert not (home / ".cache/rocm-patch").exists()
    assert (home / ".local/state/rocm-patch-probes").is_symlink()


@pytest.mark.parametrize("home", ["/home/link", "/../outside", "/../../outside", "/home/../../outside"])
def test_full_never_leaves_another_root(tmp_path, home):
    """A link in a home, and a home with dots, led root to folders outside of the root that it was given."""
    outside = tmp_path / "outside"
    for folder in (outside / "rocm-patch", outside / ".cache/rocm-patch", outside / "rocm-patch-probes", outside / ".local/state/rocm-patch-probes"):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("x")
    root = tmp_path / "root"
    (root / "home/link/.local").mkdir(parents=True)
    (root / "home/link/.cache").symlink_to("../../../outside")
    (root / "home/link/.local/state").symlink_to(outside)
    before = snapshot(tmp_path)
    locations = Locations(str(root), home)
    assert leftovers.found(locations) == leftovers.remove(locations) == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("words", [["--scope", "moon", "--all"], ["--full", "20260101-000000-00000000"]])
def test_what_cannot_be_meant(mounted, words):
    command("rollback", "--root", mounted, *words, "--yes", code=2)
