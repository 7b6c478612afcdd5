"""An entry in ld.so.preload: no bad library gets one, and one that got it all the same is gone before anybody notices.

Bad entries are written below a root of its own or in a private mount namespace, never on the machine that runs this.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from changes_support import LIBRARY, PRELOAD_STEPS, do_apply, do_recover, do_rollback, managed, prepare, snapshot
from power_loss import Disk
from preload_support import BAD, ENTRY, FATAL, SOURCES, build_root, do, library, needs_compiler, needs_root, step, target

import rocm_patch
from rocm_patch import knowledge
from rocm_patch.apply import facts, rollback, status
from rocm_patch.changes import KINDS, Locations, engine, guard, preflight, preload
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import State

SOURCE = str(Path(rocm_patch.__file__).parents[1])
GOLDEN = Path(__file__).with_name("golden") / "preload"
MANY_KILLS = "ROCM_PATCH_EXHAUSTIVE" in os.environ
UNTRIED = tuple(dataclasses.replace(kind, prepare=None) if kind is preload.KIND else kind for kind in KINDS)
DIGEST = "5" * 64
PLAIN = Step("preload-library", "system", {"library": ("/opt/libx.so",), "sha256": (DIGEST,)})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A root with programs, made once; each test gets a copy by links."""
    if os.geteuid() != 0:
        pytest.skip("needs root for chroot")
    return build_root(tmp_path_factory.mktemp("root") / "model")


@pytest.fixture
def root(model, tmp_path):
    there = tmp_path / "root"
    subprocess.run(["cp", "-al", str(model), str(there)], check=True)
    return there


def runs(root, *words):
    """How /bin/true's like ends below that root: what a login would meet."""
    return subprocess.run(["chroot", str(root), *(words or ("/usr/bin/ls", "--version"))], capture_output=True, text=True, check=False)


# ------------------------------------------------------------------ words and bytes


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "one library is needed"),
        ({"library": ("/a/b.so",)}, "one sha256 is needed"),
        ({"library": ("/a/b.so", "/a/c.so"), "sha256": (DIGEST,)}, "one library is needed"),
        ({"library": ("a/b.so",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/../b.so",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/b c.so",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/b:c.so",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/$LIB.so",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/b.txt",), "sha256": (DIGEST,)}, "no absolute path"),
        ({"library": ("/a/b.so",), "sha256": ("5" * 63,)}, "64 hexadecimal"),
    ],
)
def test_words_that_are_refused(parameters, words):
    with pytest.raises(RefusedError, match=words):
        preload.validate(Step("preload-library", "system", parameters), knowledge.load())


@pytest.mark.parametrize("layout", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden(layout, tmp_path):
    """Everything else in the file stays byte for byte, there and back."""
    folder, root = GOLDEN / layout, tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "opt").mkdir()
    (root / "opt/libx.so").write_bytes(b"bytes of a library")
    given = step("/opt/libx.so", b"bytes of a library")
    old = (folder / "before").read_bytes() if (folder / "before").exists() else None
    if old is not None:
        (root / ENTRY).write_bytes(old)
        (root / ENTRY).chmod(0o640)
    before = snapshot(root)
    apply_untried(root, given)
    wanted = (folder / "after").read_bytes().replace(b"@", target(given).encode())
    assert (root / ENTRY).read_bytes() == wanted
    assert (root / target(given)[1:]).read_bytes() == b"bytes of a library"
    assert target(given).encode() in preload.words_of(wanted)
    do_undo(root)
    assert snapshot(root) == before


def apply_untried(root, given, observe=None):
    locations = Locations(str(root), observe=observe)
    ground, tables = locations.ground("system"), knowledge.load()
    seen = facts((given,), locations)
    return engine.apply_scope((given,), seen, ground, tables=tables, kinds=UNTRIED, transaction=engine.new_transaction(), say=lambda _: None)


def do_undo(root):
    return rollback(Locations(str(root)), everything=True)


def plain_root(tmp_path, old):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "opt").mkdir()
    (root / "opt/libx.so").write_bytes(b"bytes")
    if old is not None:
        (root / ENTRY).write_bytes(old)
    return root


