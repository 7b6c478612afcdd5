"""One line of somebody else's file: exactly it, only where that is allowed, and back to the byte."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from changes_support import snapshot

from rocm_patch import knowledge, planner
from rocm_patch.apply import apply, facts, rollback
from rocm_patch.changes import Locations, engine, neutralise
from rocm_patch.changes.neutralise import PLACES, line_of
from rocm_patch.errors import RefusedError
from rocm_patch.model import SCHEMA, Plan, Step

GOLDEN = Path(__file__).with_name("golden") / "neutralise"
LAYOUTS = {
    # folder: file, line, action
    "crlf": ("/etc/environment", 2, "comment"),
    "no-final-newline": ("/etc/environment", 2, "comment"),
    "last-line-removed": ("/etc/environment", 2, "remove"),
    "latin-1": ("/etc/profile.d/mine.sh", 2, "comment"),
    "byte-order-mark": ("/etc/environment.d/mine.conf", 1, "comment"),
    "grub": ("/etc/default/grub", 3, "comment"),
    "preload": ("/etc/ld.so.preload", 1, "remove"),
    "modprobe": ("/etc/modprobe.d/amdgpu.conf", 2, "comment"),
    "shell-block": ("/etc/profile.d/block.sh", 3, "comment"),
}


def step(file, line, action="", text="", remedy="neutralise"):
    given = {"file": file, "line": str(line), "action": action, "text": text}
    scope = "system" if remedy == "neutralise" else "user"
    return Step(remedy, scope, {key: (value,) for key, value in given.items() if value})


def do(root, given, home=""):
    locations = Locations(str(root), home)
    return apply(Plan(SCHEMA, (given,), facts((given,), locations)), locations, tables=knowledge.load(), say=lambda _: None)


def write(root, file, data, mode=0o644):
    path = root / file[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "home/u").mkdir(parents=True)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_golden(layout, root):
    file, line, action = LAYOUTS[layout]
    path = write(root, file, (GOLDEN / layout / "before").read_bytes(), 0o640)
    before = snapshot(root)
    (receipt,) = do(root, step(file, line, action))
    assert path.read_bytes() == (GOLDEN / layout / "after").read_bytes()
    assert path.stat().st_mode & 0o7777 == 0o640
    assert receipt.verified[0].startswith(f"{file}: line {line} is out of force; ")
    assert do(root, step(file, line, action))[0].outcome == "already there"
    rollback(Locations(str(root)), everything=True)
    assert snapshot(root) == before


def test_every_layout_is_told_of():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(LAYOUTS)


def test_only_the_line_changes_whatever_the_bytes(root):
    """300 files drawn from hostile pieces: all other lines stay; every twentieth there and back by the journal."""
    draw = random.Random(3)
    pieces = [b"A=1", b"\r", b"\xff\xfe", b" ", b"\t", b"\x0b", b"\x85", "\u2028é".encode(), b"# x", b"\x1b", b""]
    ground, tables = Locations(str(root)).ground("system"), knowledge.load()
    for turn in range(300):
        lines = [b"".join(draw.choices(pieces, k=draw.randrange(4))) for _ in range(draw.randrange(1, 6))]
        number = draw.randrange(len(lines)) + 1
        lines[number - 1] = b"HSA_XNACK=1" + draw.choice([b"", b"\r", b" "])
        data = b"\n".join(lines) + draw.choice([b"", b"\n"])
        path = write(root, "/etc/environment", data)
        (change,) = neutralise.render((step("/etc/environment", number),), engine.peek(ground, tables))
        now = change.after.data.split(b"\n")
        assert now[number - 1] == b"# " + lines[number - 1]
        del now[number - 1]
        rest = data.split(b"\n")
        del rest[number - 1]
        assert now == rest
        if turn % 20 == 0:
            do(root, step("/etc/environment", number))
            assert path.read_bytes() == change.after.data
            rollback(Locations(str(root)), everything=True)
            assert path.read_bytes() == data


def test_a_file_of_the_user(root):
    write(root, "/home/u/.bashrc", b"alias l=ls\nexport HSA_OVERRIDE_GFX_VERSION=10.3.0\n")
    before = snapshot(root)
    do(root, step("/home/u/.bashrc", 2, remedy="neutralise-own"), "/home/u")
    assert (root / "home/u/.bashrc").read_bytes() == b"alias l=ls\n# export HSA_OVERRIDE_GFX_VERSION=10.3.0\n"
    rollback(Locations(str(root), "/home/u"), everything=True)
    assert snapshot(root) == before


# ------------------------------------------------------------------ refused


REFUSED = {
    "a place that is not in the table": ("/etc/fstab", b"a\nb\n", 1, "not one of the files"),
    "a folder deeper": ("/etc/profile.d/sub/x.sh", b"A=1\n", 1, "not one of the files"),
    "another ending": ("/etc/modprobe.d/x.conf.bak", b"A=1\n", 1, "not one of the files"),
    "somebody's home": ("/home/u/.bashrc", b"A=1\n", 1, "not one of the files"),
    "past the end": ("/etc/environment", b"A=1\n", 2, "has 1 lines"),
    "an empty line": ("/etc/environment", b"A=1\n \nB=2\n", 2, "empty or a remark"),
    "a remark": ("/etc/environment", b"  # A=1\n", 1, "empty or a remark"),
    "no text": ("/etc/environment", b"A=1\n\0\n", 1, "is no text"),
    "joined to the next": ("/etc/modprobe.d/a.conf", b"options amdgpu \\\n  noretry=0\n", 1, "backslash"),
    "joined to the one before": ("/etc/modprobe.d/a.conf", b"options amdgpu \\\n  noretry=0\n", 2, "backslash"),
    "our own": ("/etc/ld.so.preload", b"/usr/local/lib/rocm-patch/5/x.so\n", 1, "is ours"),
    "the only word of a block": ("/etc/profile.d/a.sh", b"if true; then\nexport A=1\nfi\n", 2, "something longer"),
    "the head of a block": ("/etc/profile.d/a.sh", b"if true; then\nexport A=1\nfi\n", 1, "something longer"),
    "the start of a string": ("/etc/default/grub", b'A="one\ntwo"\n', 1, "something longer"),
    "the middle of a string": ("/etc/default/grub", b'A="one\ntwo\nthree"\n', 2, "text of several lines"),
    "the middle of a document": ("/etc/profile.d/a.sh", b"cat <<X\nexport A=1\nX\n", 2, "text of several lines"),
}


@pytest.mark.parametrize(("file", "data", "line", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(file, data, line, words, root):
    write(root, file, data)
    before = snapshot(root)
    with pytest.raises(RefusedError, match=words):
        do(root, step(file, line))
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "parameters",
    [
        {"file": ("/etc/environment",)},
        {"line": ("1",)},
        {"file": ("/etc/environment",), "line": ("0",)},
        {"file": ("/etc/environment",), "line": ("-1",)},
        {"file": ("/etc/environment",), "line": ("1", "2")},
        {"file": ("/etc/../etc/environment",), "line": ("1",)},
        {"file": ("etc/environment",), "line": ("1",)},
        {"file": ("/etc/environment",), "line": ("1",), "action": ("replace",)},
    ],
)
def test_words_that_are_refused(parameters):
    with pytest.raises(RefusedError, match="remedy neutralise"):
        neutralise.validate(Step("neutralise", "system", parameters), knowledge.load())


def test_a_link_is_left_alone(root):
    write(root, "/etc/real", b"A=1\n")
    (root / "etc/environment").symlink_to("real")
    with pytest.raises(RefusedError, match="no plain file"):
        do(root, step("/etc/environment", 1))


def test_a_file_of_ours_is_taken_back_and_not_edited(root):
    """Its line was put behind a comment sign, and the rollback then left the file as somebody else's."""
    given = Step("environment-profile", "system", {"set": ("HSA_ENABLE_SDMA=0",)})
    made = do(root, given)[0].changed
    path = next(path for path in made if path.startswith(("/etc/profile.d/", "/etc/environment.d/")))
    lines = (root / path[1:]).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "HSA_ENABLE_SDMA" in line and not line.startswith("#"))
    with pytest.raises(RefusedError, match="is ours"):
        do(root, step(path, number))
    write(root, "/etc/modprobe.d/zz-rocm-patch.conf", b"options amdgpu noretry=0\n")
    with pytest.raises(RefusedError, match="is ours"):
        do(root, step("/etc/modprobe.d/zz-rocm-patch.conf", 1))
    write(root, "/etc/environment", b"A=1\nB=2\n")
    do(root, step("/etc/environment", 1))
    assert do(root, step("/etc/environment", 2))[0].outcome == "applied"  # edited by us is not made by us


