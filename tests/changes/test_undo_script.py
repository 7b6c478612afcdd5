"""undo.sh where nothing of ours is: busybox in a chroot, for every kind of change, and a whole system seen from a rescue system.

C15 is here as well: what the running system applied is taken back by `--root` from outside, killed at every primitive.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from changes_support import (
    CASES,
    EXHAUSTIVE,
    OWN_CASES,
    STATE,
    DieAt,
    Killed,
    Truth,
    clone,
    count_operations,
    difference,
    do_apply,
    do_recover,
    do_rollback,
    prepare,
    snapshot,
)

APPLETS = (
    "sh", "cat", "chmod", "chown", "cp", "cut", "find", "grep", "ln", "ls", "mkdir", "mv", "printf", "readlink", "rm", "rmdir", "sed",
    "sha256sum", "sync", "test", "tr", "wc", "[",
)  # fmt: skip
"""What a rescue system has; no applet of busybox that is not here can be called."""


def static_busybox():
    path = shutil.which("busybox")
    if path is None:
        return "", "busybox is not installed"
    if os.geteuid() != 0:
        return "", "only root can chroot"
    with tempfile.TemporaryDirectory() as empty:
        shutil.copy(path, f"{empty}/busybox")
        try:
            subprocess.run(["/busybox", "true"], preexec_fn=lambda: os.chroot(empty), check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return "", f"this busybox does not run in an empty root: {error}"
    return path, ""


BUSYBOX, WHY_NOT = static_busybox()
needs_chroot = pytest.mark.skipif(not BUSYBOX, reason=WHY_NOT)


def with_busybox(root):
    os.makedirs(f"{root}/bin", exist_ok=True)
    shutil.copy(BUSYBOX, f"{root}/bin/busybox")
    for name in APPLETS:
        if not os.path.lexists(f"{root}/bin/{name}"):
            os.symlink("busybox", f"{root}/bin/{name}")
    return str(root)


def undo_in_chroot(root, script, *words):
    argv = ["/bin/busybox", "sh", script, *words]
    return subprocess.run(
        argv, preexec_fn=lambda: (os.chroot(root), os.chdir("/")), env={"PATH": "/bin"}, capture_output=True, text=True, check=False
    )  # fmt: skip


@needs_chroot
@pytest.mark.root
@pytest.mark.parametrize("case", sorted(CASES))
def test_from_a_rescue_system(case, scratch):
    """The broken system is mounted on /mnt of one that has busybox and nothing else."""
    rescue = with_busybox(f"{scratch}/rescue")
    root = prepare(f"{scratch}/root")
    before = snapshot(root)
    (receipt,) = do_apply(root, CASES[case])
    assert snapshot(root) != before
    os.rename(root, f"{rescue}/mnt")
    done = undo_in_chroot(rescue, f"/mnt{receipt.undo}", "/mnt")
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(f"{rescue}/mnt") == before, difference(before, snapshot(f"{rescue}/mnt"))


@needs_chroot
@pytest.mark.root
@pytest.mark.parametrize("case", sorted(CASES))
def test_in_the_system_itself(case, scratch):
    root = with_busybox(prepare(f"{scratch}/root"))
    before = snapshot(root)
    (receipt,) = do_apply(root, CASES[case])
    done = undo_in_chroot(root, receipt.undo, "/")
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(root) == before, difference(before, snapshot(root))


@needs_chroot
@pytest.mark.root
@pytest.mark.parametrize("case", sorted(CASES))
def test_of_a_killed_run(case, scratch):
    """Killed anywhere after the plan was written: the script alone brings every managed file back."""
    rescue, source = with_busybox(f"{scratch}/rescue"), prepare(f"{scratch}/source")
    before = snapshot(source)
    total = count_operations(lambda observe: do_apply(clone(source, f"{scratch}/run"), CASES[case], observe))
    met = 0
    for point in range(2, total + 1, 7):
        root = clone(source, f"{rescue}/mnt")
        with pytest.raises(Killed):
            do_apply(root, CASES[case], DieAt(point))
        if not os.path.exists(f"{root}/{STATE}/plan"):
            continue
        met += 1
        (script,) = Path(f"{root}/{STATE}").glob("*/undo.sh")
        done = undo_in_chroot(rescue, f"/mnt/{script.relative_to(root)}", "/mnt")
        assert (done.returncode, done.stderr) == (0, ""), point
        do_recover(root)
        assert snapshot(root) == before, (point, difference(before, snapshot(root)))
    assert met >= 2


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_script_is_plain(case, scratch):
    """POSIX shell and a dozen tools; the names of files are absolute, and checked before anything is replaced."""
    root = prepare(f"{scratch}/root")
    (receipt,) = do_apply(root, CASES[case])
    text = Path(f"{root}{receipt.undo}").read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "python" not in text
    assert "sha256sum" in text
    for word in ("eval ", "curl", "wget", "sudo", "source "):
        assert word not in text
    assert os.stat(f"{root}{receipt.undo}").st_mode & 0o7777 == 0o700


# ------------------------------------------------------------------ C15: from a live system


def live(root, action):
    """Run an action in a child for which `root` is the running system; how it ended."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chroot(root)
            os.chdir("/")
            action("/")
            code = 0
        except Killed:
            code = 9
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot")
@pytest.mark.parametrize("case", OWN_CASES)
def test_applied_by_the_running_system_and_taken_back_from_a_live_one(case, scratch):
    """The machine dies at any primitive, its disk is mounted elsewhere: recover and rollback with --root, killed as well."""
    steps = CASES[case]
    source = prepare(f"{scratch}/source")
    before = snapshot(source)
    truth = Truth.of(steps, scratch)
    total = count_operations(lambda observe: do_apply(clone(source, f"{scratch}/run"), steps, observe))
    reached, step = 0, 1 if EXHAUSTIVE else 4
    points = range(1, total + 1, step)
    for point in points:
        root = clone(source, f"{scratch}/disk")
        reached += live(root, lambda slash, point=point: do_apply(slash, steps, DieAt(point))) == 9
        moved = f"{scratch}/mnt"
        shutil.rmtree(moved, ignore_errors=True)
        os.rename(root, moved)
        if point % 3 == 0:
            with contextlib.suppress(Killed):
                do_recover(moved, DieAt(1 + point % 5))
        do_recover(moved)
        assert truth.judge(moved, back=True) is None, point
    assert reached == len(points)
    root = clone(source, f"{scratch}/disk")
    assert live(root, lambda slash: do_apply(slash, steps)) == 0
    total = count_operations(lambda observe: do_rollback(clone(root, f"{scratch}/run"), observe))
    for point in range(1, total + 1, step):
        moved = clone(root, f"{scratch}/mnt")
        with pytest.raises(Killed):
            do_rollback(moved, DieAt(point))
        do_recover(moved)
        assert truth.judge(moved, back=True) is None, point
    do_rollback(root)
    assert snapshot(root) == before
    print(f"from a live system, {case}: {reached} kills of apply in the system itself, {(total + step - 1) // step} of rollback --root, all exact")
