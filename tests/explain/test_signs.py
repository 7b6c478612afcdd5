"""What follows from facts and lines, in the words that conditions use: each sign once where it is due, and once where it nearly is."""

from __future__ import annotations

import pytest

from rocm_patch import knowledge
from rocm_patch.diagnose import signs, symptoms
from rocm_patch.diagnose.case import Case
from rocm_patch.knowledge.conditions import SIGNS
from rocm_patch.logs import picture, text
from rocm_patch.model import Log

TABLES = knowledge.load()


def derived(shown, **given):
    """The signs of a text and of the facts told beside it."""
    told = picture.given({name.replace("env_", "env."): value for name, value in given.items()})
    machine, images = picture.picture(told, TABLES)
    lines, numbers = text.lines(shown)
    log = Log(lines, numbers, told.values.get("app", ""), "", told.values)
    return signs.derive(Case(machine, images, None, TABLES, seen=symptoms.look(log, TABLES)))


OVERRIDE = {"env_HSA_OVERRIDE_GFX_VERSION": "10.3.0"}
TABLE = (
    # sign, text and facts that show it, text and facts that nearly do
    ("prose", ("My card is slow since yesterday.", {}), ("RuntimeError: the card is slow", {})),
    ("prose", ("It hangs, and I do not know why", {}), ("It hangs\n" * 2 + "one\ntwo\nthree\nfour", {})),
    ("prose", ("one warm evening it stopped", {}), ("one warning, then it stopped", {})),
    ("failure-told", ("training crashes at once", {}), ("no crash so far", {})),
    ("calm", ("no crash so far", {}), ("training crashes at once", {})),
    ("calm", ("Solved, thanks", {}), ("RuntimeError: solved, thanks", {})),
    ("app-bundled", ("", {"app": "Ollama 0.5"}), ("", {"app": "ComfyUI"})),
    ("app-bundled", ("", {"app": "LM Studio"}), ("", {"app": "januscoder"})),
    ("app-cuda-engine", ("", {"app": "faster-whisper"}), ("", {"app": "whisper.cpp"})),
    ("app-cuda-engine", ("", {"app": "xformers"}), ("", {"app": "transformers"})),
    (
        "integrated-named",
        ("rocBLAS error: no kernels for gfx1036", {"gfx": "gfx1031"}),
        ("rocBLAS error: no kernels for gfx1031", {"gfx": "gfx1031"}),
    ),
    ("integrated-named", ("using gfx90c", {"gfx": "gfx1030"}), ("using gfx90c", {"gfx": "gfx90c"})),
    ("integrated-named", ("using gfx90c", {"gfx": "gfx1030"}), ("using gfx1100", {"gfx": "gfx1030"})),
    ("two-versions", ("libamdhip64.so.5 and libamdhip64.so.6 are both loaded", {}), ("libamdhip64.so.6 and librocblas.so.4 are both loaded", {})),
    ("two-versions", ("needs libLLVM.so.17\nfound libLLVM.so.19", {}), ("needs libLLVM.so.17\nfound libLLVM.so.17", {})),
    ("override-hits-other", ("", {"gfx": "gfx1031,gfx1101", **OVERRIDE}), ("", {"gfx": "gfx1031,gfx1032", **OVERRIDE})),
    ("override-hits-other", ("", {"gfx": "gfx1030,gfx90c", **OVERRIDE}), ("", {"gfx": "gfx1030,gfx90c"})),
    ("kernel-named", ("broken since 6.14", {"kernel": "6.14.0-33-generic"}), ("broken since 16.14", {"kernel": "6.14.0-33-generic"})),
    ("no-group", ("", {"groups": "users wheel"}), ("", {"groups": "users render"})),
)


@pytest.mark.parametrize(("sign", "due", "nearly"), TABLE)
def test_a_sign_is_there_where_it_is_due_and_nowhere_else(sign, due, nearly):
    assert sign in SIGNS
    assert sign in derived(due[0], **due[1])
    assert sign not in derived(nearly[0], **nearly[1])


def test_nothing_shown_and_nothing_told_gives_no_sign_of_a_machine():
    assert derived("") <= {"prose"}


def test_what_is_kept_of_the_facts_holds_nothing_of_the_lines_before():
    facts = picture.given({"gfx": "gfx1031"})
    machine, images = picture.picture(facts, TABLES)
    first = Case(machine, images, None, TABLES, seen=symptoms.look(Log(("Solved, thanks",), (1,)), TABLES))
    assert "calm" in signs.derive(first)
    second = first.beside(symptoms.look(Log(("RuntimeError: boom",), (1,)), TABLES))
    assert not {"calm", "prose"} & signs.derive(second)
    assert "card-known" in signs.derive(second)
