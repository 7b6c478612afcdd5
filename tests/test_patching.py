"""The verbs patches list, show, diff, apply and revert from outside: words, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rocm_patch.cli import app

sys.path.insert(0, str(Path(__file__).parent / "sources"))
from shapes import TREES, crat, plant, taken

GUARD = "miopen-batchnorm-gfx101x"


def patches(*arguments):
    """In this process: what is tested is what the verbs say, and to start Python thirty times would take most of the time."""
    result = CliRunner().invoke(app, ["patches", *map(str, arguments)])
    return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout_bytes, stderr=result.stderr_bytes)


@pytest.fixture
def miopen(tmp_path):
    return plant(tmp_path / "miopen", TREES[GUARD]["fused as solvers"])


def test_the_list_is_as_promised():
    ended = patches("list", "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["schema"] == 1
    assert {frozenset(row) for row in document["patches"]} == {frozenset(("id", "component", "versions", "status", "sites"))}
    assert {row["component"] for row in document["patches"]} == {"miopen", "hip", "rocr", "kernel"}
    assert {"id": GUARD, "component": "miopen", "versions": ">=5.0", "status": "works", "sites": 9} in document["patches"]
    said = patches("list").stdout
    assert all(row["id"].encode() in said for row in document["patches"])


def test_the_list_of_a_tree_says_the_state(miopen):
    patches("apply", GUARD, "--source", miopen)
    rows = json.loads(patches("list", "--json", "--source", miopen).stdout)["patches"]
    assert {row["id"]: row["state"] for row in rows if row["state"] != "refused"} == {GUARD: "applied"}


def test_show_names_evidence_and_upstream():
    said = patches("show", GUARD).stdout.decode()
    assert "independent report" in said
    assert "https://" in said
    assert json.loads(patches("show", GUARD, "--json").stdout)["patch"]["status"] == "works"


def test_apply_twice_and_revert(miopen):
    before = taken(miopen)
    ended = patches("apply", GUARD, "--source", miopen)
    assert (ended.returncode, b"applied" in ended.stdout) == (0, True), ended.stderr
    once = taken(miopen)
    ended = patches("apply", GUARD, "--source", miopen, "--json")
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["outcome"], len(document["sites"])) == (0, "there already", 9)
    assert taken(miopen) == once
    assert patches("revert", GUARD, "--source", miopen).returncode == 0
    assert taken(miopen) == before
    ended = patches("revert", GUARD, "--source", miopen, "--json")
    assert (ended.returncode, json.loads(ended.stdout)["outcome"]) == (0, "nothing to revert")


def test_the_diff_is_bytes_and_writes_nothing(miopen):
    before = taken(miopen)
    ended = patches("diff", GUARD, "--source", miopen)
    assert (ended.returncode, ended.stdout.count(b"\ndiff --git") + 1, b"\r\n" in ended.stdout) == (0, 9, True)
    assert json.loads(patches("diff", GUARD, "--source", miopen, "--json").stdout)["state"] == "ready"
    assert taken(miopen) == before


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", ["rocr-sdma-copy-size", "kernel-kfd-properties"])
def test_another_tree_is_refused_with_5_and_the_reason(miopen, name, as_json):
    for verb in ("diff", "apply"):
        ended = patches(verb, name, "--source", miopen, *(["--json"] if as_json else []))
        assert ended.returncode == 5
        reason = json.loads(ended.stdout)["reasons"][0] if as_json else ended.stderr.decode()
        assert "no file" in reason


def test_a_harmful_patch_is_refused_unless_it_is_called_so(tmp_path):
    tree = plant(tmp_path, TREES["rocr-memory-region-policy"]["fine"])
    before = taken(tree)
    ended = patches("apply", "rocr-memory-region-policy", "--source", tree)
    assert (ended.returncode, b"harmful" in ended.stderr) == (5, True)
    assert taken(tree) == before
    assert json.loads(patches("apply", "rocr-memory-region-policy", "--source", tree, "--json").stdout)["outcome"] == "refused: harmful"
    assert patches("apply", "rocr-memory-region-policy", "--source", tree, "--harmful").returncode == 0
    assert patches("apply", "rocr-memory-region-policy", "--source", tree).returncode == 0
    assert patches("revert", "rocr-memory-region-policy", "--source", tree).returncode == 0
    assert taken(tree) == before


def test_what_others_added_by_hand_is_named_and_taken_away(tmp_path):
    path = "drivers/gpu/drm/amd/amdkfd/kfd_crat.c"
    added = "\n\t\t\tif (dev->gpu && dev->gpu->device == 0x731F)\n\t\t\t\tflags |= HSA_MEM_FLAGS_HOT_PLUGGABLE;"
    tree = plant(tmp_path, {path: crat(added + "\n")})
    ended = patches("apply", "kernel-kfd-properties", "--source", tree)
    assert (ended.returncode, b"of other make" in ended.stderr) == (5, True)
    assert patches("revert", "kernel-kfd-properties", "--source", tree).returncode == 0
    assert (tree / path).read_text() == crat("\n")


@pytest.mark.parametrize(
    "arguments", [("apply", "no-such", "--source", "."), ("apply", GUARD), ("apply", GUARD, "--source", "/no/such"), ("show", "x")]
)
def test_wrong_calls_end_with_2(arguments):
    ended = patches(*arguments)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (2, False)


def test_the_command_itself(miopen):
    command = [sys.executable, "-m", "rocm_patch", "patches", "apply", GUARD, "--source", str(miopen), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, json.loads(ended.stdout)["outcome"]) == (0, "applied"), ended.stderr
