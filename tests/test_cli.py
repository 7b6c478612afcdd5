"""The command: exit codes, words for errors, JSON alone on stdout, and that looking writes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recorded_machines import MACHINES

MISSION = MACHINES / "rx5600xt-ubuntu2404-mission"
STRACE = shutil.which("strace")


def rocm_patch(*arguments, environment=None, stdin="", **options):
    return subprocess.run(
        [sys.executable, "-m", "rocm_patch", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, input=stdin, env={**os.environ, **(environment or {})}, **options,
    )  # fmt: skip


def snapshot(root):
    """Everything of a tree that a rollback must restore."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else Path(path).read_bytes() if name in files else None
            found[os.path.relpath(path, root)] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


# ------------------------------------------------------------------ errors and exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["doctor", "--root", "/nowhere"], 2, "there is no such folder"),
        (["doctor", "--machine", "/nowhere.json"], 2, "there is no such file"),
        (["doctor", "--machine", "/dev/null"], 2, "not a regular file"),
        (["doctor", "--machine", str(MISSION / "recording.toml")], 3, "is not JSON"),
        (["doctor", "--python", "/nowhere/python"], 2, "there is no such file"),
        (["doctor", "--machine", "x", "--root", "/tmp"], 2, "goes without --root"),
        (["doctor", "--colour"], 2, "No such option"),
        (["explode"], 2, "No such command"),
        (["apply", "/nowhere.json"], 2, "make one with"),
        (["apply", "-"], 3, "is not JSON"),
        (["plan", "--root", MISSION, "--remedy", "magic"], 2, "there is no remedy"),
        (["plan", "--root", MISSION, "--remedy", "rocm-5.7-downgrade"], 5, "no effect"),
        (["plan", "--root", MISSION, "--remedy", "mtype-local"], 5, "lib/modules"),
        (["plan", "--root", MISSION, "--remedy", "math-attention"], 2, "done by hand"),
        (["plan", "--root", MISSION, "--remedy", "conv-engine"], 5, "--untested"),
        (["plan", "--root", MISSION, "--remedy", "set-override"], 5, "harmful"),
        (["plan", "--root", MISSION, "--remedy", "miopen-find-fast", "--set", "x"], 2, "KEY=VALUE"),
        (["plan", "--root", MISSION, "--remedy", "environment-profile", "--set", "set=X"], 2, "set=NAME=VALUE"),
        (["plan", "--root", MISSION, "--remedy", "mtype-local", "--set", "vlaue=1"], 2, "no such value"),
        (["plan", "--root", MISSION, "--remedy", "noretry", "--set", "value=1", "--set", "value=0"], 2, "given twice"),
        (["plan", "--root", "/nowhere", "-o", "/nowhere/plan.json"], 2, "there is no folder /nowhere"),
        (["plan", "--root", "/nowhere", "-o", "/"], 2, "that is a folder"),
        (["run"], 2, "no command"),
        (["run", "--", "/nowhere/program"], 2, "no such program"),
        (["rollback", "--root", MISSION], 5, "nobody is there to ask"),
        (["probe", "--device", "tpu", "--python", sys.executable], 2, "unknown device"),
    ],
)
def test_errors_are_words_with_an_exit_code(arguments, code, words):
    ended = rocm_patch(*arguments)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_table_of_exit_codes_is_in_the_help():
    text = re.sub(r"\s+", " ", rocm_patch("--help").stdout)
    for word in ("0 fine", "1 problems", "2 usage", "3 not everything", "4 done", "5 refused"):
        assert word in text


