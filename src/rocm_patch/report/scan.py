"""What a scan found: one row a library in words, one row a file in JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocm_patch import codec
from rocm_patch.images import coverage
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import SCHEMA, Image

_COLOURS = {"native": "green", "generic": "green", "other": "red", "none": "dim", "unread": "yellow"}
_NAMED = 6
"""Targets named in a cell; the rest is counted."""


@dataclass(frozen=True)
class Chip:
    """The card that is asked about, and the override in force: its value and the chip that it names."""

    gfx: str
    generic: str
    override: str = ""
    forced: str | None = None


def libraries(files: Sequence[Image]) -> Mapping[str, tuple[Image, ...]]:
    """Rows by the library that they are parts of: a bundle's library is the file, of the other stores the folder of files by chip."""
    found: dict[str, list[Image]] = {}
    for image in files:
        whole = image.path + (f"!{image.inside}" if image.inside else "")
        parts = image.store in ("tensile", "aotriton", "miopen") or whole.endswith((".kpack", ".hsaco", ".co"))
        found.setdefault(os.path.dirname(whole) if parts and not os.path.isdir(image.path) else whole, []).append(image)
    return {name: tuple(rows) for name, rows in found.items()}


def document(files: Sequence[Image], chip: Chip | None) -> dict[str, Any]:
    """The JSON document: every file, and its library's answer for the chip if one is known."""
    answers = {id(image): coverage.of(rows, chip.gfx, chip.generic) for rows in libraries(files).values() for image in rows} if chip else {}
    return {
        "schema": SCHEMA,
        "for": chip.gfx if chip else None,
        "override": {"value": chip.override, "loads": chip.forced} if chip and chip.override else None,
        "files": [{**codec.encode(image), "coverage": answers[id(image)].answer if chip else None} for image in files],
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
        shown = name.removeprefix(common).lstrip("/") or name
        cells = [_plain(shown + (f" ({len(rows)} files)" if len(rows) > 1 else "")), _plain(", ".join(dict.fromkeys(row.store for row in rows)))]
        cells.append(_plain(_targets(rows, first)))
        if chip:
            answer = coverage.of(rows, chip.gfx, chip.generic)
            cells.append(Text(verdict(answer, chip), style=_COLOURS[answer.answer]))
        table.add_row(*cells)
    out.print(table)
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
