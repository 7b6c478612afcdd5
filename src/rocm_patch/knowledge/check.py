"""The full test of the tables: every row complete, every reference there, every sample matched by its own row only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rocm_patch.knowledge import Knowledge
from rocm_patch.knowledge.conditions import SIGNS, valid_range
from rocm_patch.knowledge.expressions import study
from rocm_patch.knowledge.matching import SHORTEST, WIDEST
from rocm_patch.model import Condition, GpuRow

_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")


def problems(knowledge: Knowledge) -> Iterator[str]:
    """Yield one sentence for each bad row; nothing if all is well."""
    for gpu in knowledge.gpus.values():
        yield from _gpu(knowledge, gpu)
    for setting in knowledge.settings.values():
        where = f"settings.toml, {setting.name}"
        yield from _pattern(where, setting.may_set)
        for effect in setting.effects:
            yield from _pattern(where, effect.values)
            yield from _condition(where, effect.when)
            yield from _sources(where, effect.sources)
    for remedy in knowledge.remedies.values():
        where = f"remedies.toml, {remedy.id}"
        if remedy.remedy not in knowledge.remedy_classes:
            yield f"{where}: {remedy.remedy!r} is no class of remedy"
        if remedy.kind not in ("run", "manual") and not remedy.parameters:
            yield f"{where}: a remedy that changes something names its parameters"
        for other in remedy.instead:
            if other not in knowledge.remedies:
                yield f"{where}: there is no remedy {other!r} to use instead"
        if not any(row.remedy == remedy.id for row in knowledge.evidence):
            yield f"{where}: no evidence at all; add a row, if only one that says who claimed it"
        yield from _condition(where, remedy.when)
    for number, row in enumerate(knowledge.evidence, 1):
        where = f"evidence.toml, row {number} ({row.remedy})"
        if row.remedy not in knowledge.remedies:
            yield f"{where}: there is no such remedy"
        if not _DATE.fullmatch(row.date):
            yield f"{where}: {row.date!r} is no date"
        yield from _condition(where, row.when)
        yield from _sources(where, (row.source,))
    yield from _signatures(knowledge)
    for wheel in knowledge.wheels:
        where = f"wheels.toml, {wheel.id}"
        for gfx in wheel.gfx:
            if gfx not in knowledge.gpus:
                yield f"{where}: no GPU row for {gfx}"
        if not valid_range(wheel.python):
            yield f"{where}: {wheel.python!r} is no version range"
        if not wheel.index.startswith("https://"):
            yield f"{where}: the index is no https address"
        yield from _sources(where, wheel.sources)
    for content in knowledge.contents:
        where = f"wheels.toml, content {content.id}"
        if not valid_range(content.rocm):
            yield f"{where}: {content.rocm!r} is no version range"
        yield from _sources(where, content.sources)
    for profile in knowledge.profiles.values():
        where = f"settings.toml, profile {profile.id}"
        for pair in profile.set:
            name, _, value = pair.partition("=")
            allowed = knowledge.settings[name].may_set if name in knowledge.settings else ""
            if not allowed or (not list(_pattern(where, allowed)) and not re.fullmatch(allowed, value)):
                yield f"{where}: {pair} is not what the row of {name} allows to set"
        yield from _sources(where, profile.sources)
    for launcher in knowledge.launchers:
        yield from _sources(f"launchers.toml, {launcher.name}", launcher.sources)


def _gpu(knowledge: Knowledge, gpu: GpuRow) -> Iterator[str]:
    where = f"gpus.toml, {gpu.gfx}"
    if knowledge.chip_of_version(gpu.gfx_target_version) != gpu.gfx:
        yield f"{where}: gfx_target_version {gpu.gfx_target_version} is another chip"
    for device in gpu.devices:
        if not re.fullmatch("[0-9a-f]{4}", device.id):
            yield f"{where}: {device.id!r} is no PCI id"
        if not device.names:
            yield f"{where}: {device.id} has no name"
    yield from _sources(where, gpu.sources)


def _signatures(knowledge: Knowledge) -> Iterator[str]:
    signs = {row.id for row in knowledge.signatures}
    bad: set[str] = set()
    for row in knowledge.signatures:
        where = f"signatures.toml, {row.id}"
        wrong = list(_pattern(where, row.pattern)) or list(_searchable(where, row.pattern))
        yield from wrong
        if wrong:
            bad.add(row.id)
        yield from _sources(where, row.sources)
        for reading in row.readings:
            if reading.cause not in knowledge.causes:
                yield f"{where}: {reading.cause!r} is no class of cause"
            for remedy in reading.remedies:
                if remedy not in knowledge.remedies:
                    yield f"{where}: there is no remedy {remedy!r}"
            if not 0 < reading.certainty <= 1:
                yield f"{where}: certainty lies between 0 and 1"
            yield from _condition(where, reading.when)
            for word in (*reading.when.signs, *reading.when.no_signs):
                for one in word.split("|"):
                    if one not in signs and one not in SIGNS and not one.startswith("on-"):
                        yield f"{where}: {one!r} is neither a signature nor a sign that is derived"
    sound = knowledge.finder.patterns if not bad else ()
    general = {row.id for row in knowledge.signatures if row.general}
    for row in knowledge.signatures if sound else ():
        matched = {pattern.row.id for pattern in sound if pattern.matches(row.sample)}
        if row.id not in matched:
            yield f"signatures.toml, {row.id}: the pattern does not match its own sample"
        for other in sorted(matched - {row.id} - general):
            if not row.general:
                yield f"signatures.toml, {row.id}: its sample is matched by {other} as well"


def _searchable(where: str, pattern: str) -> Iterator[str]:
    """A pattern is found by a plain word first, and no line can make it slow."""
    try:
        facts = study(pattern)
    except (ValueError, IndexError):
        yield f"{where}: brackets that only a human could match; write it plainer"
        return
    if any(len(word) < SHORTEST for word in facts.words):
        yield f"{where}: each alternative needs a plain run of {SHORTEST} letters, by which it is looked up: {facts.words}"
    if not facts.bounded:
        yield f"{where}: a repetition without bound; write {{0,40}} for * and {{1,40}} for +"
    if facts.ways > WIDEST:
        yield f"{where}: one start can fail in {facts.ways} ways, more than {WIDEST}; fewer or smaller gaps"


def _pattern(where: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"{where}: {pattern!r} is no regular expression: {error}"


def _condition(where: str, condition: Condition) -> Iterator[str]:
    yield from _pattern(where, condition.app)
    for specifier in (condition.rocm, condition.torch, condition.kernel, condition.python):
        if specifier and not valid_range(specifier):
            yield f"{where}: {specifier!r} is no version range"
    for pattern in condition.environment.values():
        yield from _pattern(where, pattern)


def _sources(where: str, sources: tuple[str, ...]) -> Iterator[str]:
    if not sources:
        yield f"{where}: no source"
    for source in sources:
        if not source.startswith("https://"):
            yield f"{where}: {source!r} is no https address"
