"""Files that tools of the system make from ours: put in place last, taken back as they were, made anew where others made them since."""

from __future__ import annotations

import dataclasses
import errno
import subprocess

import pytest
from changes_support import (
    MADE_STEPS,
    TABLES,
    TEST_KINDS,
    DieAt,
    Killed,
    clone,
    count_operations,
    do_apply,
    do_recover,
    do_rollback,
    managed,
    prepare,
    regenerate,
    snapshot,
)

from rocm_patch.apply import recover, status
from rocm_patch.changes import Locations


def journal(root):
    return next((root / "var/lib/rocm-patch").glob("2*"))


def test_there_and_back(tmp_path):
    root = prepare(tmp_path / "root")
    before = snapshot(root)
    receipt = do_apply(root, MADE_STEPS)[0]
    assert receipt.changed == ("/etc/made.conf", "/boot/image", "/boot/menu.cfg")
    assert (tmp_path / "root/boot/menu.cfg").read_bytes() == b"menu\nquiet\n"
    assert {file.state for file in status(Locations(root))[0].files} == {"as left"}
    assert do_rollback(root)[0].outcome == "rolled back"
    assert snapshot(root) == before


def test_generated_again_by_others_is_made_anew(tmp_path):
    """A package upgrade rebuilt the menu with our setting in it: the old copy would lose the upgrade, the new file keeps our setting."""
    root = prepare(tmp_path / "root")
    before = managed(root)
    do_apply(root, MADE_STEPS)
    (tmp_path / "root/boot/menu.cfg").write_bytes(b"menu\nquiet\nanother kernel\n")
    assert {file.path: file.state for file in status(Locations(root))[0].files}["/boot/menu.cfg"] == "generated again"
    receipt = do_rollback(root)[0]
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert managed(root) == before


def test_generated_by_others_before_the_recovery(tmp_path):
    """The power went while the tool ran, the machine came up, an upgrade made the menu from our file, and then somebody recovers."""
    source = prepare(tmp_path / "source")
    before = managed(source)
    total, met = count_operations(lambda observe: do_apply(clone(source, tmp_path / "root"), MADE_STEPS, observe)), 0
    for point in range(1, total + 1):
        root = clone(source, str(tmp_path / "root"))
        with pytest.raises(Killed):
            do_apply(root, MADE_STEPS, DieAt(point))
        regenerate(root)
        met += b"quiet" in (tmp_path / "root/boot/menu.cfg").read_bytes()
        do_recover(root)
        (scope,) = status(Locations(root))
        if scope.transactions:  # killed after the commit, or others' files are still to be taken back
            do_rollback(root)
        assert managed(root) == before, point
    assert met > 10


def test_a_recovery_is_not_stuck_on_what_cannot_be_read(tmp_path):
    """A link loop where a tool's file was: the error of the system is told, ours is back, and the recovery comes to its end."""
    source = prepare(tmp_path / "source")
    before = managed(source)
    total = count_operations(lambda observe: do_apply(clone(source, tmp_path / "root"), MADE_STEPS, observe))
    root = clone(source, str(tmp_path / "root"))
    with pytest.raises(Killed):
        do_apply(root, MADE_STEPS, DieAt(total // 2))

    def fails(*_):
        raise OSError(errno.ELOOP, "Too many levels of symbolic links", "/efi")

    kinds = tuple(dataclasses.replace(kind, activate=fails) if kind.name == "made" else kind for kind in TEST_KINDS)
    recover(Locations(root), tables=TABLES, kinds=kinds)
    assert managed(root) == before
    assert status(Locations(root))[0].open == ""


def test_the_script_undoes_them_too(tmp_path):
    root = prepare(tmp_path / "root")
    before = snapshot(root)
    do_apply(root, MADE_STEPS)
    subprocess.run(["sh", str(journal(tmp_path / "root") / "undo.sh"), root], check=True)
    assert snapshot(root) == before


def test_the_script_names_what_was_generated_again(tmp_path):
    root = prepare(tmp_path / "root")
    do_apply(root, MADE_STEPS)
    (tmp_path / "root/boot/menu.cfg").write_bytes(b"menu\nquiet\nanother kernel\n")
    ended = subprocess.run(["sh", str(journal(tmp_path / "root") / "undo.sh"), root], capture_output=True, text=True, check=False)
    assert ended.returncode == 5
    assert "boot/menu.cfg (generated again since" in ended.stderr
    assert not (tmp_path / "root/etc/made.conf").exists()
