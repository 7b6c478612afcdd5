"""What a scan found: one row a library in words, one row a file in JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocm_patch import codec
from rocm_patch.diagnose.case import own_version
from rocm_patch.images import coverage
from rocm_patch.isa import Count, rules
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import SCHEMA, Image
from rocm_patch.report.names import demangled, folded
from rocm_patch.safety import Chip, Kernel, Outlook, libraries, outlooks

_IN_USE = frozenset(("gfx1030", "gfx1010"))
"""Chips that people make a card pass for."""
_NAMED = 6
"""Targets named in a cell; the rest is counted."""
_KERNELS = 40
_EXAMPLES = 5


@dataclass
class Verified:
    """What an LLVM said about the code, added up."""

    path: str
    version: int = 0
    spots: tuple[str, ...] = ()
    instructions: int = 0
    different: int = 0
    blind: int = 0
    examples: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def add(self, path: str, said: Mapping[str, Any]) -> None:
        """Take in what was said of a code object in a file."""
        if "why" in said:
            self.why.append(f"{path}: {said['why']}")
            return
        found = said["found"]
        self.version, self.spots = int(said["version"]), tuple(said["spots"])
        self.instructions += int(found["instructions"])
        self.different += int(found["different"])
        self.blind += int(found["blind"])
        self.examples += found["examples"][: max(0, _EXAMPLES - len(self.examples))]


def document(files: Sequence[Image], chip: Chip | None, kernels: Iterable[Kernel] | None = None, verified: Verified | None = None) -> dict[str, Any]:
    """The JSON document: every file, and its library's answer for the chip if one is known; kernels and comparison where asked for."""
    answers = {id(image): (coverage.of(rows, chip.gfx, chip.generic), look) for look, rows in outlooks(files, chip) for image in rows} if chip else {}
    return {
        "schema": SCHEMA,
        "for": chip.gfx if chip else None,
        "override": {"value": chip.override, "loads": chip.forced or None} if chip and chip.override else None,
        "files": [
            {**codec.encode(image), "coverage": answer.answer if answer else None, "outlook": look.how if look else None}
            for image in files
            for answer, look in (answers.get(id(image), (None, None)),)
        ],
        **({"kernels": _kernel_rows(list(kernels))} if kernels is not None else {}),
        **({"verified": vars(verified)} if verified else {}),
    }


