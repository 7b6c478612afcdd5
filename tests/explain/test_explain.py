"""From a text and a few facts to an answer: what is weighed against what, what a batch survives, and that nobody is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch import codec, knowledge
from rocm_patch.diagnose import signs
from rocm_patch.diagnose.case import Case
from rocm_patch.explain import batch, explain, without
from rocm_patch.knowledge.conditions import SIGNS
from rocm_patch.logs import picture, text
from rocm_patch.logs.facts import Told
from rocm_patch.model import Recording

TABLES = knowledge.load()
WEBUI = {"gfx": "gfx1012", "gpu": "RX 5500 XT", "torch": "2.0.1+rocm5.4.2", "os": "linux"}


def answer(shown, **given):
    return explain(shown, picture.given({name.replace("env_", "env."): value for name, value in given.items()}), TABLES).diagnosis


def problems(diagnosis):
    return [item.cause for item in diagnosis.findings if item.severity == "problem"]


def rocm_patch(*arguments, stdin=b""):
    return subprocess.run([sys.executable, "-m", "rocm_patch", *arguments], input=stdin, capture_output=True, timeout=120)


# ------------------------------------------------------------------ log and stack


def test_a_hang_without_code_for_the_card_means_that_an_override_is_set_somewhere():
    assert problems(answer("image generation never starts", **WEBUI))[0] == "override_unsafe"
    assert problems(answer("invalid device function", **WEBUI))[0] == "missing_code_object"


def test_a_log_that_shows_no_fault_makes_no_problem_of_what_the_stack_may_lack():
    quiet = answer("works fine on my card, no override needed", **WEBUI)
    assert quiet.healthy
    assert "missing_code_object" in [item.cause for item in quiet.findings if item.severity == "warning"]
    assert not answer("segmentation fault on the first image", **WEBUI).healthy


def test_facts_alone_are_judged_as_the_doctor_judges_them():
    assert problems(answer("", **WEBUI, env_HSA_OVERRIDE_GFX_VERSION="10.3.0"))[0] == "override_unsafe"
    assert problems(answer("", gfx="gfx1030", torch="2.5.1+cu124"))[0] == "wrong_torch_wheel"


def test_what_a_line_shows_goes_before_what_the_facts_may_mean():
    shown = answer("HIP out of memory. Tried to allocate 2.00 GiB", gfx="gfx1031", torch="2.4.1+rocm6.1")
    assert problems(shown)[0] == "out_of_memory"


def test_a_line_that_names_a_recipe_is_more_than_a_recipe():
    named = answer("MIOPEN_DEVICE_ARCH used, escaping launching kernel", **WEBUI, env_MIOPEN_DEVICE_ARCH="gfx1030")
    assert problems(named)[0] == "folklore_setting"
    other = answer("HIP error: invalid device function", **WEBUI, env_MIOPEN_DEVICE_ARCH="gfx1030")
    assert problems(other)[0] == "missing_code_object"


def test_nothing_known_is_an_answer():
    assert not answer("the weather is nice").findings


def test_only_remedies_that_worked_in_such_a_place_are_told():
    for facts in ({"gfx": "gfx1010"}, {"gfx": "gfx1031"}, {"gfx": "gfx1100"}, {"gfx": "gfx803"}, {}):
        for item in answer("HIP error: invalid device function", **facts).findings:
            for advice in item.remedies:
                assert advice.evidence, advice.id
                assert "{" not in advice.text.replace("${", ""), advice.text


def test_the_signs_that_follow_from_facts_are_those_that_conditions_may_name():
    facts = {"gpu": "RX 6800; RX 6600; iGPU", "gfx": "gfx1030,gfx1032,gfx1036", "container": "docker", "distro": "Fedora 44"}
    machine, code = picture.picture(picture.given({**facts, "env.HSA_OVERRIDE_GFX_VERSION": "11.0.0"}), TABLES)
    found = signs.derive(Case(machine, code, None, TABLES))
    assert {"several", "mixed", "integrated-beside", "override-foreign", "containered", "on-fedora", "card-known"} <= found
    assert {sign for sign in found if not sign.startswith("on-")} <= SIGNS.keys()


def test_the_same_question_has_the_same_answer():
    question = {"id": 1, "log": "Memory access fault by GPU node-1\nHIP out of memory", "given": {"gfx": "gfx1031"}}
    line = json.dumps(question).encode()
    assert json.dumps(list(batch([line, line], TABLES))[0]) == json.dumps(list(batch([line] * 3, TABLES))[2])


# ------------------------------------------------------------------ batch

GOOD = json.dumps({"id": "good", "log": "HIP error: invalid device function", "given": {"gfx": "gfx1010"}}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00\x80",
        b'{"log": "no id"}',
        b'{"id": 1, "log": 7}',
        b'{"id": 1, "given": []}',
        b'{"id": 1, "given": {"colour": "red"}}',
        b"[" * 200_000,
        b'{"id": 1, "log": "' + b"x" * 100,
        b'{"id": NaN}x',
    ],
    ids=range(11),
)
def test_a_broken_line_gets_an_error_and_the_rest_goes_on(line):
    answers = list(batch([GOOD, line, GOOD], TABLES))
    assert "error" in answers[1]
    assert answers[1]["error"]["what"]
    assert answers[0] == answers[2]
    assert answers[0]["findings"][0]["cause"] == "missing_code_object"


def test_numbers_and_empty_facts_are_taken_as_they_are_meant():
    line = json.dumps({"id": 1, "log": "x", "given": {"rocm": 6.2, "torch": None, "env.HIP_VISIBLE_DEVICES": 0}}).encode()
    assert "error" not in next(iter(batch([line], TABLES)))


def test_findings_of_a_batch_are_those_of_the_documents():
    shown = json.loads(GOOD)
    made = explain(shown["log"], picture.given(shown["given"]), TABLES).diagnosis.findings
    assert next(iter(batch([GOOD], TABLES)))["findings"] == codec.encode(made)


@given(st.one_of(st.text(max_size=300), st.lists(st.sampled_from([row.sample for row in TABLES.signatures]), max_size=4).map("\n".join)), st.data())
@settings(max_examples=120, deadline=None)
def test_any_text_with_any_facts_has_an_answer(shown, data):
    names = st.sampled_from(["gpu", "gfx", "rocm", "torch", "kernel", "python", "distro", "container", "groups", "env.HSA_OVERRIDE_GFX_VERSION"])
    given = data.draw(
        st.dictionaries(names, st.one_of(st.text(max_size=30), st.sampled_from(["gfx1010", "10.3.0", "2.5.1+rocm6.2", "6.2"])), max_size=4)
    )
    made = explain(shown, picture.given(given), TABLES)
    assert made.diagnosis.healthy == (not problems(made.diagnosis))


@given(st.binary(max_size=400))
@settings(max_examples=120, deadline=None)
def test_any_bytes_have_an_answer_and_a_batch_line_of_any_bytes_too(data):
    explain(text.decode(data), Told(), TABLES)
    for made in batch(data.split(b"\n"), TABLES):
        assert "findings" in made or "error" in made


# ------------------------------------------------------------------ the verb


def test_a_person_reads_the_meaning_the_line_the_remedy_and_what_not_to_do(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("loading\nRuntimeError: HIP error: invalid device function\n")
    ended = rocm_patch("explain", str(log), "--given", "gfx=gfx1010", "--given", "torch=2.5.1+rocm6.2", "--not-here")
    words = ended.stdout.decode()
    assert ended.returncode == 1
    assert "> line 2: RuntimeError: HIP error: invalid device function" in words
    assert "torch[device-gfx1010]" in words
    assert "What not to do: HSA_OVERRIDE_GFX_VERSION=10.3.0" in words


def test_json_holds_the_facts_and_the_findings_and_names_nobody(tmp_path):
    shown = (
        b"alice@alicebox:~$ python /home/alice/run.py\n"
        b"Nov 12 10:00:01 alicebox kernel: amdgpu 0000:0a:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1\n"
        b'export HIP_PATH=/home/alice/rocm\nUnable to open /dev/kfd read-write: Permission denied\nalice is not member of "render" group\n'
    )
    ended = rocm_patch("explain", "--json", "--not-here", "--given", "torch=/home/alice/torch-2.5.1", stdin=shown)
    document = json.loads(ended.stdout)
    assert {"kfd_permission", "ring_timeout_reset"} <= {item["cause"] for item in document["findings"]}
    assert "alice" not in ended.stdout.decode()


def test_names_of_the_caller_are_left_out():
    made = without(["bobbybox"], explain("bobbybox: HIP error: invalid device function", Told(), TABLES))
    assert "bobbybox" not in json.dumps(codec.encode(made.diagnosis.findings))


def test_a_recording_tells_what_the_log_does_not(tmp_path):
    machine, code = picture.picture(picture.given({"gfx": "gfx1032", "torch": "2.5.1+rocm6.2"}), TABLES)
    recording = tmp_path / "machine.json"
    recording.write_text(codec.dumps(Recording(1, "test", machine, code)))
    ended = rocm_patch("explain", "--json", "--machine", str(recording), stdin=b"HIP error: invalid device function")
    remedies = [item["remedy"] for item in json.loads(ended.stdout)["findings"][0]["remedies"]]
    assert "set_override" in remedies


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["explain", "/nowhere/log"], 2, "there is no such file"),
        (["explain", "--given", "gfx"], 2, "NAME=VALUE"),
        (["explain", "--given", "colour=red"], 2, "there is no such fact"),
        (["explain", "--batch", "--given", "gfx=gfx1010"], 2, "from each line"),
        (["explain", "--machine", "/nowhere.json"], 2, "there is no such file"),
        (["explain", "/"], 2, ""),
    ],
)
def test_wrong_calls_end_in_words(arguments, code, words):
    ended = rocm_patch(*arguments)
    assert ended.returncode == code, ended.stderr
    assert words in " ".join(ended.stderr.decode().split())
    assert b"Traceback" not in ended.stderr


def test_what_is_not_known_is_said_with_what_to_send():
    ended = rocm_patch("explain", "--not-here", stdin=b"the weather is nice\n")
    assert ended.returncode == 3
    assert b"Nothing known matches" in ended.stdout
    assert b"rocm-patch record" in ended.stdout


def test_a_batch_on_standard_input_gives_one_answer_a_line():
    ended = rocm_patch("explain", "--batch", stdin=GOOD + b"\n\nbroken\n" + GOOD)
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0
    assert [made.get("id") for made in answers] == ["good", None, "good"]


def test_the_list_holds_every_signature_and_remedy_with_its_evidence():
    document = json.loads(rocm_patch("explain", "--list", "--json").stdout)
    assert {row["id"] for row in document["signatures"]} == {row.id for row in TABLES.signatures}
    by_id = {row["id"]: row for row in document["remedies"]}
    assert by_id.keys() == TABLES.remedies.keys()
    assert by_id["mtype-local"]["status"] == "no effect"
    assert not by_id["mtype-local"]["recommended"]
    words = rocm_patch("explain", "--list").stdout.decode()
    assert f"{len(TABLES.signatures)} signatures" in words
    assert "https://github.com/ROCm/MIOpen/issues/1996" in words
