"""What somebody's words say of a failure: that it is there, or that they only speak of it."""

from __future__ import annotations

import pytest

from rocm_patch import knowledge
from rocm_patch.diagnose import mood
from rocm_patch.explain import explain
from rocm_patch.logs import picture

TABLES = knowledge.load()

THERE = (
    "My RX 5700 XT hangs as soon as training starts.",
    "Is it normal that the card hangs at 100 % forever?",
    "No error is printed. The picture is black.",
    "It crashes without any error message",
    "Thanks to the update the machine freezes",
    "Why is my 6600 not detected?",
    "ROCm 6.3 is out. Since then everything crashes here.",
    "please add support for the RX 6750 XT",
    "This should be fixed, it still segfaults",
    "After suspend the GPU is gone until I reboot",
    "I fixed the path, but it crashes",
    "My card is not detected, thanks",
    "It does not start and crashes",
    "I followed the guide and it fails",
    "It crashes before I can type a word",
    "The error is back",
)
SPOKEN_OF = (
    "No hangs and no resets in two months.",
    "Trains without crashes",
    "The crash was fixed in 2.4.",
    "it no longer crashes",
    "Release notes mention fewer hangs",
    "What happens if the power supply is too small?",
    "resnet50: 312 img/s, no crash",
    "Which distribution do you use?",
    "Solved, I had forgotten to log in again.",
)


@pytest.mark.parametrize("words", THERE)
def test_a_failure_that_is_there(words):
    assert mood.of([words]) == "failure"


@pytest.mark.parametrize("words", SPOKEN_OF)
def test_a_failure_that_is_only_spoken_of(words):
    assert mood.of([words]) == "calm"


def test_what_is_neither():
    assert mood.of(["RX 5700 XT and ROCm"]) == ""
    # A machine that stands still without a word is no healthy one, and a run without an error none that fails.
    assert mood.of(["no error is printed"]) == ""
    assert mood.of([]) == ""


@pytest.mark.parametrize("gfx", ["gfx1010", "gfx1031", "gfx803", "gfx1100"])
def test_a_guess_by_the_card_alone_is_never_a_problem(gfx):
    facts = picture.given({"gfx": gfx, "rocm": "6.2", "os": "linux"})
    assert explain("how do I set this up, any hint welcome", facts, TABLES).diagnosis.healthy
    assert not explain("it does not work", facts, TABLES).diagnosis.healthy


def test_what_a_program_prints_is_no_mood():
    facts = picture.given({"gfx": "gfx1010", "torch": "2.5.1+rocm6.2"})
    shown = "Thanks, solved.\nRuntimeError: HIP error: invalid device function"
    assert not explain(shown, facts, TABLES).diagnosis.healthy
