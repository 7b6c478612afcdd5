"""What cannot be done by accident: no write without its verb and a yes, no question that takes silence for one, no way around root.py and run.py."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from changes_support import CASES, STATE, do_apply, do_rollback, prepare, snapshot

import rocm_patch
from rocm_patch import cli, codec
from rocm_patch.changes import Locations, facts, privileged
from rocm_patch.model import SCHEMA, Plan, Step

PACKAGE = Path(rocm_patch.__file__).parent
ASKING = {"apply", "confirm", "fix", "rollback"}
"""Verbs that change the system: each asks, and --yes answers. `recover` only finishes what one of them began."""
DOORS = {"apply", "confirm", "rollback", "recover"}
"""The functions of `rocm_patch.apply` that change something."""
STEPS = (Step("drop-override", "system", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",)}),)


def commands():
    return typer.main.get_command(cli.app).commands


# ------------------------------------------------------------------ C12: no write without the verb


def test_the_parser_offers_no_write_by_default():
    found = commands()
    assert set(found) >= ASKING | {"doctor", "plan", "recover", "scan", "status"}
    for name, command in found.items():
        flags = {flag: parameter for parameter in command.params for flag in parameter.opts}
        assert ("--yes" in flags) == (name in ASKING), name
        for flag, parameter in flags.items():
            assert not getattr(parameter, "prompt", None), (name, flag)
            if flag in ("--yes", "--untested", "--force", "--apply"):
                assert parameter.default is False, (name, flag)
                assert parameter.envvar is None, (name, flag)


def is_door(function):
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "door" and function.attr in DOORS


def test_every_door_is_behind_its_question():
    """In the source of the verbs: whoever calls a door that changes something asked before, in the same function."""
    met = set()
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        for function in (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            doors = [call for call in calls if is_door(call.func)]
            asked = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "confirmed"]
            for call in doors:
                met.add((function.name, call.func.attr))
                if function.name != "recover":
                    assert asked, (path.name, function.name)
                    assert min(asked) < call.lineno, (path.name, function.name)
            for call in calls:
                name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr if isinstance(call.func, ast.Attribute) else ""
                assert name not in ("input", "prompt", "confirm") or (name == "confirm" and call in doors), (path.name, call.lineno)
    assert {door for _, door in met} == DOORS
    assert {verb for verb, _ in met} == ASKING | {"recover"}


def answered(argv, answer):
    """Run a verb with a terminal on which somebody types this; its exit code."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run([sys.executable, "-m", "rocm_patch", *argv], stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    return done


@pytest.mark.parametrize("answer", [b"\n", b"n\n", b"yess\n", b"\x04"], ids=["enter", "n", "a slip", "end of file"])
def test_silence_is_no(answer, tmp_path):
    root = prepare(tmp_path / "root")
    plan = tmp_path / "plan.json"
    plan.write_text(codec.dumps(Plan(SCHEMA, STEPS, facts(STEPS, Locations(root)))))
    before = snapshot(root)
    done = answered(["apply", str(plan), "--root", root], answer)
    assert "[y/N]" in done.stderr
    assert (done.returncode, snapshot(root)) == (5, before)
    if answer == b"\n":
        assert answered(["apply", str(plan), "--root", root], b"y\n").returncode == 0
        after = snapshot(root)
        assert after != before
        assert answered(["rollback", "--root", root], answer).returncode == 5
        assert snapshot(root) == after


def test_nobody_to_ask_is_no(tmp_path):
    root = prepare(tmp_path / "root")
    before = snapshot(root)
    plan = tmp_path / "plan.json"
    plan.write_text(codec.dumps(Plan(SCHEMA, STEPS, facts(STEPS, Locations(root)))))
    argv = [sys.executable, "-m", "rocm_patch", "apply", str(plan), "--root", root]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "--yes" in done.stderr
    assert snapshot(root) == before


# ------------------------------------------------------------------ S3: one way to write, one way to run a child

RUNNERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}
WRITERS = {
    "chmod", "chown", "fchmod", "fchown", "ftruncate", "lchown", "link", "makedirs", "mkdir", "mkfifo", "mknod", "pwrite", "remove", "removedirs",
    "removexattr", "rename", "renames", "replace", "rmdir", "setxattr", "symlink", "truncate", "unlink", "utime", "write",
}  # fmt: skip
WRITES_ITSELF = {
    "root.py": "the primitives themselves",
    "run.py": "a child's standard input",
    "changes/guard.py": "a word to the guard, into a pipe",
    "changes/privileged.py": "the user's cache, for the command that installs root's copy; never as root",
}


def calls_of(name):
    tree = ast.parse((PACKAGE / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            yield node, node.func.value.id, node.func.attr


@pytest.mark.parametrize("name", privileged.MODULES)
def test_roots_side_runs_children_by_one_function_and_no_shell(name):
    text = (PACKAGE / name).read_text()
    imports = {alias.name.split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    froms = {(node.module or "").split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert name == "run.py" or not {"subprocess", "pty", "multiprocessing"} & (imports | froms)
    for node, module, function in calls_of(name):
        if module == "os":
            forks = function == "fork" and name == "changes/guard.py"  # the guard must not need a program to start
            assert forks or (function not in RUNNERS and not function.startswith(("exec", "spawn"))), (name, node.lineno)
        assert not any(word.arg == "shell" for word in node.keywords), (name, node.lineno)


@pytest.mark.parametrize("name", privileged.MODULES)
def test_roots_side_writes_by_the_primitives(name):
    """The power-loss model replays their log: what is written by other means would not be in it."""
    found = [(node.lineno, f"{module}.{function}") for node, module, function in calls_of(name) if module == "os" and function in WRITERS]
    tree = ast.parse((PACKAGE / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open" and len(node.args) > 1:
            mode = node.args[1]
            if not (isinstance(mode, ast.Constant) and not set(mode.value) & set("wax+")):
                found.append((node.lineno, "open"))
    if name in WRITES_ITSELF:
        assert found
    else:
        assert found == []


# ------------------------------------------------------------------ S6: modes


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("case", sorted(CASES))
def test_modes_of_what_is_made(case, umask, scratch):
    """New files are never writable by group or others, the journal and its copies are the owner's alone, whatever the umask."""
    root = prepare(f"{scratch}/root")
    before = snapshot(root)
    old = os.umask(umask)
    try:
        do_apply(root, CASES[case])
        modes = {path: row[1] for path, row in snapshot(root).items() if path not in before and row[0] != "link"}
        for path, mode in modes.items():
            inside = f"{path}/".startswith(f"{STATE}/")
            assert mode & (0o077 if inside else 0o022) == 0, (path, oct(mode))
            assert mode & stat.S_IRUSR, (path, oct(mode))
        assert any(f"{path}/".startswith(f"{STATE}/") for path in modes)
        do_rollback(root)
    finally:
        os.umask(old)
    assert snapshot(root) == before
