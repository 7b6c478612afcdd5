"""rocm-patch bench, end to end on a CPU: the command in this Python, the engine in the one that has torch."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rocm_patch import bench

SMALL = ("--suite", "efficientnet_b0", "--layer", r"[12]\.[01]\.block\.[12]\.fc1", "--device", "cpu", "--budget", "0.1")
ONE = ("--suite", "efficientnet_b0", "--layer", r"1\.0\.block\.1\.fc1", "--device", "cpu", "--budget", "0.1")


@pytest.fixture(scope="module")
def torch_python():
    """An interpreter with torch: ROCM_PATCH_TEST_TORCH, or this one."""
    named = os.environ.get("ROCM_PATCH_TEST_TORCH")
    if named:
        return named
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch in this interpreter, and ROCM_PATCH_TEST_TORCH names no other")
    return sys.executable


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "rocm_patch", "bench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_layers_in_words_and_json(torch_python, tmp_path):
    code, out, err = run("--python", torch_python, *SMALL, "-o", str(tmp_path / "rows.json"))
    assert code == 0
    assert steps_only(err)
    document = json.loads((tmp_path / "rows.json").read_text())
    rows = document["rows"]
    assert [(row["layer"], row["direction"]) for row in rows[:2]] == [("1.0.block.1.fc1", "forward"), ("1.0.block.1.fc1", "forward+backward")]
    assert len(rows) == 6
    for row in rows:
        assert {"suite", "layer", "dtype", "direction", "engine_ms", "vendor_ms", "native_ms", "algorithm", "peak_bytes"} <= set(row)
        assert min(row["engine_ms"], row["vendor_ms"], row["native_ms"]) > 0
        assert row["algorithm"]
        assert row["layer"] in out
    assert document["about"]["device"] == "cpu"
    assert document["geometric_means"]["forward"]["engine/native"] > 0
    assert "all" in out.splitlines()[-4].split()


def steps_only(err):
    """Where nobody looks at a bar, a line for each tenth, and no other talk."""
    return err and all(re.fullmatch(r"\d+ of \d+: .+", line) for line in err.splitlines())


def test_json_alone_on_standard_output_and_what_is_left_out(torch_python):
    code, out, err = run("--python", torch_python, *ONE, "--json", "--vendor", "no", "--direction", "forward", "--dtype", "float64", "--no-blas")
    assert code == 0
    assert steps_only(err)
    (row,) = json.loads(out)["rows"]
    assert (row["direction"], row["dtype"], row["vendor_ms"]) == ("forward", "float64", None)


def test_tuned_once_then_known_then_again(torch_python, tmp_path):
    arguments = ("--tune", "--python", torch_python, *ONE)
    code, out, err = run(*arguments, "-o", str(tmp_path / "tuned.json"))
    assert code == 0
    assert steps_only(err)
    assert "3 of 3 problems have a measured choice, 3 of them measured now" in out
    document = json.loads((tmp_path / "tuned.json").read_text())
    assert [row["problem"].split()[0] for row in document["rows"]] == ["forward", "input", "weight"]
    assert all(row["verdict"] == "ok" and row["microseconds"] > 0 for row in document["rows"])
    assert Path(document["stored_in"]).is_file()
    assert Path(document["stored_in"]).is_relative_to(os.environ["HOME"])
    code, out, _ = run(*arguments)
    assert code == 0
    assert "3 of 3 problems have a measured choice, 0 of them measured now" in out
    (tmp_path / "list.txt").write_text(f"# seen by a training run\n\n{document['rows'][1]['problem']}\n")
    code, out, _ = run("--tune", "--again", "--from", str(tmp_path / "list.txt"), "--device", "cpu", "--python", torch_python)
    assert code == 0
    assert "1 of 1 problems have a measured choice, 1 of them measured now" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "resnet1800"), "no suite resnet1800; there are resnet18"),
        (("--layer", "no such layer"), "no layer of"),
        (("--layer", "("), "--layer ("),
        (("--dtype", "float8"), "--dtype float8"),
        (("--vendor", "perhaps"), "--vendor perhaps"),
        (("--from", "x"), "--from goes with --tune"),
        (("--tune", "--from", "/nonexistent"), "there is no such file"),
        (("--tune", "--from", os.devnull), os.devnull),
        (("--venv", "/nonexistent"), "there is no /nonexistent/bin/python"),
    ],
)
def test_what_cannot_be_meant(torch_python, arguments, words):
    python = () if "--venv" in arguments else ("--python", torch_python)
    code, out, err = run(*python, "--device", "cpu", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_names_that_are_none(torch_python, tmp_path):
    (tmp_path / "list.txt").write_text("a conversation about convolutions\n")
    code, _, err = run("--python", torch_python, "--device", "cpu", "--tune", "--from", str(tmp_path / "list.txt"))
    assert code == 2
    assert "no name of a convolution" in err


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    for path in (tmp_path / "none" / "rows.json", tmp_path):
        code, out, err = run("--python", str(tmp_path / "never-started"), *ONE, "-o", str(path))
        assert (code, out) == (2, "")
        assert f"--output {path}" in err


def test_an_interpreter_without_torch_and_one_that_is_none(tmp_path):
    without = [sys.executable] if importlib.util.find_spec("torch") is None else []
    for python in without:
        code, _, err = run("--python", python, *ONE)
        assert code == 3
        assert "No module named 'torch'" in err
    code, _, err = run("--python", str(tmp_path / "none"), *ONE)
    assert code == 2
    assert "cannot be run" in err


def test_ctrl_c_keeps_what_was_measured(torch_python, tmp_path):
    process = start("--python", torch_python, "--suite", "resnet18", "--device", "cpu", "--tune", "-o", str(tmp_path / "tuned.json"))
    database = Path(os.environ["HOME"]) / ".cache" / "rocm-patch" / "conv" / "choices.sqlite3"
    until = time.monotonic() + 120
    while not database.exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err + out
    assert json.loads((tmp_path / "tuned.json").read_text())["schema"] == 1
    here = os.environ["HOME"].encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                assert not (b"HOME=" + here in (entry / "environ").read_bytes() and b"tune_child" in (entry / "cmdline").read_bytes())
            except OSError:
                continue


def test_the_engine_goes_along_as_a_copy_of_its_own(torch_python, tmp_path):
    """Nothing else of this environment is on the path of the other Python."""
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os, sys\n"
        "if any('bench_worker' in argument for argument in sys.orig_argv):\n"
        f"    open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps([sys.path, os.environ['ROCM_PATCH_CONV']]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ROCM_PATCH_CONV": "1"}
    request = {"verb": "tune", "device": "cpu", "dtype": "float32", "suites": ["efficientnet_b0"], "layer": r"1\.0\.block\.1\.fc1",
               "directions": ["forward"], "problems": None, "blas": True, "most": 1, "again": False, "deadline_s": 60.0}  # fmt: skip
    found = list(bench.answers(torch_python, request, environment))
    assert found[0]["total"] == 1
    assert found[-1]["document"]["rows"]
    path, switch = json.loads((tmp_path / "seen").read_text())
    assert switch == "0"
    assert sum(entry.startswith(os.path.join(os.path.realpath("/tmp"), "rocm-patch-")) or "rocm-patch-" in entry for entry in path) == 1
    assert not [entry for entry in path if os.path.isdir(os.path.join(entry, "rocm_patch", "conv"))] or torch_python == sys.executable