EDITS = {
    "a line after ours": (b"/lib/a.so\n", lambda data: data + b"/lib/b.so\n", b"/lib/a.so\n/lib/b.so\n"),
    "a line before ours": (None, lambda data: b"/lib/b.so\n" + data, b"/lib/b.so\n"),
    "no end any more": (b"/lib/a.so\n", lambda data: data + b"/lib/b.so", b"/lib/a.so\n/lib/b.so"),
    "the other line changed": (b"/lib/a.so\n", lambda data: data.replace(b"a.so", b"c.so"), b"/lib/c.so\n"),
    "bytes that are no text": (None, lambda data: data + b"# \xff\xfe\r\n", b"# \xff\xfe\r\n"),
}


@pytest.mark.parametrize("by", ["rollback", "undo.sh"])
@pytest.mark.parametrize(("old", "edit", "left"), EDITS.values(), ids=EDITS)
def test_others_changed_the_rest_since(old, edit, left, by, tmp_path):
    """Exactly our line goes; the library as well."""
    root = plain_root(tmp_path, old)
    given = step("/opt/libx.so", b"bytes")
    apply_untried(root, given)
    (root / ENTRY).write_bytes(edit((root / ENTRY).read_bytes()))
    if by == "rollback":
        (receipt,) = do_undo(root)
        assert (receipt.outcome, receipt.left) == ("rolled back", ())
    else:
        script = next((root / "var/lib/rocm-patch").glob("2*/undo.sh"))
        subprocess.run(["sh", str(script), str(root)], check=True)
    # The shell's tools end a last line that had no end.
    assert (root / ENTRY).read_bytes() == left + (b"\n" if by == "undo.sh" and not left.endswith(b"\n") else b"")
    assert not (root / "usr").exists()
    assert not (root / "var/lib/rocm-patch").exists()


def test_ours_is_not_there_as_we_wrote_it(tmp_path):
    """Then nobody but the user can say what shall become of it."""
    root = plain_root(tmp_path, None)
    given = step("/opt/libx.so", b"bytes")
    apply_untried(root, given)
    changed = b"/lib/b.so " + target(given).encode() + b"\n"
    (root / ENTRY).write_bytes(changed)
    (receipt,) = do_undo(root)
    assert receipt.left == ("/etc/ld.so.preload",)
    assert (root / ENTRY).read_bytes() == changed


def test_the_entry_is_never_without_its_library(tmp_path):
    """In the order of the primitives: library, entry; back: entry, library."""
    root, log = plain_root(tmp_path, None), []
    given = step("/opt/libx.so", b"bytes")
    apply_untried(root, given, log.append)
    forth = [(item.call, item.target) for item in log if item.call in ("rename", "fsync folder")]
    names = [name for _, name in forth]
    library, entry = names.index(target(given)[1:]), names.index(ENTRY)
    assert library < entry
    assert ("fsync folder", "") in forth[library:entry]
    log.clear()
    rollback(Locations(str(root), observe=log.append), everything=True)
    gone = [item.path for item in log if item.call == "unlink"]
    assert gone.index(ENTRY) < gone.index(target(given)[1:])


@pytest.mark.parametrize("verb", ["apply", "rollback"])
def test_no_power_loss_leaves_an_entry_without_its_library(verb, scratch):
    """P1: whatever a disk may hold when the power is back, an entry that it holds names a library that is whole."""
    root, log, states, entries = prepare(f"{scratch}/run"), [], 0, 0
    if verb == "rollback":
        do_apply(root, PRELOAD_STEPS)
    disk = Disk.of(root)
    (do_apply(root, PRELOAD_STEPS, log.append) if verb == "apply" else do_rollback(root, log.append))
    for number in range(len(log) + 1):
        for word, names, content in disk.outcomes():
            disk.write(names, content, f"{scratch}/left")
            states += 1
            entry = Path(scratch, "left", ENTRY)
            for path in preload.words_of(entry.read_bytes()) if entry.exists() else ():
                entries += 1
                there = Path(scratch, "left", path.decode()[1:])
                assert there.exists(), f"{verb}, after {number} primitives, {word}"
                assert there.read_bytes() == LIBRARY, f"{verb}, after {number} primitives, {word}"
            shutil.rmtree(f"{scratch}/left")
        if number < len(log):
            disk.do(log[number])
    print(f"power loss, {verb}: {states} states, {entries} with an entry, each with its library whole")
    assert entries > 20