def show(files: Sequence[Image], chip: Chip | None, knowledge: Knowledge, out: Console, *, verbose: bool = False) -> None:
    """The table, what it means, what to do; and the reasons of what could not be read."""
    looks = outlooks(files, chip) if chip else ()
    of_row = {id(row): look for look, rows in looks for row in rows}
    groups = {row.place: (row,) for row in files} if verbose else libraries(files)
    common = os.path.commonpath([row.path for row in files]) if len({row.path for row in files}) > 1 else ""
    if common:
        out.print(Text(f"in {_plain(common)}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("library", *([f"on {chip.gfx}"] if chip else []), "targets", "store"):
        table.add_column(name, overflow="fold")
    scope = {row.generic for row in knowledge.gpus.values() if row.scope} | {row.gfx for row in knowledge.gpus.values() if row.scope}
    for name, rows in groups.items():
        shown = (name.removeprefix(common).lstrip("/") if common else name) or os.path.basename(name)
        count = len({(row.path, row.inside) for row in rows})
        cells = [_plain(shown + (f" ({count} files)" if count > 1 else ""))]
        if chip:
            cells.append(Text(*verdict(of_row[id(rows[0])], rows, chip)))
        cells += [_plain(_targets(rows, scope, chip)), _plain(", ".join(dict.fromkeys(row.store for row in rows)))]
        table.add_row(*cells)
    out.print(table)
    if chip:
        _explain(files, chip, out)
        for line in _advice(looks, chip, knowledge):
            out.print(Text("What to do: ", style="bold") + _plain(line), soft_wrap=True)
        if len(looks) > 1:
            running = sum(look.runs for look, _ in looks)
            unread = sum(any(row.unread for row in rows) for _, rows in looks)
            out.print(
                f"{chip.gfx}: {running} of {len(looks)} libraries have code that it runs" + (f", {unread} could not be read whole" if unread else "")
            )
    else:
        out.print("Whether a card finds its code, and whether that is safe on it: --for gfx1010")
    for row in files:
        for why in row.unread:
            out.print(_plain(f"not read: {row.place}: {why}"), style="yellow", soft_wrap=True)


def verdict(look: Outlook, rows: Sequence[Image], chip: Chip) -> tuple[str, str]:
    """What a chip gets from a library, in words, and a colour."""
    found = [row.safety[chip.gfx] for row in rows if chip.gfx in row.safety]
    functions, unsafe = sum(safety.functions for safety in found), sum(safety.unsafe for safety in found)
    maybe = sum(safety.possible for safety in found)
    count = (
        f"{unsafe:,} of its {functions:,} functions are unsafe" if unsafe else f"{maybe:,} places may be unsafe" if maybe else "nothing unsafe in it"
    )
    if any(row.unread for row in rows) and not unsafe:
        count += " as far as it could be read"
    judged = f": {count}" if functions else ""
    if look.how == "own":
        own = "has your target" if look.code == chip.gfx else f"{look.code} covers it"
        if unsafe:
            return f"{own}; {unsafe:,} of its {functions:,} functions hold what a compiler avoids there", "yellow"
        # What is only possible in code that was compiled for this chip is no news to its compiler.
        return own + (f", {count if not maybe else 'nothing unsafe in it'}" if functions else ""), "green"
    if look.how == "override":
        return f"the override {chip.override} runs {look.code} code{judged}", "red" if unsafe else "yellow" if maybe else "green"
    if look.how in ("hidden", "nothing"):
        named = f"asks for {chip.forced}, which is not in it" if chip.forced else "is no version: the runtime refuses to start"
        return f"the override {chip.override} {named}" + ("; your target is" if look.own else ""), "red"
    if look.how == "sibling":
        if functions and not unsafe and not maybe:
            return f"no code for it; {look.code} code would run under an override, {count}", "yellow"
        return f"no code for it; under an override, {look.code} code{judged}", "red"
    if look.how == "spirv":
        return "SPIR-V: compiled for the card when it is loaded; not judged", "green"
    return {"foreign": ("no code for it", "red"), "none": ("no device code", "dim"), "unread": ("could not be read whole", "yellow")}[look.how]


def _advice(found: Sequence[tuple[Outlook, Sequence[Image]]], chip: Chip, knowledge: Knowledge) -> list[str]:
    """What follows from all libraries together."""
    lines = []
    unsafe = {id(rows) for _, rows in found if any(row.safety[chip.gfx].certain for row in rows if chip.gfx in row.safety)}
    overridden = [(look, rows) for look, rows in found if look.how in ("override", "hidden", "nothing")]
    if any(look.own for look, _ in overridden):
        lines.append(f"unset HSA_OVERRIDE_GFX_VERSION: code for {chip.gfx} is there, and the override keeps it from being used")
    elif any(look.how != "override" or id(rows) in unsafe for look, rows in overridden):
        lines.append("unset HSA_OVERRIDE_GFX_VERSION: what it asks for is not there, or does not fit this chip")
    lacking = [
        (look, rows) for look, rows in found if look.how in ("sibling", "foreign", "nothing") or (look.how == "override" and id(rows) in unsafe)
    ]
    if any(not look.own for look, _ in lacking):
        line = next((row for row in knowledge.wheels if chip.gfx in row.gfx), None)
        index = f"; PyTorch with it: pip install --index-url {line.index} 'torch[device-{chip.gfx}]'" if line else ""
        lines.append(f"take a build that has code for {chip.gfx}{index}")
    # The variable is for a whole process: it is sound only if every library that has but this code is.
    siblings = {look.code for look, _ in lacking if look.how == "sibling"}
    sound = {code for code in siblings if all(_clean(rows, chip) for look, rows in found if look.code == code and look.how == "sibling")}
    for code in sorted(sound & _IN_USE) if len(siblings) == 1 else ():
        lines.append(
            f"or set HSA_OVERRIDE_GFX_VERSION={own_version(code)} for programs that have {code} code only: "
            "nothing unsafe was found in it for this chip"
        )
    if any(look.how == "own" and id(rows) in unsafe for look, rows in found):
        lines.append("nothing, as long as it works: what is not clean was written by hand, where no compiler looks (docs/override-safety.md)")
    return lines


def _clean(rows: Sequence[Image], chip: Chip) -> bool:
    judged = [row.safety[chip.gfx] for row in rows if chip.gfx in row.safety]
    whole = not any(row.unread for row in rows) and sum(safety.functions for safety in judged) > 0
    return whole and not any(safety.certain or safety.possible for safety in judged)


def show_kernels(kernels: Sequence[Kernel], out: Console, *, verbose: bool = False) -> None:
    """Kernels in which something was found, the most places first. Those of one C++ template are one row, unless `verbose`."""
    names = demangled([kernel.name for kernel in kernels])
    groups: dict[tuple[str, str, str], list[Kernel]] = {}
    for kernel in kernels:
        name = names[kernel.name] if verbose else folded(names[kernel.name])
        groups.setdefault((name, kernel.target, kernel.member or os.path.basename(kernel.path)), []).append(kernel)
    counted = []
    for (name, code, where), members in groups.items():
        found: dict[str, Count] = {}
        for kernel in members:
            for rule, count in kernel.rules.items():
                found[rule] = found.get(rule, Count()) + count
        counted.append((-sum(count.certain for count in found.values()), name, code, where, len(members), found))
    counted.sort(key=lambda row: row[:4])
    table = Table(box=None, pad_edge=False)
    for head in ("unsafe kernels", "code for", "in", "found"):
        table.add_column(head, overflow="fold")
    for _, name, code, where, number, found in counted if verbose else counted[:_KERNELS]:
        told = ", ".join(f"{rule} {_count(count)}" for rule, count in found.items())
        table.add_row(_plain(f"{name} ({number:,} kernels)" if number > 1 else name), _plain(code), _plain(where), _plain(told))
    if counted:
        out.print()
        out.print(table)
    if not verbose and len(counted) > _KERNELS:
        out.print(f"and {len(counted) - _KERNELS:,} more rows: --verbose or --json has every kernel")


def show_verified(verified: Verified, out: Console) -> None:
    """What the LLVM of the machine says to our decoder."""
    out.print(
        _plain(f"LLVM {verified.version or '?'} ({verified.path}): {verified.instructions:,} instructions compared, {verified.different:,} differ")
    )
    if verified.blind:
        out.print(f"{verified.blind:,} more are no instruction to it; it is older or newer than the compiler that made them", soft_wrap=True)
    for spot in verified.spots:
        out.print(_plain(f"it cannot read {spot}: what it says of such code is not to be trusted"), style="yellow", soft_wrap=True)
    for line in (*verified.examples, *verified.why):
        out.print(_plain(line), style="yellow", soft_wrap=True)


def _kernel_rows(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    names = demangled([kernel.name for kernel in kernels])
    return [
        {
            "path": kernel.path,
            "inside": kernel.member,
            "code": kernel.target,
            "name": names[kernel.name],
            "symbol": kernel.name,
            "rules": {rule: {"certain": count.certain, "possible": count.possible} for rule, count in kernel.rules.items()},
        }
        for kernel in kernels
    ]


def _explain(files: Sequence[Image], chip: Chip, out: Console) -> None:
    """The rules that fired, in words, with how often."""
    certain: Counter[str] = Counter()
    both: Counter[str] = Counter()
    for row in files:
        if chip.gfx in row.safety:
            certain.update(row.safety[chip.gfx].certain_rules)
            both.update(row.safety[chip.gfx].rules)
    if not both:
        return
    out.print(f"\nFound by reading the instructions; how often a {chip.gfx} goes wrong there is not known:")
    table = Table(box=None, pad_edge=False)
    for name in ("certain", "possible", "what it is, and what can come of it"):
        table.add_column(name, justify="left" if name.startswith("what") else "right", overflow="fold")
    for rule in rules():
        if both[rule.id]:
            table.add_row(f"{certain[rule.id]:,}", f"{both[rule.id] - certain[rule.id]:,}", f"{rule.id}: {rule.title}. {rule.means}")
    out.print(table)


def _count(count: Count) -> str:
    parts = ([f"{count.certain:,}"] if count.certain else []) + ([f"{count.possible:,} possible"] if count.possible else [])
    return " + ".join(parts)


def _targets(rows: Sequence[Image], scope: set[str], chip: Chip | None) -> str:
    total = coverage.total(rows)
    ours = [target for target in total if coverage.base(target) in scope or target == "spirv" or (chip and coverage.base(target) == chip.gfx)]
    others = len(total) - len(ours)
    if not ours:
        named = list(total)
        return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more chips" if len(named) > _NAMED else "") or "none"
    alike: dict[int, list[str]] = {}
    for target in ours:
        alike.setdefault(total[target].kernels, []).append(target)
    parts = []
    for count, names in alike.items():
        kernels = f": {count:,} kernel{'' if count == 1 else 's'}{' each' if len(names) > 1 else ''}" if count >= 0 else ""
        parts.append(f"{', '.join(_ranges(names))}{kernels}")
    return "; ".join(parts) + (f"; {others} other chip{'' if others == 1 else 's'}" if others else "")


def _ranges(names: Sequence[str]) -> list[str]:
    """['gfx1030', 'gfx1031', 'gfx1032'] -> ['gfx1030-1032']."""
    made: list[str] = []
    for number, name in enumerate(names):
        digits = name.removeprefix("gfx")
        before = names[number - 1].removeprefix("gfx") if number else ""
        if digits.isdigit() and before.isdigit() and int(digits) == int(before) + 1:
            made[-1] = f"{made[-1].partition('-')[0]}-{digits}"
        else:
            made.append(name)
    return made


def _plain(words: str) -> Text:
    return Text("".join(letter if letter.isprintable() else "?" for letter in words))
