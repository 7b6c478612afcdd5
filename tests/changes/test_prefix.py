"""A folder for each version and the link that selects one: checked on the way in, switched by one link, back to the byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from changes_support import snapshot

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts, preview, rollback, status
from rocm_patch.changes import Locations, prefix
from rocm_patch.changes.prefix_manifest import manifest_of, parse
from rocm_patch.errors import FormatError, RefusedError, UsageError
from rocm_patch.launch import Launch, with_prefix
from rocm_patch.model import SCHEMA, Plan, Step

BASE = "opt/rocm-patched"
COMPILER = shutil.which("cc") or shutil.which("gcc")


def stage(root, folder, files):
    """A staged folder with its manifest; returns the manifest's digest."""
    for name, data in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            path.symlink_to(data)
        else:
            path.write_bytes(data)
            path.chmod(0o755 if b"#!" in data else 0o644)
    text = manifest_of(str(root / folder))
    (root / folder / "manifest").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def step(version, mark, source="", remedy="patched-prefix-system"):
    parameters = {"name": ("miopen",), "version": (version,), "sha256": (mark,), **({"source": (source,)} if source else {})}
    return Step(remedy, "user" if remedy == "patched-prefix" else "system", parameters)


def do(root, given, home="", observe=None):
    locations = Locations(str(root), home, observe=observe)
    return apply(Plan(SCHEMA, (given,), facts((given,), locations)), locations, tables=knowledge.load(), say=lambda _: None)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "home/u").mkdir(parents=True)
    (root / "srv").mkdir()
    return root


FILES = {"lib/liba.so.1.0": b"one" * 1000, "lib/liba.so": "liba.so.1.0", "share/db/a.txt": b"rows\n", "bin/tool": b"#!/bin/sh\n", "lib64": "lib"}


