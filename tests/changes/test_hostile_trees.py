"""Trees that somebody prepared, and a second process that swaps folders and links while we write: nothing outside the root is touched.

The kernel watches the outside for us: one opened file, one listed folder there is an escape. Five hundred trees and five seconds a
commit; ROCM_PATCH_EXHAUSTIVE=1 takes ten thousand and sixty.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from changes_support import CASES, EXHAUSTIVE, STATE, DieAt, Killed, do_apply, do_recover, do_rollback, prepare, snapshot

from rocm_patch.apply import status
from rocm_patch.changes import Locations
from rocm_patch.errors import RocmPatchError

TREES = 10_000 if EXHAUSTIVE else 500
SECONDS = 60.0 if EXHAUSTIVE else 5.0
LIBC = ctypes.CDLL(None, use_errno=True)
IN_ALL = 0xFFF
"""access, modify, attrib, close, open, moved, create, delete, and the watched folder's own."""


class Watch:
    """What the kernel saw in some folders and in the files there."""

    def __init__(self, folder):
        self.descriptor = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.descriptor >= 0
        self.places = {}
        for at, _, _ in os.walk(folder):
            number = LIBC.inotify_add_watch(self.descriptor, os.fsencode(at), IN_ALL)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self.places[number] = at
        self.events()

    def events(self):
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 1 << 16):
                at = 0
                while at < len(data):
                    number, mask, _, length = struct.unpack_from("iIII", data, at)
                    name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
                    found.append((self.places.get(number, "?"), name, hex(mask)))
                    at += 16 + length
        return found

    def close(self):
        os.close(self.descriptor)


def outside_of(scratch):
    """A folder that looks like a system, with a secret."""
    root = prepare(f"{scratch}/outside")
    os.makedirs(f"{root}/var/lib/rocm-patch/20260101-000000-00000000", 0o700)
    for path in ("secret", "etc/shadow", "var/lib/rocm-patch/plan", "var/lib/rocm-patch/made", "var/lib/rocm-patch/20260101-000000-00000000/receipt"):
        Path(f"{root}/{path}").write_text("root:precious\n")
    return root


def test_the_watch_sees_reads_and_writes(scratch):
    """Or the tests below prove nothing."""
    root = outside_of(scratch)
    watch = Watch(root)
    assert watch.events() == []
    Path(f"{root}/secret").read_bytes()
    assert watch.events()
    os.listdir(f"{root}/etc")
    assert watch.events()
    Path(f"{root}/etc/profile.d/x.sh").write_text("x")
    assert watch.events()
    watch.close()


def places_of(root):
    """Everything that we manage, and every folder on the way."""
    found = {"etc", "etc/profile.d", "etc/modprobe.d", "boot", "boot/menu.cfg", "var", "var/lib", STATE, "etc/new.d", "opt", "opt/engine", "opt/hook"}
    for at, folders, files in os.walk(root):
        found |= {os.path.relpath(os.path.join(at, name), root) for name in (*folders, *files)}
    return sorted(found)


def spoil(draw, root, outside):
    """Put a few bad things into a tree, in the places where they hurt."""
    places, done = places_of(root), []
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(places)
        place = f"{root}/{path}"
        parent = os.path.dirname(place)
        if os.path.realpath(parent) != parent:
            continue
        try:
            os.makedirs(parent, exist_ok=True)
        except OSError:
            continue  # one of the bad things is on the way already
        kept = f"{root}/kept{len(done)}"
        if os.path.lexists(place):
            os.rename(place, kept)
        depth = "../" * (path.count("/") + 1)
        target = draw.choice(
            [f"{outside}/{path}", outside, f"{outside}/etc", f"{outside}/secret", f"{depth}outside/{path}", f"{depth}{depth}{outside[1:]}", path, ".",
             "..", "/", f"/proc/self/root{outside}", kept, "nowhere"]
        )  # fmt: skip
        how = draw.choice(["link", "link", "link", "hard link", "fifo", "folder", "file", "socketless", "odd name"])
        if how == "link":
            os.symlink(target, place)
        elif how == "hard link":
            os.link(f"{outside}/secret", place)
        elif how == "fifo":
            os.mkfifo(place)
        elif how == "folder":
            os.makedirs(f"{place}/inner")
            os.symlink(outside, f"{place}/inner/link")
        elif how == "file":
            Path(place).write_bytes(b"\xff\0precious\n")
        elif how == "odd name":
            os.symlink(outside, f"{parent}/.rocm-patch-{draw.getrandbits(64):016x}")
        done.append((how, path, target))
    return done


def actions(root, case, looking=False):
    """The verbs, in the order of a life."""
    verbs = [lambda: do_apply(root, CASES[case]), lambda: do_rollback(root), lambda: do_recover(root)]
    return [*([lambda: status(Locations(root))] if looking else []), *verbs]