SOURCES_REFUSED = {
    "absent": (lambda path: path.unlink(), "is not there"),
    "a link": (lambda path: (path.rename(path.with_name("other")), path.symlink_to("other")), "no plain file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no plain file"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "no plain file"),
    "other bytes": (lambda path: path.write_bytes(b"Bytes"), "does not have the sha256"),
}


@pytest.mark.parametrize(("spoil", "words"), SOURCES_REFUSED.values(), ids=SOURCES_REFUSED)
def test_a_source_that_is_not_what_the_step_says(spoil, words, tmp_path):
    root = plain_root(tmp_path, None)
    spoil(root / "opt/libx.so")
    before = managed(root) if words != "no plain file" else None
    with pytest.raises(RefusedError, match=words) as refusal:
        apply_untried(root, step("/opt/libx.so", b"bytes"))
    assert "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9" not in str(refusal.value)
    assert before is None or managed(root) == before


def test_in_a_folder_of_ours_already(tmp_path):
    """What a build put there is used where it is, and stays there."""
    root = plain_root(tmp_path, b"")
    given = step("/opt/libx.so", b"bytes")
    there = root / target(given)[1:]
    there.parent.mkdir(parents=True)
    (root / "opt/libx.so").rename(there)
    before = snapshot(root)
    given = step(target(given), b"bytes")
    (root / target(given)[1:]).chmod(0o644)
    apply_untried(root, given)
    assert (root / ENTRY).read_text() == f"{target(given)}\n"
    do_undo(root)
    assert snapshot(root) == before


def test_a_folder_that_others_can_write(tmp_path):
    root = plain_root(tmp_path, None)
    (root / "usr/local/lib").mkdir(parents=True)
    (root / "usr/local/lib").chmod(0o775)
    before = managed(root)
    with pytest.raises(RefusedError, match="others than root can write /usr/local/lib"):
        do(root, step("/opt/libx.so", b"bytes"))
    assert managed(root) == before


