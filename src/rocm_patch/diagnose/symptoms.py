"""What the lines that a user shows mean on this machine, by the rows of signatures.toml.

A row has readings, and the first whose condition holds speaks: one line means different things on different cards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rocm_patch.diagnose import signs
from rocm_patch.diagnose.case import Case, finding
from rocm_patch.diagnose.once import once
from rocm_patch.knowledge import Knowledge
from rocm_patch.knowledge.conditions import SIGNS, Context, holds
from rocm_patch.knowledge.matching import Pattern
from rocm_patch.logs import text
from rocm_patch.model import Finding, Log, Reading

_SIGNS = frozenset(SIGNS)
_SHOWN = 3
"""Lines quoted for one signature."""


@dataclass(frozen=True)
class Seen:
    """The signatures that a log holds, each with the indexes of its lines."""

    log: Log
    hits: tuple[tuple[Pattern, tuple[int, ...]], ...]

    @once
    def ids(self) -> frozenset[str]:
        """Their ids: what conditions ask for."""
        return frozenset(pattern.row.id for pattern, _ in self.hits)

    @once
    def _quoted(self) -> dict[int, str]:
        return {}

    def quoted(self, index: int) -> str:
        """A line as an answer quotes it. Several signatures quote the same."""
        if index not in self._quoted:
            self._quoted[index] = f"line {self.log.numbers[index]}: {text.quoted(self.log.lines[index])}"
        return self._quoted[index]

    @once
    def fault(self) -> bool:
        """True if a line, other than a harmless one, says that something went wrong."""
        possible = self.ids | _SIGNS
        return any(pattern.row.shows == "fault" or pattern.serious(possible) for pattern, _ in self.hits)

    @once
    def success(self) -> bool:
        """True if a line says that it works."""
        return any(pattern.row.shows == "success" for pattern, _ in self.hits)


def look(log: Log, knowledge: Knowledge) -> Seen:
    """Search a log. A line that is known to be harmless is no general sign of a fault."""
    hits = knowledge.finder.search(log.lines)
    possible = _SIGNS.union([pattern.row.id for pattern, _ in hits])
    harmless = {index for pattern, indexes in hits if pattern.quiet(possible) for index in indexes}
    if not harmless:
        return Seen(log, tuple(hits))
    kept = []
    for pattern, indexes in hits:
        rest = tuple(index for index in indexes if index not in harmless) if pattern.row.general else indexes
        if rest:
            kept.append((pattern, rest))
    return Seen(log, tuple(kept))


def log(case: Case, context: Context) -> Iterator[Finding]:
    """A finding for each signature that says something on this machine.

    Who asks about a failure, announces its end or says that there is none has it not: what such words are about is no problem here.
    """
    if case.seen is None:
        return
    words, calm = case.words, "calm" in context.signs
    for pattern, indexes in case.seen.hits:
        reading = read(pattern, context)
        if reading is None:
            continue
        lines = [case.seen.quoted(index) for index in indexes[:_SHOWN]]
        more = [f"and {len(indexes) - _SHOWN} more of the kind"] if len(indexes) > _SHOWN else []
        why = [reading.meaning, *lines, *more]
        if reading.next_command:
            why.append(f"To be surer: {reading.next_command}")
        if reading.avoid:
            why.append(f"What not to do: {reading.avoid}")
        severity = "warning" if calm and reading.severity == "problem" else reading.severity
        yield finding(reading.cause, severity, reading.certainty, why, case.advise(*reading.remedies, **words))


def context_of(case: Case) -> Context:
    """What the conditions of readings are held against: the machine, and what else the log shows."""
    assert case.seen is not None  # noqa: S101  # the rule above returns without a log
    shown = signs.derive(case) | case.seen.ids
    facts: Context | None = case.kept.get("context")
    if facts is None:
        facts = case.kept["context"] = _context(case)
    return Context(facts.gfx, facts.rocm, facts.torch, facts.kernel, facts.system, facts.environment, facts.python, facts.app, shown)


def _context(case: Case) -> Context:
    assert case.log is not None  # noqa: S101
    torch = case.machine.torches[0] if case.machine.torches else None
    base = case.context(torch)
    told = case.log.told
    return Context(
        gfx=base.gfx,
        rocm=base.rocm or told.get("rocm"),
        torch=base.torch,
        kernel=base.kernel,
        system=base.system,
        environment=base.environment,
        python=told.get("python"),
        app=case.log.app,
    )


def read(pattern: Pattern, context: Context) -> Reading | None:
    """The reading that speaks here, if one does."""
    return next((reading for reading in pattern.row.readings if holds(reading.when, context)), None)
