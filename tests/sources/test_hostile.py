"""Trees that nobody would call sources: our error or an answer, never a trace, a wait, a changed byte or a step out of the folder."""

from __future__ import annotations

import os
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapes import CASES, TREES, plant, taken

from rocm_patch import sources
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.sources import Sources, marks
from rocm_patch.sources.diff import unified
from rocm_patch.sources.syntax import DEEPEST, LIMIT, Text

NAME = "rocr-sdma-copy-size"
[PATH] = TREES[NAME]["the version is kept"]
GOOD = TREES[NAME]["the version is kept"][PATH].encode()
FRAGMENTS = [
    "/* rocm-patch ",
    "rocr-sdma-copy-size",
    " { */",
    "/* } rocm-patch */",
    "/* } was: ",
    " begin */",
    "*/",
    "//",
    '"',
    "\\\n",
    "\r\n",
    "\r",
    "\0",
    "\xff",
    "#if X\n",
    "}",
    "{",
    "case 10:",
    "ü",
]


def tried(tree):
    """Apply and revert; what came of it. Anything but our own errors fails the test."""
    patch = sources.find(NAME)
    before = taken(tree)
    try:
        state = sources.apply(patch, Sources(str(tree))).state
    except RefusedError as error:
        assert taken(tree) == before
        return error.what
    if state == "ready":
        sources.revert(patch, Sources(str(tree)))
        assert taken(tree) == before
    return state


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_tree_comes_back_to_the_byte_or_is_refused_untouched(tmp_path_factory, data):
    name, generation = data.draw(st.sampled_from(CASES))
    patch = sources.find(name)
    files = {path: text.encode() for path, text in TREES[name][generation].items()}
    for _ in range(data.draw(st.integers(0, 4))):
        path = data.draw(st.sampled_from(sorted(files)))
        at = data.draw(st.integers(0, len(files[path])))
        cut = data.draw(st.integers(0, 12)) if data.draw(st.booleans()) else 0
        piece = data.draw(st.one_of(st.binary(max_size=6), st.sampled_from(FRAGMENTS).map(lambda text: text.encode("latin-1"))))
        files[path] = files[path][:at] + piece + files[path][at + cut :]
    tree = plant(tmp_path_factory.mktemp("tree"), files)
    before = taken(tree)
    try:
        state = sources.apply(patch, Sources(str(tree))).state
    except RefusedError:
        assert taken(tree) == before
        return
    assert state in ("ready", "upstream", "foreign")
    sources.revert(patch, Sources(str(tree)))
    assert taken(tree) == before


@given(st.binary(max_size=400), st.integers(0, 400), st.sampled_from(["", "x", "a\nb"]))
def test_marks_come_out_of_any_bytes(data, at, text):
    """Of bytes without our marks; where an edit cannot be told again, it is refused before anything is written (outlook._render)."""
    at = min(at, len(data))
    made = data[:at] + marks.inline("hip-a", text.encode()) + data[at:]
    if b"rocm-patch" not in data and b"*/" not in data and b"/*" not in data:
        assert marks.strip(made, "hip-a") == (data, 1)
    assert marks.strip(made, "hip-b")[1] == 0


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_diff_of_any_bytes_has_all_lines_that_changed(before, after):
    text = unified("a/b", before, after)
    assert (text == b"") == (before == after)
    assert rebuilt(text, before) == (before, after)


def rebuilt(diff, before):
    """Both sides as a reader of the diff has them; what it does not show is taken from `before`."""
    lines, sides, at, last = before.split(b"\n"), ([], []), 0, b""
    whole = [line + b"\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])
    for line in diff.split(b"\n")[4:-1]:
        if head := re.match(rb"@@ -(\d+)(?:,(\d+))? ", line):
            start = int(head[1]) - (head[2] != b"0")
            for side in sides:
                side += whole[at:start]
            at = start
        elif line.startswith(b"\\"):
            for side in sides[last == b"+" : 2 - (last == b"-")]:
                side[-1] = side[-1][:-1]
        else:
            last = line[:1]
            for side in sides[last == b"+" : 2 - (last == b"-")]:
                side.append(line[1:] + b"\n")
            at += last != b"+"
    return tuple(b"".join([*side, *whole[at:]]) for side in sides)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"x" * (LIMIT + 2), "cannot be read|too many"),
        (GOOD + b"\0", "zero bytes"),
        (b"(" * 500_000, "brackets"),
        (b"if (a) {" * 40_000, "brackets"),
        (bytes(range(1, 256)) * 300, "expected|no function"),
        (b"\xff\xfe" + GOOD.decode().encode("utf-16-le"), "zero bytes"),
        (b"", "expected|no function"),
        (b"#define A \\\n" * 10_000, "expected|no function"),
        (b"a<" * 20_000, "expected|no function"),
        (b"/*" * 100_000, "expected|no function"),
        (GOOD * 3, "2 places expected, 6 found"),
    ],
    ids=["huge", "zero", "deep", "deeper", "bytes", "utf16", "empty", "continued", "templates", "comments", "three times"],
)
def test_hostile_files(tmp_path, data, complaint):
    started = time.monotonic()
    assert re.search(complaint, tried(plant(tmp_path, {PATH: data})))
    assert time.monotonic() - started < 30