def test_a_broken_pipe_is_no_trace():
    ended = subprocess.run(
        f"{sys.executable} -m rocm_patch doctor --root {MISSION} | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert ended.stdout.startswith("Radeon RX 5600 XT")
    assert ended.stderr == ""


def test_colours_only_for_eyes():
    assert "\x1b" not in rocm_patch("doctor", "--root", MISSION).stdout
    assert "\x1b" not in rocm_patch("doctor", "--root", MISSION, environment={"NO_COLOR": "1", "FORCE_COLOR": ""}).stdout


# ------------------------------------------------------------------ the way there and back


@pytest.mark.parametrize("name", ["rx5600xt-ubuntu2404-mission", "rx5700xt-native-leftover-override"])
def test_plan_apply_rollback_is_exact(copy_of, tmp_path, name):
    root, plan = copy_of(name), tmp_path / "plan.json"
    before = snapshot(root)
    assert rocm_patch("plan", "--root", root, "-o", plan).returncode == 0
    assert snapshot(root) == before
    assert set(json.loads(plan.read_text())) == {"schema", "steps", "facts"}
    applied = rocm_patch("apply", "--root", root, plan, "--yes", "--json")
    assert applied.returncode == 0, applied.stderr
    assert {item["outcome"] for item in json.loads(applied.stdout)["receipts"]} == {"applied"}
    changed = snapshot(root)
    assert changed != before
    assert rocm_patch("status", "--root", root, "--json").stdout.count('"as left"') == 1
    again = rocm_patch("apply", "--root", root, plan, "--yes", "--json")
    assert again.returncode == 0, again.stderr
    assert snapshot(root) == changed
    back = rocm_patch("rollback", "--root", root, "--all", "--yes")
    assert back.returncode == 0, back.stderr
    assert snapshot(root) == before
    assert rocm_patch("rollback", "--root", root, "--all", "--yes").returncode == 0
    assert snapshot(root) == before


def test_a_foreign_edit_is_never_overwritten(copy_of, tmp_path):
    root, plan = copy_of("rx5600xt-ubuntu2404-mission"), tmp_path / "plan.json"
    rocm_patch("plan", "--root", root, "-o", plan)
    rocm_patch("apply", "--root", root, plan, "--yes")
    drop_in = root / "etc/profile.d/zz-rocm-patch.sh"
    drop_in.write_text(drop_in.read_text() + "# mine\n")
    edited = drop_in.read_bytes()
    back = rocm_patch("rollback", "--root", root, "--all", "--yes")
    assert back.returncode == 5
    assert drop_in.read_bytes() == edited
    assert "zz-rocm-patch.sh" in back.stdout + back.stderr


def test_a_plan_is_refused_once_the_facts_have_changed(copy_of, tmp_path):
    root, plan = copy_of("rx5600xt-ubuntu2404-mission"), tmp_path / "plan.json"
    rocm_patch("plan", "--root", root, "-o", plan)
    (root / "etc/profile.d/zz-rocm-patch.sh").write_text("# somebody was faster\n")
    before = snapshot(root)
    ended = rocm_patch("apply", "--root", root, plan, "--yes")
    assert ended.returncode == 5
    assert snapshot(root) == before


def test_every_remedy_is_listed_and_a_slip_names_close_ones():
    lines = rocm_patch("plan", "--list", "--root", MISSION).stdout.splitlines()
    document = json.loads(rocm_patch("plan", "--list", "--root", MISSION, "--json").stdout)["remedies"]
    assert len(lines) == len(document)
    assert all(line.startswith(row["id"]) and row["title"] in line for line, row in zip(lines, document, strict=True))
    assert not any("{" in line for line in lines)
    assert {row["id"]: row["status"] for row in document}["rocm-5.7-downgrade"] == "no effect"
    slip = rocm_patch("plan", "--root", MISSION, "--remedy", "norety")
    assert slip.returncode == 2
    assert "close to it: noretry; all: rocm-patch plan --list" in slip.stderr


def test_a_file_that_is_no_plan_stays_and_an_older_plan_is_named(tmp_path):
    file, plan = tmp_path / "notes.txt", tmp_path / "plan.json"
    file.write_text("mine\n")
    ended = rocm_patch("plan", "--root", MISSION, "-o", file)
    assert (ended.returncode, file.read_text()) == (2, "mine\n")
    assert "no plan; it stays" in ended.stderr
    assert rocm_patch("plan", "--root", MISSION, "-o", plan).returncode == 0
    written = plan.read_text()
    refused = rocm_patch("plan", "--root", MISSION, "--remedy", "set-override", "-o", plan)
    assert (refused.returncode, plan.read_text()) == (5, written)
    assert f"{plan} still holds an earlier plan (drop-override, drop-setting)" in refused.stderr
    assert rocm_patch("plan", "--root", MISSION, "-o", plan).returncode == 0
    assert "cannot be done under --root: run on that machine: rocm-patch plan --remedy native-wheel" in rocm_patch("plan", "--root", MISSION).stdout


def test_a_plan_holds_no_paths_and_no_bytes(tmp_path):
    plan = tmp_path / "plan.json"
    rocm_patch("plan", "--root", MISSION, "-o", plan)
    for step in json.loads(plan.read_text())["steps"]:
        assert set(step) == {"remedy", "scope", "parameters"}
        assert not any("/" in value for values in step["parameters"].values() for value in values)


def test_fix_under_a_root_goes_the_whole_way(copy_of):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    before = snapshot(root)
    dry = rocm_patch("fix", "--root", root, "--dry-run")
    assert dry.returncode == 0
    assert "+if [ \"${HSA_OVERRIDE_GFX_VERSION-}\" = '10.3.0' ]" in dry.stdout
    assert snapshot(root) == before
    refused = rocm_patch("fix", "--root", root)
    assert refused.returncode == 5
    assert snapshot(root) == before
    done = rocm_patch("fix", "--root", root, "--yes")
    assert done.returncode == 0, done.stderr
    assert (root / "etc/profile.d/zz-rocm-patch.sh").exists()
    rocm_patch("rollback", "--root", root, "--all", "--yes")
    assert snapshot(root) == before


def test_after_applying_the_doctor_sees_it_and_the_running_session(copy_of):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    rocm_patch("fix", "--root", root, "--yes")
    document = json.loads(rocm_patch("doctor", "--root", root, "--json").stdout)
    first = document["findings"][0]
    assert any("log out and in again" in line for line in first["why"])
    text = (root / "recording.toml").read_text()
    (root / "recording.toml").write_text(text[: text.index("[environment]")])
    document = json.loads(rocm_patch("doctor", "--root", root, "--json").stdout)
    assert [item["cause"] for item in document["findings"] if item["severity"] == "problem"] == ["missing_code_object"]


def test_record_writes_one_file_once_and_it_is_read_back(tmp_path):
    output = tmp_path / "machine.json"
    assert rocm_patch("record", "--root", MISSION, "-o", output).returncode == 0
    assert rocm_patch("record", "--root", MISSION, "-o", output).returncode == 2
    document = json.loads(rocm_patch("doctor", "--machine", output, "--json").stdout)
    assert document["gpus"][0]["gfx"] == "gfx1010"
    assert str(MISSION) not in output.read_text()


# ------------------------------------------------------------------ run


def test_run_leaves_the_environment_alone_without_a_card():
    if json.loads(rocm_patch("doctor", "--json").stdout)["gpus"]:
        pytest.skip("this machine has an AMD GPU")
    ended = rocm_patch(
        "run",
        "--",
        sys.executable,
        "-c",
        "import os; print(os.environ['HSA_OVERRIDE_GFX_VERSION'])",
        environment={"HSA_OVERRIDE_GFX_VERSION": "10.3.0"},
    )
    assert ended.stdout.strip() == "10.3.0"
    assert "runs as it is" in ended.stderr


def test_run_hands_on_arguments_and_exit_code():
    ended = rocm_patch("run", "--", sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "--help", "-x")
    assert ended.returncode == 7
    assert ended.stdout.strip() == "['--help', '-x']"


# ------------------------------------------------------------------ looking writes nothing

WRITING = (
    "openat,open,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,rmdir,symlink,symlinkat,link,linkat,chmod,fchmod,fchmodat,"
    "chown,fchown,fchownat,truncate,ftruncate,mknod,mknodat,setxattr,fsetxattr"
)


def writing_calls(tmp_path, *arguments, allowed=()):
    """Calls by which this command and its children changed a file system, named outputs and devices left out."""
    log = tmp_path / "strace.log"
    command = [STRACE, "-f", "-qq", "-y", "-e", f"trace={WRITING}", "-o", str(log), sys.executable, "-B", "-m", "rocm_patch", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "ptrace" in ended.stderr.lower():
        pytest.skip("ptrace is not allowed here")
    found = []
    for line in log.read_text().splitlines():
        if re.match(r"\d+ +(---|\+\+\+)", line):  # signals and exits
            continue
        failed = re.search(r"= -1 E\w+", line)
        opened = re.search(r"\bopen(at)?\(", line)
        if failed or (opened and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", line)):
            continue
        if "/dev/null" in line or "/dev/tty" in line or "<unfinished" in line or any(str(path) in line for path in allowed):
            continue
        found.append(line)
    return found, ended


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor"],
        ["doctor", "--json"],
        ["doctor", "--root", MISSION],
        ["plan", "--root", MISSION],
        ["status"],
        ["status", "--root", MISSION],
        ["plan"],
    ],
    ids=lambda arguments: " ".join(str(word).rpartition("/")[2] for word in arguments),
)
def test_looking_makes_no_writing_call(tmp_path, arguments):
    found, ended = writing_calls(tmp_path, *arguments)
    assert found == []
    assert ended.returncode in (0, 1, 3)


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_the_harness_sees_a_write(tmp_path):
    output = tmp_path / "plan.json"
    found, _ = writing_calls(tmp_path, "plan", "--root", MISSION, "-o", output)
    assert len(found) == 1
    assert str(output) in found[0]
    assert writing_calls(tmp_path, "plan", "--root", MISSION, "-o", output, allowed=[output])[0] == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_unprivileged_user_gets_the_same_answers(tmp_path_factory):
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed")
    probe = subprocess.run([setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", ""], check=False)
    if probe.returncode:
        pytest.skip("this interpreter lies where another user cannot read it")
    reachable = subprocess.run(
        [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "test", "-r", str(MISSION / "recording.toml")], check=False
    )
    for arguments in (["doctor", "--json"], *([["doctor", "--root", str(MISSION), "--json"]] if reachable.returncode == 0 else [])):
        command = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-B", "-m", "rocm_patch", *arguments]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd="/", env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        )
        assert json.loads(ended.stdout)["schema"] == 1
        assert ended.returncode in (0, 1, 3)
        assert "Traceback" not in ended.stderr


def test_control_characters_of_files_never_reach_the_terminal(copy_of):
    root = copy_of("rx5700xt-native")
    with (root / "home/user/.bashrc").open("a") as stream:
        stream.write('export HSA_OVERRIDE_GFX_VERSION="10.3.0\x1b[2J"\n')
    ended = rocm_patch("doctor", "--root", root)
    assert "\x1b" not in ended.stdout
    assert "10.3.0?[2J" in ended.stdout


def test_a_fifo_as_input_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for arguments in (["doctor", "--machine", tmp_path / "fifo"], ["apply", tmp_path / "fifo"]):
        ended = rocm_patch(*arguments)
        assert ended.returncode == 2
        assert "not a regular file" in ended.stderr


def test_ctrl_c_before_a_verb_runs_is_no_trace():
    program = "import rocm_patch.cli as cli\ndef app(**_): raise KeyboardInterrupt\ncli.app = app\ncli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")
