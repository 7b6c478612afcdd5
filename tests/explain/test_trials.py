"""What `rocm-patch probe` printed, pasted: read as the same Trials, and judged as `doctor` judges them."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from rocm_patch import knowledge
from rocm_patch.explain import explain
from rocm_patch.logs import picture, trials
from rocm_patch.model import Trial, Trials
from rocm_patch.report import documents, words

TABLES = knowledge.load()
FACTS = picture.given({"gfx": "gfx1010"})


def trial(probe, configuration, verdict, detail="", dtype="float32"):
    return Trial(probe, configuration, dtype, verdict, 1.0, detail, {"forward": 1e-7}, {"forward": 1e-5})


BAD = Trials(
    "hip",
    "AMD Radeon RX 5700 XT",
    "torch 2.10.0, Linux 6.8",
    (
        trial("conv-64-3x64", "miopen", "crash", "ended with signal 6 in /home/somebody/x.py"),
        trial("conv-64-3x64", "miopen-off", "passed"),
        trial("elementwise", "any", "passed"),
        trial("batch-norm", "miopen", "passed"),
    ),
)
GOOD = replace(BAD, trials=tuple(replace(item, verdict="passed", detail="") for item in BAD.trials))


def document(ran):
    return json.dumps(documents.probe(ran), indent=2)


def printed(ran):
    out = io.StringIO()
    console = Console(file=out, width=120)
    for item in ran.trials:
        words.trial(item, console)
    words.trials(ran, console)
    return out.getvalue()


FORMS = {
    "document": lambda ran: document(ran),
    "document in a log": lambda ran: f"$ rocm-patch probe --json\n{document(ran)}\nthat is all",
    "document without its end": lambda ran: document(ran)[: int(len(document(ran)) * 0.7)],
    "document without its head": lambda ran: document(ran)[120:],
    "one line": lambda ran: json.dumps(documents.probe(ran)),
    "words": lambda ran: printed(ran),
    "words without their end": lambda ran: printed(ran)[:330],
    "words in a log": lambda ran: f"$ rocm-patch probe\n{printed(ran)}\nthat is all",
}


@pytest.mark.parametrize("form", FORMS)
def test_what_fails_with_miopen_alone_is_told_as_doctor_tells_it(form):
    answer = explain(FORMS[form](BAD), FACTS, TABLES).diagnosis
    assert [answer.findings[0].cause, answer.findings[0].severity, answer.findings[0].certainty] == ["miopen_solver_fault", "problem", 0.97]
    assert [advice.id for advice in answer.findings[0].remedies] == ["miopen-off"]
    assert "somebody" not in repr(answer)


@pytest.mark.parametrize("form", FORMS)
def test_where_all_passed_the_names_of_verdicts_are_no_complaints(form):
    assert explain(FORMS[form](GOOD), FACTS, TABLES).diagnosis.healthy


def test_whole_forms_give_back_each_trial():
    for form in (document(BAD), printed(BAD)):
        _, found = trials.read(form)
        assert found is not None
        assert found.device == "hip"
        seen = [(item.probe, item.configuration, item.dtype, item.verdict) for item in found.trials]
        assert seen == [(item.probe, item.configuration, item.dtype, item.verdict) for item in BAD.trials]


def test_a_run_on_a_cpu_says_nothing_about_the_card():
    ran = replace(BAD, device="cpu", trials=tuple(replace(item, configuration="cpu") for item in BAD.trials))
    for form in (document(ran), printed(ran)):
        assert not any(item.cause == "miopen_solver_fault" for item in explain(form, FACTS, TABLES).diagnosis.findings)


def test_what_stays_keeps_its_place_and_a_known_line_is_still_known():
    ran = replace(BAD, trials=(trial("gemm", "any", "error", "RuntimeError: HIP error: invalid device function"),))
    shown = f"first\n{printed(ran)}last"
    rest, _ = trials.read(shown)
    assert rest.count("\n") == shown.count("\n")
    assert "missing_code_object" in [item.cause for item in explain(shown, FACTS, TABLES).diagnosis.findings]


@pytest.mark.parametrize(
    "shown", ["", "passed", '{"probe": "verdict"', '"verdict" {"probe": [' * 3000, "crash conv 1.0 s", "passed  x  float32  y  1.0 s"]
)
def test_what_is_no_such_output_or_a_broken_one_raises_nothing(shown):
    rest, found = trials.read(shown)
    assert found is None or all(item.verdict for item in found.trials)
    assert found or rest == shown