def test_too_few_programs_to_tell(tmp_path):
    root = plain_root(tmp_path, None)
    for folder in ("usr/local/lib", "usr", "usr/local"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(0o755)
    before = managed(root)
    with pytest.raises(RefusedError, match=r"only 0 of at least 25|tried by root only"):
        do(root, step("/opt/libx.so", b"bytes"))
    assert managed(root) == before


def test_what_the_guard_puts_back(tmp_path):
    """It works on the file as it finds it."""
    root = plain_root(tmp_path, None)
    tree, line, old = Locations(str(root)).ground("system").tree(), "/usr/x.so", State("absent")
    for now, wanted in ((None, None), (b"/usr/x.so\n", None), (b"/usr/x.so\n/b.so\n", b"/b.so\n"), (b"/b.so\n", b"/b.so\n")):
        if now is not None:
            (root / ENTRY).write_bytes(now)
        preload.take_back(tree, ENTRY, old, line)
        assert ((root / ENTRY).read_bytes() if (root / ENTRY).exists() else None) == wanted
        (root / ENTRY).unlink(missing_ok=True)
    (root / ENTRY).write_bytes(b"/a.so")
    (root / ENTRY).chmod(0o600)
    old = tree.state(ENTRY)
    tree.put(ENTRY, dataclasses.replace(old, data=b"/a.so\n/usr/x.so\n"))
    preload.take_back(tree, ENTRY, old, line)
    assert tree.state(ENTRY) == old


# ------------------------------------------------------------------ with programs


@pytest.mark.root
@needs_compiler
@needs_root
def test_a_good_library(root, tmp_path):
    """All programs start, the table says so, and a program that runs while it is taken back goes on."""
    (root / "opt").mkdir()
    path = library("good", root / "opt")
    given, before = step("/opt/libtest.so", path.read_bytes()), snapshot(root)
    (receipt,) = do(root, given)
    assert receipt.outcome == "applied"
    assert receipt.verified == (f"/etc/ld.so.preload: every program that starts from now on loads {target(given)}",)
    assert (root / ENTRY).read_text() == f"{target(given)}\n"
    ended = runs(root)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [item.state for item in status(Locations(str(root)))[0].files] == ["as left", "as left"]

    reading, writing = os.pipe()
    cat = subprocess.Popen(["chroot", str(root), "/usr/bin/cat"], stdin=reading, stdout=subprocess.PIPE)
    while target(given) not in Path(f"/proc/{cat.pid}/maps").read_text():
        time.sleep(0.01)
    do_undo(root)
    assert snapshot(root) == before
    assert "(deleted)" in Path(f"/proc/{cat.pid}/maps").read_text()
    os.write(writing, b"still here")
    os.close(writing)
    os.close(reading)
    assert cat.communicate()[0] == b"still here"
    assert cat.returncode == 0


@pytest.mark.root
@needs_compiler
@needs_root
def test_programs_that_start_while_it_is_taken_back(root):
    """The library goes after the entry, and not at the next boot: what a start in between meets is counted here."""
    (root / "opt").mkdir()
    given = step("/opt/libtest.so", library("good", root / "opt").read_bytes())
    do(root, given)
    ends, stop = [], threading.Event()

    def start():
        while not stop.is_set():
            ends.append(runs(root, "/usr/bin/ls", "--version"))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    do_undo(root)
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    loud = [ended for ended in ends if ended.stderr]
    print(f"{len(ends)} starts while it was taken back: {len(loud)} complained, {sum(e.returncode != 0 for e in ends)} failed")
    assert [ended.returncode for ended in ends if ended.returncode] == []
    assert len(ends) > 50
    assert all("cannot be preloaded" in ended.stderr for ended in loud)


@pytest.mark.root
@needs_compiler
@needs_root
@pytest.mark.parametrize("name", BAD)
def test_a_bad_library_gets_no_entry(name, root):
    (root / "opt").mkdir()
    path = library(name, root / "opt")
    before, log = snapshot(root), []
    with pytest.raises(RefusedError, match="nothing was written") as refusal:
        do(root, step("/opt/libtest.so", path.read_bytes()), log.append)
    print(f"{name}: {refusal.value.what}")
    assert [item for item in log if ENTRY in (item.path, item.target)] == []
    assert snapshot(root) == before


def test_the_library_that_is_missing(tmp_path):
    """The seventh of the bad ones cannot even be planned."""
    root = plain_root(tmp_path, None)
    with pytest.raises(RefusedError, match="is not there"):
        facts((step("/opt/libother.so", b""),), Locations(str(root)))


class Watch:
    """Polls for the entry: when it came and how long it stayed."""

    def __init__(self, root):
        self.path, self.stop = Path(root) / ENTRY, threading.Event()
        self.came = self.went = None
        self.thread = threading.Thread(target=self.poll)
        self.thread.start()

    def poll(self):
        while not self.stop.is_set():
            there = self.path.exists()
            if there and self.came is None:
                self.came = time.monotonic()
            if not there and self.came is not None:
                self.went = time.monotonic()
                return
            time.sleep(0.0005)

    def seconds(self):
        deadline = time.monotonic() + 5
        while self.came is not None and self.went is None and time.monotonic() < deadline:
            time.sleep(0.001)
        self.stop.set()
        self.thread.join()
        return None if self.came is None or self.went is None else self.went - self.came


@pytest.mark.root
@needs_compiler
@needs_root
@pytest.mark.parametrize("name", FATAL)
def test_a_fatal_library_whose_entry_got_written(name, root, monkeypatch):
    """The look before is switched off: the look after and the guard must do."""
    (root / "opt").mkdir()
    path = library(name, root / "opt")
    before, acted = snapshot(root), []
    monkeypatch.setattr(preflight, "examine", lambda ground, library: 0)
    real = guard.Guard.leave
    monkeypatch.setattr(guard.Guard, "leave", lambda self: acted.append(real(self)) or acted[-1])
    watch = Watch(root)
    with pytest.raises(RocmPatchError, match="with the entry in place"):
        do(root, step("/opt/libtest.so", path.read_bytes()))
    took = watch.seconds()
    print(f"{name}: the entry stood for {took * 1000:.0f} ms")
    assert took < 2
    assert acted[0] == 1
    assert runs(root).returncode == 0
    assert snapshot(root) == before


@pytest.mark.root
@needs_compiler
@needs_root
def test_the_trouble_is_real(root):
    """Without us: each of the fatal ones stops a program below this root, so the tests above tell something."""
    (root / "opt").mkdir()
    for name in FATAL:
        path = library(name, root / "opt" / name.replace(" ", "-"))
        (root / ENTRY).write_text(f"/{path.relative_to(root)}\n")
        ended = runs(root, "/usr/bin/ls", "--version")
        assert ended.returncode not in (0, None), name
    (root / ENTRY).unlink()
    assert runs(root).returncode == 0


# ------------------------------------------------------------------ the guard


def writer(root, given, patience, hang):
    """A process that applies and, with the entry written, looks at the programs for a long time."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        preflight.examine = lambda ground, library: 0
        preflight.now = lambda ground: ()
        preflight.examine_again = lambda ground, before: time.sleep(hang) or 0
        real = guard.Guard
        preload.Guard = lambda take_back, keep: real(take_back, keep, patience)
        do(root, given)
        code = 0
    except RocmPatchError:
        code = 5
    finally:
        os._exit(code)


def wait_for(path, there, seconds):
    deadline = time.monotonic() + seconds
    while path.exists() is not there:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def recover_once_free(root):
    """The guard holds the journal's lock until it has done its work."""
    for _ in range(400):
        try:
            return do_recover(root)
        except RefusedError:
            time.sleep(0.01)
    return do_recover(root)


@pytest.mark.parametrize("part", range(25 if MANY_KILLS else 1))
def test_every_kill_while_the_entry_is_unconfirmed(part, tmp_path):
    root = plain_root(tmp_path, b"/lib/a.so\n")
    (root / "usr/local/lib").mkdir(parents=True)
    for at, folders, _ in os.walk(root):
        for name in folders:
            os.chmod(f"{at}/{name}", 0o755)
    given, before, slowest, draw = step("/opt/libx.so", b"bytes"), snapshot(root), 0.0, random.Random(part)
    kills = 20
    for number in range(kills):
        child = writer(root, given, 60.0, 20)
        deadline = time.monotonic() + 20
        while target(given).encode() not in (root / ENTRY).read_bytes():
            assert time.monotonic() < deadline
        time.sleep(draw.choice((0, 0, 0.001, 0.01)))
        os.kill(child, signal.SIGKILL)
        start = time.monotonic()
        while (root / ENTRY).read_bytes() != b"/lib/a.so\n":
            assert time.monotonic() < start + 10, f"kill {number}: the entry stays"
            time.sleep(0.0005)
        slowest = max(slowest, time.monotonic() - start)
        os.waitpid(child, 0)
        recover_once_free(root)
        assert snapshot(root) == before, f"kill {number}"
    print(f"{kills} kills, {kills} entries taken back, the slowest after {slowest * 1000:.1f} ms")


@pytest.mark.parametrize("part", range(10 if MANY_KILLS else 1))
def test_kills_at_any_moment(part, tmp_path):
    """Before or after, never between; and never an entry that nobody vouches for."""
    root = plain_root(tmp_path, None)
    (root / "usr/local/lib").mkdir(parents=True)
    for at, folders, _ in os.walk(root):
        for name in folders:
            os.chmod(f"{at}/{name}", 0o755)
    given, before, draw, ends = step("/opt/libx.so", b"bytes"), snapshot(root), random.Random(part), {}
    start = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(writer(root, given, 60.0, 0.01), 0)[1]) == 0
    length = time.monotonic() - start
    do_rollback_really(root)
    for number in range(20):
        child = writer(root, given, 60.0, 0.01)
        time.sleep(draw.uniform(0, 1.2 * length) if number else 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        recover_once_free(root)
        ours = (root / ENTRY).exists()
        assert number or not ours
        ends[ours] = ends.get(ours, 0) + 1
        if ours:
            do_rollback_really(root)
        assert snapshot(root) == before, f"kill {number}"
    print(f"killed at any moment of {length:.2f} s: {ends.get(False, 0)} before, {ends.get(True, 0)} after")


def do_rollback_really(root):
    (receipt,) = do_undo(root)
    assert receipt.outcome == "rolled back"


def test_no_confirmation_in_time(tmp_path):
    root = plain_root(tmp_path, None)
    (root / "usr/local/lib").mkdir(parents=True)
    for folder in ("usr", "usr/local", "usr/local/lib", "opt", "etc"):
        (root / folder).chmod(0o755)
    before = snapshot(root)
    child = writer(root, step("/opt/libx.so", b"bytes"), 0.3, 4)
    assert wait_for(root / ENTRY, True, 10)
    assert wait_for(root / ENTRY, False, 3.5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert snapshot(root) == before


# ------------------------------------------------------------------ the running system, in a namespace of its own


LIVE = """
set -eu
mount --make-rprivate /
cp -a /etc "$1/etc"
mount --bind "$1/etc" /etc
mount -t tmpfs -o mode=755 none /usr/local/lib
mount -t tmpfs -o mode=755 none /var/lib
mkdir -p /var/lib/dpkg
exec "$2" -I "$1/live.py" "$3" "$1" "$4"
"""
LIVE_PY = """
import os, pathlib, subprocess, sys, time
assert os.path.samefile("/etc", sys.argv[2] + "/etc"), "not in a namespace of its own"
sys.path[:0] = [sys.argv[1], sys.argv[3]]
import preload_support as support
from rocm_patch.apply import rollback
from rocm_patch.changes import Locations, preflight
from rocm_patch.errors import RocmPatchError
entry, base = pathlib.Path("/etc/ld.so.preload"), sys.argv[2]
assert not entry.exists()
good = pathlib.Path(base, "good/libtest.so")
(receipt,) = support.do("/", support.step(good, good.read_bytes()))
assert entry.exists() and receipt.outcome == "applied"
tried = len(preflight.programs(Locations("/").ground("system")))
assert subprocess.run(["/bin/sh", "-c", "cat /proc/self/maps"], capture_output=True, text=True).stdout.count("libtest.so") > 0
rollback(Locations("/"), everything=True)
assert not entry.exists() and os.listdir("/usr/local/lib") == [] and os.listdir("/var/lib") == ["dpkg"]
real = preflight.examine
for name in support.FATAL:
    path = pathlib.Path(base, name.replace(" ", "-"), "libtest.so")
    for look_before in (True, False):
        preflight.examine = real if look_before else lambda ground, library: 0
        try:
            support.do("/", support.step(path, path.read_bytes()))
        except RocmPatchError as error:
            assert ("nothing was written" in error.what) is look_before, error.what
        else:
            raise SystemExit(f"{name} was not refused")
        assert not entry.exists() and subprocess.run(["/bin/true"]).returncode == 0
print(f"live: {tried} programs, {len(support.FATAL)} fatal libraries refused, {len(support.FATAL)} taken back")
"""


@pytest.mark.root
@needs_compiler
@needs_root
def test_the_running_system(tmp_path):
    """The real programs of this machine, with its /etc, /var/lib and /usr/local/lib hidden behind copies."""
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr.decode().strip()}")
    if os.path.exists("/etc/ld.so.preload"):
        pytest.skip("this machine has an /etc/ld.so.preload")
    if len(preflight.programs(Locations("/").ground("system"))) <= preflight.LEAST:
        pytest.skip("this machine has too few of the programs")
    for name in ("good", *FATAL):
        library(name, tmp_path / name.replace(" ", "-"))
    (tmp_path / "live.py").write_text(LIVE_PY)
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", LIVE, "sh", str(tmp_path), sys.executable, SOURCE, str(Path(__file__).parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not os.path.exists("/etc/ld.so.preload")
    assert ended.returncode == 0, ended.stderr[-3000:]
    print(ended.stdout.strip())
    assert set(SOURCES) >= set(FATAL)


def test_doctor_knows_our_own_entry(tmp_path):
    """A word of ours in the file is no folklore that somebody arrived with."""
    from rocm_patch import machine
    from rocm_patch.root import Root

    root = plain_root(tmp_path, f"/usr/local/lib/rocm-patch/{DIGEST}/x.so\n/opt/librdna_shim.so\n".encode())
    found = [item for item in machine.collect(Root(str(root)), knowledge.load()).settings if item.name == "ld.so.preload"]
    assert [(item.value, item.ours) for item in found] == [(f"/usr/local/lib/rocm-patch/{DIGEST}/x.so", True), ("/opt/librdna_shim.so", False)]
