"""What a step does, in words, and what of a file of somebody's a document shows."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys

import pytest

from rocm_patch import knowledge
from rocm_patch.model import Step
from rocm_patch.report import diffs
from rocm_patch.root import State

REMEDIES = knowledge.load().remedies


@pytest.mark.parametrize(
    ("remedy", "parameters", "words"),
    [
        ("mtype-local", {}, "amdgpu.mtype_local=1"),
        ("mtype-local", {"value": ("2",)}, "amdgpu.mtype_local=2"),
        (
            "preload-library",
            {"library": ("/home/u/fix.so",), "sha256": ("ab12",)},
            "read by root from /home/u/fix.so, taken only if it has sha256 ab12",
        ),
        (
            "patched-prefix-system",
            {"source": ("/home/u/s",), "sha256": ("cd",)},
            "read by root from /home/u/s, taken only if its manifest has sha256 cd",
        ),
    ],
)
def test_a_step_names_its_value_and_where_its_bytes_come_from(remedy, parameters, words):
    assert words in diffs.step(Step(remedy, "system", parameters), REMEDIES[remedy])


def test_no_step_of_the_tables_ends_in_a_colon():
    for row in REMEDIES.values():
        assert not diffs.step(Step(row.id, row.scope, {}), row).rstrip().endswith(":")


def test_a_planned_line_is_shown_in_a_document_without_its_neighbours(tmp_path):
    """The plan of one line went out with the token in the line above it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/environment").write_text("API_TOKEN=hunter2\nHSA_OVERRIDE_GFX_VERSION=10.3.0\nPASSWORD=hunter3\n")
    words = ["plan", "--root", str(tmp_path), "--remedy", "neutralise", "--set", "file=/etc/environment", "--set", "line=2"]
    for last, secret in (("--json", False), ("--untested", True)):
        ended = subprocess.run([sys.executable, "-m", "rocm_patch", *words, last], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "HSA_OVERRIDE_GFX_VERSION=10.3.0" in ended.stdout
        assert ("hunter" in ended.stdout) == secret  # for the eyes of its owner the neighbours are shown
        assert last != "--json" or json.loads(ended.stdout)["changes"]


@pytest.mark.parametrize("line", ["hunter2", "-- hunter2", "++ hunter2", "@@ hunter2", "# hunter2", "x\x0b@@ hunter2", "x\u2028# hunter2"])
def test_a_redacted_difference_holds_nothing_of_the_file(line):
    for old, new in (("a\nb\n", f"a\nb\n{line}\n"), (f"a\n{line}\n", "a\n"), (f"a\n{line}\n", f"b\n{line}\n")):
        text = "# x: mode\n" + "".join(difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), "/x (ours)", "/x (now)"))
        assert "hunter2" not in diffs.redacted(text)
        assert diffs.redacted(text).startswith("# x: mode\n--- /x (ours)\n+++ /x (now)\n@@ ")


def test_what_is_no_difference_stays():
    assert diffs.redacted("# /x: we left nothing\n") == "# /x: we left nothing\n"
    assert diffs.unified("/x", State("file", data=b"a\nb\nc\n"), State("file", data=b"a\nB\nc\n"), 0).count("\n ") == 0
