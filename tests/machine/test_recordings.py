"""Each recorded machine gives exactly what stands in its expect.json, and the value survives JSON."""

from __future__ import annotations

import json
import subprocess
import sys

from recorded_machines import MACHINES, NAMES
from rocm_patch import codec, knowledge, machine
from rocm_patch.images import installed
from rocm_patch.model import SCHEMA, Images, Known, Machine, Recording
from rocm_patch.root import Root


def doctor(*arguments):
    return subprocess.run([sys.executable, "-m", "rocm_patch", "doctor", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_there_are_at_least_ten():
    assert len(NAMES) >= 10


def test_the_doctor_says_exactly_what_is_expected(machine_name, expected):
    ended = doctor("--root", str(MACHINES / machine_name), "--json")
    assert json.loads(ended.stdout) == expected
    assert ended.stderr == ""
    unread = bool(expected["unread"])
    assert ended.returncode == (1 if not expected["healthy"] else 3 if unread else 0)


def test_words_for_people_name_each_cause(machine_name, expected):
    ended = doctor("--root", str(MACHINES / machine_name))
    for finding in expected["findings"]:
        if finding["cause"] != "folklore_setting":
            assert finding["cause"] in ended.stdout
    assert ("Healthy" in ended.stdout) == (expected["healthy"] and bool(expected["gpus"]))
    assert "Traceback" not in ended.stderr


def test_a_recording_file_gives_the_same_answer(machine_name, expected, tmp_path):
    tables = knowledge.load()
    root = Root(str(MACHINES / machine_name))
    found = machine.collect(root, tables)
    recording = Recording(SCHEMA, "test", found, installed.scan(root, found, tables))
    path = tmp_path / "recording.json"
    path.write_text(codec.dumps(recording))
    assert codec.loads(Recording, path.read_text(), "recording") == recording
    assert json.loads(doctor("--machine", str(path), "--json").stdout) == expected


def test_the_live_machine_is_no_traceback():
    ended = doctor("--json")
    document = json.loads(ended.stdout)
    assert document["schema"] == 1
    assert ended.returncode in (0, 1, 3)
    if not document["gpus"]:
        assert ended.returncode in (0, 3)
        assert any("no AMD GPU" in note for note in document["notes"])


def test_the_live_environment_never_reaches_a_recorded_tree(monkeypatch):
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION", "11.0.0")
    ended = doctor("--root", str(MACHINES / "rx5700xt-native"), "--json")
    assert "11.0.0" not in ended.stdout


def test_an_empty_root_is_answered(tmp_path):
    found = machine.collect(Root(str(tmp_path)), knowledge.load())
    assert found.gpus == ()
    assert isinstance(found, Machine)
    assert installed.scan(Root(str(tmp_path)), found, knowledge.load()) == Images()
    assert found.platform.kfd_present == Known(False, "dev/kfd")
