"""Every patch on every generation: applied twice as once, taken back to the byte, refused where a place is renamed or doubled."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shapes import CASES, TREES, UPSTREAM, crat, plant, taken

from rocm_patch import sources
from rocm_patch.errors import KnowledgeError, RefusedError, UsageError
from rocm_patch.sources import Sources, marks
from rocm_patch.sources.patch import build, check
from rocm_patch.sources.syntax import Text


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case).replace(" ", "_"))
def case(request, tmp_path):
    name, generation = request.param
    return sources.find(name), plant(tmp_path / "tree", TREES[name][generation])


def test_every_patch_has_a_tree_and_all_its_forms_fit_one(tmp_path):
    assert set(TREES) == set(sources.load())
    for name, generations in TREES.items():
        outlooks = [sources.examine(sources.find(name), Sources(str(plant(tmp_path / name / made, files)))) for made, files in generations.items()]
        assert {outlook.state for outlook in outlooks} == {"ready"}
        assert {outlook.form for outlook in outlooks} == {form.name for form in sources.find(name).form}


def test_twice_is_once_and_back_is_exact(case):
    patch, tree = case
    before = taken(tree)
    assert sources.apply(patch, Sources(str(tree))).state == "ready"
    once = taken(tree)
    assert once != before
    assert sources.apply(patch, Sources(str(tree))).state == "applied"
    assert taken(tree) == once
    sources.revert(patch, Sources(str(tree)))
    assert taken(tree) == before


def test_the_diff_is_one_that_git_applies_to_the_same_bytes(case, tmp_path):
    patch, tree = case
    diff = sources.render(sources.examine(patch, Sources(str(tree))))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tree, elsewhere)
    ended = subprocess.run(["git", "apply", "-p1", "--whitespace=nowarn", "-"], input=diff, cwd=elsewhere, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    sources.apply(patch, Sources(str(tree)))
    assert taken(elsewhere) == taken(tree)


def test_lines_keep_their_ends(tmp_path):
    name = "miopen-batchnorm-gfx101x"
    tree = plant(tmp_path, TREES[name]["fused as solvers"])
    [path] = [path for path, data in taken(tree).items() if b"\r\n" in data]
    lines = taken(tree)[path].count(b"\r\n")
    sources.apply(sources.find(name), Sources(str(tree)))
    patched = taken(tree)[path]
    assert (patched.count(b"\n"), patched.count(b"\r\n")) == (lines, lines)
    assert b'compare(0, 6, "gfx101")' in patched


def test_lines_that_are_added_end_as_their_neighbours(tmp_path):
    name = "miopen-find-time-bound"
    tree = plant(tmp_path, {path: text.replace("\n", "\r\n") for path, text in TREES[name]["in a file of its own"].items()})
    before = taken(tree)
    sources.apply(sources.find(name), Sources(str(tree)))
    [patched] = taken(tree).values()
    assert patched.count(b"\n") == patched.count(b"\r\n") > next(iter(before.values())).count(b"\n")
    sources.revert(sources.find(name), Sources(str(tree)))
    assert taken(tree) == before


def mutated(data, edit, found, how):
    if how == "doubled":
        first, last = data.rfind(b"\n", 0, found.start) + 1, data.find(b"\n", found.end) + 1
        return data[:last] + data[first:last] + data[last:]
    inside = re.findall(rb"\w+", data[found.start : found.end])[-1]
    name = edit.function.rpartition("::")[2].encode() or found.captures.get("called") or found.captures.get("getter") or inside
    return re.sub(rb"\b%b\b" % name, rb"\g<0>_renamed", data)


@pytest.mark.parametrize("how", ["renamed", "doubled"])
def test_a_place_that_is_not_as_stated_is_refused_with_the_reason_and_nothing_is_written(case, how):
    patch, tree = case
    outlook = sources.examine(patch, Sources(str(tree)))
    edits = [edit for edit in next(form for form in patch.form if form.name == outlook.form).edit if edit.changes]
    for edit in edits:
        if how == "doubled" and edit.what.startswith("the first"):
            continue  # of two there is a first one still
        site = next(site for site in outlook.sites if site.what == edit.what)
        place = tree / site.file
        whole = place.read_bytes()
        place.write_bytes(mutated(whole, edit, Text(whole, site.file).find(edit)[0], how))
        before = taken(tree)
        with pytest.raises(RefusedError) as refused:
            sources.apply(patch, Sources(str(tree)))
        assert re.search(r"\d places? expected, \d+ found|there is no function|no file|no longer read", refused.value.what), refused.value.what
        assert taken(tree) == before
        place.write_bytes(whole)


def test_patches_of_one_file_go_on_and_come_off_in_any_order(tmp_path):
    """All that fit one tree together, and both allocator patches at neighbouring places."""
    names = ["miopen-allocator-fallback", "miopen-allocator-mission"]
    for on, off in itertools.product(itertools.permutations(names), repeat=2):
        tree = plant(tmp_path / f"{on}{off}", TREES[names[0]]["pointer"])
        before = taken(tree)
        for name in on:
            sources.apply(sources.find(name), Sources(str(tree)))
        for name in off:
            assert sources.examine(sources.find(name), Sources(str(tree))).state == "applied"
            sources.revert(sources.find(name), Sources(str(tree)))
        assert taken(tree) == before


def test_a_place_that_another_patch_holds_names_that_patch(tmp_path):
    tree = plant(tmp_path, TREES["rocr-sdma-copy-size"]["the version is kept"])
    patch = sources.find("rocr-sdma-copy-size")
    sources.apply(patch, Sources(str(tree)))
    with pytest.raises(RefusedError, match="applied here: rocr-sdma-copy-size"):
        sources.apply(dataclasses.replace(patch, id="rocr-another"), Sources(str(tree)))


def test_edits_of_the_user_around_ours_survive_a_revert(tmp_path):
    name = "rocr-sdma-copy-size"
    tree = plant(tmp_path, TREES[name]["the version is kept"])
    patch, [path] = sources.find(name), taken(tree)
    sources.apply(patch, Sources(str(tree)))
    own = b"/* mine */\n" + (tree / path).read_bytes().replace(b"sdma = new Engine();", b"sdma = new Engine(7);")
    (tree / path).write_bytes(own)
    assert sources.examine(patch, Sources(str(tree))).state == "applied"
    sources.revert(patch, Sources(str(tree)))
    assert (
        (tree / path).read_bytes()
        == marks.strip(own, name)[0]
        == b"/* mine */\n" + TREES[name]["the version is kept"][path].replace("Engine()", "Engine(7)").encode()
    )


def test_an_edit_of_ours_that_somebody_changed_is_refused_and_can_be_taken_back(tmp_path):
    name = "rocr-sdma-copy-size"
    tree = plant(tmp_path, TREES[name]["the version is kept"])
    before, patch, [path] = taken(tree), sources.find(name), taken(tree)
    sources.apply(patch, Sources(str(tree)))
    (tree / path).write_bytes((tree / path).read_bytes().replace(b"properties().EngineId", b"properties().Other"))
    with pytest.raises(RefusedError, match="revert the patch first"):
        sources.apply(patch, Sources(str(tree)))
    sources.revert(patch, Sources(str(tree)))
    assert taken(tree) == before


def test_a_mark_without_its_end_is_refused_both_ways(tmp_path):
    name = "rocr-sdma-copy-size"
    tree = plant(tmp_path, TREES[name]["the version is kept"])
    patch, [path] = sources.find(name), taken(tree)
    sources.apply(patch, Sources(str(tree)))
    (tree / path).write_bytes((tree / path).read_bytes().replace(b"/* } was: ", b"/* was: "))
    for verb in (sources.apply, sources.revert):
        with pytest.raises(RefusedError, match="not in pairs"):
            verb(patch, Sources(str(tree)))


def test_an_apply_that_was_killed_half_way_is_ended_by_the_next_or_by_a_revert(tmp_path):
    name = "miopen-batchnorm-gfx101x"
    patch = sources.find(name)
    for count in (1, 4, 8):
        tree = plant(tmp_path / str(count), TREES[name]["fused as solvers"])
        before = taken(tree)
        changes = sources.examine(patch, Sources(str(tree))).changes
        for change in changes[:count]:
            (tree / change.file).write_bytes(change.patched)
        assert sources.examine(patch, Sources(str(tree))).state == "partly applied"
        half = shutil.copytree(tree, tmp_path / f"{count}-half")
        sources.revert(patch, Sources(str(half)))
        assert taken(half) == before
        sources.apply(patch, Sources(str(tree)))
        assert sources.examine(patch, Sources(str(tree))).state == "applied"


def test_an_error_takes_back_what_was_written_before_it(tmp_path, monkeypatch):
    name = "miopen-batchnorm-gfx101x"
    tree = plant(tmp_path, TREES[name]["fused as solvers"])
    before, write, calls = taken(tree), Sources.write, []

    def failing(self, path, now, wanted):
        calls.append(path)
        if len(calls) == 5:
            raise RefusedError("the disk is full")
        write(self, path, now, wanted)

    monkeypatch.setattr(Sources, "write", failing)
    with pytest.raises(RefusedError, match="disk is full"):
        sources.apply(sources.find(name), Sources(str(tree)))
    assert len(calls) == 9
    assert taken(tree) == before


def test_what_upstream_has_is_not_needed(tmp_path):
    tree = plant(tmp_path, UPSTREAM)
    patch, before = sources.find("kernel-noretry-gfx101x"), taken(tree)
    assert sources.apply(patch, Sources(str(tree))).state == "upstream"
    assert taken(tree) == before


ABOVE = """
/* A look at one device,
 * as people add it by hand. */