def test_there_and_back(root):
    mark = stage(root, "srv/one", FILES)
    before = snapshot(root)
    (receipt,) = do(root, step("6.4.3", mark, "/srv/one"))
    folder = root / BASE / f"miopen-6.4.3-{mark[:12]}"
    assert os.readlink(root / BASE / "current") == f"{folder.name}/prefix"
    assert "rocm-patch run --prefix /opt/rocm-patched/current" in receipt.verified[0]
    through = root / BASE / "current"
    assert (through / "lib64/liba.so").read_bytes() == b"one" * 1000
    assert (through / "bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (through / "share/db/a.txt").stat().st_mode & 0o7777 == 0o644
    assert (folder / "manifest").read_bytes() == (root / "srv/one/manifest").read_bytes()
    assert manifest_of(str(folder / "prefix")) == (folder / "manifest").read_bytes()
    assert {item.state for item in status(Locations(str(root)))[0].files} == {"as left"}
    assert do(root, step("6.4.3", mark))[0].outcome == "already there"  # without the staged folder
    rollback(Locations(str(root)), everything=True)
    assert snapshot(root) == before


def test_switching_is_one_link_and_back_to_the_byte(root):
    one, two = stage(root, "srv/one", FILES), stage(root, "srv/two", {**FILES, "lib/liba.so.1.0": b"two" * 1000})
    do(root, step("6.4.3", one, "/srv/one"))
    first = snapshot(root / BASE)
    do(root, step("6.4.4", two, "/srv/two"))
    assert (root / BASE / "current/lib/liba.so").read_bytes() == b"two" * 1000

    # To a version that is there: one rename on the link, and nothing else outside the journal.
    log = []
    do(root, step("6.4.3", one), observe=log.append)
    touched = [item for item in log if "opt" in item.path.split("/")[0] or "opt" in item.target.split("/")[0]]
    assert [item.target for item in touched if item.call == "rename"] == [f"{BASE}/current"]
    assert {item.call for item in touched} <= {"symlink", "dress", "rename", "fsync folder"}
    assert (root / BASE / "current/lib/liba.so").read_bytes() == b"one" * 1000

    rollback(Locations(str(root)))
    assert (root / BASE / "current/lib/liba.so").read_bytes() == b"two" * 1000
    rollback(Locations(str(root)))
    assert snapshot(root / BASE) == first
    rollback(Locations(str(root)))
    assert not (root / "opt").exists()


def test_user_scope(root):
    home, mark = root / "home/u", stage(root, "home/u/stage", FILES)
    before = snapshot(root)
    do(root, step("6.4.3", mark, "/home/u/stage", "patched-prefix"), "/home/u")
    assert (home / ".local/share/rocm-patch/prefixes/current/lib/liba.so").exists()
    assert (home / f".local/share/rocm-patch/prefixes/miopen-6.4.3-{mark[:12]}").stat().st_mode & 0o7777 == 0o700
    rollback(Locations(str(root), "/home/u"), everything=True)
    assert snapshot(root) == before


def test_what_it_left_in_a_cache_is_named(root):
    """MIOpen's databases of a version are nobody's business but that version's, and made anew at any time."""
    home, mark = root / "home/u", stage(root, "home/u/stage", FILES)
    do(root, step("6.4.3", mark, "/home/u/stage", "patched-prefix"), "/home/u")
    assert rollback(Locations(str(root), "/home/u"), everything=True)[0].verified[-1].endswith("as it was")
    do(root, step("6.4.3", mark, "/home/u/stage", "patched-prefix"), "/home/u")
    databases = home / f".cache/rocm-patch/miopen/miopen-6.4.3-{mark[:12]}"
    databases.mkdir(parents=True)
    (receipt,) = rollback(Locations(str(root), "/home/u"), everything=True)
    assert receipt.outcome == "rolled back"
    assert receipt.verified[-1].endswith(f"rm -r /home/u/.cache/rocm-patch/miopen/{databases.name}")
    assert databases.is_dir()


# ------------------------------------------------------------------ checked on the way


def swap_for_a_link(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


SPOILS = {
    "a byte changed": lambda at: (at / "share/db/a.txt").write_bytes(b"Rows\n"),
    "a file gone": lambda at: (at / "share/db/a.txt").unlink(),
    "a file is a link now": lambda at: swap_for_a_link(at / "share/db/a.txt"),
    "a folder is a link now": lambda at: ((at / "share").rename(at / "other"), (at / "share").symlink_to("other")),
    "a pipe": lambda at: ((at / "share/db/a.txt").unlink(), os.mkfifo(at / "share/db/a.txt")),
    "the manifest changed": lambda at: (at / "manifest").write_bytes((at / "manifest").read_bytes() + b"link\t-\ta\tb\n"),
    "no manifest": lambda at: (at / "manifest").unlink(),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_stage_that_changed_since(spoil, root):
    mark = stage(root, "srv/one", FILES)
    locations, given = Locations(str(root)), step("6.4.3", mark, "/srv/one")
    plan = Plan(SCHEMA, (given,), facts((given,), locations))
    spoil(root / "srv/one")
    with pytest.raises(RefusedError):
        apply(plan, locations, tables=knowledge.load(), say=lambda _: None)
    assert not (root / "opt").exists()
    assert not (root / "var").exists()


GOOD = "file\t0644\t" + "5" * 64 + "\t"
BAD = {
    "empty": "",
    "no end": GOOD + "a",
    "out of the folder": GOOD + "../a\n",
    "absolute": GOOD + "/etc/passwd\n",
    "not plain": GOOD + "a//b\n",
    "dots inside": GOOD + "a/../../b\n",
    "the manifest itself": GOOD + "manifest\n",
    "twice": (GOOD + "a\n") * 2,
    "a file as a folder": GOOD + "a\n" + GOOD + "a/b\n",
    "a link as a folder": "link\t-\tc\ta\n" + GOOD + "a/b\n",
    "setuid": GOOD.replace("0644", "4755") + "a\n",
    "writable by all": GOOD.replace("0644", "0666") + "a\n",
    "no digest": "file\t0644\t5\ta\n",
    "a link out": "link\t-\t../../etc/passwd\ta/b\n",
    "a link to a root path": "link\t-\t/etc/passwd\ta\n",
    "a link out by way of another": "link\t-\t../../..\ta/b/c/up\nlink\t-\t../a/b/c/up/../evil.so\tlib/libx.so\n",
    "a link through another": "link\t-\tc\ta\nlink\t-\t./a//e\tb\n",
    "a device": "device\t0644\t1:3\ta\n",
    "control characters": GOOD + "a\x1b[2J\n",
    "too few words": "file\t0644\ta\n",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_manifest_that_is_never_installed(text, root):
    with pytest.raises(FormatError):
        parse(text.encode())
    (root / "srv/one").mkdir()
    (root / "srv/one/manifest").write_text(text)
    with pytest.raises(FormatError):
        do(root, step("1", hashlib.sha256(text.encode()).hexdigest(), "/srv/one"))
    assert not (root / "opt").exists()


def test_a_stage_with_a_link_that_leads_out_by_way_of_another(tmp_path):
    """`..` behind a link is above where the link leads: no word of the two leaves the folder, and the file that is opened does."""
    stage = tmp_path / "stage"
    (stage / "a/b/c").mkdir(parents=True)
    (stage / "lib").mkdir()
    (stage / "a/b/c/up").symlink_to("../../..")
    (stage / "lib/libx.so").symlink_to("../a/b/c/up/../evil.so")
    (tmp_path / "evil.so").write_text("evil")
    assert (stage / "lib/libx.so").read_text() == "evil"
    with pytest.raises(FormatError, match=r"goes through another, a/b/c/up"):
        manifest_of(str(stage))
    (stage / "lib/libx.so").unlink()
    (stage / "lib/libx.so").symlink_to("../a/b/c/up")  # to a link, and through folders: as every library has them
    assert len(parse(manifest_of(str(stage)))) == 2


def test_words_that_are_refused():
    for key, value in {"name": "../x", "version": "1/2", "sha256": "5", "torch": "venv"}.items():
        given = step("1", "5" * 64, "/srv/one")
        with pytest.raises(RefusedError, match=key):
            prefix.validate(Step(given.remedy, "system", {**given.parameters, key: (value,)}), knowledge.load())
    with pytest.raises(RefusedError, match="absolute"):
        prefix.validate(step("1", "5" * 64, "/srv/../etc"), knowledge.load())


def test_nothing_staged_and_nothing_there(root):
    with pytest.raises(RefusedError, match="names no staged folder"):
        preview((step("1", "5" * 64),), Locations(str(root)))


# ------------------------------------------------------------------ in the way, and in use


def test_what_is_not_ours_stays(root):
    mark = stage(root, "srv/one", FILES)
    (root / BASE / "current").mkdir(parents=True)
    with pytest.raises(RefusedError, match="no link of ours"):
        do(root, step("1", mark, "/srv/one"))
    (root / BASE / "current").rmdir()
    (root / BASE / f"miopen-1-{mark[:12]}").mkdir()
    with pytest.raises(RefusedError, match="does not hold what its name says"):
        do(root, step("1", mark, "/srv/one"))


def test_a_link_that_somebody_set_holds_its_version(root):
    mark = stage(root, "srv/one", FILES)
    do(root, step("1", mark, "/srv/one"))
    link = root / BASE / "current"
    link.unlink()
    link.symlink_to(f"/{BASE}/miopen-1-{mark[:12]}/prefix")
    with pytest.raises(RefusedError, match="set by somebody else"):
        rollback(Locations(str(root)), everything=True)
    assert (root / BASE / f"miopen-1-{mark[:12]}/prefix/lib/liba.so").exists()


def test_an_environment_that_names_it_holds_it(root):
    mark = stage(root, "home/u/stage", FILES)
    do(root, step("1", mark, "/home/u/stage", "patched-prefix"), "/home/u")
    script = root / "home/u/.local/share/rocm-patch/venvs/mine/bin/activate"
    script.parent.mkdir(parents=True)
    script.write_text(f"export LD_LIBRARY_PATH=/home/u/.local/share/rocm-patch/prefixes/miopen-1-{mark[:12]}/prefix/lib\n")
    with pytest.raises(RefusedError, match="venvs/mine/bin/activate names it"):
        rollback(Locations(str(root), "/home/u"), everything=True)
    script.write_text("")
    assert rollback(Locations(str(root), "/home/u"), everything=True)[0].outcome == "rolled back"


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_a_program_that_has_it_loaded_holds_it(tmp_path, monkeypatch):
    """On the running system, in user scope; and how a program finds what is in the folder."""
    home = tmp_path / "home"
    home.mkdir()
    built, source = tmp_path / "built", tmp_path / "a.c"
    (built / "lib").mkdir(parents=True)
    source.write_text("int which(void) { return NUMBER; }\n")
    own = tmp_path / "own"
    own.mkdir()
    for number, folder in ((1, own), (2, built / "lib")):
        argv = [COMPILER, "-shared", "-fPIC", f"-DNUMBER={number}", "-Wl,-soname,libwhich.so.1", "-o", str(folder / "libwhich.so.1"), str(source)]
        subprocess.run(argv, check=True)
    main = tmp_path / "main.c"
    main.write_text('#include <stdio.h>\nint which(void);\nint main(void) { printf("%d\\n", which()); fflush(stdout); return getchar() == -2; }\n')
    for name, tags in (("runpath", "--enable-new-dtags"), ("rpath", "--disable-new-dtags")):
        argv = [COMPILER, "-o", str(tmp_path / name), str(main), str(own / "libwhich.so.1"), f"-Wl,-rpath,{own},{tags}"]
        subprocess.run(argv, check=True)
    text = manifest_of(str(built))
    (built / "manifest").write_bytes(text)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    locations = Locations.here()
    given = step("1", hashlib.sha256(text).hexdigest(), str(built), "patched-prefix")
    apply(Plan(SCHEMA, (given,), facts((given,), locations)), locations, tables=knowledge.load(), say=lambda _: None)
    libraries = f"{home}/.local/share/rocm-patch/prefixes/current/lib"

    def says(program, **environment):
        return subprocess.run([tmp_path / program], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

    assert (says("runpath"), says("runpath", LD_LIBRARY_PATH=libraries)) == ("1\n", "2\n")
    assert (says("rpath"), says("rpath", LD_LIBRARY_PATH=libraries)) == ("1\n", "1\n")  # as PyTorch's ROCm wheels: it keeps its own
    assert says("rpath", LD_PRELOAD=f"{libraries}/libwhich.so.1") == "2\n"

    program = subprocess.Popen([tmp_path / "runpath"], env={"LD_LIBRARY_PATH": libraries}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while "prefixes" not in Path(f"/proc/{program.pid}/maps").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RefusedError, match=rf"process {program.pid} \(runpath\) has a library of it loaded"):
        rollback(locations, everything=True)
    assert says("runpath", LD_LIBRARY_PATH=libraries) == "2\n"
    program.communicate(b"\n")
    assert rollback(locations, everything=True)[0].outcome == "rolled back"
    assert not (home / ".local").exists()


def test_run_takes_its_libraries_first(root):
    """The door for one command: `rocm-patch run --prefix`."""
    mark = stage(root, "srv/one", FILES)
    do(root, step("6.4.3", mark, "/srv/one"))
    given = Launch({"LD_LIBRARY_PATH": "/mine", "A": "1"}, ("something",), ())
    found = with_prefix(given, f"{root}/{BASE}/current")
    assert found.environment == {"LD_LIBRARY_PATH": f"{root}/{BASE}/current/lib:/mine", "A": "1"}
    assert found.changes[1].startswith(f"LD_LIBRARY_PATH={root}/{BASE}/current/lib:/mine: ")
    assert with_prefix(Launch({}, (), ()), f"{root}/{BASE}/current").environment == {"LD_LIBRARY_PATH": f"{root}/{BASE}/current/lib"}
    with pytest.raises(UsageError, match="no folder lib"):
        with_prefix(given, str(root))