def test_a_file_with_a_second_name_is_left_alone(root):
    path = write(root, "/etc/environment", b"A=1\n")
    os.link(path, root / "home/u/mine")
    with pytest.raises(RefusedError, match="second name"):
        do(root, step("/etc/environment", 1))
    assert path.read_bytes() == b"A=1\n"


def test_another_line_than_the_user_saw(root):
    path = write(root, "/etc/environment", b"A=1\nB=2\n")
    with pytest.raises(RefusedError, match="not the one that the plan names"):
        do(root, step("/etc/environment", 2, text="A=1"))
    locations, given = Locations(str(root)), step("/etc/environment", 2, text="B=2")
    plan = Plan(SCHEMA, (given,), facts((given,), locations))
    path.write_bytes(b"C=3\nB=2\n")
    with pytest.raises(RefusedError, match="changed since the plan was made"):
        apply(plan, locations, tables=knowledge.load(), say=lambda _: None)
    assert path.read_bytes() == b"C=3\nB=2\n"
    assert (line_of(b"a\n\xef\xbb\xbfb\r\n\xff", 2), line_of(b"a\n\xff", 2), line_of(b"a\n", 5)) == ("b", "", "")


def test_what_somebody_changed_since_is_left(root):
    path = write(root, "/etc/environment", b"A=1\nB=2\n")
    do(root, step("/etc/environment", 2))
    path.write_bytes(b"A=1\n# B=2\nC=3\n")
    assert rollback(Locations(str(root)), everything=True)[0].left == ("/etc/environment",)
    assert path.read_bytes() == b"A=1\n# B=2\nC=3\n"


