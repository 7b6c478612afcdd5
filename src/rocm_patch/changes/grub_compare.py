"""Whether a boot menu that was made anew differs from the one in place by our words alone, on the lines that we meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import grub_menu
from rocm_patch.changes.grub_menu import Command, Menu
from rocm_patch.errors import RefusedError

LINE_LIMIT: Final = 2047
"""Bytes of a kernel command line on x86-64: COMMAND_LINE_SIZE less the zero at the end."""
_SHOWN: Final = 24


@dataclass(frozen=True)
class Compared:
    """What the new menu has."""

    titles: tuple[str, ...]
    """Entries whose line has all of our words."""
    without: tuple[str, ...]
    """Recovery entries, which have none."""


def compare(old: bytes, new: bytes, words: Sequence[str], regenerate: str) -> Compared:
    """Compare two menus; `regenerate` is the command that the user would type.

    Raises:
        RefusedError: any other difference, with the difference; a recovery entry with our words; a line too long.
        FormatError: one of them cannot be read.
    """
    before, after = grub_menu.parse(old), grub_menu.parse(new)
    first, second = _without(before, words), _without(after, words)
    if first != second:
        lines = list(difflib.unified_diff(first, second, "grub.cfg as it is", "grub.cfg made anew", lineterm="", n=0))
        shown = "\n".join([*lines[:_SHOWN], *([f"... and {len(lines) - _SHOWN} lines more"] if len(lines) > _SHOWN else [])])
        what = f"by more than {' '.join(words)}" if words else "before anything of ours is in it"
        raise RefusedError(
            f"the boot menu made anew differs from the one in place {what}; nothing was changed\n{shown}",
            f"what it is made from was changed, or it was made on another system: make it anew ({regenerate}), look at it, try again",
        )
    kept = {entry.title for entry in before.every() if entry.recovery and entry.kernel and set(words) & set(entry.kernel.values)}
    for entry in after.every():
        if entry.kernel:
            check_length(entry.kernel)
            if entry.recovery and set(words) & set(entry.kernel.values) and entry.title not in kept:
                raise RefusedError(f"the entry for repairs {entry.title!r} would get {' '.join(words)}; nothing was changed")
    entries = [entry for entry in after.every() if entry.kernel]
    with_all = tuple(entry.title for entry in entries if entry.kernel and set(words) <= set(entry.kernel.values))
    return Compared(with_all, tuple(entry.title for entry in entries if entry.recovery))


def check_length(kernel: Command, words: Sequence[str] = ()) -> None:
    """Check a line against what the kernel takes; more is cut off there without a word.

    Raises:
        RefusedError: it is too long.
    """
    check_bytes(" ".join((f"BOOT_IMAGE={kernel.values[1]}" if len(kernel.values) > 1 else "", *kernel.values[2:], *words)))


def check_bytes(line: str) -> None:
    """The same for a whole line.

    Raises:
        RefusedError: it is too long.
    """
    if len(line.encode()) > LINE_LIMIT:
        raise RefusedError(f"the kernel command line would have {len(line.encode())} bytes, and the kernel cuts it off after {LINE_LIMIT}")


def _without(menu: Menu, words: Sequence[str]) -> list[str]:
    """The menu's lines, our words taken out of the lines that may have them."""
    text, parts, at = menu.text, list[str](), 0
    for entry in menu.every():
        kernel = entry.kernel
        if kernel is not None and not entry.recovery:
            start, end = kernel.words[0].start, kernel.words[-1].end
            raw = [text[word.start : word.end] for word in kernel.words]
            for word in words:
                if word in raw:
                    raw.reverse()  # ours come after what was there
                    raw.remove(word)
                    raw.reverse()
            parts += [text[at:start], " ".join(raw)]
            at = end
    parts.append(text[at:])
    return [line.rstrip() for line in "".join(parts).splitlines()]
