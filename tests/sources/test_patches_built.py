"""What is built holds the patches that were asked for, and no others, whatever was built before in the same place."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project
from shapes import TREES, plant, taken

from rocm_patch import sources
from rocm_patch.errors import RefusedError
from rocm_patch.sources import Sources, build, marks
from rocm_patch.sources import patch as patching

WARNING, REFUSAL = "rocr-override-warning", "rocr-override-refusal"
THUNK = "src/topology.c"
FILES = next(iter(TREES[WARNING].values()))
needed = pytest.mark.skipif(not Path("/usr/bin/ninja").exists() or not Path("/usr/bin/cc").exists(), reason="needs cc and ninja")


def built(tmp_path, monkeypatch, *patches):
    """The thunk after a build of a small project with it."""
    monkeypatch.setattr(project, "UNITS", 1)
    if not (tmp_path / "source").exists():
        plant(project.plant(tmp_path / "source"), FILES)
    plan = project.planned(tmp_path / "source", tmp_path / "cache", patches=patches)
    build.run(plan)
    return Path(plan.work.at("source"), THUNK).read_bytes()


@needed
def test_a_patch_that_is_no_more_asked_for_is_not_built(tmp_path, monkeypatch):
    both = built(tmp_path, monkeypatch, REFUSAL, WARNING)
    assert marks.names(both) == {REFUSAL, WARNING}
    assert marks.names(built(tmp_path, monkeypatch, WARNING)) == {WARNING}
    assert built(tmp_path, monkeypatch, WARNING, REFUSAL) == both
    assert built(tmp_path, monkeypatch, "none") == FILES[THUNK].encode()


@needed
def test_a_patch_whose_text_changed_is_built_as_it_is_now(tmp_path, monkeypatch):
    assert b"is not safe on it" in built(tmp_path, monkeypatch, WARNING)
    patch = sources.find(WARNING)
    edit = dataclasses.replace(patch.form[0].edit[0], before="warn();")
    table = {**patching.load(), WARNING: dataclasses.replace(patch, form=(dataclasses.replace(patch.form[0], edit=(edit,)),))}
    monkeypatch.setattr(patching, "load", lambda: table)
    thunk = built(tmp_path, monkeypatch, WARNING)
    assert b"is not safe on it" not in thunk
    assert thunk.count(b"warn();") == 1


def test_all_edits_of_ours_go_but_those_to_be_kept(tmp_path):
    tree = plant(tmp_path, FILES)
    before = taken(tree)
    for kept in ((), (WARNING,), (REFUSAL,), (WARNING, REFUSAL)):
        for name in (WARNING, REFUSAL):
            sources.apply(sources.find(name), Sources(str(tree)))
        sources.clear(Sources(str(tree)), [THUNK], kept)
        assert marks.names(taken(tree)[THUNK]) == set(kept)
    sources.clear(Sources(str(tree)), [THUNK], ())
    assert taken(tree) == before


def test_marks_that_somebody_changed_are_refused_and_nothing_is_written(tmp_path):
    tree = plant(tmp_path, FILES)
    for name in (WARNING, REFUSAL):
        sources.apply(sources.find(name), Sources(str(tree)))
    data = (tree / THUNK).read_bytes()
    (tree / THUNK).write_bytes(data.replace(f"/* rocm-patch {WARNING} end */".encode(), b""))
    before = taken(tree)
    with pytest.raises(RefusedError, match=f"what {WARNING} wrote"):
        sources.clear(Sources(str(tree)), [THUNK], ())
    assert taken(tree) == before
