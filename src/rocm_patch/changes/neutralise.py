"""One line of a file that is not ours, put behind a comment sign or taken out; everything else stays byte for byte.

The only kind that touches what others wrote, so it is planned by its id alone, does one line at a time, and works on a
short list of places. Where a drop-in of ours overrides a line, that is the better way: it needs no edit.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.changes.file_owners import refuse_packaged
from rocm_patch.changes.kind import Change, Held, Kind, Look, Tables, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Scope, Step
from rocm_patch.run import run

ACTIONS: Final = ("comment", "remove")
FILE_LIMIT: Final = 1 << 20
_LINES: Final = re.compile(rb"[^\n]*\n|[^\n]+")
_MARK: Final = b"\xef\xbb\xbf"
_OURS: Final = b"rocm-patch"


@dataclass(frozen=True)
class Place:
    """Files in which a line may be neutralised. A pattern is a path, in user scope below the home."""

    scope: Scope
    pattern: str
    shells: tuple[str, ...] = ()
    """The first of these that is there checks that the file is still a program."""
    after: str = ""
    """What else is to be done until it counts."""
    only_way: bool = False
    """Edited whoever it belongs to: nothing overrides a line in it."""


_SH: Final = ("/bin/sh",)
_BASH: Final = ("/bin/bash", "/bin/sh")
_ZSH: Final = ("/bin/zsh", "/usr/bin/zsh")
_LOGIN: Final = "counts at the next login"
_BOOT: Final = "rebuild the initramfs if your distribution puts modprobe.d into it, and restart"
PLACES: Final = (
    Place("system", "/etc/environment", after=_LOGIN),
    Place("system", "/etc/environment.d/*.conf", after=_LOGIN),
    Place("system", "/etc/security/pam_env.conf", after=_LOGIN),
    Place("system", "/etc/profile", _BASH, _LOGIN),
    Place("system", "/etc/profile.d/*.sh", _BASH, _LOGIN),
    Place("system", "/etc/bash.bashrc", _BASH, "counts in the next shell"),
    Place("system", "/etc/bashrc", _BASH, "counts in the next shell"),
    Place("system", "/etc/zsh/z*", _ZSH, "counts in the next shell"),
    Place("system", "/etc/zshenv", _ZSH, "counts in the next shell"),
    Place("system", "/etc/zprofile", _ZSH, _LOGIN),
    Place("system", "/etc/zshrc", _ZSH, "counts in the next shell"),
    Place("system", "/etc/modprobe.d/*.conf", after=_BOOT),
    Place("system", "/etc/default/grub", _SH, "make the boot menu anew (update-grub, or grub2-mkconfig -o FILE) and restart", only_way=True),
    Place("system", "/etc/ld.so.preload", after="counts for every program that starts from now on", only_way=True),
    Place("user", ".profile", _SH, _LOGIN),
    Place("user", ".xprofile", _SH, _LOGIN),
    Place("user", ".xsessionrc", _SH, _LOGIN),
    Place("user", ".bash_profile", _BASH, _LOGIN),
    Place("user", ".bash_login", _BASH, _LOGIN),
    Place("user", ".bashrc", _BASH, "counts in the next shell"),
    Place("user", ".zshenv", _ZSH, "counts in the next shell"),
    Place("user", ".zprofile", _ZSH, _LOGIN),
    Place("user", ".zshrc", _ZSH, "counts in the next shell"),
    Place("user", ".pam_environment", after=_LOGIN),
    Place("user", ".config/environment.d/*.conf", after=_LOGIN),
)


# ------------------------------------------------------------------ validate


def validate(step: Step, _tables: Tables) -> None:
    """Check the shape of a step's words.

    Raises:
        RefusedError: no file, no line, or words that no plan of ours has.
    """
    given = {key: values[0] for key, values in step.parameters.items() if len(values) == 1}
    if given.keys() != step.parameters.keys() or "file" not in given or "line" not in given:
        raise RefusedError(
            f"remedy {step.remedy}: one file and one line are needed", f"rocm-patch plan --remedy {step.remedy} --set file=PATH --set line=3"
        )
    if not given["file"].startswith("/") or os.path.normpath(given["file"]) != given["file"] or not given["file"].isprintable():
        raise RefusedError(f"remedy {step.remedy}: {given['file']!r} is no plain absolute path")
    if not re.fullmatch("[1-9][0-9]{0,5}", given["line"]):
        raise RefusedError(f"remedy {step.remedy}: {given['line']!r} is no number of a line")
    if given.get("action", ACTIONS[0]) not in ACTIONS:
        raise RefusedError(f"remedy {step.remedy}: action is one of {', '.join(ACTIONS)}")


def place_of(path: str, ground: Ground) -> Place:
    """The row for a file.

    Raises:
        RefusedError: nothing in it is ever edited.
    """
    inside = path
    if ground.scope == "user":
        inside = path[len(ground.base) + 1 :] if path.startswith(f"{ground.base}/") else ""
    for place in PLACES:
        if place.scope == ground.scope and fnmatch.fnmatchcase(inside, place.pattern) and inside.count("/") == place.pattern.count("/"):
            return place
    others = "neutralise-own is for files in your home" if ground.scope == "system" else "neutralise is for files in /etc"
    raise RefusedError(f"{path} is not one of the files in which a line is ever neutralised; edit it by hand", others)


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """The file with one line less in force.

    Raises:
        RefusedError: the line is not there or is not as the user saw it, belongs to a package or to us, or the rest would not hold.
    """
    if len(steps) > 1:
        raise RefusedError("one line at a time: the numbers of the others change with it")
    step = steps[0]
    path, number = step.parameters["file"][0], int(step.parameters["line"][0])
    place = place_of(path, look.ground)
    now = look.tree.state(look.ground.at(path), FILE_LIMIT)
    if now.kind != "file":
        raise RefusedError(f"{path} is {'not there' if now.kind == 'absent' else f'a {now.kind} and no plain file'}; it stays as it is")
    lines = _LINES.findall(now.data)
    if _satisfied(step, lines[number - 1] if number <= len(lines) else b"", path, look):
        return (Change(path, now),)
    _check_file(path, look)
    if b"\0" in now.data or number > len(lines):
        raise RefusedError(f"{path} has {len(lines)} lines" + (" and is no text" if b"\0" in now.data else ""), f"look at it: cat -n {path}")
    _check_line(step, lines, number, path)
    if not place.only_way and look.ground.scope == "system":
        refuse_packaged(path, now.data, look.ground)
    after = _without(lines, number, step.parameters.get("action", ACTIONS)[0])
    _check_shell(place, lines, number, after, path)
    return (Change(path, replace(now, data=after)),)


def _check_file(path: str, look: Look) -> None:
    if _OURS.decode() in os.path.basename(path):
        raise RefusedError(f"{path} is ours", "take it back with: rocm-patch rollback")
    # Written is by rename: the other name would keep the line, and a file under two names may be somebody's that is not to be read here.
    if os.lstat(look.ground.host(path)).st_nlink > 1:
        raise RefusedError(f"{path} has a second name (a hard link); it stays as it is", "find it first, by find with -samefile")


def _text(line: bytes) -> bytes:
    return line.removeprefix(_MARK).rstrip(b"\r\n")


def _satisfied(step: Step, line: bytes, path: str, look: Look) -> bool:
    """Whether it is done, by us: the plan is applied a second time."""
    same = any(step == other for record in look.active for other in record.steps)
    return same and look.ours(path) and (step.parameters.get("action") == ("remove",) or _text(line).startswith(b"# "))


def _check_line(step: Step, lines: Sequence[bytes], number: int, path: str) -> None:
    text = _text(lines[number - 1])
    wanted = step.parameters.get("text", ("",))[0]
    if wanted and text != os.fsencode(wanted):
        raise RefusedError(f"line {number} of {path} is not the one that the plan names; nothing was changed", "make a new plan and look at it")
    if not text.strip() or text.strip().startswith(b"#"):
        raise RefusedError(f"line {number} of {path} is empty or a remark already; there is nothing to neutralise", f"look at it: cat -n {path}")
    if _OURS in text:
        raise RefusedError(f"line {number} of {path} is ours", "take it back with: rocm-patch rollback")
    before = _text(lines[number - 2]) if number > 1 else b""
    if text.endswith(b"\\") or (before.endswith(b"\\") and not before.strip().startswith(b"#")):
        raise RefusedError(f"line {number} of {path} is a part of something longer (a backslash joins lines); edit it by hand")


def _without(lines: Sequence[bytes], number: int, action: str) -> bytes:
    line = lines[number - 1]
    head = _MARK if line.startswith(_MARK) else b""
    instead = head + (b"# " + line.removeprefix(_MARK) if action == "comment" else b"")
    return b"".join([*lines[: number - 1], instead, *lines[number:]])


def _check_shell(place: Place, lines: Sequence[bytes], number: int, after: bytes, path: str) -> None:
    """A line of a shell's file may be the middle of a string or the only word between `then` and `fi`."""
    if not place.shells:
        return
    shell = next((shell for shell in place.shells if os.access(shell, os.X_OK)), "")
    if not shell:
        raise RefusedError(f"{path} is read by {os.path.basename(place.shells[0])}, which is not here to check it; edit it by hand")
    if not _parses(shell, after):
        raise RefusedError(f"without line {number} {path} would not be a program any more: the line is a part of something longer; edit it by hand")
    # A closing bracket is an error wherever commands stand, and a letter like any other inside a string.
    if _parses(shell, b"".join(lines)) and _parses(shell, b"".join([*lines[: number - 1], b")\n", *lines[number:]])):
        raise RefusedError(f"line {number} of {path} stands inside a text of several lines; edit it by hand")