def test_a_file_that_is_not_utf8_is_patched_all_the_same(tmp_path):
    latin = GOOD.replace(b"case 10:", b"case 10: /* caf\xe9 */").replace(b"sizes[1];", b"sizes[1] /* \xff\xfe */;")
    assert tried(plant(tmp_path / "within", {PATH: latin})) == "ready"
    assert tried(plant(tmp_path / "around", {PATH: b"// caf\xe9\n" + GOOD + b"// \xff\xfe\n"})) == "ready"


def test_links_are_not_followed(tmp_path):
    outside = plant(tmp_path / "outside", {"core/runtime/amd_gpu_agent.cpp": GOOD})
    tree = plant(tmp_path / "tree", {"readme": b"x"})
    (tree / "core").symlink_to(outside / "core")
    (tree / "loop").symlink_to(tree)
    (tree / "runtime").mkdir()
    (tree / "runtime/core").mkdir()
    (tree / "runtime/core/runtime").mkdir()
    (tree / "runtime/core/runtime/amd_gpu_agent.cpp").symlink_to(outside / "core/runtime/amd_gpu_agent.cpp")
    before = taken(outside)
    assert "no file" in tried(tree)
    assert taken(outside) == before


def test_a_link_that_appears_after_the_look_is_refused(tmp_path):
    outside = plant(tmp_path / "outside", {PATH: GOOD})
    tree = plant(tmp_path / "tree", {PATH: GOOD})
    looked = Sources(str(tree))
    change = sources.examine(sources.find(NAME), looked).changes[0]
    (tree / PATH).unlink()
    (tree / PATH).symlink_to(outside / PATH)
    with pytest.raises(RefusedError, match="changed meanwhile"):
        looked.write(PATH, change.current, change.patched)
    (tree / PATH).unlink()
    (tree / PATH).parent.rmdir()
    (tree / PATH).parent.symlink_to((outside / PATH).parent)
    with pytest.raises(RefusedError):
        looked.write(PATH, change.current, change.patched)
    assert (outside / PATH).read_bytes() == GOOD


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    tree = plant(tmp_path, {PATH: GOOD})
    looked = Sources(str(tree))
    change = sources.examine(sources.find(NAME), looked).changes[0]
    (tree / PATH).write_bytes(GOOD + b"\n")
    with pytest.raises(RefusedError, match="changed meanwhile"):
        looked.write(PATH, change.current, change.patched)


def test_a_fifo_and_a_folder_in_the_place_of_a_file(tmp_path):
    tree = plant(tmp_path, {"readme": b""})
    (tree / PATH).parent.mkdir(parents=True)
    os.mkfifo(tree / PATH)
    assert "no file" in tried(tree)
    (tree / PATH).unlink()
    (tree / PATH).mkdir()
    assert "no file" in tried(tree)


def test_hidden_folders_are_left_out(tmp_path):
    """quilt keeps the unpatched file in .pc, git everything in .git."""
    tree = plant(tmp_path, {PATH: GOOD, f".pc/patch/{PATH}": GOOD, f".git/{PATH}": GOOD})
    assert tried(tree) == "ready"


def test_a_second_copy_is_refused_since_nobody_knows_which_is_built(tmp_path):
    assert "2 places expected, 4 found" in tried(plant(tmp_path, {PATH: GOOD, f"copy/{PATH}": GOOD}))


def test_modes_and_times_of_others_stay(tmp_path):
    tree = plant(tmp_path, {PATH: GOOD, "other.cpp": b"x"})
    (tree / PATH).chmod(0o640)
    then = os.stat(tree / "other.cpp").st_mtime_ns
    sources.apply(sources.find(NAME), Sources(str(tree)))
    assert os.stat(tree / PATH).st_mode & 0o777 == 0o640
    assert os.stat(tree / "other.cpp").st_mtime_ns == then
    assert sorted(name for _, _, names in os.walk(tree) for name in names) == ["amd_gpu_agent.cpp", "other.cpp"]


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe/core/runtime"
    os.makedirs(folder)
    with open(folder + b"/amd_gpu_agent.cpp", "wb") as file:
        file.write(GOOD)
    patch = sources.find(NAME)
    outlook = sources.apply(patch, Sources(str(tmp_path)))
    assert b"--- a/\xff\xfe/core" in sources.render(outlook)
    sources.revert(patch, Sources(str(tmp_path)))
    with open(folder + b"/amd_gpu_agent.cpp", "rb") as file:
        assert file.read() == GOOD


def test_the_limits_are_far_from_real_files():
    assert Text(b"{" * (DEEPEST - 1), "x").data
    with pytest.raises(FormatError):
        Text(b"{" * (DEEPEST + 1), "x")
