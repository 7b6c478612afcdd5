"""A library that every program loads: an entry of ours in /etc/ld.so.preload, and the library in a folder of root's.

An entry whose library is cut off, lacks a symbol or dies when it is loaded stops every program there is, login among them.
So: the library is durable before the entry, tried before the entry, tried again with it, and a guard that needs no program
to start takes the entry away unless all that has gone well. Rollback removes the entry first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rocm_patch.changes import preflight
from rocm_patch.changes.guard import Guard
from rocm_patch.changes.kind import Change, Held, Kind, Look, Tables, Work
from rocm_patch.changes.record import digest, without_line
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import ABSENT, State, Tree
from rocm_patch.run import Ended

ENTRY: Final = "/etc/ld.so.preload"
FOLDER: Final = "/usr/local/lib/rocm-patch"
LIBRARY_LIMIT: Final = 16 << 20
_PATH: Final = re.compile(r"(/[A-Za-z0-9_.+@~-]+)*/(?P<name>[A-Za-z0-9_.+-]{1,64}\.so(\.[0-9]+)*)")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SEPARATORS: Final = re.compile(rb"[ \t\n:]+")
_REMARK: Final = re.compile(rb"#[^\n]*")

_posted: dict[str, tuple[Guard, tuple[tuple[preflight.Program, Ended], ...]]] = {}
"""By transaction: the guard that waits, and what every program did before the entry was written."""


# ------------------------------------------------------------------ validate


def validate(step: Step, _tables: Tables) -> None:
    """Check the shape of a step's words.

    Raises:
        RefusedError: no library, no digest, or a name that the loader would read as something else.
    """
    for key in ("library", "sha256"):
        if len(step.parameters.get(key, ())) != 1:
            hint = "rocm-patch plan --remedy ID --set library=/PATH/NAME.so --set sha256=$(sha256sum </PATH/NAME.so | cut -c-64)"
            raise RefusedError(f"remedy {step.remedy}: one {key} is needed", hint)
    path = step.parameters["library"][0]
    if not _PATH.fullmatch(path) or os.path.normpath(path) != path:
        raise RefusedError(f"remedy {step.remedy}: {path!r} is no absolute path of a library that /etc/ld.so.preload can name")
    if not _DIGEST.fullmatch(step.parameters["sha256"][0]):
        raise RefusedError(f"remedy {step.remedy}: sha256 is 64 hexadecimal digits")


# ------------------------------------------------------------------ render


def target_of(step: Step) -> str:
    """Where the library lies for good: its content's name is part of the path."""
    name = step.parameters["library"][0].rpartition("/")[2]
    return f"{FOLDER}/{step.parameters['sha256'][0]}/{name}"


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """The library, then the entry; everything else in the file stays byte for byte.

    Raises:
        RefusedError: two at once, or a library that is not what the step says.
    """
    if len(steps) > 1:
        raise RefusedError("one library at a time: each is tried by itself")
    target = target_of(steps[0])
    now = look.now(ENTRY)
    if now.kind not in ("absent", "file"):
        raise RefusedError(f"{ENTRY} is a {now.kind}; it stays as it is", f"look at it: ls -l {ENTRY}")
    after = now
    if os.fsencode(target) not in words_of(now.data):
        gap = b"\n" if now.data and not now.data.endswith(b"\n") else b""
        base = now if now.kind == "file" else State("file", 0o644, os.geteuid(), os.getegid())
        after = replace(base, data=now.data + gap + os.fsencode(target) + b"\n")
    return (Change(target, _library(steps[0], look, target)), Change(ENTRY, after, line=target))


def words_of(data: bytes) -> list[bytes]:
    """The libraries that the loader reads out of the file."""
    return [word for word in _SEPARATORS.split(_REMARK.sub(b"", data)) if word]