def test_never_chosen_by_fix():
    """By its id alone: the planner takes no other kind on its own, and the rows say so."""
    assert "neutralise" not in planner.CHANGING
    rows = [row for row in knowledge.load().remedies.values() if row.kind == "neutralise"]
    assert len(rows) == 2
    assert all(row.by_name and row.instead for row in rows)
    assert {place.scope for place in PLACES} == {"system", "user"}


# ------------------------------------------------------------------ packages


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def dpkg(root, file, conffile=None):
    write(root, "/var/lib/dpkg/info/other.list", b"/.\n/etc/environment.d\n")
    write(root, "/var/lib/dpkg/info/some.list", f"/.\n{file}\n".encode())
    status = f"Package: some\nConffiles:\n /etc/x 5\n {file} {conffile}\nDescription: x\n" if conffile else "Package: some\n"
    write(root, "/var/lib/dpkg/status", status.encode())


def pacman(root, file, conffile=None):
    backup = f"%BACKUP%\n{file[1:]}\t{conffile}\n" if conffile else ""
    write(root, "/var/lib/pacman/local/some-1.0-1/files", f"%FILES%\netc/\n{file[1:]}\n\n{backup}".encode())


@pytest.mark.parametrize("database", [dpkg, pacman])
def test_packaged_files(database, root):
    """Not its configuration: refused. Its configuration as it came: refused. Edited since: the user's own."""
    data = b"A=1\nB=2\n"
    path = write(root, "/etc/environment", data)
    database(root, "/etc/environment")
    with pytest.raises(RefusedError, match="belongs to the package some"):
        do(root, step("/etc/environment", 1))
    database(root, "/etc/environment", md5(data))
    with pytest.raises(RefusedError, match="stands as the package some brought it"):
        do(root, step("/etc/environment", 1))
    database(root, "/etc/environment", md5(b"as it came"))
    do(root, step("/etc/environment", 1))
    assert path.read_bytes() == b"# A=1\nB=2\n"
    write(root, "/etc/default/grub", b"A=1\n")
    database(root, "/etc/default/grub")
    assert do(root, step("/etc/default/grub", 1))[0].outcome == "applied"  # there is no other way


