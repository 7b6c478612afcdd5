"""One file system from a root: the reading side's three answers, and the writing side's refusals and primitives."""

from __future__ import annotations

import contextlib
import errno
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Known, Unknown
from rocm_patch.root import ABSENT, Root, State, Tree, join, natural_key, parent_of, temporary_name

# ------------------------------------------------------------------ reading


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "file").write_bytes(b"one\ntwo\xff\n")
    (tmp_path / "etc" / "absolute").symlink_to("/etc/file")
    (tmp_path / "etc" / "relative").symlink_to("../etc/file")
    (tmp_path / "etc" / "up").symlink_to("../../../../../../etc/file")
    (tmp_path / "etc" / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to("/etc")
    os.mkfifo(tmp_path / "etc" / "pipe")
    return Root(str(tmp_path))


def test_present_absent_unreadable(root):
    assert root.read("/etc/file") == Known(b"one\ntwo\xff\n", "/etc/file")
    assert root.text("etc/file") == Known("one\ntwo\ufffd\n", "etc/file")
    assert root.word("/etc/file").value.startswith("one")
    assert root.read("/etc/none") == Known(None, "/etc/none")
    assert root.read("/etc/file/below") == Known(None, "/etc/file/below")
    assert isinstance(root.read("/etc"), Unknown)
    assert isinstance(root.read("/etc/pipe"), Unknown)
    assert isinstance(root.read("/etc/loop"), Unknown)
    assert root.text("/etc/none") == Known(None, "/etc/none")
    assert root.word("/etc/none") == Known(None, "/etc/none")
    assert root.names("/none") == Known(None, "/none")
    assert root.list("/none") == ()
    assert root.read("/etc/file", limit=3).value == b"one"


def test_closed_is_not_absent(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    answer = Root(str(tmp_path)).read("/closed")
    assert isinstance(answer, Unknown)
    assert "denied" in answer.unknown


@pytest.mark.parametrize("name", ["absolute", "relative", "up"])
def test_links_stay_inside(root, name):
    assert root.read(f"/etc/{name}").value == b"one\ntwo\xff\n"
    assert root.read(f"/linked/{name}").value == b"one\ntwo\xff\n"
    assert root.link(f"/linked/{name}") is not None
    assert root.host("/etc/../../../x") == f"{root.path}/x"


def test_kinds(root):
    assert root.exists("/etc/file")
    assert not root.exists("/none")
    assert root.is_folder("/linked")
    assert not root.is_folder("/etc/file")
    assert root.link("/etc/file") is None


def test_numbers_sort_as_numbers():
    assert sorted(["node10", "node2", "node", "a1b10", "a1b9"], key=natural_key) == ["a1b9", "a1b10", "node", "node2", "node10"]


# ------------------------------------------------------------------ writing


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "inside").mkdir()
    seen = []
    tree = Tree(str(tmp_path / "inside"), seen.append)
    tree.seen = seen
    return tree


def mine(kind="file", mode=0o644, **more):
    return State(kind, mode, os.geteuid(), os.getegid(), **more)


def test_put_is_new_file_sync_rename_sync(tree):
    tree.put("file", mine(data=b"one"))
    assert [operation.call for operation in tree.seen] == ["create", "dress", "fsync", "rename", "fsync folder"]
    assert tree.seen[0].path.startswith(".rocm-patch-")
    assert tree.state("file") == mine(data=b"one")
    tree.seen.clear()
    tree.put("file", mine(data=b"one"))
    assert tree.seen == []
    tree.put("file", mine(data=b"two", mode=0o4755))
    assert tree.state("file") == mine(data=b"two", mode=0o4755)
    tree.put("file", mine("link", 0o777, target="elsewhere"))
    assert tree.state("file").target == "elsewhere"
    tree.put("file", ABSENT)
    assert tree.state("file") == ABSENT
    tree.put("folder", mine("folder", 0o2750))
    assert tree.state("folder") == mine("folder", 0o2750)
    tree.put("folder", ABSENT)
    assert tree.names("") == []


def test_put_leaves_nothing_when_it_fails(tmp_path):
    for state in (mine(data=b"x"), mine("link", 0o777, target="x"), mine("folder", 0o755)):
        for call in ("dress", "fsync", "fsync folder", "rename"):

            def fail(operation, call=call):
                if operation.call == call:
                    raise OSError(errno.EIO, "Input/output error")

            if call == "fsync folder" and state.kind != "folder":
                continue
            if call == "fsync" and state.kind != "file":
                continue
            tree = Tree(str(tmp_path), fail)
            with pytest.raises(OSError, match="Input/output"):
                tree.put("x", state)
            assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_empty_stays(tree):
    tree.put("folder", mine("folder", 0o755))
    tree.put("folder/file", mine(data=b"x"))
    with pytest.raises(OSError, match="not empty"):
        tree.put("folder", ABSENT)
    with pytest.raises(OSError):
        tree.put("folder", mine(data=b"x"))
    assert tree.state("folder/file").data == b"x"
    assert tree.names("") == ["folder"]


def test_other_kinds_are_refused(tree, tmp_path):
    os.mkfifo(tmp_path / "inside" / "pipe")
    assert tree.state("pipe").kind == "other"
    with pytest.raises(RefusedError):
        tree.put("x", State("other"))


def test_a_file_that_is_too_large_is_not_managed(tree):
    tree.put("file", mine(data=b"x" * 100))
    with pytest.raises(RocmPatchError, match="larger"):
        tree.state("file", limit=99)


def test_modes_whatever_the_umask(tree):
    old = os.umask(0o777)
    try:
        tree.make_folder("folder", 0o755)
        tree.create("folder/file", b"x", 0o644)
    finally:
        os.umask(old)
    assert (tree.state("folder").mode, tree.state("folder/file").mode) == (0o755, 0o644)


def test_a_new_file_takes_no_access_list_from_its_folder(tree, tmp_path):
    """Default access lists are the folder's own business; a file that is restored must be what it was."""
    entries = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in ((1, 7, 0xFFFFFFFF), (2, 7, 12345), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF))
    )
    try:
        os.setxattr(tmp_path / "inside", "system.posix_acl_default", entries)
    except OSError as error:
        pytest.skip(f"no access lists here: {error}")
    tree.put("file", mine(data=b"x", mode=0o640))
    assert tree.state("file") == mine(data=b"x", mode=0o640)


