"""Exactness: a rollback leaves what was there, twice is once, foreign edits win, two at once, and nothing outside the root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import (
    CASES,
    ENVIRONMENT_STEPS,
    STATE,
    TABLES,
    TEST_KINDS,
    DieAt,
    Killed,
    clone,
    count_operations,
    do_apply,
    do_recover,
    do_rollback,
    needs_of,
    plan_for,
    prepare,
    snapshot,
)

import rocm_patch
from rocm_patch.apply import apply, how_to_remove, rollback, status
from rocm_patch.changes import Locations, facts, preview
from rocm_patch.changes.journal import Journal
from rocm_patch.errors import EXIT_REFUSED, FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Plan, Step
from rocm_patch.root import Tree

DROP_IN = "etc/profile.d/zz-rocm-patch.sh"
SHELLS = [["/bin/sh"], *([["busybox", "sh"]] if shutil.which("busybox") else [])]


@pytest.fixture
def root(scratch):
    return prepare(f"{scratch}/root")


def say_nothing(_):
    pass


# ------------------------------------------------------------------ back to what it was


@pytest.mark.parametrize("case", sorted(CASES))
def test_apply_and_rollback_leave_the_same_tree(case, root):
    before = snapshot(root)
    (receipt,) = do_apply(root, CASES[case])
    assert receipt.outcome == "applied"
    assert receipt.changed
    assert receipt.verified
    assert receipt.needs == needs_of(case)
    assert snapshot(root) != before
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "rolled back"
    assert snapshot(root) == before


def test_extended_attributes_come_back(tmp_path):
    root = prepare(tmp_path / "root")
    try:
        os.setxattr(f"{root}/etc/four.cfg", "user.note", b"kept")
        os.setxattr(f"{root}/etc/five.conf", "user.other", b"\x00\xff")
    except OSError as error:
        pytest.skip(f"this file system has no extended attributes: {error}")
    before = snapshot(root)
    do_apply(root, CASES["five"])
    assert os.getxattr(f"{root}/etc/four.cfg", "user.note") == b"kept"
    do_rollback(root)
    assert snapshot(root) == before


def test_modes_do_not_hang_on_the_umask(root):
    before = snapshot(root)
    for umask in (0o000, 0o077, 0o777):
        old = os.umask(umask)
        try:
            do_apply(root, ENVIRONMENT_STEPS)
            assert os.stat(f"{root}/{DROP_IN}").st_mode & 0o7777 == 0o644
            for at, folders, files in os.walk(f"{root}/{STATE}"):
                assert os.stat(at).st_mode & 0o7777 == 0o700
                assert all(os.stat(f"{at}/{name}").st_mode & 0o077 == 0 for name in (*folders, *files))
            do_rollback(root)
        finally:
            os.umask(old)
        assert snapshot(root) == before


def test_a_file_of_another_owner_comes_back_as_theirs(root):
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another owner")
    os.chown(f"{root}/etc/four.cfg", 12, 34)
    before = snapshot(root)
    do_apply(root, CASES["five"])
    now = os.stat(f"{root}/etc/four.cfg")
    assert (now.st_uid, now.st_gid, now.st_mode & 0o7777) == (12, 34, 0o640)
    do_rollback(root)
    assert snapshot(root) == before


def someone(root, mode=0o755):
    """A home in another root that belongs to a user whom this machine need not know."""
    if os.geteuid() != 0:
        pytest.skip("only root can work in a home of somebody else")
    os.chmod(os.path.dirname(root), mode)
    os.makedirs(f"{root}/home/someone")
    os.chown(f"{root}/home/someone", 12345, 12346)
    return Locations(root, "/home/someone"), (Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)}),)


def test_what_root_makes_in_the_home_of_another_root_is_its_owners(root):
    """It was root's, ~/.config and ~/.local closed to all others among it: the user was locked out of the own settings."""
    locations, steps = someone(root)
    before, us = snapshot(root), (os.geteuid(), os.getegid(), os.getgroups())
    do = {"tables": TABLES, "kinds": TEST_KINDS}
    apply(plan_for((*ENVIRONMENT_STEPS, *steps), locations), locations, **do)
    made = [os.path.join(at, name) for at, folders, files in os.walk(f"{root}/home") for name in (*folders, *files)]
    assert any(path.endswith("90-rocm-patch.conf") for path in made)
    assert {(os.lstat(path).st_uid, os.lstat(path).st_gid) for path in made} == {(12345, 12346)}
    assert os.stat(f"{root}/{DROP_IN}").st_uid == 0
    assert [scope.readable for scope in status(locations)] == [True, True]
    assert apply(plan_for(steps, locations), locations, **do)[0].outcome == "already there"
    rollback(locations, everything=True, **do)
    assert snapshot(root) == before
    assert (os.geteuid(), os.getegid(), os.getgroups()) == us


