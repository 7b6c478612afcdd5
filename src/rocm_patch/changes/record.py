"""What the journal writes down: one record a transaction, as JSON that the newest version can always read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from rocm_patch.model import Receipt, Scope, Step
from rocm_patch.root import State

RECORD_SCHEMA: Final = 1


@dataclass(frozen=True)
class Shape:
    """A `State` without its bytes, which lie in the transaction's folder under their digest.

    `grown` is a folder that a child filled for us (a venv): `target` names the transaction that made it, `sha256` the
    manifest of what was in it when it was finished.
    """

    kind: Literal["absent", "file", "link", "folder", "grown"]
    mode: int = 0
    uid: int = 0
    gid: int = 0
    sha256: str = ""
    target: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Entry:
    """One path, as it was and as it shall be. `path` is absolute as on that machine."""

    path: str
    before: Shape
    after: Shape
    generated: bool = False
    """Made by a tool of the system from other files: nobody's own work, so what others made of it since is made anew."""
    line: str = ""
    """A file of others in which one line is ours: where they changed the rest since, that line goes alone."""


@dataclass(frozen=True)
class Record:
    """One transaction. Without a receipt it is the plan file: the transaction is open."""

    schema: int
    number: int
    transaction: str
    verb: Literal["apply", "rollback"]
    scope: Scope
    steps: tuple[Step, ...]
    entries: tuple[Entry, ...]
    undoes: tuple[str, ...]
    """Transactions that a rollback takes back."""
    receipt: Receipt | None


GONE: Final = Shape("absent")


def without_line(data: bytes, line: str) -> bytes | None:
    """A text less one line of it, everything else byte for byte; None if it is not there exactly once."""
    lines = data.split(b"\n")
    if lines.count(line.encode()) != 1:
        return None
    lines.remove(line.encode())
    return b"\n".join(lines)


def digest(data: bytes) -> str:
    """The name of a content."""
    return hashlib.sha256(data).hexdigest()


def shape_of(state: State) -> Shape:
    """Describe a state that we can also restore.

    Raises:
        ValueError: a device, socket or pipe.
    """
    if state.kind not in ("absent", "file", "link", "folder"):
        raise ValueError(state.kind)
    attributes = MappingProxyType({key: value.hex() for key, value in state.attributes})
    content = digest(state.data) if state.kind == "file" else ""
    return Shape(state.kind, state.mode, state.uid, state.gid, content, state.target, attributes)  # type: ignore[arg-type]


def state_of(shape: Shape, data: bytes) -> State:
    """The state that a shape describes; `data` has its digest."""
    attributes = tuple(sorted((key, bytes.fromhex(value)) for key, value in shape.attributes.items()))
    return State(shape.kind, shape.mode, shape.uid, shape.gid, data, shape.target, attributes)


def fits(now: State, shape: Shape) -> bool:
    """Whether a path is as a shape says.

    Labels that the kernel or the folder gives to every new file (security.*, default access lists) may be there in
    addition; everything else must agree.
    """
    if now.kind != shape.kind:
        return False
    if now.kind == "absent":
        return True
    if now.kind == "file" and digest(now.data) != shape.sha256:
        return False
    if (now.mode, now.uid, now.gid, now.target) != (shape.mode, shape.uid, shape.gid, shape.target):
        return False
    attributes = {key: value.hex() for key, value in now.attributes}
    extra = attributes.keys() - shape.attributes.keys()
    return all(attributes.get(key) == value for key, value in shape.attributes.items()) and all(
        key.startswith(("security.", "system.")) for key in extra
    )