def _library(step: Step, look: Look, target: str) -> State:
    wanted, source = step.parameters["sha256"][0], step.parameters["library"][0]
    now = look.now(target)
    if now.kind == "file" and digest(now.data) == wanted and now.uid in (0, os.geteuid()) and not now.mode & 0o022:
        return now
    if now.kind != "absent":
        raise RefusedError(f"{target} is there and is not what its name says; it stays as it is", f"look at it: ls -l {target}")
    try:
        # Links above its folder are the machine's own business (/home -> /var/home); the bytes have to fit anyway.
        folder, _, name = source.rpartition("/")
        real = os.path.realpath(folder) if look.ground.live else folder
        found = look.tree.state(look.ground.at(f"{real.rstrip('/')}/{name}"), LIBRARY_LIMIT)
    except OSError as error:
        raise RefusedError(f"the library {source} cannot be read: {error.strerror}") from error
    if found.kind != "file":
        raise RefusedError(f"the library {source} is {'not there' if found.kind == 'absent' else 'no plain file'}")
    if digest(found.data) != wanted:
        # Which digest it has instead is not said: root reads what the caller may not.
        raise RefusedError(f"the library {source} does not have the sha256 that the plan names; nothing was written", "make a new plan")
    return State("file", 0o644, os.geteuid(), os.getegid(), found.data)


# ------------------------------------------------------------------ before the entry is written


def prepare(steps: Sequence[Step], change: Change, work: Work) -> None:
    """The library is in place: try it, and post the guard.

    Raises:
        RefusedError: others could exchange the library, or a program does not do with it as without it.
    """
    if change.path != ENTRY:
        return
    target = target_of(steps[0])
    if digest(work.tree.state(work.ground.at(target)).data) != steps[0].parameters["sha256"][0]:
        raise RocmPatchError(f"{target} does not read back as it was written")
    weak = preflight.weak_folder(work.ground, target)
    if weak:
        hint = f"sudo chown root:root {weak} && sudo chmod go-w {weak}"
        raise RefusedError(f"others than root can write {weak}, and so put another library in the place of {target}", hint)
    tried = preflight.examine(work.ground, target)
    work.say(f"{tried} programs do the same with {target} as without it")
    before = preflight.now(work.ground)
    at, old = work.ground.at(ENTRY), work.tree.state(work.ground.at(ENTRY))
    tree = Tree(work.tree.anchor)  # of its own: nobody watches what the guard does
    _posted[work.transaction] = (work.watch.enter_context(Guard(lambda: take_back(tree, at, old, target), (work.lock,))), before)
    work.watch.callback(_posted.pop, work.transaction, None)


def take_back(tree: Tree, at: str, old: State, line: str) -> None:
    """What the guard does: the file as it was, or without our line if others changed it meanwhile."""
    now = tree.state(at)
    if now.kind != "file":
        return
    less = without_line(now.data, line)
    if less is not None:
        restored = less in (old.data, old.data + b"\n")
        tree.put(at, (old if restored else replace(now, data=less)) if old.kind == "file" or less else ABSENT)


# ------------------------------------------------------------------ activate, verify


def activate(_steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """The entry is written: start every program for real, and dismiss the guard.

    Raises:
        RocmPatchError: a program does not do as before, or the guard was quicker.
    """
    if work.transaction in _posted:
        guard, before = _posted.pop(work.transaction)
        try:
            tried = preflight.examine_again(work.ground, before)
        except BaseException:
            guard.leave()  # it acts at once, before anything else is tried
            raise
        guard.confirm()
        work.say(f"{tried} programs do the same with the entry in place as before it")
    return ()


def verify(steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read both back.

    Raises:
        RocmPatchError: the entry or its library is not there.
    """
    target = target_of(steps[0])
    if os.fsencode(target) not in words_of(work.tree.state(work.ground.at(ENTRY)).data):
        raise RocmPatchError(f"{ENTRY} does not name {target}")
    if digest(work.tree.state(work.ground.at(target)).data) != steps[0].parameters["sha256"][0]:
        raise RocmPatchError(f"{target} does not read back as it was written")
    return (f"{ENTRY}: every program that starts from now on loads {target}",)


def in_force(steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Whether each entry of ours is read by the loader of programs that start now."""
    named = words_of(look.now(ENTRY).data)
    held = []
    for step in steps:
        target = target_of(step)
        there = os.fsencode(target) in named and look.now(target).kind == "file"
        held.append(Held("ld.so.preload", target, target if there else None, ENTRY, there, "" if there else "the entry or the library is gone"))
    return tuple(held)


KIND: Final = Kind("preload", ("system",), "", validate, render, activate, verify, prepare=prepare, in_force=in_force)
