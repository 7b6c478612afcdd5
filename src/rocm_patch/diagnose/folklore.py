"""Settings from old recipes that are in force: each a no-op or harmful, and where it is set."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rocm_patch.diagnose.case import Case, finding, where
from rocm_patch.diagnose.stack import droppers
from rocm_patch.knowledge.conditions import holds
from rocm_patch.model import Advice, Finding, Known, Setting, SettingEffect, Severity

_SEVERITY: dict[str, Severity] = {"none": "warning", "slows": "warning", "harmful": "problem", "diagnostic": "info"}


def settings(case: Case) -> Iterator[Finding]:
    """One finding for each name and value that does nothing, slows or harms here."""
    if not case.card:
        return
    grouped: dict[tuple[str, str], list[Setting]] = {}
    for setting in case.machine.settings:
        if setting.in_force and setting.value is not None and setting.origin != "loaded" and not setting.ours:
            grouped.setdefault((setting.name, setting.value), []).append(setting)
    for (name, value), places in grouped.items():
        effect = effect_of(case, name, value)
        if effect is None or effect.effect == "legitimate":
            continue
        severity: Severity = effect.severity or _SEVERITY[effect.effect]
        why = [f"{name}={value} ({where(places)}): {effect.text}"]
        if places[0].reach == "boot" and not _loaded(case, name, value):
            why.append("It comes into force at the next boot.")
        pending = all(place.origin == "process" for place in places) and case.taken_out(name)
        if pending:
            why.append(pending)
        yield finding("folklore_setting", severity, 0.9, why, () if pending else _advice(case, name, value, places, effect))


def effect_of(case: Case, name: str, value: str) -> SettingEffect | None:
    """What a value does on this card with this kernel; None where our tables say nothing."""
    row = case.knowledge.settings.get(name)
    context = case.context(case.rocm_torches[0] if case.rocm_torches else None)
    for effect in row.effects if row else ():
        if (not effect.values or re.fullmatch(effect.values, value)) and holds(effect.when, context):
            return effect
    return None


def to_drop(effect: SettingEffect | None) -> bool:
    """True for a value that a plan takes out and `run` leaves out: it does nothing, slows or harms."""
    return effect is not None and effect.effect != "legitimate" and (effect.severity or effect.effect) not in ("info", "diagnostic")


def _advice(case: Case, name: str, value: str, places: list[Setting], effect: SettingEffect) -> tuple[Advice, ...]:
    row = case.knowledge.settings[name]
    first = next((place for place in places if place.origin != "process"), places[0])
    if effect.effect == "diagnostic" and not effect.severity:
        return ()
    if first.origin == "cmdline":
        loader = case.machine.platform.boot_loader
        return case.advise("drop-kernel-word-by-hand", name=name, value=value, loader=loader.value if isinstance(loader, Known) else "not known")
    if row.kind == "module":
        return case.advise("drop-module-option-by-hand", name=name, value=value, bare=name.partition(".")[2], path=first.path, line=first.line)
    if row.kind == "preload":
        return case.advise("drop-preload-by-hand", value=value, path=first.path, line=first.line)
    return case.advise(*droppers("drop-setting", tuple(places)), name=name, value=value, places=where(places))


def _loaded(case: Case, name: str, value: str) -> bool:
    return any(setting.name == name and setting.origin == "loaded" and setting.value == value for setting in case.machine.settings)
