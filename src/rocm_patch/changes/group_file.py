"""One name in one member list of /etc/group and /etc/gshadow: everything else stays to the byte. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from rocm_patch.errors import FormatError

GROUP: Final = "/etc/group"
GSHADOW: Final = "/etc/gshadow"
FIELDS: Final = 4
"""Both files: name, password, number or administrators, members."""


def members(data: bytes, group: str) -> tuple[str, ...] | None:
    """Who is listed in a group; None: the file does not have it.

    Raises:
        FormatError: its line has not four fields, or there are two.
    """
    found = _lines(data, group)
    return _members(found[0][2]) if found else None


def with_member(data: bytes, group: str, user: str) -> bytes:
    """The file with one more member of one group, at the end of its list; the same bytes where the user is there, or the group is not."""
    return _changed(data, group, lambda old: old if user in old else (*old, user))


def without_member(data: bytes, group: str, user: str) -> bytes:
    """The file with one member less; the same bytes where the user is not there."""
    return _changed(data, group, lambda old: tuple(item for item in old if item != user) if user in old else old)


def has_user(passwd: bytes, user: str) -> bool:
    """Whether a passwd file lists a user."""
    return re.search(rb"(?m)^" + re.escape(user.encode()) + rb":", passwd) is not None


def _changed(data: bytes, group: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> bytes:
    for start, end, line in _lines(data, group):
        old = _members(line)
        new = change(old)
        if new == old:
            return data
        head = line.rpartition(b":")[0]
        return data[:start] + head + b":" + ",".join(new).encode() + data[end:]
    return data


def _lines(data: bytes, group: str) -> list[tuple[int, int, bytes]]:
    found = []
    for match in re.finditer(rb"(?m)^" + re.escape(group.encode()) + rb":[^\n]*$", data):
        if match.group().count(b":") != FIELDS - 1:
            raise FormatError(f"the line of the group {group} has not {FIELDS} fields")
        found.append((match.start(), match.end(), match.group()))
    if len(found) > 1:
        raise FormatError(f"the group {group} stands there twice")
    return found


def _members(line: bytes) -> tuple[str, ...]:
    return tuple(item for item in line.rpartition(b":")[2].decode("utf-8", "surrogateescape").split(",") if item)