def _parses(shell: str, data: bytes) -> bool:
    return run([shell, "-n"], stdin=data or b"\n", timeout=10).code == 0


# ------------------------------------------------------------------ activate, verify


def activate(_steps: Sequence[Step], _changes: Sequence[Change], _work: Work) -> tuple[Change, ...]:
    """Nothing to do: whoever reads the file reads it anew."""
    return ()


def verify(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read the file back.

    Raises:
        RocmPatchError: it is not as it was written.
    """
    path = changes[0].path
    if work.tree.state(work.ground.at(path)).data != changes[0].after.data:
        raise RocmPatchError(f"{path} does not read back as it was written")
    place = place_of(path, work.ground)
    return (f"{path}: line {steps[0].parameters['line'][0]} is out of force; {place.after}",)


def in_force(steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Whether a line that was neutralised is back."""
    held = []
    for step in steps:
        path, text = step.parameters["file"][0], step.parameters.get("text", ("",))[0]
        if text:
            back = any(_text(line) == os.fsencode(text) for line in _LINES.findall(look.now(path).data))
            held.append(Held(text, None, text if back else None, path, not back, "somebody put the line back" if back else ""))
    return tuple(held)


def line_of(data: bytes, number: int) -> str:
    """A line as a plan carries it; empty where it is no UTF-8 or not there."""
    lines = _LINES.findall(data)
    try:
        return _text(lines[number - 1]).decode() if 0 < number <= len(lines) else ""
    except UnicodeDecodeError:
        return ""


KIND: Final = Kind("neutralise", ("user", "system"), "login", validate, render, activate, verify, in_force=in_force)