def test_a_journal_in_a_users_home_has_no_more_rights_than_the_user(root):
    """Root trusts the journal of a user's home with that user's rights only: its records name any path of the root."""
    locations, steps = someone(root)
    do = {"tables": TABLES, "kinds": TEST_KINDS}
    apply(plan_for(steps, locations), locations, **do)
    drop_in = "/home/someone/.config/environment.d/90-rocm-patch.conf"
    shutil.copyfile(f"{root}{drop_in}", f"{root}/etc/victim")  # so like the record that root would take it away
    os.chown(f"{root}/etc/victim", 12345, 12346)
    (receipt,) = Path(f"{root}/home/someone/.local/state/rocm-patch").glob("*/receipt")
    assert drop_in in receipt.read_text()
    receipt.write_text(receipt.read_text().replace(drop_in, "/etc/victim"))
    before = snapshot(f"{root}/etc")
    with pytest.raises(RefusedError, match="no right to write"):
        rollback(locations, everything=True, **do)
    assert snapshot(f"{root}/etc") == before


def test_a_home_that_its_owner_cannot_reach_is_refused(root):
    locations, steps = someone(root, 0o700)
    before = snapshot(root)
    with pytest.raises(RefusedError) as caught:
        apply(plan_for(steps, locations), locations, tables=TABLES, kinds=TEST_KINDS)
    assert "as that user" in caught.value.hint
    assert snapshot(root) == before
    do_apply(root, ENVIRONMENT_STEPS)  # the system's part is not hindered by it
    rollback(locations, everything=True, tables=TABLES, kinds=TEST_KINDS)
    assert snapshot(root) == before


def test_twice_is_once(root):
    do_apply(root, ENVIRONMENT_STEPS)
    plan = plan_for(ENVIRONMENT_STEPS, Locations(root))
    before = snapshot(root)

    def again(observe):
        (receipt,) = do_apply(root, ENVIRONMENT_STEPS, observe, plan)
        assert receipt.outcome == "already there"
        assert receipt.changed == ()

    assert count_operations(again) == 0
    assert snapshot(root) == before
    do_rollback(root)

    def back_again(observe):
        (receipt,) = do_rollback(root, observe)
        assert receipt.outcome == "nothing to undo"

    assert count_operations(back_again) == 0


def test_looking_writes_nothing(root):
    for _ in range(2):
        before = snapshot(root)
        seen = []
        locations = Locations(root, "/home/u", observe=seen.append)
        preview(ENVIRONMENT_STEPS, locations, TABLES, TEST_KINDS)
        facts(ENVIRONMENT_STEPS, locations, TABLES, TEST_KINDS)
        status(locations)
        assert seen == []
        assert snapshot(root) == before
        do_apply(root, ENVIRONMENT_STEPS)


def test_a_foreign_file_in_a_folder_of_ours_keeps_the_folder(root):
    before = snapshot(root)
    do_apply(root, CASES["five"])
    Path(f"{root}/etc/new.d/theirs").write_text("mine\n")
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "rolled back"
    assert receipt.left == ()
    now = snapshot(root)
    assert now.pop("etc/new.d/theirs")[4] == b"mine\n"
    assert now.pop("etc/new.d")[0] == "folder"
    assert now == before


# ------------------------------------------------------------------ several transactions


def test_a_second_plan_does_not_lose_the_first(root):
    before = snapshot(root)
    first, second = ENVIRONMENT_STEPS[:1], ENVIRONMENT_STEPS[1:]
    (one,) = do_apply(root, first)
    after_first = Path(f"{root}/{DROP_IN}").read_text()
    (two,) = do_apply(root, second)
    text = Path(f"{root}/{DROP_IN}").read_text()
    assert "10.3.0" in text
    assert "MIOPEN_FIND_MODE" in text
    with pytest.raises(RefusedError, match="later transaction"):
        rollback(Locations(root), one.transaction, tables=TABLES, kinds=TEST_KINDS)
    (receipt,) = do_rollback(root, everything=False)
    assert receipt.transaction == two.transaction
    assert Path(f"{root}/{DROP_IN}").read_text() == after_first
    (receipt,) = do_rollback(root, everything=False)
    assert receipt.transaction == one.transaction
    assert snapshot(root) == before