def test_remove_tree(tree, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    base = tmp_path / "inside" / "folder"
    (base / "a" / "b").mkdir(parents=True)
    (base / "a" / "file").write_text("x")
    (base / "a" / "link").symlink_to(tmp_path / "outside")
    (base / "dangling").symlink_to("nowhere")
    tree.remove_tree("folder")
    assert tree.names("") == []
    assert (tmp_path / "outside" / "precious").exists()


def test_temporaries(tree, tmp_path):
    for name in (temporary_name(), temporary_name(), ".rocm-patch-short", ".rocm-patch-" + "g" * 16, "other"):
        (tmp_path / "inside" / name).write_text("x")
    (tmp_path / "inside" / temporary_name()).mkdir()
    full = temporary_name()
    (tmp_path / "inside" / full).mkdir()
    (tmp_path / "inside" / full / "x").write_text("x")
    tree.sweep_temporaries("")
    assert sorted(os.listdir(tmp_path / "inside")) == sorted([".rocm-patch-short", ".rocm-patch-" + "g" * 16, "other", full])


def test_paths():
    assert (join("", "a"), join("a", "b"), parent_of("a"), parent_of("a/b")) == ("a", "a/b", "", "a")


def test_missing_folders(tree, tmp_path):
    (tmp_path / "inside" / "a").mkdir()
    assert tree.missing_folders("a/b/c/file") == ["a/b", "a/b/c"]
    assert tree.missing_folders("file") == []


# ------------------------------------------------------------------ never outside


@given(st.lists(st.sampled_from(["..", ".", "a", "out", "in", "file", ""]), min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_no_path_leads_outside(tmp_path_factory, parts):
    base = tmp_path_factory.getbasetemp() / "never-outside"
    if not base.exists():
        (base / "anchor" / "a").mkdir(parents=True)
        (base / "outside").mkdir()
        (base / "anchor" / "out").symlink_to(base / "outside")
        (base / "anchor" / "a" / "out").symlink_to("../../outside")
        (base / "anchor" / "in").symlink_to("a")
        (base / "anchor" / "file").write_text("x")
    path, tree = "/".join(parts), Tree(str(base / "anchor"))
    actions = (
        lambda: tree.create(path, b"x"), lambda: tree.make_folder(path), lambda: tree.make_link(path, "x"), lambda: tree.put(path, mine(data=b"x")),
        lambda: tree.state(path), lambda: tree.names(path), lambda: tree.rename("file", path), lambda: tree.rename(path, "b"),
        lambda: tree.remove(path), lambda: tree.remove_folder(path), lambda: tree.remove_tree(path), lambda: tree.sync(path),
    )  # fmt: skip
    for action in actions:
        with contextlib.suppress(RefusedError, OSError):
            action()
    assert os.listdir(base / "outside") == []
    assert sorted(os.listdir(base)) == ["anchor", "outside"]


def test_folders_swapped_for_links_while_we_write(tmp_path):
    """A second thread exchanges a folder and a link to the outside as fast as it can."""
    anchor, outside = tmp_path / "anchor", tmp_path / "outside"
    (anchor / "folder").mkdir(parents=True)
    outside.mkdir()
    os.symlink(outside, anchor / "link")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            for one, other in (("folder", "parked"), ("link", "folder"), ("folder", "link"), ("parked", "folder")):
                os.rename(anchor / one, anchor / other)
            stop.wait(0.001)  # long enough for some writes to go through

    thread = threading.Thread(target=swap)
    thread.start()
    tree, written, refused = Tree(str(anchor)), 0, 0
    try:
        for number in range(3000):
            try:
                tree.put("folder/file", mine(data=b"%d" % number))
                written += 1
            except (RefusedError, OSError):
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert os.listdir(outside) == []
    assert written + refused == 3000
    assert written
    assert refused


def test_the_anchor_itself_swapped_for_a_link(tmp_path):
    """Whoever owns the folder above it can do that between two of our steps; it was opened by its name for each of them."""
    anchor, outside = tmp_path / "anchor", tmp_path / "outside"
    anchor.mkdir()
    outside.mkdir()
    tree = Tree(str(anchor))
    assert tree.names("") == []
    os.rename(anchor, tmp_path / "parked")
    os.symlink(outside, anchor)
    tree.put("file", mine(data=b"x"))
    assert os.listdir(outside) == []
    assert os.listdir(tmp_path / "parked") == ["file"]


def test_a_tree_lets_go_of_its_anchor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        Tree(str(tmp_path)).names("")
    assert len(os.listdir("/proc/self/fd")) == before


def test_states_have_names():
    states = [ABSENT, mine(), mine(data=b"x"), mine(mode=0o600), mine("link", target="x"), mine(attributes=(("user.a", b"b"),)), mine("folder")]
    assert len({state.digest() for state in states}) == len(states)
    assert mine(data=b"x").digest() == mine(data=b"x").digest()
