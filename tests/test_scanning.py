"""The verb scan from outside: words, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from images import build

NATIVE = {"gfx1010:xnack-": build.elf_object("gfx1010"), "gfx1030": build.elf_object("gfx1030"), "gfx90a:xnack-": build.elf_object("gfx90a:xnack-")}


def scan(*arguments, **environment):
    command = [sys.executable, "-m", "rocm_patch", "scan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment})


@pytest.fixture
def library(tmp_path):
    def made(targets, name="libx.so"):
        (tmp_path / name).write_bytes(build.library(build.compressed_bundle({target: NATIVE[target] for target in targets})))
        return tmp_path / name

    return made


def test_the_document(library):
    ended = scan(path := library(NATIVE), "--for", "gfx1010", "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert (document["schema"], document["for"], document["override"]) == (1, "gfx1010", None)
    [file] = document["files"]
    assert (file["path"], file["inside"], file["store"], file["unread"], file["coverage"]) == (str(path), "", "compressed fatbin", [], "native")
    assert file["targets"]["gfx90a:xnack-"] == {"kernels": 1, "bytes": len(NATIVE["gfx90a:xnack-"])}
    assert set(file["targets"]) == set(NATIVE)
    assert isinstance(file["safety"], dict)


def test_missing_code_is_a_problem_only_for_who_asks(library):
    path = library(["gfx90a:xnack-"])
    assert scan(path).returncode == 0
    ended = scan(path, "--for", "gfx1010")
    assert ended.returncode == 1
    assert "no code for it" in " ".join(ended.stdout.split())


def test_an_override_is_told(library):
    words = " ".join(scan(library(["gfx1030"]), "--for", "gfx1012", HSA_OVERRIDE_GFX_VERSION="10.3.0").stdout.split())
    assert "10.3.0" in words
    document = json.loads(scan(library(["gfx1030"]), "--for", "gfx1012", "--json", HSA_OVERRIDE_GFX_VERSION="10.3.0").stdout)
    assert document["override"] == {"value": "10.3.0", "loads": "gfx1030"}


def test_what_could_not_be_read_is_told(tmp_path, library):
    library(["gfx1030"])
    (tmp_path / "liby.so").write_bytes(build.library(build.MAGIC + b"\xff" * 40))
    ended = scan(tmp_path)
    assert ended.returncode == 3
    assert "liby.so" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_nothing_there_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    ended = scan(tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, "no device code")


@pytest.mark.parametrize("arguments", [("--for", "gfx10", "."), ("--for", "", "/no/such/place"), ("/no/such/place",)])
def test_wrong_words_are_usage_errors(arguments):
    ended = scan(*arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_names_with_control_characters_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "lib\x1b[31m\n.so").write_bytes(build.library(build.plain_bundle(NATIVE)))
    ended = scan(tmp_path)
    assert "\x1b" not in ended.stdout
    assert ended.returncode == 0


def test_a_folder_of_one_chip_each_is_one_library(tmp_path):
    folder = tmp_path / "rocblas/library"
    folder.mkdir(parents=True)
    for gfx in ("gfx1010", "gfx1030"):
        (folder / f"TensileLibrary_{gfx}.co").write_bytes(build.elf_object(gfx))
    assert scan(tmp_path, "--for", "gfx1010").returncode == 0
    assert scan(tmp_path, "--for", "gfx1012").returncode == 1


def test_no_path_is_this_machine():
    assert scan().returncode in (0, 3)