def test_everything_at_once_and_by_name(root):
    before = snapshot(root)
    do_apply(root, ENVIRONMENT_STEPS[:1])
    do_apply(root, CASES["five"])
    do_apply(root, ENVIRONMENT_STEPS[1:])
    with pytest.raises(RefusedError, match="no transaction"):
        rollback(Locations(root), "20260101-000000-00000000", tables=TABLES, kinds=TEST_KINDS)
    five = status(Locations(root))[0].transactions[1].transaction
    rollback(Locations(root), five, tables=TABLES, kinds=TEST_KINDS)
    assert Path(f"{root}/etc/four.cfg").read_bytes() == b"four: as the user left it\n"
    assert [len(scope.transactions) for scope in status(Locations(root))] == [2]
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "rolled back"
    assert snapshot(root) == before


def test_both_scopes_are_one_plan(root, scratch):
    steps = (*ENVIRONMENT_STEPS, Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)}))
    locations = Locations(root, "/home/u")
    before = snapshot(root)
    receipts = apply(plan_for(steps, locations), locations, tables=TABLES, kinds=TEST_KINDS, say=say_nothing)
    assert len({receipt.transaction for receipt in receipts}) == 1
    assert [receipt.outcome for receipt in receipts] == ["applied", "applied"]
    assert "HSA_OVERRIDE_GFX_VERSION=10.1.0" in Path(f"{root}/home/u/.config/environment.d/90-rocm-patch.conf").read_text().splitlines()
    receipts = rollback(locations, tables=TABLES, kinds=TEST_KINDS)
    assert [receipt.outcome for receipt in receipts] == ["rolled back", "rolled back"]
    assert snapshot(root) == before


def test_if_the_second_scope_fails_the_first_is_taken_back(root):
    steps = (*ENVIRONMENT_STEPS, Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)}))
    locations = Locations(root, "/home/u")
    plan = plan_for(steps, locations)
    Path(f"{root}/{DROP_IN}").write_text("somebody was faster\n")
    before = snapshot(root)
    with pytest.raises(RefusedError):
        apply(plan, locations, tables=TABLES, kinds=TEST_KINDS, say=say_nothing)
    assert snapshot(root) == before


# ------------------------------------------------------------------ foreign edits, changed facts


def edited(path):
    path.write_text(path.read_text() + "# mine\n")


def became_a_link(path):
    target = path.with_name("theirs")
    target.write_text("theirs\n")
    path.unlink()
    path.symlink_to("theirs")


def mode_changed(path):
    path.chmod(0o600)


def became_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("edit", [edited, became_a_link, mode_changed, became_a_folder])
def test_a_foreign_edit_is_never_overwritten_or_removed(edit, root):
    do_apply(root, ENVIRONMENT_STEPS)
    path = Path(f"{root}/{DROP_IN}")
    edit(path)
    before = snapshot(f"{root}/etc")
    with pytest.raises(RefusedError) as refusal:
        preview(ENVIRONMENT_STEPS[:1], Locations(root), TABLES, TEST_KINDS)
    assert refusal.value.exit_code == EXIT_REFUSED
    assert "/etc/profile.d/zz-rocm-patch.sh" in str(refusal.value)
    assert status(Locations(root))[0].files[0].state == "changed"
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "partly rolled back"
    assert receipt.left == ("/etc/profile.d/zz-rocm-patch.sh",)
    assert how_to_remove(receipt, root) == (f"rm -r -- {root}/{DROP_IN}",)
    assert snapshot(f"{root}/etc") == before
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "partly rolled back"
    # Once the owner has taken it away, nothing holds the journal any longer.
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "rolled back"
    assert not os.path.lexists(f"{root}/var/lib")


def test_only_the_edited_file_is_left(root):
    before = snapshot(root)
    do_apply(root, CASES["five"])
    edited(Path(f"{root}/etc/modprobe.d/two.conf"))
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "partly rolled back"
    assert receipt.left == ("/etc/modprobe.d/two.conf",)
    now = {path: row for path, row in snapshot(root).items() if not path.startswith("var/")}
    assert now.pop("etc/modprobe.d/two.conf")[4].endswith(b"# mine\n")
    assert now == before


