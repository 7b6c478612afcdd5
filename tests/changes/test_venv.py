"""A venv of ours, with a real `python -m venv` and a real pip, from a folder of tiny wheels that the test makes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from changes_support import snapshot

import rocm_patch
from rocm_patch import knowledge
from rocm_patch.apply import apply, how_to_remove, recover, rollback, status
from rocm_patch.changes import Locations, executable_stack, facts, preview, venv
from rocm_patch.changes.grown import MARKER
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import SCHEMA, Plan, Step

needs_venv = pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="this Python has no ensurepip, so it makes no venv")
TORCH = "2.14.0+rocm10.1.0"
PACKAGES = (f"torch[device-gfx1010]=={TORCH}", "amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010")


def wheel(folder, name, version, requires=(), extras=(), files=()):
    """Write a wheel with nothing in it but what pip looks at."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Provides-Extra: {extra}" for extra in extras)]
    members = {
        f"{name.replace('-', '_')}/__init__.py": "",
        f"{info}/METADATA": "\n".join([*lines, *(f"Requires-Dist: {item}" for item in requires)]) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **dict(files),
    }
    rows = []
    for path, text in members.items():
        mark = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={mark},{len(text)}")
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(f"{folder}/{stem}-py3-none-any.whl", "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    needs = [f"{name}==10.1.0 ; extra == 'device-gfx1010'" for name in ("amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010")]
    wheel(folder, "torch", TORCH, needs, ["device-gfx1010"])
    wheel(folder, "amd-torch-device-gfx1010", "10.1.0")
    wheel(folder, "rocm-sdk-device-gfx1010", "10.1.0")
    return str(folder)


@pytest.fixture(scope="session")
def placeholders(tmp_path_factory):
    """What the public index has under these names."""
    folder = tmp_path_factory.mktemp("placeholders")
    needs = [f"{name} ; extra == 'device-gfx1010'" for name in ("amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010")]
    wheel(folder, "torch", TORCH, needs, ["device-gfx1010"])
    wheel(folder, "amd-torch-device-gfx1010", "0.0.1.dev0")
    wheel(folder, "rocm-sdk-device-gfx1010", "0.0.1.dev0")
    return str(folder)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def step(folder, **changed):
    parameters = {
        "gfx": ("gfx1010",), "packages": PACKAGES, "index": (folder,), "python": (venv.default_python(),), "name": ("torch-gfx1010",),
        "expect": ("amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010"),
    }  # fmt: skip
    return Step("native-wheel", "user", {**parameters, **changed})


def here(home):
    return Locations.here(environ={"HOME": str(home)})


def do(home, index, **changed):
    steps = (step(index, **changed),)
    (receipt,) = apply(Plan(SCHEMA, steps, facts(steps, here(home))), here(home), say=lambda _: None)
    return receipt


def undo(home):
    (receipt,) = rollback(here(home), scope="user")
    return receipt


# ------------------------------------------------------------------ the real thing


@needs_venv
def test_made_used_and_taken_back(home, wheels, monkeypatch):
    before = snapshot(home)
    # What pip must not listen to.
    monkeypatch.setenv("PIP_INDEX_URL", "https://nowhere.invalid/")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[install]\ntarget = /nowhere\n")
    with_config = snapshot(home)
    receipt = do(home, wheels)
    folder = f"{home}/.local/share/rocm-patch/venvs/torch-gfx1010"
    assert receipt.outcome == "applied"
    assert receipt.changed == (folder,)
    assert f"{folder}: torch {TORCH}" in receipt.verified
    assert f"{folder}: amd-torch-device-gfx1010 10.1.0" in receipt.verified
    assert receipt.needs == ""
    assert Path(f"{folder}/{MARKER}").read_text().strip() == receipt.transaction
    script = "import torch, amd_torch_device_gfx1010; print(torch.__file__)"
    done = subprocess.run([f"{folder}/bin/python", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(folder)
    assert Path(f"{folder}/lib").exists()  # importing has just left caches, which nobody minds
    assert do(home, wheels).outcome == "already there"
    with pytest.raises(RefusedError, match="other packages") as refusal:
        preview((step(wheels, packages=PACKAGES[:1]),), here(home))
    assert receipt.transaction in refusal.value.hint
    assert status(here(home))[0].files[0].state == "as left"
    receipt = undo(home)
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert snapshot(home) == with_config
    assert before != with_config


@needs_venv
def test_placeholders_do_not_count(home, placeholders):
    before = snapshot(home)
    with pytest.raises(RocmPatchError, match=r"empty placeholder 0\.0\.1\.dev0"):
        do(home, placeholders)
    assert snapshot(home) == before


@needs_venv
def test_an_index_without_the_wheels(home, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    before = snapshot(home)
    with pytest.raises(RocmPatchError, match="pip ended with") as failure:
        do(home, str(tmp_path / "empty"))
    assert str(tmp_path / "empty") in failure.value.hint
    assert "torch" in capfd.readouterr().err  # pip's own words
    assert snapshot(home) == before


@needs_venv
def test_what_the_user_put_there_survives(home, wheels):
    do(home, wheels)
    folder = home / ".local/share/rocm-patch/venvs/torch-gfx1010"
    mine = folder / "lib" / "my notes.txt"
    mine.write_text("keep\n")
    receipt = undo(home)
    assert receipt.outcome == "partly rolled back"
    assert receipt.left == (str(folder), str(mine))
    assert how_to_remove(receipt) == (f"rm -r -- {folder}",)
    assert mine.read_text() == "keep\n"
    assert (folder / "bin" / "python").exists()
    # The same for the script without Python.
    (script,) = (home / ".local/state/rocm-patch").glob("*/undo.sh")
    done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, mine.exists()) == (5, True)
    mine.unlink()
    # A changed file is a foreign edit as well; one that is gone is not.
    (init,) = folder.glob("lib/python*/site-packages/torch/__init__.py")
    init.write_text("patched = True\n")
    assert undo(home).left == (str(folder), str(init))
    init.unlink()
    assert undo(home).outcome == "rolled back"
    assert sorted(os.listdir(home)) == []


@needs_venv
def test_undo_without_python(home, wheels):
    receipt = do(home, wheels)
    folder = f"{home}/.local/share/rocm-patch/venvs/torch-gfx1010"
    subprocess.run([f"{folder}/bin/python", "-c", "import torch"], check=True)
    done = subprocess.run(["/bin/sh", receipt.undo], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(home) == []


KILLED = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_venv as support
from dataclasses import replace
from pathlib import Path
support.do(Path(sys.argv[3]), sys.argv[4])
"""


@needs_venv
@pytest.mark.parametrize("when", [pytest.param("venv", marks=pytest.mark.slow), pytest.param("pip", marks=pytest.mark.slow), "torch"])
def test_killed_in_the_middle(when, home, wheels):
    """The parent is killed; its child may work on, and recovery waits for it by the lock that the child has inherited."""
    argv = [sys.executable, "-c", KILLED, str(Path(rocm_patch.__file__).parents[1]), str(Path(__file__).parent), str(home), wheels]
    sign = {"venv": "pyvenv.cfg", "pip": "lib/python*/site-packages/pip", "torch": "lib/python*/site-packages/torch"}[when]
    folder = home / ".local/share/rocm-patch/venvs/torch-gfx1010"
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while not list(folder.glob(sign)):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    refused = 0
    while True:
        try:
            receipts = recover(here(home))
            break
        except RefusedError as error:
            assert "another run" in str(error)
            refused += 1
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert [receipt.outcome for receipt in receipts] == ["recovered"]
    assert os.listdir(home) == []


# ------------------------------------------------------------------ what is not ours


def test_nothing_is_installed_into_a_folder_that_is_not_ours(home, wheels):
    folder = home / ".local/share/rocm-patch/venvs/torch-gfx1010"
    folder.mkdir(parents=True)
    (folder / "theirs").write_text("x")
    before = snapshot(home)
    for marker in (None, "20260101-000000-00000000\n"):
        if marker:
            (folder / MARKER).write_text(marker)
            before = snapshot(home)
        with pytest.raises(RefusedError, match="not ours"):
            preview((step(wheels),), here(home))
        assert snapshot(home) == before


def test_not_in_another_root(tmp_path, wheels):
    with pytest.raises(RefusedError, match="running system only"):
        preview((step(wheels),), Locations(str(tmp_path), "/home/u"))


def test_one_index_only():
    argv = venv.install_command(step("https://stable.repo.amd.com/rocm/whl-next/"), "/v")
    assert argv[argv.index("--index-url") + 1] == "https://stable.repo.amd.com/rocm/whl-next/"
    assert not [word for word in argv if "extra-index" in word]
    argv = venv.install_command(step("/wheels"), "/v")
    assert argv[argv.index("--find-links") + 1] == "/wheels"
    assert "--no-index" in argv
    assert "--index-url" not in argv


BAD = {
    "an index that nobody knows": {"index": ("https://pypi.org/simple/",)},
    "an option as the index": {"index": ("--extra-index-url=https://pypi.org/simple",)},
    "a relative folder": {"index": ("wheels",)},
    "a folder with dots": {"index": ("/wheels/../etc",)},
    "two indices": {"index": ("/a", "/b")},
    "another package": {"packages": (*PACKAGES, "requests")},
    "another version": {"packages": ("torch[device-gfx1010]==2.13.0",)},
    "no version of torch": {"packages": ("torch",)},
    "a file as the package": {"packages": ("/tmp/torch.whl",)},
    "an address as the package": {"packages": ("torch @ https://example.com/torch.whl",)},
    "an option as the package": {"packages": ("--pre",)},
    "another card's extra": {"packages": (f"torch[device-gfx1030]=={TORCH}",)},
    "a card that has no wheels": {"gfx": ("gfx803",)},
    "no card": {"gfx": ("../gfx1010",)},
    "a name with a slash": {"name": ("../../x",)},
    "a hidden name": {"name": (".config",)},
    "a relative Python": {"python": ("python3",)},
    "a missing parameter": {"expect": ()},
    "an unknown parameter": {"target": ("/",)},
    "a package to expect that nobody knows": {"expect": ("requests",)},
}


@pytest.mark.parametrize("changed", BAD.values(), ids=BAD)
def test_refused(changed, home):
    with pytest.raises((RefusedError, FormatError)):
        preview((step("/wheels", **changed),), here(home))


def test_every_line_of_wheels_in_the_table_is_allowed(home):
    lines = 0
    for row in knowledge.load().wheels:
        for gfx in row.gfx:
            packages = tuple(text.replace("{gfx}", gfx) for text in row.packages)
            expect = tuple(text.replace("{gfx}", gfx) for text in row.expect)
            one = step(row.index, gfx=(gfx,), packages=packages, expect=expect, **({"extra": (row.extra_index,)} if row.extra_index else {}))
            found = preview((replace(one, remedy=row.remedy or one.remedy),), here(home))
            assert found[0][0].endswith("/venvs/torch-gfx1010")
            lines += 1
    assert lines > 5


def test_wheels_for_one_remedy_are_for_it_alone(home):
    """And their second index is theirs: the public one has placeholders under the names of the others' packages."""
    row = next(row for row in knowledge.load().wheels if row.remedy)
    legacy = step(row.index, gfx=("gfx1010",), packages=row.packages, expect=row.expect, extra=(row.extra_index,))
    with pytest.raises(RefusedError, match="no parameter 'extra'"):
        preview((legacy,), here(home))
    with pytest.raises(RefusedError, match="not those of any line"):
        preview((step(row.index, gfx=("gfx1010",), packages=row.packages, expect=row.expect),), here(home))
    for extra in ("https://pypi.org/simple/x", "https://example.org/simple"):
        with pytest.raises(RefusedError, match="no second index"):
            preview((replace(legacy, remedy=row.remedy, parameters={**legacy.parameters, "extra": (extra,)}),), here(home))
    words = venv.install_command(replace(legacy, remedy=row.remedy), "/v")
    assert words[words.index("--extra-index-url") + 1] == row.extra_index
    assert "--extra-index-url" not in venv.install_command(step("https://example.org/whl/"), "/v")


def test_a_c_library_that_refuses_the_wheels_is_named_before_anything_is_fetched(home, monkeypatch):
    row = next(row for row in knowledge.load().wheels if row.remedy)
    legacy = replace(step(row.index, gfx=("gfx1010",), packages=row.packages, expect=row.expect, extra=(row.extra_index,)), remedy=row.remedy)
    for version, fine in (("2.40", True), ("2.36.9000", True), ("2.41", False), ("2.100", False), ("3.0", False)):
        monkeypatch.setattr(executable_stack, "c_library", lambda version=version: version)
        if fine:
            assert preview((legacy,), here(home))
        else:
            with pytest.raises(RefusedError, match=f"glibc {version} refuses"):
                preview((legacy,), here(home))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_a_library_that_asks_for_an_executable_stack_is_seen(tmp_path):
    """By the linker's own flag; real libraries of this system do not ask."""
    folder = tmp_path / "lib/python3.10/site-packages/torch/lib"
    folder.mkdir(parents=True)
    for name, flag in (("libbad.so", "execstack"), ("libgood.so", "noexecstack")):
        argv = ["gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-Wl,-z," + flag, "-o", str(folder / name)]
        subprocess.run(argv, check=True, capture_output=True)
    (folder / "text.so").write_text("GROUP ( libgood.so )")
    (folder / "short.so").write_bytes(b"\x7fELF\x02\x01" + bytes(20))
    assert executable_stack.asking(str(tmp_path)) == [str(folder / "libbad.so")]
