"""Machine + Images + Trials + Knowledge -> Diagnosis. Pure: the same values give the same answer anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Final

from rocm_patch.diagnose import features, folklore, stack, symptoms, system
from rocm_patch.diagnose import trials as trials_rules
from rocm_patch.diagnose.case import Case
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import Diagnosis, Finding, Images, Known, Log, Machine, Trials

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
    trials_rules.probes,
    system.log,
    folklore.settings,
    system.other_cards,
)

_CLEAR: Final = 0.8
_GUESS: Final = 0.6
_FORCED: Final = 0.85
"""An override that is told of is more than an absence of code: only a line that is clearer goes before it."""
_SEVERITIES: Final = ("problem", "warning", "info")


def diagnose(
    machine: Machine, images: Images, knowledge: Knowledge, trials: Trials | None = None, today: date | None = None, log: Log | None = None
) -> Diagnosis:
    """Judge a machine by every rule, together with a log that its user shows.

    `today` is for the age of our tables only; without it nothing is said of it.
    """
    seen = symptoms.look(log, knowledge) if log else None
    case = _case(machine, images, trials, knowledge, seen)
    # Two cards of different kinds in one machine need two answers; what is said of both is said once.
    cases = [replace(case, focus=gpu) for gpu in case.workers] if not seen else []
    lines = list[Finding]()
    if seen:
        context = symptoms.context_of(case)
        lines = list(symptoms.log(case, context))
        proven = list(trials_rules.probes(case))
        lines += proven
        facts = [item for item in _judged(case) if item not in proven]
        calm = "calm" in context.signs and not trials_rules.failed(trials)
        findings = _shown(facts, lines, seen, calm or trials_rules.passed(trials), trials_rules.failed(trials))
    else:
        findings = list(dict.fromkeys(item for one in cases or [case] for item in _judged(one)))
    # A setting from a recipe never stands before a cause that the stack itself shows; a line that names it is more than a recipe.
    named = {item.cause for item in lines}
    findings.sort(key=lambda item: (_SEVERITIES.index(item.severity), item.cause == "folklore_setting" and item.cause not in named, -item.certainty))
    return Diagnosis(
        findings=tuple(findings),
        healthy=not any(finding.severity == "problem" for finding in findings),
        features=features.judge(case) if not seen else {},
        notes=tuple(_notes(case, today)),
    )


def _case(machine: Machine, images: Images, trials: Trials | None, knowledge: Knowledge, seen: symptoms.Seen | None) -> Case:
    """The case. Where a log before told the same, what was computed of that is taken over."""
    if seen is None or trials is not None:
        return Case(machine, images, trials, knowledge, seen=seen)
    key = ("case", id(machine))
    first: Case | None = knowledge.recent.get(key)
    if first is None or first.machine is not machine or first.images is not images or first.log is None or first.log.told is not seen.log.told:
        first = Case(machine, images, None, knowledge, seen=replace(seen, log=replace(seen.log, lines=(), numbers=()), hits=()))
        knowledge.keep(key, first)
    return first.beside(seen)


def _judged(case: Case) -> list[Finding]:
    """What the rules say of the facts. No rule looks at lines: `symptoms.log` does."""
    found: list[Finding] | None = case.kept.get("findings")
    if found is None:
        found = case.kept["findings"] = _explained([finding for rule in RULES for finding in rule(case)])
    return found


def _notes(case: Case, today: date | None) -> list[str]:
    machine, notes = case.machine, []
    if not machine.gpus:
        hidden = isinstance(machine.platform.wsl, Known) and machine.platform.wsl.value
        notes.append("no AMD GPU is visible: WSL hides it" if hidden else "no AMD GPU")
    if not isinstance(machine.kernel_log, Known) and case.card:
        notes.append(f"the kernel's log could not be read ({machine.kernel_log.unknown})")
    if today and (today - date.fromisoformat(case.knowledge.checked)).days > STALE_DAYS:
        notes.append(f"these tables were last checked on {case.knowledge.checked}; wheels and indexes move, look for a newer rocm-patch")
    return notes


def _shown(facts: list[Finding], lines: list[Finding], seen: symptoms.Seen, calm: bool, failed: bool) -> list[Finding]:
    """Join what the stack and what the lines of a log say.

    A log is a part of the truth: a variable that is not in it may be set all the same. So where no line shows a fault,
    what the stack alone says is no problem yet, and where one shows another cause, it steps back behind that.
    """
    quiet = bool(seen.log.lines) and (calm or not (seen.fault or failed))
    shown = {item.cause for item in lines if item.severity == "problem"}
    joined: dict[tuple[str, str], Finding] = {}
    for item in (*lines, *(_behind(item, shown, quiet, calm or seen.success) for item in facts)):
        key = (item.cause, item.severity)
        first = joined.get(key)
        if first is None:
            joined[key] = item
            continue
        best, other = (first, item) if first.certainty >= item.certainty else (item, first)
        remedies = {advice.id: advice for advice in (*best.remedies, *other.remedies)}
        joined[key] = replace(best, why=tuple(dict.fromkeys((*best.why, *other.why))), remedies=tuple(remedies.values()))
    best_of_all = max((item.certainty for item in joined.values() if item.severity == "problem"), default=0.0)
    # Beside an answer that is nearly certain a guess is noise.
    return [item for item in joined.values() if item.severity != "problem" or best_of_all < _CLEAR or item.certainty >= _GUESS]


def _behind(item: Finding, shown: set[str], quiet: bool, success: bool) -> Finding:
    """What the stack alone says, beside what the lines show."""
    if item.severity != "problem":
        return item
    if quiet and (item.cause != "wrong_torch_wheel" or success):
        return replace(item, severity="warning")
    if not shown or item.cause in shown:
        return item
    return replace(item, certainty=min(item.certainty, _FORCED if item.cause.startswith("override") else _GUESS))


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