def test_an_edit_between_two_of_our_changes_stands_there_again(root):
    """The second plan started from the user's edit of what the first one had written; the edit is what stays."""
    do_apply(root, CASES["five"])
    path = Path(f"{root}/etc/four.cfg")
    path.write_text("edited between\n")
    do_apply(root, (Step("five", "system", {"variant": ("b",)}),))
    assert path.read_text() == "four b\n"
    (receipt,) = do_rollback(root)
    assert (receipt.outcome, receipt.left) == ("partly rolled back", ("/etc/four.cfg",))
    assert path.read_text() == "edited between\n"
    assert not os.path.exists(f"{root}/etc/new.d")
    (scope,) = status(Locations(root))
    assert len(scope.transactions) == 1  # the first: its copy of what the user had before is kept


def test_a_drop_in_that_its_owner_deleted_can_be_applied_again(root):
    before = snapshot(root)
    do_apply(root, ENVIRONMENT_STEPS[:1])
    os.unlink(f"{root}/{DROP_IN}")
    assert status(Locations(root))[0].files[0].state == "gone"
    do_apply(root, ENVIRONMENT_STEPS[1:])
    assert "10.3.0" not in Path(f"{root}/{DROP_IN}").read_text()
    do_rollback(root)
    assert snapshot(root) == before


def test_a_file_of_our_name_that_is_not_ours(root):
    Path(f"{root}/{DROP_IN}").write_text("export SOMETHING=1\n")
    with pytest.raises(RefusedError, match="not as rocm-patch left it"):
        do_apply(root, ENVIRONMENT_STEPS)


def test_facts_that_changed(root):
    locations = Locations(root)
    plan = plan_for(CASES["five"], locations)
    Path(f"{root}/etc/four.cfg").write_text("changed since\n")
    before = snapshot(root)
    with pytest.raises(RefusedError, match=r"/etc/four\.cfg has changed since"):
        do_apply(root, CASES["five"], plan=plan)
    assert snapshot(root) == before


@pytest.mark.parametrize("change", ["missing", "extra", "nameless"])
def test_facts_that_do_not_fit_the_steps(change, root):
    plan = plan_for(ENVIRONMENT_STEPS, Locations(root))
    marks = dict(plan.facts)
    if change == "missing":
        marks.clear()
    else:
        marks["system:etc/shadow" if change == "extra" else "etc/shadow"] = "0" * 64
    with pytest.raises((RefusedError, FormatError)):
        do_apply(root, ENVIRONMENT_STEPS, plan=Plan(1, ENVIRONMENT_STEPS, marks))
    assert not os.path.lexists(f"{root}/{DROP_IN}")


def test_recovery_leaves_what_is_neither_before_nor_after(scratch):
    """Killed in the middle, then somebody edits: what they wrote stays, the rest goes back, and rollback says so."""
    source = prepare(f"{scratch}/source")
    before = snapshot(source)
    total = count_operations(lambda observe: do_apply(clone(source, f"{scratch}/run"), CASES["five"], observe))
    met = 0
    for point in range(1, total + 1):
        root = clone(source, f"{scratch}/run")
        with pytest.raises(Killed):
            do_apply(root, CASES["five"], DieAt(point))
        Path(f"{root}/etc/four.cfg").write_text("edited in between\n")
        opened = os.path.exists(f"{root}/{STATE}/plan")
        receipts = do_recover(root)
        assert Path(f"{root}/etc/four.cfg").read_text() == "edited in between\n"
        if opened:
            met += 1
            assert receipts[0].left == ("/etc/four.cfg",)
            # The copy of what stood there is kept until its owner says that all is well.
            (receipt,) = do_rollback(root)
            assert receipt.outcome == "partly rolled back"
            Path(f"{root}/etc/four.cfg").write_bytes(before["etc/four.cfg"][4])
            (receipt,) = do_rollback(root)
            assert receipt.outcome == "rolled back"
        now = snapshot(root)
        if opened:
            assert now == before
    assert met > 10


# ------------------------------------------------------------------ two at once


RACER = """
import sys
sys.path[:0] = sys.argv[1:3]
import changes_support as support
from rocm_patch.changes.places import Locations
from rocm_patch.errors import RefusedError
root = sys.argv[3]
plan = support.plan_for(support.CASES["five"], Locations(root))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(12):
    for action in (lambda: support.do_apply(root, support.CASES["five"], plan=plan)[0], lambda: support.do_rollback(root)[0]):
        try:
            print(action().outcome, flush=True)
        except RefusedError as error:
            print("refused: " + error.what, flush=True)
"""


