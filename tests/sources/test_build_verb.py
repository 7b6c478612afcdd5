"""The verb build from outside: words, JSON, exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project

from rocm_patch.cli import app
from rocm_patch.sources import build_recipe


def verb(*arguments):
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Our own recipe in the place of the table: the shipped ones build for minutes."""
    monkeypatch.setattr(build_recipe, "load", project.recipes)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return project.plant(tmp_path / "source")


def test_a_dry_run_says_all_and_writes_nothing(small, tmp_path):
    ended = verb("rocr", "--version", "1.2.3", "--source", small, "--dry-run", "--json", "--allow-root")
    document = json.loads(ended.stdout)
    assert ended.exit_code == (5 if document["misses"] else 0)
    assert document["schema"] == 1
    assert document["result"] is None
    assert document["source"] == {"kind": "folder", "place": str(small), "mark": ""}
    assert document["disk_mib"]["needed"] == 20
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not Path("/usr/bin/ninja").exists() or not Path("/usr/bin/cc").exists(), reason="needs cc and ninja")
def test_a_build_ends_with_the_command_that_puts_it_into_use(small):
    words = ("rocr", "--version", "1.2.3", "--source", small, "--prefix", "/opt/small", "--allow-root")
    ended = verb(*words)
    assert ended.exit_code == 0, ended.stderr
    assert "lib/libsmall.so.1.0: calls itself libsmall.so.1; no device code in it; loads" in ended.stdout
    assert "nothing is installed yet: rocm-patch plan --remedy patched-prefix --set name=rocr --set version=1.2.3 --set sha256=" in ended.stdout
    again = json.loads(verb(*words, "--json").stdout)
    assert again["result"]["reused"][-1] == "proven"
    assert again["result"]["digest"] in ended.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_gets_the_reason_and_5(small):
    ended = verb("rocr", "--version", "1.2.3", "--source", small)
    assert ended.exit_code == 5
    assert "as root they could do anything" in ended.stdout


@pytest.mark.parametrize(
    "words", [("rocm",), ("rocr", "--version", "9"), ("rocr", "--patch", "rocr-nothing"), ("rocr", "--patch", "miopen-batchnorm-gfx101x")]
)
def test_what_cannot_be_meant_is_a_usage_error(small, words):
    ended = verb(*words, "--source", small, "--dry-run")
    assert ended.exit_code == 2
    assert "error:" in ended.stderr


def test_the_kernel_is_built_for_a_patch_only(tmp_path):
    ended = verb("kernel", "--version", "6.12.1", "--source", tmp_path, "--dry-run", "--patch", "none")
    assert ended.exit_code == 2
    assert "only patched objects are built" in ended.stderr
