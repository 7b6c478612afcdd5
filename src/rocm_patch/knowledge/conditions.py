"""When a row speaks, and what the evidence says of a remedy in that place."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from rocm_patch.model import Condition, Evidence

Status = Literal["works", "partial", "no effect", "harmful", "untested"]

STRENGTH: Final = ("measured", "upstream source", "maintainer", "independent report", "inference")

SIGNS: Final = {
    "override-set": "HSA_OVERRIDE_GFX_VERSION is in force",
    "override-own": "it names the card's own target",
    "override-sound": "the card executes code for the target that it names",
    "override-foreign": "it names a target whose code the card does not execute",
    "override-near": "such a target of the same generation: the code loads, and goes astray",
    "override-malformed": "it is no version M.m.s",
    "override-hits-other": "it renames another GPU of the machine, too, which does not execute that code",
    "masked": "a variable hides some of the GPUs",
    "code-native": "torch contains code for the card",
    "code-missing": "torch contains no code for the card",
    "torch-rocm": "a ROCm build of torch",
    "torch-cuda": "a CUDA build of torch",
    "torch-cpu": "a CPU build of torch",
    "torch-made-here": "a torch that somebody built",
    "integrated": "the only GPU is a part of the processor",
    "integrated-beside": "a card and an integrated GPU",
    "several": "more than one GPU",
    "mixed": "cards of different targets",
    "containered": "in a container",
    "no-group": "the groups are known, and neither render nor video is among them",
    "card-known": "the target of the card is known",
    "compute-told": "an application, a torch or a ROCm is named",
    "app-bundled": "the application brings its own ROCm, for a list of cards",
    "app-cuda-engine": "most builds of the application's engine know CUDA only",
    "kernel-named": "the log names the version of the running kernel",
    "integrated-named": "the log names the target of an integrated GPU, and the card that is told is another",
    "two-versions": "the log names two versions of one library",
    "prose": "somebody's words, without a line that a program printed",
    "failure-told": "such words, and they state a failure that is there",
    "calm": "such words, and all they do is ask, announce, compare, or say that nothing fails any more",
}
"""Words for what follows from the facts; `on-NAME` is the distribution besides. `diagnose.signs` derives them."""


@dataclass(frozen=True)
class Context:
    """One card with one stack: what conditions are held against. None: not known."""

    gfx: str | None = None
    rocm: str | None = None
    torch: str | None = None
    kernel: str | None = None
    system: frozenset[str] = frozenset({"linux"})
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    python: str | None = None
    app: str = ""
    signs: frozenset[str] = frozenset()
    """What the log and the machine show, in the words that conditions use."""


def holds(condition: Condition, context: Context) -> bool:
    """True if every field that the condition sets is met; what is not known meets nothing."""
    # Signs first: they rule out most, and cost least.
    if condition.signs and not all_shown(condition.signs, context.signs):
        return False
    if condition.no_signs:
        for group in wanted(condition.no_signs):
            if not group.isdisjoint(context.signs):
                return False
    if not _on(condition, context):
        return False
    if condition.rocm and not in_range(condition.rocm, context.rocm):
        return False
    if condition.torch and not in_range(condition.torch, context.torch):
        return False
    if condition.kernel and not in_range(condition.kernel, context.kernel):
        return False
    if condition.python and not in_range(condition.python, context.python):
        return False
    if condition.app and not re.search(condition.app, context.app, re.IGNORECASE):
        return False
    for name, pattern in condition.environment.items():
        value = context.environment.get(name)
        if (value is not None) if not pattern else (value is None or not re.fullmatch(pattern, value)):
            return False
    return True


@functools.lru_cache(maxsize=4096)
def in_range(specifier: str, version: str | None) -> bool:
    """True if a version lies in a PEP 440 range; kernel releases and tags are cut to their numbers first."""
    parsed = parse_version(version)
    return parsed is not None and SpecifierSet(specifier, prereleases=True).contains(parsed)


def parse_version(text: str | None) -> Version | None:
    """A version out of '6.14.0-33-generic', '6.2.41133-dd7f95766' or '2.5.1+rocm6.2'; None if there is none."""
    if not text:
        return None
    try:
        return Version(Version(text).public)
    except InvalidVersion:
        match = re.match(r"\d+(\.\d+)*", text)
        return Version(match.group()) if match else None


def valid_range(specifier: str) -> bool:
    """True if `packaging` can read it."""
    try:
        SpecifierSet(specifier)
    except InvalidSpecifier:
        return False
    return True


def in_scope(evidence: Iterable[Evidence], remedy: str, context: Context) -> tuple[Evidence, ...]:
    """The observations about a remedy that were made on a card and stack like this one, strongest kind first."""
    rows = [row for row in evidence if row.remedy == remedy and _near(row.when, context)]
    return tuple(sorted(rows, key=lambda row: STRENGTH.index(row.kind)))


def status(rows: Iterable[Evidence]) -> Status:
    """A remedy's status, from observations in scope."""
    outcomes = {row.outcome for row in rows if row.kind != "inference"}
    if "harmful" in outcomes:
        return "partial" if "works" in outcomes else "harmful"
    for outcome in ("works", "partial", "no effect"):
        if outcome in outcomes:
            return outcome
    return "untested"


def recommended(rows: Iterable[Evidence]) -> bool:
    """True with at least one success of a kind stronger than inference."""
    return status(rows) in ("works", "partial") and any(row.outcome in ("works", "partial") and row.kind != "inference" for row in rows)


def _near(condition: Condition, context: Context) -> bool:
    # The stack that a remedy installs is not the stack that is there: only the card's side counts.
    return _on(condition, context) and (not condition.kernel or in_range(condition.kernel, context.kernel))


def _on(condition: Condition, context: Context) -> bool:
    """True if card and system are those of the condition."""
    if condition.gfx and not _any(condition.gfx, context.gfx):
        return False
    if condition.not_gfx and _any(condition.not_gfx, context.gfx):
        return False
    return not condition.system or not context.system.isdisjoint(condition.system)


def all_shown(words: tuple[str, ...], signs: Set[str]) -> bool:
    """True if of each of the words, 'a|b' being one of them, something is shown."""
    for group in wanted(words):  # noqa: SIM110  # a generator costs more than the question
        if group.isdisjoint(signs):
            return False
    return True


@functools.lru_cache(maxsize=4096)
def wanted(words: tuple[str, ...]) -> tuple[frozenset[str], ...]:
    """Words of which 'a|b' is one of them, as the sets of which one word each must be shown."""
    return tuple(frozenset(word.split("|")) for word in words)


@functools.lru_cache(maxsize=4096)
def _any(patterns: tuple[str, ...], gfx: str | None) -> bool:
    return gfx is not None and any(fnmatch.fnmatchcase(gfx.partition(":")[0], pattern) for pattern in patterns)
