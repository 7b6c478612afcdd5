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


def test_relative_paths_are_shown_as_they_were_given(library, tmp_path, monkeypatch):
    library(["gfx1010:xnack-"])
    monkeypatch.chdir(tmp_path)
    ended = scan("libx.so", "--for", "gfx1010", "--json")
    assert ended.returncode == 0, ended.stdout
    [file] = json.loads(ended.stdout)["files"]
    assert (file["path"], file["coverage"]) == ("libx.so", "native")
    assert file["safety"]["gfx1010"]["code"] == "gfx1010"


def test_a_folder_a_thousand_deep_is_read(library, tmp_path, monkeypatch):
    library(["gfx1010:xnack-"])
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("a")
            os.chdir("a")
        monkeypatch.chdir(tmp_path)
        ended = scan(tmp_path, "--json")
        assert ended.returncode in (0, 3), ended.stderr
        assert any(file["path"].endswith("libx.so") for file in json.loads(ended.stdout)["files"])
    finally:
        # pytest's own sweep is recursive and would die of it, days later
        subprocess.run(["rm", "-rf", str(tmp_path / "a")], check=True)


@pytest.fixture
def unsafe(tmp_path):
    code = build.elf_object("gfx1030", ["_Z6kernelIiEvPT_"], bytes.fromhex("0300a0bf") + build.S_ENDPGM)
    (tmp_path / "liby.so").write_bytes(
        build.library(build.plain_bundle({"gfx1030": code, "gfx1010": build.elf_object("gfx1010", ["_Z6kernelIiEvPT_"])}))
    )
    return tmp_path / "liby.so"


def test_unsafe_code_is_a_problem_where_an_override_brings_it(unsafe):
    assert scan(unsafe, "--for", "gfx1010").returncode == 0
    ended = scan(unsafe, "--for", "gfx1010", "--kernels", "--json", HSA_OVERRIDE_GFX_VERSION="10.3.0")
    assert ended.returncode == 1
    document = json.loads(ended.stdout)
    safety = document["files"][0]["safety"]["gfx1010"]
    assert (safety["certain"], safety["possible"], safety["rules"], safety["code"]) == (1, 0, {"inst-prefetch": 1}, "gfx1030")
    [kernel] = document["kernels"]
    assert (kernel["symbol"], kernel["code"]) == ("_Z6kernelIiEvPT_", "gfx1030")
    assert kernel["rules"] == {"inst-prefetch": {"certain": 1, "possible": 0}}
    words = " ".join(scan(unsafe, "--for", "gfx1010", "--kernels", HSA_OVERRIDE_GFX_VERSION="10.3.0", COLUMNS="200").stdout.split())
    assert "the override 10.3.0 runs gfx1030 code: 1 of its 1 functions are unsafe" in words
    assert "unset HSA_OVERRIDE_GFX_VERSION" in words
    assert "can hang the shader" in words
    assert scan(unsafe, "--for", "gfx1030").returncode == 0


@pytest.mark.parametrize(
    ("chip", "override", "code", "words"),
    [
        ("gfx1010", "", 0, "has your target, nothing unsafe in it"),
        ("gfx1010", "11.0.0", 1, "asks for gfx1100, which is not in it; your target is"),
        ("gfx1010", "nonsense", 1, "is no version: the runtime refuses to start"),
        ("gfx1032", "10.3.0", 0, "the override 10.3.0 runs gfx1030 code: nothing unsafe in it"),
        ("gfx1032", "", 1, "or set HSA_OVERRIDE_GFX_VERSION=10.3.0"),
        ("gfx1012", "", 1, "or set HSA_OVERRIDE_GFX_VERSION=10.1.0"),
        ("RX 5700 XT", "", 0, "on gfx1010"),
        ("10.1.0", "", 0, "on gfx1010"),
        ("GFX1010:xnack-", "", 0, "on gfx1010"),
    ],
)
def test_what_each_card_is_told(unsafe, chip, override, code, words):
    ended = scan(unsafe, "--for", chip, **({"HSA_OVERRIDE_GFX_VERSION": override} if override else {}))
    assert words in " ".join(ended.stdout.split())
    assert ended.returncode == code


def test_a_named_file_that_is_nothing_is_told(tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    ended = scan(tmp_path / "text.txt")
    assert ended.returncode == 3
    assert "neither a library nor a wheel" in ended.stdout


def test_what_was_judged_is_kept_unless_told_otherwise(unsafe, tmp_path):
    cache = tmp_path / "cache"
    assert scan(unsafe, "--for", "gfx1010", "--no-cache", XDG_CACHE_HOME=str(cache)).returncode == 0
    assert scan(unsafe, "--for", "gfx1010", "--targets-only", XDG_CACHE_HOME=str(cache)).returncode == 0
    assert not cache.exists()
    first = scan(unsafe, "--for", "gfx1010", "--json", XDG_CACHE_HOME=str(cache))
    assert (cache / "rocm-patch" / "judgements.sqlite").exists()
    assert scan(unsafe, "--for", "gfx1010", "--json", XDG_CACHE_HOME=str(cache)).stdout == first.stdout


def test_questions_that_need_a_chip_are_refused_without_one(unsafe):
    ended = scan(unsafe, "--kernels")
    assert ended.returncode == 2
    assert "--for" in ended.stderr


def test_an_llvm_is_asked_where_there_is_one(unsafe):
    ended = scan(unsafe, "--for", "gfx1010", "--verify", "--json")
    if ended.returncode == 2:
        assert "no LLVM found" in ended.stderr
        pytest.skip("no LLVM on this machine: rocm_patch.isa.llvm.find() looked for libLLVM")
    verified = json.loads(ended.stdout)["verified"]
    assert (verified["instructions"], verified["different"]) == (1, 0)
