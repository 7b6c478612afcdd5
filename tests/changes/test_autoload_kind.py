"""The engine's hook in an environment of the user's: planned, put there, seen to work in a child, taken back to the byte."""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import DieAt, Killed, count_operations, snapshot

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts, preview, recover, rollback, status
from rocm_patch.changes import Locations, autoload, autoload_parts
from rocm_patch.changes.grown import MARKER
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import SCHEMA, Plan, Step
from rocm_patch.report import diffs
from torch_standin import ENGINE, NEW, OLD, environment, python, torch_files, write

MIOPEN = "import torch; print(torch.backends.cudnn.enabled)"
needs_pip = pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="this Python has no ensurepip, so it makes no venv with pip")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def small_engine(monkeypatch):
    """The stand-in engine in the place of ours, which needs a real torch."""
    monkeypatch.setattr(autoload_parts, "_files_in", lambda folder, above="": dict(ENGINE))


def step(site, door="miopen_off", **changed):
    remedy = {"engine": "conv-engine", "miopen_off": "miopen-off"}.get(door, "miopen-off")
    return Step(remedy, "user", {"venv": (str(Path(site).parents[2]),), "door": (door,), **changed})


def here(home, observe=None):
    home = str(home)
    return Locations("/", home, f"{home}/.local/share", f"{home}/.local/state", f"{home}/.cache", observe)


def do(home, *steps, observe=None):
    where = here(home, observe)
    (receipt,) = apply(Plan(SCHEMA, steps, facts(steps, where)), where, say=lambda _: None)
    return receipt


def undo(home, transaction="", **more):
    (receipt,) = rollback(here(home), transaction, scope="user", **more)
    return receipt


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("door", ["engine", "miopen_off"])
def test_put_used_and_taken_back(home, small_engine, version, door):
    site = environment(home / "venv", version)
    python(site, "import torch")  # what torch itself leaves: its caches
    before = snapshot(home)
    shown = preview((step(site, door),), here(home))
    names = [os.path.basename(path) for path, _, _ in shown]
    assert names == [
        *(["rocm_patch_conv"] if door == "engine" else []), "rocm_patch_autoload", *(["rocm_patch_autoload.pth"] if version == OLD else []),
        f"rocm_patch_autoload-{autoload_parts.__version__}.dist-info",
    ]  # fmt: skip
    assert snapshot(home) == before
    receipt = do(home, step(site, door))
    assert (receipt.outcome, receipt.needs) == ("applied", "")
    words = "the engine is on" if door == "engine" else "MIOpen is off"
    assert receipt.verified == (f"{home}/venv: torch {version} is imported, {words}",)
    for _ in range(2):  # with caches written by use
        if door == "engine":
            assert python(site, "import torch, rocm_patch_conv as c; print(c.status()['times'], c.status()['devices'])").stdout == "1 ('cuda',)\n"
        else:
            assert python(site, MIOPEN).stdout.strip() == "False"
    assert list((site / "rocm_patch_autoload").glob("__pycache__/*"))
    assert {item.state for item in status(here(home))[0].files} == {"as left"}
    assert do(home, step(site, door)).outcome == "already there"
    receipt = undo(home)
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert snapshot(home) == before