def test_the_real_package_database():
    """Of this machine, looked at only."""
    if not os.path.exists("/var/lib/dpkg/info/bash.list") or b"/etc/bash.bashrc\n" not in Path("/var/lib/dpkg/info/bash.list").read_bytes():
        pytest.skip("no dpkg with bash here")
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${Conffiles}", "bash"], capture_output=True, text=True, check=True).stdout
    unchanged = f" /etc/bash.bashrc {md5(Path('/etc/bash.bashrc').read_bytes())}" in asked
    number = next(n for n, line in enumerate(Path("/etc/bash.bashrc").read_text().splitlines(), 1) if line.strip() and line[0] not in "# ")
    locations = Locations("/")
    if unchanged:
        with pytest.raises(RefusedError, match="stands as the package bash brought it"):
            facts((step("/etc/bash.bashrc", number),), locations)
    else:
        pytest.skip("/etc/bash.bashrc was edited here")


@pytest.mark.skipif(not os.access("/usr/bin/rpm", os.X_OK), reason="rpm is not installed")
def test_rpm_says_whose_a_file_is(root, tmp_path):
    """A package of our own making in a database of its own."""
    builder = shutil.which("rpmbuild")
    if builder is None:
        pytest.skip("rpmbuild is not installed")
    data = b"A=1\nB=2\n"
    spec = tmp_path / "some.spec"
    spec.write_text(
        "Name: some\nVersion: 1\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n%description\nx\n%install\n"
        "mkdir -p %{buildroot}/etc/profile.d\nprintf 'A=1\\nB=2\\n' >%{buildroot}/etc/environment\n"
        "printf 'A=1\\nB=2\\n' >%{buildroot}/etc/profile.d/plain.sh\n%files\n%config(noreplace) /etc/environment\n/etc/profile.d/plain.sh\n"
    )
    subprocess.run([builder, "-bb", f"--define=_topdir {tmp_path}/build", str(spec)], check=True, capture_output=True)
    package = next((tmp_path / "build").rglob("*.rpm"))
    database = root / "var/lib/rpm"
    database.mkdir(parents=True)
    subprocess.run(["rpm", f"--dbpath={database}", "-i", "--justdb", "--nodeps", str(package)], check=True, capture_output=True)
    path = write(root, "/etc/environment", data)
    write(root, "/etc/profile.d/plain.sh", data)
    write(root, "/etc/profile.d/mine.sh", data)
    with pytest.raises(RefusedError, match="belongs to the package some"):
        do(root, step("/etc/profile.d/plain.sh", 1))
    with pytest.raises(RefusedError, match="stands as the package some brought it"):
        do(root, step("/etc/environment", 1))
    path.write_bytes(b"A=1\nB=3\n")
    do(root, step("/etc/environment", 2))
    do(root, step("/etc/profile.d/mine.sh", 1))
    assert path.read_bytes() == b"A=1\n# B=3\n"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("owner", "mode"), [(1000, 0o644), (0, 0o666)])
def test_root_reads_no_database_of_somebody_elses(owner, mode, root, monkeypatch):
    from rocm_patch.changes import file_owners

    write(root, "/etc/environment", b"A=1\n")
    database = write(root, "/usr/lib/sysimage/rpm/rpmdb.sqlite", b"", mode)
    os.chown(database, owner, owner)
    monkeypatch.setattr(file_owners, "_RPM_PROGRAM", "/bin/false")
    with pytest.raises(RefusedError, match="is not root's alone"):
        do(root, step("/etc/environment", 1))


def test_a_database_that_nobody_can_read(root, monkeypatch):
    from rocm_patch.changes import file_owners

    write(root, "/etc/environment", b"A=1\n")
    write(root, "/usr/lib/sysimage/rpm/rpmdb.sqlite", b"")
    monkeypatch.setattr(file_owners, "_RPM_PROGRAM", "/nowhere/rpm")
    with pytest.raises(RefusedError, match="no /nowhere/rpm to read it"):
        do(root, step("/etc/environment", 1))