def test_two_at_once(root):
    before = snapshot(root)
    source = str(Path(rocm_patch.__file__).parents[1])
    argv = [sys.executable, "-c", RACER, source, str(Path(__file__).parent), root]
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) for _ in range(2)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        lines = [line for racer in racers for line in racer.communicate()[0].splitlines()]
        assert [racer.returncode for racer in racers] == [0, 0]
    assert len(lines) == 48
    outcomes = {line.split(":")[0] for line in lines}
    assert "applied" in outcomes
    assert outcomes <= {"applied", "already there", "rolled back", "nothing to undo", "refused"}
    refusals = [line for line in lines if line.startswith("refused")]
    assert all("another run" in line or "changed" in line for line in refusals), refusals
    do_recover(root)
    do_rollback(root)
    assert snapshot(root) == before


def test_the_lock_says_who_holds_it_and_dies_with_its_holder(root):
    do_apply(root, ENVIRONMENT_STEPS)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with Journal(Locations(root).ground("system")).opened():
            os.write(go, b"x")
            signal_never_comes = os.pipe()[0]
            os.read(signal_never_comes, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(RefusedError, match=f"process {child}"):
            do_rollback(root)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
    (receipt,) = do_rollback(root)
    assert receipt.outcome == "rolled back"


# ------------------------------------------------------------------ without us


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
@pytest.mark.parametrize("case", sorted(CASES))
def test_undo_without_python(case, shell, root):
    before = snapshot(root)
    (receipt,) = do_apply(root, CASES[case])
    script = f"{root}{receipt.undo}"
    assert subprocess.run([*shell, "-n", script], check=False).returncode == 0
    done = subprocess.run([*shell, script], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    now = snapshot(root)
    assert {path: row for path, row in now.items() if not path.startswith("var")} == {
        path: row for path, row in before.items() if not path.startswith("var")
    }
    assert now == before


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
def test_undo_without_python_of_a_killed_run_and_in_a_moved_root(shell, scratch):
    """The script is there before the first file is touched, and takes the root's new place as its argument."""
    source = prepare(f"{scratch}/source")
    before = snapshot(source)
    total = count_operations(lambda observe: do_apply(clone(source, f"{scratch}/run"), CASES["five"], observe))
    met = 0
    for point in range(1, total + 1, 3):
        root = clone(source, f"{scratch}/run")
        with pytest.raises(Killed):
            do_apply(root, CASES["five"], DieAt(point))
        if not os.path.exists(f"{root}/{STATE}/plan"):
            continue
        met += 1
        moved = f"{scratch}/mnt"
        shutil.rmtree(moved, ignore_errors=True)
        os.rename(root, moved)
        (script,) = Path(f"{moved}/{STATE}").glob("*/undo.sh")
        done = subprocess.run([*shell, str(script), moved], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        do_recover(moved)
        assert snapshot(moved) == before
    assert met > 5


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
def test_undo_without_python_leaves_foreign_edits(shell, root):
    (receipt,) = do_apply(root, CASES["five"])
    for path in ("etc/modprobe.d/two.conf", "etc/four.cfg"):
        edited(Path(f"{root}/{path}"))
    os.chmod(f"{root}/etc/profile.d/three.sh", 0o700)
    done = subprocess.run([*shell, f"{root}{receipt.undo}"], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.count("left: ") == 3
    for path in ("etc/modprobe.d/two.conf", "etc/four.cfg"):
        assert Path(f"{root}/{path}").read_text().endswith("# mine\n")
    assert not os.path.exists(f"{root}/etc/new.d")
    assert Path(f"{root}/etc/five.conf").read_bytes() == b"five: to be deleted\n"


# ------------------------------------------------------------------ hostile trees


@pytest.mark.parametrize("where", ["etc", "etc/profile.d", "var", "var/lib", "var/lib/rocm-patch"])
def test_links_out_of_the_root_are_refused(where, root, scratch):
    outside = f"{scratch}/outside"
    shutil.copytree(f"{root}/etc", f"{outside}/etc")
    os.makedirs(f"{outside}/lib", 0o700)
    os.makedirs(f"{outside}/rocm-patch", 0o700)
    path = f"{root}/{where}"
    if os.path.isdir(path):
        shutil.rmtree(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink({"etc": f"{outside}/etc", "etc/profile.d": f"{outside}/etc/profile.d"}.get(where, outside), path)
    before = snapshot(outside)
    with pytest.raises(RocmPatchError, match="link"):
        do_apply(root, ENVIRONMENT_STEPS)
    assert snapshot(outside) == before


def test_a_link_in_the_place_of_the_drop_in_is_not_followed(root, scratch):
    target = Path(f"{scratch}/victim")
    target.write_text("precious\n")
    os.symlink(target, f"{root}/{DROP_IN}")
    with pytest.raises(RefusedError):
        do_apply(root, ENVIRONMENT_STEPS)
    assert target.read_text() == "precious\n"


def test_a_journal_of_somebody_else_is_not_trusted(root):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    do_apply(root, ENVIRONMENT_STEPS)
    os.chown(f"{root}/{STATE}", 12345, 12345)
    with pytest.raises(RefusedError, match="not trusted"):
        do_rollback(root)
    os.chown(f"{root}/{STATE}", 0, 0)
    os.chmod(f"{root}/{STATE}", 0o770)
    with pytest.raises(RefusedError, match="not trusted"):
        do_rollback(root)


@pytest.mark.parametrize("path", ["/etc/../etc/shadow", "etc/x", "/", "/etc/", "/../x", ""])
def test_a_journal_cannot_name_odd_paths(path, root):
    ground = Locations(root).ground("system")
    with pytest.raises(RefusedError):
        Tree(root).create(ground.at(path), b"x")


def test_a_damaged_journal_is_an_error_and_nothing_is_touched(root):
    do_apply(root, CASES["five"])
    (folder,) = [path for path in Path(f"{root}/{STATE}").iterdir() if path.is_dir()]
    receipt = folder / "receipt"
    good = receipt.read_text()
    before = snapshot(f"{root}/etc")
    for bad in ("", "{}", good.replace('"schema"', '"skema"'), good[: len(good) // 2], good.replace("/etc/four.cfg", "/etc/../etc/shadow")):
        receipt.write_text(bad)
        with pytest.raises(RocmPatchError):
            do_rollback(root)
        assert snapshot(f"{root}/etc") == before
    receipt.write_text(good)
    copies = [path for path in folder.iterdir() if len(path.name) == 64]
    for copy in copies:
        data = copy.read_bytes()
        copy.write_bytes(b"damaged")
    with pytest.raises(RocmPatchError, match="damaged"):
        do_rollback(root)
    assert snapshot(f"{root}/etc") == before
    del data


# ------------------------------------------------------------------ homes


def test_a_home_with_links_above_the_managed_folders(tmp_path, monkeypatch):
    """A linked home, a linked ~/.config, an XDG folder elsewhere: the user's own business, resolved once."""
    real = tmp_path / "disk" / "u"
    (real / "dotfiles").mkdir(parents=True)
    (tmp_path / "homes").mkdir()
    (tmp_path / "homes" / "u").symlink_to(real)
    (real / ".config").symlink_to("dotfiles")
    state = tmp_path / "elsewhere"
    state.mkdir()
    locations = Locations.here(environ={"HOME": str(tmp_path / "homes" / "u"), "XDG_STATE_HOME": str(state), "XDG_DATA_HOME": "relative"})
    steps = (Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)}),)
    before = snapshot(tmp_path)
    (receipt,) = apply(plan_for(steps, locations), locations, tables=TABLES, kinds=TEST_KINDS, say=say_nothing)
    assert receipt.changed == (f"{real}/dotfiles/environment.d/90-rocm-patch.conf",)
    assert receipt.undo.startswith(f"{state}/rocm-patch/")
    assert (real / ".config" / "environment.d" / "90-rocm-patch.conf").exists()
    rollback(locations, scope="user", tables=TABLES, kinds=TEST_KINDS)
    assert snapshot(tmp_path) == before


def test_no_home_and_sudo(tmp_path, monkeypatch):
    steps = (Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)}),)
    with pytest.raises(RefusedError, match="home"):
        apply(Plan(1, steps, {}), Locations(str(tmp_path)), tables=TABLES, kinds=TEST_KINDS)
    monkeypatch.setenv("SUDO_UID", "1000")
    if os.geteuid() == 0:
        with pytest.raises(RefusedError, match="sudo"):
            Locations.here(environ={"HOME": str(tmp_path)}).ground("user")
