"""Who asks, and what this user may open."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass

from rocm_patch.machine.recorded import Recorded
from rocm_patch.model import Fact, Known, Unknown
from rocm_patch.root import Root


@dataclass(frozen=True)
class User:
    """The calling user of a live machine, or the recorded one of a tree."""

    name: str
    home: str
    groups: Fact[tuple[str, ...]]


def find(root: Root, recorded: Recorded, home: str | None = None) -> User:
    """Who the questions are asked for."""
    if root.live:
        return User(_live_name(), home or os.path.expanduser("~"), Known(_live_groups(), "getgroups"))
    users = [line.split(":") for line in _lines(root, "etc/passwd")]
    users = [entry for entry in users if len(entry) >= 7]
    wanted = home or recorded.home
    chosen = next((entry for entry in users if entry[5] == wanted), None)
    if not wanted:  # a mounted system: the first ordinary user of it
        chosen = next((entry for entry in users if entry[2].isdigit() and 1000 <= int(entry[2]) < 60000), None)
    if chosen is None:
        return User("", wanted or "/root", Unknown("no such user in this tree", "etc/passwd"))
    groups = []
    for line in _lines(root, "etc/group"):
        entry = line.split(":")
        if len(entry) >= 4 and (entry[2] == chosen[3] or chosen[0] in entry[3].split(",")):
            groups.append(entry[0])
    return User(chosen[0], chosen[5], Known(tuple(sorted(groups)), "etc/group"))


def may_open(root: Root, recorded: Recorded, user: User, path: str) -> Fact[bool]:
    """Whether the user can read and write a device node. Absent: Known(False)."""
    answer = root.status(path)
    if isinstance(answer, Unknown):
        return answer
    if answer.value is None:
        return Known(False, f"{path} is absent")
    if root.live:
        return Known(os.access("/" + path.lstrip("/"), os.R_OK | os.W_OK, effective_ids=True), path)
    mode, owner, group = node_mode(root, recorded, path)
    if mode in (0o644, 0o755):
        # The two modes that git keeps: whoever recorded this tree did not record the node's own.
        return Unknown("the recording carries no device modes", path)
    if mode & 0o006 == 0o006:
        return Known(True, f"{path}: mode {mode:04o}")
    if mode & 0o600 == 0o600 and owner == user.name:
        return Known(True, f"{path}: owner")
    if isinstance(user.groups, Unknown):
        return user.groups
    return Known(mode & 0o060 == 0o060 and group in user.groups.value, f"{path}: mode {mode:04o}, {owner}:{group}")


def node_mode(root: Root, recorded: Recorded, path: str) -> tuple[int, str, str]:
    """Mode, owner and group of a node; (0, '', '') where there is none."""
    text = recorded.modes.get(path.lstrip("/"))
    if text:
        mode, _, names = text.partition(" ")
        owner, _, group = names.partition(":")
        return int(mode, 8), owner, group
    answer = root.status(path)
    if isinstance(answer, Unknown) or answer.value is None:
        return 0, "", ""
    status = answer.value
    if root.live:
        return stat.S_IMODE(status.st_mode), _name_of(pwd.getpwuid, status.st_uid), _name_of(grp.getgrgid, status.st_gid)
    return stat.S_IMODE(status.st_mode), str(status.st_uid), _group_in(root, status.st_gid)


def _group_in(root: Root, gid: int) -> str:
    for line in _lines(root, "etc/group"):
        entry = line.split(":")
        if len(entry) >= 4 and entry[2] == str(gid):
            return entry[0]
    return str(gid)


def _name_of(look_up: object, number: int) -> str:
    try:
        return str(look_up(number)[0])  # type: ignore[operator]
    except KeyError:
        return str(number)


def _live_name() -> str:
    return _name_of(pwd.getpwuid, os.geteuid())


def _live_groups() -> tuple[str, ...]:
    return tuple(sorted({_name_of(grp.getgrgid, gid) for gid in [os.getegid(), *os.getgroups()]}))


def _lines(root: Root, path: str) -> list[str]:
    answer = root.text(path)
    return (answer.value or "").splitlines() if isinstance(answer, Known) else []