def test_hostile_trees(scratch):
    """Apply, rollback, recover and status in trees made of links; any answer is right but an escape or a surprise."""
    outside = outside_of(scratch)
    before = snapshot(outside)
    draw, answers = random.Random(6), {"done": 0, "refused": 0}
    watch = Watch(outside)
    for number in range(TREES):
        root = prepare(f"{scratch}/root")
        case = draw.choice(sorted(CASES))
        stage = draw.choice(["fresh", "fresh", "applied", "killed"])
        if stage == "applied":
            do_apply(root, CASES[case])
        elif stage == "killed":
            with contextlib.suppress(Killed):
                do_apply(root, CASES[case], DieAt(draw.randint(5, 90)))
        done = spoil(draw, root, outside)
        watch.events()  # what a hard link into it made
        other = draw.choice(sorted(CASES))
        for action in actions(root, other, looking=True):
            try:
                action()
                answers["done"] += 1
            except RocmPatchError as error:
                answers["refused"] += 1
                assert error.what
            except OSError as error:
                pytest.fail(f"tree {number}, {case}, {stage}, {done}: {error!r}")
            seen = watch.events()
            if not any(how == "hard link" for how, _, _ in done):  # that is a file of the tree itself
                assert seen == [], (number, case, stage, done, seen[:3])
        shutil.rmtree(root)
    watch.close()
    now = snapshot(outside)
    assert now == before
    print(f"hostile trees: {TREES}, {answers}, 0 reads or writes outside")
    assert min(answers.values()) > TREES // 4


@pytest.mark.parametrize("name", ["link", ".rocm-patch-0123456789abcdef", "__pycache__"])
def test_a_link_in_a_folder_that_goes_as_a_whole_is_not_opened(name, scratch):
    """os.fwalk opens what a link points to before it sees that it is one; seen at tree 1068."""
    outside, root = outside_of(scratch), prepare(f"{scratch}/root")
    do_apply(root, CASES["grown"])
    os.symlink(outside, f"{root}/opt/engine/{name}")
    watch = Watch(outside)
    do_rollback(root)
    os.unlink(f"{root}/opt/engine/{name}")
    do_rollback(root)
    assert not os.path.lexists(f"{root}/opt")
    tree = Locations(root).ground("system").tree()
    tree.ensure_folder("opt/x/inner")
    os.symlink(outside, f"{root}/opt/x/inner/{name}")
    tree.remove_tree("opt")
    assert not os.path.lexists(f"{root}/opt")
    assert watch.events() == []
    watch.close()


# ------------------------------------------------------------------ while we write


SWAPPER = """
import ctypes, os, random, sys, time
root, outside, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
libc, draw = ctypes.CDLL(None), random.Random(1)
paths = ("etc", "etc/profile.d", "etc/modprobe.d", "boot", "var", "var/lib", "var/lib/rocm-patch", "opt", "opt/engine", "opt/hook", "etc/four.cfg",
         "boot/menu.cfg", "etc/new.d")
end, swaps = time.monotonic() + seconds, 0
os.makedirs(root + ".swap")
for number, path in enumerate(paths):
    os.symlink(outside + "/" + path, root + ".swap/" + str(number))
print("ready", flush=True)
while time.monotonic() < end:
    number = draw.randrange(len(paths))
    one, other = os.fsencode(root + "/" + paths[number]), os.fsencode(root + ".swap/" + str(number))
    # One call each way: at every moment there is a folder or a link out of the root, never nothing.
    if libc.renameat2(-100, one, -100, other, 2) == 0:
        swaps += 1
        time.sleep(draw.random() * 0.0004)
        libc.renameat2(-100, one, -100, other, 2)
        time.sleep(draw.random() * 0.0004)
print(swaps, flush=True)
"""


def test_swapped_while_we_write(scratch):
    outside = outside_of(scratch)
    for path in ("opt/engine", "opt/hook", "etc/new.d"):
        os.makedirs(f"{outside}/{path}")
    before = snapshot(outside)
    watch, answers, surprises = Watch(outside), {"done": 0, "refused": 0}, []
    draw = random.Random(7)
    root = prepare(f"{scratch}/root")
    argv = [sys.executable, "-I", "-S", "-B", "-c", SWAPPER, root, outside, str(SECONDS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as swapper:
        assert swapper.stdout.readline() == "ready\n"
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            case = draw.choice(sorted(CASES))
            for action in actions(root, case):
                try:
                    action()
                    answers["done"] += 1
                except RocmPatchError:
                    answers["refused"] += 1
                except OSError as error:
                    surprises.append(repr(error))
            assert watch.events() == []
        swaps = int(swapper.stdout.readline())
    watch.close()
    assert snapshot(outside) == before
    print(f"swapped while we write: {SECONDS:.0f} s, {swaps} swaps, {answers}, {len(surprises)} errors of the system, 0 escapes")
    assert swaps > 100
    assert answers["done"] > 5
    assert answers["refused"] > 5
