"""What a scan found: one row a library in words, one row a file in JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocm_patch import codec
from rocm_patch.images import coverage
from rocm_patch.isa import Count, rules
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import SCHEMA, Image
from rocm_patch.report.names import demangled, folded
from rocm_patch.safety import Chip, Kernel

_COLOURS = {"native": "green", "generic": "green", "other": "red", "none": "dim", "unread": "yellow"}
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


def libraries(files: Sequence[Image]) -> Mapping[str, tuple[Image, ...]]:
    """Rows by the library that they are parts of: a bundle's library is the file, of the other stores the folder of files by chip."""
    found: dict[str, list[Image]] = {}
    for image in files:
        whole = image.path + (f"!{image.inside}" if image.inside else "")
        parts = image.store in ("tensile", "aotriton", "miopen") or whole.endswith((".kpack", ".hsaco", ".co"))
        found.setdefault(os.path.dirname(whole) if parts and not os.path.isdir(image.path) else whole, []).append(image)
    return {name: tuple(rows) for name, rows in found.items()}


def document(files: Sequence[Image], chip: Chip | None, kernels: Iterable[Kernel] | None = None, verified: Verified | None = None) -> dict[str, Any]:
    """The JSON document: every file, and its library's answer for the chip if one is known; kernels and comparison where asked for."""
    answers = {id(image): coverage.of(rows, chip.gfx, chip.generic) for rows in libraries(files).values() for image in rows} if chip else {}
    return {
        "schema": SCHEMA,
        "for": chip.gfx if chip else None,
        "override": {"value": chip.override, "loads": chip.forced} if chip and chip.override else None,
        "files": [{**codec.encode(image), "coverage": answers[id(image)].answer if chip else None} for image in files],
        **({"kernels": _kernel_rows(list(kernels))} if kernels is not None else {}),
        **({"verified": vars(verified)} if verified else {}),
    }


def show(files: Sequence[Image], chip: Chip | None, knowledge: Knowledge, out: Console, *, verbose: bool = False) -> None:
    """The table, and below it the reasons of what could not be read."""
    if not files:
        out.print("no device code")
        return
    groups = {f"{row.path}{'!' + row.inside if row.inside else ''} {row.store}": (row,) for row in files} if verbose else libraries(files)
    common = os.path.commonpath([row.path for row in files]) if len({row.path for row in files}) > 1 else ""
    table = Table(box=None, pad_edge=False)
    for name in ("library", "store", "targets", *([f"on {chip.gfx}"] if chip else [])):
        table.add_column(name, overflow="fold")
    first = {row.generic for row in knowledge.gpus.values() if row.scope} | {row.gfx for row in knowledge.gpus.values() if row.scope}
    if common:
        out.print(Text(f"in {common}"), soft_wrap=True)
    for name, rows in groups.items():
        shown = name.removeprefix(common).lstrip("/") if common else name
        cells = [_plain(shown + (f" ({len(rows)} files)" if len(rows) > 1 else "")), _plain(", ".join(dict.fromkeys(row.store for row in rows)))]
        cells.append(_plain(_targets(rows, first)))
        if chip:
            answer = coverage.of(rows, chip.gfx, chip.generic)
            words, colour = verdict(answer, chip), _COLOURS[answer.answer]
            if told := _safety(rows, chip):
                words, colour = f"{words}; {told[0]}", told[1] or colour
            cells.append(Text(words, style=colour))
        table.add_row(*cells)
    out.print(table)
    if chip:
        _explain(files, chip, out)
    for row in files:
        for why in row.unread:
            out.print(_plain(f"not read: {row.path}{'!' + row.inside if row.inside else ''}: {why}"), style="yellow", soft_wrap=True)


def verdict(answer: coverage.Coverage, chip: Chip) -> str:
    """What a chip gets from a library, and what to do about it."""
    if answer.answer == "native":
        words = "has your target"
    elif answer.answer == "generic":
        words = f"{answer.targets[0]} covers it"
    elif answer.answer == "other":
        words = "no code for it: take a build that names it"
    else:
        words = {"none": "no device code", "unread": "could not be read whole"}[answer.answer]
    if not chip.override or answer.answer == "none" or chip.forced == chip.gfx:
        return words
    if answer.answer in ("native", "generic"):
        return f"{words}; but the override {chip.override} asks for {chip.forced or 'no known chip'}"
    if chip.forced in {coverage.base(target) for target in answer.targets}:
        return f"{words}; the override {chip.override} loads {chip.forced} code on it"
    return f"{words}; the override {chip.override} finds nothing here either"


