"""Settings that somebody else made and that are in force: what each does on this card, whatever the doctor thinks of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rocm_patch.diagnose.case import OVERRIDE, SOUND, Case, own_version
from rocm_patch.diagnose.folklore import effect_of


@dataclass(frozen=True)
class Standing:
    """One setting of somebody else's."""

    name: str
    value: str
    path: str
    line: int
    reach: str
    does: str
    """no effect, harmful, slows, diagnostic, fine, or not judged."""
    text: str


_WORDS = {"none": "no effect", "harmful": "harmful", "slows": "slows", "diagnostic": "diagnostic", "legitimate": "fine"}


def others(case: Case) -> Iterator[Standing]:
    """Each place of each such setting, in reading order."""
    for setting in case.machine.settings:
        if setting.ours or not setting.in_force or setting.value is None or setting.origin == "loaded":
            continue
        does, text = _judged(case, setting.name, setting.value)
        yield Standing(setting.name, setting.value, setting.path, setting.line, setting.reach, does, text)


def _judged(case: Case, name: str, value: str) -> tuple[str, str]:
    if not case.card:
        return "not judged", "no RDNA1 or RDNA2 card is known here"
    if name.startswith(OVERRIDE):
        if value == own_version(case.gfx):
            return "fine", f"it names {case.gfx} itself, which needs no override"
        if value == SOUND.get(case.gfx):
            return "fine", f"{case.gfx} executes that code; only where torch has none for the card itself"
        return "harmful", f"code of another chip runs on {case.gfx}"
    effect = effect_of(case, name, value)
    return (_WORDS[effect.effect], effect.text) if effect else ("not judged", "our tables say nothing of this value here")