"""
BY_HAND = """if (dev->gpu && dev->gpu->adev && dev->gpu->adev->pdev) {
uint16_t device_id = dev->gpu->adev->pdev->device;
if (device_id == 0x731F) {
flags |= HSA_MEM_FLAGS_HOT_PLUGGABLE;
}
}
"""


def test_the_properties_patch_of_other_make_is_recognised_and_taken_out_to_the_byte(tmp_path):
    patch = sources.find("kernel-kfd-properties")
    path = "drivers/gpu/drm/amd/amdkfd/kfd_crat.c"
    tree = plant(tmp_path, {path: crat(ABOVE + BY_HAND)})
    outlook = sources.examine(patch, Sources(str(tree)))
    assert (outlook.state, len(outlook.sites)) == ("foreign", 1)
    with pytest.raises(RefusedError, match="of other make"):
        sources.apply(patch, Sources(str(tree)))
    sources.revert(patch, Sources(str(tree)))
    assert (tree / path).read_text() == crat(ABOVE)
    assert sources.examine(patch, Sources(str(tree))).state == "ready"


def test_statuses_follow_from_evidence():
    expected = {
        "miopen-batchnorm-gfx101x": "works",
        "miopen-allocator-mission": "no effect",
        "hip-allocator-policy": "no effect",
        "kernel-gmc-memory-type": "no effect",
        "kernel-gmc-fragment-size": "no effect",
        "rocr-memory-region-policy": "harmful",
        "kernel-kfd-properties": "harmful",
        "rocr-sdma-copy-size": "untested",
        "kernel-noretry-gfx101x": "untested",
    }
    assert {name: sources.find(name).status for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"versions": "five"}, "no version range"),
        ({"evidence": []}, "no evidence"),
        ({"what_is_this": 1}, "unknown key"),
        ({"component": "mesa"}, "component"),
        ({"form": [{"name": "x", "edit": []}]}, "without an edit"),
        (
            {
                "form": [
                    {"name": "x", "edit": [{"what": "x", "files": ["a"], "query": "(identifier) @site", "count": 1, "replace": "1", "before": "2"}]}
                ]
            },
            "exclude",
        ),
        (
            {"form": [{"name": "x", "edit": [{"what": "x", "files": ["a"], "query": "(identifier) @site", "count": 0, "replace": "1"}]}]},
            "count below one",
        ),
        (
            {"form": [{"name": "x", "edit": [{"what": "x", "files": ["a"], "query": "(identifier) @site", "count": 1, "replace": "/* rocm-patch"}]}]},
            "our marks",
        ),
    ],
)
def test_a_bad_header_is_refused(change, complaint):
    good = {
        "component": "hip", "title": "t", "what": "w", "why": "y", "gpus": ["gfx1010"], "versions": ">=5",
        "upstream": {"state": "s", "source": "https://example.org", "date": "2026-11"},
        "evidence": [{"outcome": "works", "kind": "inference", "source": "https://example.org", "date": "2026-11", "note": "n"}],
        "form": [{"name": "f", "edit": [{"what": "x", "files": ["a.cpp"], "query": "(identifier) @site", "count": 1, "replace": "1"}]}],
    }  # fmt: skip
    assert build(good, "hip-good-one").status == "untested"
    with pytest.raises(KnowledgeError, match=complaint):
        build({**good, **change}, "hip-good-one")


@pytest.mark.parametrize(
    ("query", "complaint"), [("((((", "EOF"), ("(identifier) @other", "no capture @site"), ("(no_such_node) @site", "(?i)invalid")]
)
def test_a_bad_query_is_named_and_ours_are_good(query, complaint):
    assert [check(patch) for patch in sources.load().values()] == [[]] * len(sources.load())
    patch = sources.find("hip-allocator-policy")
    edit = dataclasses.replace(patch.form[0].edit[0], query=query)
    [said] = check(dataclasses.replace(patch, form=(dataclasses.replace(patch.form[0], edit=(edit,)),)))
    assert re.search(complaint, said)


def test_no_such_patch_and_no_such_folder(tmp_path):
    with pytest.raises(UsageError, match="no patch 'x'"):
        sources.find("x")
    with pytest.raises(UsageError, match="no such folder"):
        Sources(str(tmp_path / "absent"))


REAL = os.environ.get("ROCM_PATCH_TREES", "")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="ROCM_PATCH_TREES names no folder with real source trees")
def test_real_trees():
    tool = Path(__file__).parents[2] / "tools/patch_matrix.py"
    ended = subprocess.run([sys.executable, str(tool), REAL], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("| same, exact | refused, refused |") > 0
