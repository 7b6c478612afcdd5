"""What follows from the facts, in the words that conditions use (`knowledge.conditions.SIGNS`)."""

from __future__ import annotations

import re
from typing import Final

from rocm_patch.diagnose.case import MASKS, Case, gfx_of
from rocm_patch.diagnose.stack import same_instructions
from rocm_patch.model import Known

_KIN: Final = {("gfx1101", "gfx1100"), ("gfx1102", "gfx1100"), ("gfx90c", "gfx900"), ("gfx902", "gfx900")}
"""Overrides outside our own family that are known to work."""


def derive(case: Case) -> frozenset[str]:
    """The signs of a machine; what is not known gives none."""
    return frozenset((*_cards(case), *_masks(case), *_override(case), *_torch(case), *_place(case)))


def _cards(case: Case) -> list[str]:
    gpus = case.machine.gpus
    signs = ["card-known"] if case.subject_gfx else []
    dedicated = [gpu for gpu in gpus if not gpu.integrated]
    if len(gpus) > 1:
        signs.append("several")
    if gpus and not dedicated:
        signs.append("integrated")
    if dedicated and len(dedicated) < len(gpus):
        signs.append("integrated-beside")
    if len({gfx_of(gpu) for gpu in dedicated}) > 1:
        signs.append("mixed")
    return signs


def _masks(case: Case) -> list[str]:
    return ["masked"] if any(name in case.environment for name in MASKS) else []


def _override(case: Case) -> list[str]:
    found, gfx = case.override(), case.subject_gfx
    if found is None:
        return []
    if found.target is None:
        return ["override-set", "override-malformed"]
    if not gfx:
        return ["override-set"]
    if found.target == gfx:
        return ["override-set", "override-own"]
    if same_instructions(gfx, found.target) or (gfx, found.target) in _KIN:
        return ["override-set", "override-sound"]
    # 'gfx1030' on 'gfx1012': the generation is all but the last two characters.
    near = gfx[:-2] == found.target[:-2] and gfx[:-2] != "gfx9"
    return ["override-set", "override-foreign", *(["override-near"] if near else [])]


def _torch(case: Case) -> list[str]:
    if not case.machine.torches:
        return []
    torch, gfx = case.machine.torches[0], case.subject_gfx
    build = torch.build.value if isinstance(torch.build, Known) else ""
    signs = [f"torch-{build}"] if build else []
    told = case.log.told.get("torch", "") if case.log else ""
    if any(word in told.lower() for word in ("self-built", "source", "own build", "custom")):
        signs.append("torch-made-here")
    coverage = case.coverage(torch)
    if gfx and coverage.targets is not None:
        row = case.knowledge.gpus.get(gfx)
        signs.append("code-native" if coverage.native(gfx, row.generic if row else "") else "code-missing")
    return signs


def _place(case: Case) -> list[str]:
    platform = case.machine.platform
    signs = ["compute-told"] if case.log and {"torch", "rocm", "app"} & set(case.log.told) else []
    if isinstance(platform.container, Known) and platform.container.value:
        signs.append("containered")
    if isinstance(platform.groups, Known) and platform.groups.value and not {"render", "video", "root"} & set(platform.groups.value):
        signs.append("no-group")
    if isinstance(platform.kernel, Known) and case.log:
        series = re.match(r"\d+\.\d+", platform.kernel.value)
        if series and any(re.search(rf"(?<![\d.]){re.escape(series.group())}(?!\d)", line) for line in case.log.lines[:200]):
            signs.append("kernel-named")
    if isinstance(platform.distribution, Known) and platform.distribution.value:
        signs.append(f"on-{platform.distribution.value.lower()}")
    return signs
