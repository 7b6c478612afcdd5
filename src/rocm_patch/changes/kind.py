"""What a kind of change is: four functions and a few words about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from rocm_patch.changes.places import Ground
from rocm_patch.changes.record import Record, fits
from rocm_patch.model import RemedyRow, Scope, SettingRow, Step
from rocm_patch.root import State, Tree

Needs = Literal["", "login", "reboot"]


class Tables(Protocol):
    """The part of our knowledge that says what a plan may do."""

    @property
    def remedies(self) -> Mapping[str, RemedyRow]:
        """By id."""

    @property
    def settings(self) -> Mapping[str, SettingRow]:
        """By name."""


@dataclass(frozen=True)
class Look:
    """What a kind sees when it renders: the tables, what is there now, and which of it is ours."""

    ground: Ground
    tree: Tree
    tables: Tables
    active: tuple[Record, ...]
    journal_read: bool = True
    """False where the journal is closed to this user; a file's own words must then do."""

    def now(self, path: str) -> State:
        """What is at a path."""
        return self.tree.state(self.ground.at(path))

    def ours(self, path: str) -> bool:
        """Whether the path is as the newest transaction in force left it."""
        for record in reversed(self.active):
            for entry in record.entries:
                if entry.path == path:
                    return fits(self.now(path), entry.after)
        return False


@dataclass(frozen=True)
class Change:
    """One path and what it shall be. `grown`: a folder that `activate` fills."""

    path: str
    after: State
    grown: bool = False
    line: str = ""
    """In a file of others: the one line of ours, without its end. Where they changed the rest since, it is taken out alone."""


@dataclass(frozen=True)
class Work:
    """What `activate` and `verify` get: the transaction under way."""

    ground: Ground
    tree: Tree
    tables: Tables
    transaction: str
    lock: int
    """Descriptor of the journal's lock. Long-lived children inherit it: recovery waits for them."""
    say: Callable[[str], None]
    watch: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, compare=False)
    """Closed when the transaction has come to its end, one way or the other: for what shall not outlive it."""
    back: bool = False
    """True in a rollback: the before-states are in place again, and what was generated from ours is made anew."""
    recorded: Callable[[str], Sequence[tuple[bytes, bytes]]] = field(default=lambda _: (), compare=False)
    """In a rollback: what each of these transactions found in a file, and what it left there."""


NOTE: Final = "note: "
TO_DO: Final = "to do: "
"""What a line of `verify` begins with that says something besides what was seen to hold, or what is left to somebody."""


class Unfinished(str):
    """A line of `verify` in a rollback: what still holds our change, and what is to be done there."""

    __slots__ = ()


class Unseen(Unfinished):
    """The same of what may hold our change and cannot be looked into. No record is kept for it: it would be so for ever."""

    __slots__ = ()


@dataclass(frozen=True)
class Held:
    """One value of ours, and what the running system shows of it. What `status` tells."""

    name: str
    """As people write it: MIOPEN_FIND_MODE, amdgpu.noretry, iommu, member of render."""
    wanted: str | None
    """What our files ask for; None: that it is not set."""
    found: str | None
    """What the running system has; None: nothing, or nothing that could be read."""
    where: str
    """Where that was read, as a path or in words."""
    holds: bool | None
    """None: it cannot be told here, e.g. under another root."""
    why: str = ""
    """What there is to know besides: at the next login, after a restart, somebody else's file wins."""


Prepare = Callable[[Sequence[Step], Change, Work], None]
Release = Callable[[Sequence[Step], Look], None]
Confirm = Callable[[Sequence[Step], Look], tuple[Step, ...]]
Hold = Callable[[Sequence[str], Work], None]
InForce = Callable[[Sequence[Step], Look], tuple[Held, ...]]
Also = Callable[[Sequence[Step], Look], tuple[str, ...]]


@dataclass(frozen=True)
class Kind:
    """A kind of change.

    validate: a step is allowed by the tables; RefusedError or FormatError if not.
    render: the paths and contents that all steps of this kind come to. Pure: reads, never writes.
    activate: make the new files count, after they are in place. Returns files that the system's own tools generate from
        them (an initramfs, a boot menu), made aside and not yet in place: the engine journals them and puts them there last.
        In a rollback it is asked again if somebody has generated such a file since; with `asked_back` in every rollback.
    verify: lines that say what was seen to hold, others with NOTE or TO_DO before them; RocmPatchError if it does not hold.
        With `asked_back` after a rollback as well,
        where a line about what still holds our change is an `Unfinished`: its transaction then stays on record.
    asked_back: others may have put our change into files of theirs that no record knows (the initramfs of a kernel that came
        since), so that a rollback looks whether these have to be made anew.
    in_force: what the running system shows of each value of ours. `steps` are this kind's in force in one scope; empty where
        the journal is closed to this user (`look.journal_read`): the words of our own files must then do. Reads only, as any
        user, and only what lies in the root; nothing live (/sys, /proc, this process) unless `look.ground.live`.
    prepare: called just before a path of this kind is changed, with all before it in the order of applying in place and durable;
        RocmPatchError stops the transaction, and everything is taken back.
    hold: called before a rollback or a recovery changes anything, with every path it may change: takes the locks that others expect
        to be held meanwhile, into `work.watch`; RocmPatchError stops it, with nothing changed.
    release: whether these steps may be taken back now; RefusedError if somebody uses what would go.
    also: what `activate` writes besides, as lines for people: it is made from files that often only root may read, so no diff shows
        it before. Asked after `render`, for a step that changes something; reads only, as any user.
    confirm: for what is on trial, the steps that make it permanent; RefusedError if the trial was not passed.
    """

    name: str
    scopes: tuple[Scope, ...]
    needs: Needs
    validate: Callable[[Step, Tables], None]
    render: Callable[[Sequence[Step], Look], tuple[Change, ...]]
    activate: Callable[[Sequence[Step], Sequence[Change], Work], tuple[Change, ...]]
    verify: Callable[[Sequence[Step], Sequence[Change], Work], tuple[str, ...]]
    confirm: Confirm | None = None
    prepare: Prepare | None = None
    release: Release | None = None
    hold: Hold | None = None
    in_force: InForce | None = None
    also: Also | None = None
    asked_back: bool = False
