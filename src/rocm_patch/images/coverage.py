"""Whether a library holds code that a chip can run, and what an override would make of it. Values only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rocm_patch.model import Image, TargetCode

Answer = Literal["native", "generic", "other", "none", "unread"]


@dataclass(frozen=True)
class Coverage:
    """What a chip gets from a library.

    native: code for this very chip; generic: a generic target that covers it; other: only code for other chips; none: no
    device code; unread: no code for it in what could be read, and not all could. `targets` are those meant by the answer.
    """

    answer: Answer
    targets: tuple[str, ...]


def base(target: str) -> str:
    """A target ID without its features: 'gfx1010:xnack-' -> 'gfx1010'."""
    return target.partition(":")[0]


def loadable(target: str, gfx: str, generic: str) -> bool:
    """Whether a chip that runs without XNACK, as all of RDNA does, loads code for a target ID."""
    return base(target) in (gfx, generic or gfx) and ":xnack+" not in target


def forced(value: str) -> str | None:
    """The chip that HSA_OVERRIDE_GFX_VERSION names: '10.3.0' -> 'gfx1030'; None for what is no version."""
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{1,2})", value.strip())
    if match is None:
        return None
    major, minor, stepping = (int(part) for part in match.groups())
    return f"gfx{major}{minor:x}{stepping:x}"


def of(images: Iterable[Image], gfx: str, generic: str = "") -> Coverage:
    """What the rows of one library hold for a chip."""
    rows = list(images)
    targets = sorted({target for image in rows for target in image.targets})
    if native := [target for target in targets if base(target) == gfx and loadable(target, gfx, "")]:
        return Coverage("native", tuple(native))
    if covering := [target for target in targets if generic and base(target) == generic and loadable(target, gfx, generic)]:
        return Coverage("generic", tuple(covering))
    if any(image.unread for image in rows):
        return Coverage("unread", tuple(targets))
    return Coverage("other" if targets else "none", tuple(targets))


def total(images: Iterable[Image]) -> Mapping[str, TargetCode]:
    """Code by target over rows. A count is -1 where none of the rows was counted."""
    found: dict[str, TargetCode] = {}
    for image in images:
        for target, code in image.targets.items():
            old = found.get(target)
            found[target] = code if old is None else TargetCode(_sum(old.kernels, code.kernels), _sum(old.bytes, code.bytes))
    return dict(sorted(found.items()))


def _sum(one: int, other: int) -> int:
    return max(one, other) if one < 0 or other < 0 else one + other