@pytest.mark.parametrize("version", [OLD, NEW])
def test_undo_without_python(home, small_engine, version):
    site = environment(home / "venv", version)
    python(site, "import torch")
    before = snapshot(home)
    receipt = do(home, step(site, "engine"))
    python(site, "import torch")
    done = subprocess.run(["/bin/sh", receipt.undo], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(home) == before


def test_two_environments_in_one_plan(home, small_engine):
    one, two = environment(home / "one", OLD), environment(home / "two", NEW)
    for site in (one, two):
        python(site, "import torch.backends")  # what torch itself leaves
    before = snapshot(home)
    receipt = do(home, step(one, "engine"), step(two))
    assert len(receipt.verified) == 2
    assert python(two, MIOPEN).stdout.strip() == "False"
    undo(home)
    assert snapshot(home) == before


def test_a_link_to_the_environment_is_the_environment(home):
    site = environment(home / "real")
    (home / "venv").symlink_to("real")
    before = snapshot(home)
    through = step(site, venv=(f"{home}/venv",))
    assert all(f"{home}/real/" in path for path, _, _ in preview((through,), here(home)))
    do(home, through)
    undo(home)
    assert snapshot(home) == before


def test_the_command_from_plan_to_rollback(home):
    """No AMD card is needed to plan by name, nor one that has seen the engine: but then the user says so."""
    site, plan = environment(home / "venv"), home.parent / "plan.json"
    python(site, "import torch")
    before = snapshot(home)

    def command(*words):
        variables = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        argv = [sys.executable, "-m", "rocm_patch", *map(str, words)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env={**variables, "HOME": str(home)})

    venv = ["--set", f"venv={home}/venv", "-o", plan]
    refused = command("plan", "--remedy", "conv-engine", *venv)
    assert refused.returncode == 5
    assert "--untested" in refused.stderr
    untested = command("plan", "--remedy", "conv-engine", "--untested", *venv)
    assert untested.returncode == 0, untested.stderr
    planned = command("plan", "--remedy", "miopen-off", *venv)
    assert planned.returncode == 0, planned.stderr
    assert f"user scope: miopen-off: MIOpen switched off whenever torch is imported in {home}/venv" in planned.stdout
    assert f"# {site}/rocm_patch_autoload: absent -> folder (mode 0755)" in planned.stdout
    assert snapshot(home) == before
    applied = command("apply", plan, "--yes")
    assert applied.returncode == 0, applied.stderr
    assert "MIOpen is off" in applied.stdout
    assert "miopen-off" in command("status").stdout
    assert python(site, MIOPEN).stdout.strip() == "False"
    assert command("rollback", "--yes").returncode == 0
    assert snapshot(home) == before


def test_the_step_in_words():
    remedies = knowledge.load().remedies
    for door, words in (("engine", "our convolution engine"), ("miopen_off", "MIOpen switched off")):
        item = step("/home/u/venv/lib/python3.12/site-packages", door)
        assert diffs.step(item, remedies[item.remedy]) == f"{item.remedy}: {words} whenever torch is imported in /home/u/venv"


# ------------------------------------------------------------------ verified, or nothing


def test_a_hook_that_does_nothing_is_not_kept(home):
    """Our real engine cannot be switched on in a torch that is three files: the child says so, and all is as before."""
    site = environment(home / "venv")
    before = snapshot(home)
    with pytest.raises(RocmPatchError, match="the hook did nothing|fails in"):
        do(home, step(site, "engine"))
    assert snapshot(home) == before


def test_a_torch_that_cannot_be_imported_gets_nothing(home):
    site = environment(home / "venv", body="raise ImportError('libamdhip64.so.6: not there')\n")
    before = snapshot(home)
    with pytest.raises(RocmPatchError, match=r"libamdhip64\.so\.6: not there") as failure:
        do(home, step(site))
    assert "doctor" in failure.value.hint
    assert snapshot(home) == before


def test_a_torch_that_hangs_is_given_up(home, monkeypatch):
    site = environment(home / "venv", body="import time; time.sleep(600)\n")
    before = snapshot(home)
    monkeypatch.setattr(autoload, "TIMEOUT", 1.0)
    with pytest.raises(RocmPatchError, match="took more than"):
        do(home, step(site))
    assert snapshot(home) == before


def test_a_torch_that_talks_is_understood(home):
    site = environment(home / "venv", body="import atexit\nprint('hello {')\natexit.register(print, '', end='')\n")
    assert do(home, step(site)).outcome == "applied"


# ------------------------------------------------------------------ refused


def _bare(site):
    shutil.rmtree(site / "torch")


def _no_cfg(site):
    (site.parents[2] / "pyvenv.cfg").unlink()


def _conda(site):
    _no_cfg(site)
    (site.parents[2] / "conda-meta").mkdir()


def _old_python(site):
    site.parent.rename(site.parents[1] / "python3.9")


def _cuda(site):
    (site / "torch" / "version.py").write_text("hip: str | None = None\n")


def _ours(site):
    write(site, {"rocm_patch-0.1.0.dist-info/entry_points.txt": "[torch.backends]\nrocm_patch = rocm_patch.autoload:load\n"})


def _stranger(site):
    write(site, {"rocm_patch_autoload/__init__.py": "print('mine')\n"})


def _leftover(site):
    write(site, {"rocm_patch_autoload-0.0.9.dist-info/METADATA": "Name: rocm-patch-autoload\n"})


def _linked_library(site):
    site.parent.rename(site.parents[2] / "elsewhere")
    site.parent.symlink_to("../elsewhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_bare, "has no torch of its own"), (_no_cfg, "no virtual environment"), (_conda, "conda environment"), (_old_python, r"python3\.9"),
        (_cuda, "no ROCm build"), (_ours, "brings the hook itself"), (_stranger, "not ours to change"), (_leftover, "not ours to change"),
        (_linked_library, "does not look like"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(home, spoil, words):
    site = environment(home / "venv")
    item = step(site)
    spoil(site)
    before = snapshot(home)
    with pytest.raises(RefusedError, match=words) as refusal:
        preview((item,), here(home))
    assert refusal.value.hint or spoil in (_old_python, _cuda, _linked_library)
    assert snapshot(home) == before


def test_the_systems_python_is_refused(home):
    base = getattr(sys, "base_prefix", sys.prefix)
    with pytest.raises(RefusedError, match="no virtual environment|conda environment"):
        preview((Step("miopen-off", "user", {"venv": (os.path.realpath(base),), "door": ("miopen_off",)}),), here(home))


def test_an_environment_outside_the_home_is_refused(home, tmp_path):
    site = environment(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="does not lie in") as refusal:
        preview((step(site),), here(home))
    assert "ROCM_PATCH_CONV=1" in refusal.value.hint


def test_not_in_another_root(tmp_path):
    with pytest.raises(RefusedError, match="running system only"):
        preview((step("/home/u/venv/lib/python3.12/site-packages"),), Locations(str(tmp_path), "/home/u"))


def test_both_remedies_for_one_environment_are_refused(home, small_engine):
    site = environment(home / "venv")
    with pytest.raises(RefusedError, match="one of these remedies"):
        preview((step(site, "engine"), step(site)), here(home))
    done = do(home, step(site))
    with pytest.raises(RefusedError, match="another remedy") as refusal:
        preview((step(site, "engine"),), here(home))
    assert done.transaction in refusal.value.hint


BAD = {
    "a relative path": {"venv": ("venv",)},
    "a path with dots": {"venv": ("/home/u/../v/venv",)},
    "a path with a line end": {"venv": ("/home/u/venv\n",)},
    "two environments": {"venv": ("/a", "/b")},
    "no environment": {"venv": ()},
    "a door that is none": {"door": ("load",)},
    "code as a door": {"door": ("engine'); import os",)},
    "no door": {"door": ()},
    "an unknown parameter": {"index": ("/x",)},
}


@pytest.mark.parametrize("changed", BAD.values(), ids=BAD)
def test_no_step_of_this_form(changed, home):
    with pytest.raises(RefusedError):
        preview((step("/v/lib/python3.12/site-packages", **changed),), here(home))
    with pytest.raises(RefusedError, match="system scope"):
        preview((Step("miopen-off", "system", {"venv": ("/v",), "door": ("miopen_off",)}),), here(home))


# ------------------------------------------------------------------ others work there too


def test_what_others_changed_is_named_and_left(home, small_engine):
    site = environment(home / "venv")
    python(site, "import torch")
    before = snapshot(home)
    do(home, step(site, "engine"))
    kernel = site / "rocm_patch_conv" / "kernels" / "one.cu"
    kernel.write_text("// mine\n")
    assert [item.state for item in status(here(home))[0].files].count("as left") == 3  # a grown folder is judged when it is taken back
    with pytest.raises(RefusedError, match="changed since"):
        preview((step(site, "engine"),), here(home))
    receipt = undo(home)
    assert receipt.outcome == "partly rolled back"
    assert receipt.left == (str(site / "rocm_patch_conv"), str(kernel))
    assert python(site, "import torch").stderr == ""  # the hook is gone, the engine lies idle
    kernel.unlink()
    assert undo(home).outcome == "rolled back"
    assert snapshot(home) == before


@needs_pip
@pytest.mark.slow
def test_pip_lists_it_and_can_uninstall_it(home, small_engine):
    subprocess.run([sys.executable, "-m", "venv", "--symlinks", home / "venv"], check=True)
    (site,) = (home / "venv").glob("lib/python3*/site-packages")
    write(site, torch_files(OLD))
    names = sorted(os.listdir(site))
    do(home, step(site, "engine"))
    pip = [home / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout
    assert "rocm-patch-autoload" in listed
    done = subprocess.run([*pip, "uninstall", "-y", "rocm-patch-autoload"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert sorted(set(os.listdir(site)) - {"__pycache__"}) == [name for name in names if name != "__pycache__"]
    assert {item.state for item in status(here(home))[0].files} == {"gone"}
    assert undo(home).left == ()
    assert do(home, step(site, "engine")).outcome == "applied"


@needs_pip
def test_in_an_environment_that_we_made(home, tmp_path, small_engine):
    """A venv of ours is a folder of ours too: what we put into it later goes first, and is no stranger when all is taken back."""
    import test_venv

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    needs = [f"{name}==10.1.0 ; extra == 'device-gfx1010'" for name in ("amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010")]
    test_venv.wheel(wheels, "torch", test_venv.TORCH, needs, ["device-gfx1010"], {k: v for k, v in torch_files().items() if k.startswith("torch/")})
    for name in ("amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010"):
        test_venv.wheel(wheels, name, "10.1.0")
    made = do(home, test_venv.step(str(wheels)))
    (site,) = (home / ".local/share/rocm-patch/venvs/torch-gfx1010").glob("lib/python3*/site-packages")
    python(site, "import torch")
    with_venv = snapshot(site)
    put = do(home, step(site, "engine"))
    python(site, "import torch")
    with pytest.raises(RefusedError, match="later transaction") as refusal:
        undo(home, made.transaction)
    assert "all" in refusal.value.hint
    # Alone, and put back.
    undo(home, put.transaction)
    assert snapshot(site) == with_venv
    do(home, step(site, "engine"))
    # A kill anywhere in taking back both leaves both, or nothing.
    source = tmp_path / "source"
    shutil.copytree(home, source, symlinks=True)
    total = count_operations(lambda observe: rollback(here(home, observe), everything=True, scope="user"))
    assert sorted(os.listdir(home)) == []
    outcomes = set()
    for point in range(1, total + 1, 7):
        shutil.rmtree(home)
        shutil.copytree(source, home, symlinks=True)
        before = snapshot(home)
        with pytest.raises(Killed):
            rollback(here(home, DieAt(point)), everything=True, scope="user")
        recover(here(home))
        now = snapshot(home)
        assert now in (before, {".": now["."]}), point
        outcomes.add(len(now) > 1)
    assert outcomes == {True, False}
    # What a user adds keeps both the venv and itself.
    shutil.rmtree(home)
    shutil.copytree(source, home, symlinks=True)
    (site / "mine.py").write_text("mine = 1\n")
    receipt = rollback(here(home), everything=True, scope="user")[0]
    assert receipt.outcome == "partly rolled back"
    assert str(site / "mine.py") in receipt.left
    assert not [path for path in receipt.left if "rocm_patch" in path.partition("site-packages")[2]]
    assert not (site / "rocm_patch_conv").exists()


# ------------------------------------------------------------------ killed anywhere


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("verb", ["apply", "rollback"])
def test_killed_at_any_primitive(verb, version, scratch, small_engine):
    """Before, or after: never a hook without what it calls. A torch that is imported in between works."""
    home = Path(scratch) / "home"
    home.mkdir()
    site = environment(home / "venv", version)
    item, source = step(site, "engine"), Path(scratch) / "source"
    plan = Plan(SCHEMA, (item,), facts((item,), here(home)))
    before = snapshot(home)
    if verb == "rollback":
        apply(plan, here(home), say=lambda _: None)
    start = snapshot(home)
    shutil.copytree(home, source, symlinks=True)

    def act(observe):
        if verb == "apply":
            apply(plan, here(home, observe), say=lambda _: None)
        else:
            rollback(here(home, observe), everything=True, scope="user")

    total = count_operations(act)
    assert total > 60
    after = snapshot(home, without=(".local",))
    for point in range(1, total + 1):
        shutil.rmtree(home)
        shutil.copytree(source, home, symlinks=True)
        with pytest.raises(Killed):
            act(DieAt(point))
        if point % 8 == 0:
            ended = python(site, "import torch; print(torch.__version__)", "-B")
            assert (ended.returncode, ended.stdout.strip()) == (0, version), (point, ended.stderr)
        recover(here(home))
        now = snapshot(home)
        assert now in (before, start) or snapshot(home, without=(".local",)) == _same_marks(after, now), point


def _same_marks(after, now):
    """The finished state, with the transaction's name of this run in the markers."""
    return {path: now.get(path) if path.endswith(f"/{MARKER}") else row for path, row in after.items()}


# ------------------------------------------------------------------ the real thing


def test_the_engine_stands_alone():
    """What is copied imports the standard library, torch and itself only."""
    folder, seen = importlib.resources.files("rocm_patch") / "conv", 0
    for name, data in autoload_parts._files_in(folder).items():
        if not name.endswith(".py"):
            continue
        seen += 1
        for node in ast.walk(ast.parse(data)):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 + name.count("/"), f"{name} reaches out of the package"
                names = [node.module or ""] if node.level == 0 else []
            for imported in names:
                assert imported.split(".")[0] in {*sys.stdlib_module_names, "torch"}, f"{name} imports {imported}"
    assert seen > 3


def _real(home):
    named = os.environ.get("ROCM_PATCH_TEST_TORCH")
    if not named:
        pytest.skip("ROCM_PATCH_TEST_TORCH names no interpreter with a real torch")
    code = "import torch, sys, json; print(json.dumps([torch.__path__[0], torch.__version__]))"
    where, version = json.loads(subprocess.run([named, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout)
    subprocess.run([named, "-m", "venv", "--without-pip", "--symlinks", home / "venv"], check=True)
    (site,) = (home / "venv").glob("lib/python3*/site-packages")
    other = Path(where).parent
    for name in os.listdir(other):
        if name not in ("__pycache__", "bin") and not name.startswith(("rocm_patch", "_")) and not name.endswith(".pth"):
            (site / name).symlink_to(other / name)
    return site, version


def test_a_real_torch_with_the_real_engine(home):
    site, version = _real(home)
    python(site, "import torch")  # what it leaves in caches
    before = snapshot(home)
    receipt = do(home, step(site, "engine"))
    assert receipt.verified == (f"{home}/venv: torch {version} is imported, the engine is on",)
    code = "import torch, rocm_patch_conv as c\nprint(c.status()['enabled'])\n"
    code += "c.disable(); a = torch.nn.functional.conv2d(x := torch.arange(50.).view(1, 2, 5, 5), w := torch.ones(3, 2, 3, 3))\n"
    code += "c.enable(devices=('cpu',)); b = torch.nn.functional.conv2d(x, w)\nprint(torch.equal(a, b), sum(c.status()['calls'].values()))"
    ended = python(site, code)
    assert ended.stdout == "True\nTrue 1\n", ended.stderr
    assert "False" in python(site, "import torch, rocm_patch_conv as c; print(c.status()['enabled'])", ROCM_PATCH_CONV="0").stdout
    assert undo(home).outcome == "rolled back"
    assert snapshot(home) == before


def test_a_real_torch_that_is_no_rocm_build_keeps_its_switch(home):
    site, _ = _real(home)
    with pytest.raises(RefusedError, match="no ROCm build"):
        preview((step(site),), here(home))