def show_kernels(kernels: Sequence[Kernel], out: Console, *, verbose: bool = False) -> None:
    """Kernels in which something was found, the most places first. Those of one C++ template are one row, unless `verbose`."""
    rows = _kernel_rows(kernels)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        where = row["inside"] or os.path.basename(row["path"])
        groups.setdefault((row["name"] if verbose else folded(row["name"]), row["code"], where), []).append(row)
    counted = []
    for (name, code, where), members in groups.items():
        found: dict[str, Count] = {}
        for row in members:
            for rule, count in row["rules"].items():
                found[rule] = found.get(rule, Count()) + Count(count["certain"], count["possible"])
        counted.append((-sum(count.certain for count in found.values()), name, code, where, len(members), found))
    counted.sort(key=lambda row: row[:4])
    table = Table(box=None, pad_edge=False)
    for head in ("unsafe kernels", "code for", "in", "found"):
        table.add_column(head, overflow="fold")
    for _, name, code, where, number, found in counted if verbose else counted[:_KERNELS]:
        told = ", ".join(f"{rule} {_count(count)}" for rule, count in found.items())
        table.add_row(_plain(f"{name} ({number:,} kernels)" if number > 1 else name), code, _plain(where), told)
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


def _safety(rows: Sequence[Image], chip: Chip) -> tuple[str, str] | None:
    """What was found in the code that the chip would run, and a colour; None where nothing was judged."""
    found = [row.safety[chip.gfx] for row in rows if chip.gfx in row.safety]
    if not found:
        return None
    code = "/".join(sorted({safety.code for safety in found}))
    certain, possible = sum(safety.certain for safety in found), sum(safety.possible for safety in found)
    if certain:
        functions, unsafe = sum(safety.functions for safety in found), sum(safety.unsafe for safety in found)
        return f"{unsafe:,} of {functions:,} functions for {code} are unsafe on it", "red"
    if possible:
        return f"its code for {code} may be unsafe in {possible:,} places", "yellow"
    return f"nothing unsafe in its code for {code}", ""


def _explain(files: Sequence[Image], chip: Chip, out: Console) -> None:
    """The rules that fired, in words, with how often."""
    totals: dict[str, int] = {}
    for row in files:
        for rule, count in row.safety[chip.gfx].rules.items() if chip.gfx in row.safety else ():
            totals[rule] = totals.get(rule, 0) + count
    if not totals:
        return
    out.print(f"\nFound by reading the instructions; how often a {chip.gfx} goes wrong there is not known:")
    for rule in rules():
        if rule.id in totals:
            out.print(Text(f"  {totals[rule.id]:>10,}  {rule.title}. {rule.means}"), soft_wrap=True)
    if any(row.safety[chip.gfx].certain for row in files if chip.gfx in row.safety):
        out.print(f"What to do: install libraries that have code for {chip.gfx}; `rocm-patch doctor` names a wheel.", soft_wrap=True)


def _count(count: Count) -> str:
    parts = ([f"{count.certain:,}"] if count.certain else []) + ([f"{count.possible:,} possible"] if count.possible else [])
    return " + ".join(parts)


def _targets(rows: Sequence[Image], first: set[str]) -> str:
    total = coverage.total(rows)
    ours = [target for target in total if coverage.base(target) in first or target == "spirv"]
    others = [target for target in total if target not in ours]
    alike: dict[str, list[str]] = {}
    for target in ours:
        alike.setdefault(f"{total[target].kernels:,} kernels" if total[target].kernels >= 0 else "", []).append(target)
    parts = [f"{', '.join(names)}{': ' + count if count else ''}{' each' if count and len(names) > 1 else ''}" for count, names in alike.items()]
    if not ours:
        parts, others = [", ".join(others[:_NAMED])] if others else [], others[_NAMED:]
    return ("; ".join(parts) + (f" and {len(others)} others" if others else "")) or "none"


def _plain(words: str) -> Text:
    return Text("".join(letter if letter.isprintable() else "?" for letter in words))
