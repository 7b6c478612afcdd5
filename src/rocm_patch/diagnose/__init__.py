"""Machine + Images + Trials + Knowledge -> Diagnosis. Pure: the same values give the same answer anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Final

from rocm_patch.diagnose import features, folklore, stack, system, trials
from rocm_patch.diagnose.case import Case
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import Diagnosis, Finding, Images, Known, Machine, Trials

__all__ = ["RULES", "STALE_DAYS", "diagnose"]

STALE_DAYS: Final = 90

Rule = Callable[[Case], Iterator[Finding]]

RULES: Final[tuple[Rule, ...]] = (
    system.driver,
    system.devices,
    system.wsl,
    stack.override,
    stack.code,
    stack.wheels,
    stack.known_regressions,
    stack.integrated,
    stack.native_rdna1,
    system.kernel,
    trials.probes,
    system.log,
    folklore.settings,
    system.other_cards,
)

_SEVERITIES: Final = ("problem", "warning", "info")


def diagnose(machine: Machine, images: Images, knowledge: Knowledge, trials: Trials | None = None, today: date | None = None) -> Diagnosis:
    """Judge a machine by every rule. `today` is for the age of our tables only; without it nothing is said of it."""
    case = Case(machine, images, trials, knowledge)
    # Two cards of different kinds in one machine need two answers; what is said of both is said once.
    cases = [replace(case, focus=gpu) for gpu in case.workers] or [case]
    findings = list(dict.fromkeys(item for one in cases for item in _explained([finding for rule in RULES for finding in rule(one)])))
    # A setting from a recipe never stands before a cause that the stack itself shows.
    findings.sort(key=lambda item: (_SEVERITIES.index(item.severity), item.cause == "folklore_setting", -item.certainty))
    notes = []
    if not machine.gpus:
        hidden = isinstance(machine.platform.wsl, Known) and machine.platform.wsl.value
        notes.append("no AMD GPU is visible: WSL hides it" if hidden else "no AMD GPU")
    if not isinstance(machine.kernel_log, Known) and case.card:
        notes.append(f"the kernel's log could not be read ({machine.kernel_log.unknown})")
    if today and (today - date.fromisoformat(knowledge.checked)).days > STALE_DAYS:
        notes.append(f"these tables were last checked on {knowledge.checked}; wheels and indexes move, look for a newer rocm-patch")
    return Diagnosis(
        findings=tuple(findings),
        healthy=not any(finding.severity == "problem" for finding in findings),
        features=features.judge(case),
        notes=tuple(notes),
    )


def _explained(findings: list[Finding]) -> list[Finding]:
    """Faults in the log are effects where foreign code is forced on the card: they support that finding."""
    forced = next((index for index, item in enumerate(findings) if item.cause == "override_unsafe" and item.severity == "problem"), None)
    if forced is None:
        return findings
    kept, lines = list[Finding](), list[str]()
    for item in findings:
        if item.cause in system.EFFECTS_OF_FOREIGN_CODE and item.severity == "warning":
            lines.append(item.why[0])
        else:
            kept.append(item)
    index = kept.index(findings[forced])
    kept[index] = replace(kept[index], why=kept[index].why + tuple(lines))
    return kept
