"""What happens with a library on a chip: which code runs, which an override brings or hides, and what could be brought."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rocm_patch.images import coverage
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import Image

__all__ = ["Chip", "Outlook", "chip_of", "libraries", "outlook", "outlooks"]

SIBLINGS: Final = {
    "gfx101": ("gfx1010", "gfx10-1-generic", "gfx1012", "gfx1011", "gfx1030", "gfx10-3-generic"),
    "gfx103": ("gfx1030", "gfx10-3-generic", "gfx1010", "gfx10-1-generic"),
}
"""Whose code people make a chip run by an override where it has none of its own: what fits best first."""
_CHIP: Final = re.compile(r"gfx[0-9a-f]+")

How = Literal["own", "override", "hidden", "nothing", "spirv", "sibling", "foreign", "none", "unread"]


@dataclass(frozen=True)
class Chip:
    """A physical chip and the generic target that covers it; the value of an override in force, and the same of the chip that it names."""

    gfx: str
    generic: str = ""
    override: str = ""
    forced: str = ""
    forced_generic: str = ""


@dataclass(frozen=True)
class Outlook:
    """What happens with a library on a chip: `code` is the target (without features) whose code runs, or would run.

    own: its own or a generic target; override: what the override in force names; hidden: there is code of its own, but the
    override asks for what is not there; nothing: the override finds nothing, and there is no code of its own; spirv: compiled
    for the card when it is loaded; sibling: no code of its own, and this is what an override could bring; foreign: only code of
    other families; none: no code; unread: no code for it in what could be read.
    """

    how: How
    code: str = ""
    own: bool = False
    """Code of its own is there, whether it is run or not."""

    @property
    def runs(self) -> bool:
        """Whether the library's code runs on the chip as things are."""
        return self.how in ("own", "override", "spirv")


def chip_of(gfx: str, override: str, knowledge: Knowledge) -> Chip:
    """A chip, and what the value of HSA_OVERRIDE_GFX_VERSION in force (empty: none) makes of it."""
    forced = coverage.forced(override) or "" if override else ""
    other = knowledge.gpus.get(forced)
    own = knowledge.gpus.get(gfx)
    return Chip(gfx, own.generic if own else "", override, forced, other.generic if other else "")


def libraries(files: Iterable[Image]) -> Mapping[str, tuple[Image, ...]]:
    """Rows by the library that they are parts of: a file, a folder of files by chip, or files whose names differ in the chip only."""
    found: dict[str, list[Image]] = {}
    for image in files:
        whole = image.place
        folder, _, name = whole.rpartition("/")
        if image.store in ("tensile", "aotriton", "miopen") and not os.path.isdir(image.path):
            whole = folder
        elif whole.endswith((".kpack", ".hsaco", ".co")):
            whole = f"{folder}/{_CHIP.sub('*', name)}" if folder else _CHIP.sub("*", name)
        found.setdefault(whole, []).append(image)
    return {name: tuple(rows) for name, rows in found.items()}


def outlook(rows: Iterable[Image], chip: Chip) -> Outlook:
    """What happens with one library on a chip. What an override names is asked for whatever else is there."""
    rows = tuple(rows)
    everything = {target for row in rows for target in row.targets}
    there = {coverage.base(target) for target in everything if ":xnack+" not in target}
    own = next((target for target in (chip.gfx, chip.generic) if target and target in there), "")
    if chip.override and chip.forced != chip.gfx:
        forced = next((target for target in (chip.forced, chip.forced_generic) if target and target in there), "")
        if forced:
            return Outlook("override", forced, bool(own))
        if everything - {"spirv"}:
            return Outlook("hidden" if own else "nothing", own, bool(own))
    if own:
        return Outlook("own", own, True)
    if "spirv" in there:
        return Outlook("spirv")
    sibling = next((target for target in SIBLINGS.get(chip.gfx[:6], ()) if target in there), "")
    if sibling:
        return Outlook("sibling", sibling)
    if any(row.unread for row in rows):
        return Outlook("unread")
    return Outlook("foreign" if everything else "none")


def outlooks(files: Iterable[Image], chip: Chip) -> tuple[tuple[Outlook, tuple[Image, ...]], ...]:
    """What happens with each library, and its rows."""
    return tuple((outlook(rows, chip), rows) for rows in libraries(files).values())
