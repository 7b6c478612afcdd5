"""Where environment settings of ours can stand, which programs read them there, and which do not.

A place is named by a word, for some with the unit, application or command that it is for: `service:ollama`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError
from rocm_patch.model import Known, Scope
from rocm_patch.root import Root

Format = Literal["shell", "conf", "unit", "manager", "desktop", "command"]

SYSTEM_PATH: Final = "/etc/profile.d/zz-rocm-patch.sh"
DROP_IN: Final = "90-rocm-patch.conf"
ALL_SESSIONS: Final = "80-rocm-patch.conf"
"""Another name than in a home: there a file of the same name would hide this one."""
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@-]{1,120}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}")
_SYSTEM_UNITS: Final = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_USER_UNITS: Final = ("/etc/systemd/user", "/run/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user")
_APPLICATIONS: Final = ("/usr/local/share/applications", "/usr/share/applications", "/var/lib/flatpak/exports/share/applications")
_COMMANDS: Final = ("/usr/local/bin", "/usr/bin", "/bin", "/opt/rocm/bin")


@dataclass(frozen=True)
class PlaceRow:
    """One sort of place."""

    scope: Scope
    format: Format
    named: str
    """What has to be named with it: unit, application, command; empty for a place that there is once."""
    reach: str
    """Which programs find the settings there."""
    beyond: str
    """Which do not."""
    next_step: str
    """What makes it count. {name} is the name."""


PLACES: Final[Mapping[str, PlaceRow]] = MappingProxyType(
    {
        "login": PlaceRow(
            "system", "shell", "",
            "login shells of all users (console, ssh, su -) and desktops that are started through one, as GDM and SDDM do",
            "services, cron, `ssh host command`, terminals opened before",
            "log in again",
        ),
        "session": PlaceRow(
            "user", "conf", "",
            "what this user's systemd manager starts: user services, GNOME and Plasma sessions and the programs in them",
            "shells over ssh and on the console, system services",
            "log out everywhere and in again, since the manager lives as long as one session does",
        ),
        "all-sessions": PlaceRow(
            "system", "conf", "",
            "what each user's systemd manager starts: user services, GNOME and Plasma sessions and the programs in them",
            "shells over ssh and on the console, system services",
            "log out everywhere and in again",
        ),
        "service": PlaceRow(
            "system", "unit", "unit",
            "the system service {name}",
            "everything else; what an EnvironmentFile of the unit sets comes after it",
            "sudo systemctl daemon-reload && sudo systemctl restart {name}",
        ),
        "user-service": PlaceRow(
            "user", "unit", "unit",
            "this user's service {name}",
            "everything else; what an EnvironmentFile of the unit sets comes after it",
            "systemctl --user daemon-reload && systemctl --user restart {name}",
        ),
        "all-services": PlaceRow(
            "system", "manager", "",
            "all system services",
            "logins, sessions, user services; a unit's own Environment comes after it",
            "restart the machine, or: sudo systemctl daemon-reexec, then restart the service",
        ),
        "user-services": PlaceRow(
            "user", "manager", "",
            "all services of this user's systemd manager",
            "shells, system services; a unit's own Environment comes after it",
            "systemctl --user daemon-reexec, then restart the service",
        ),
        "desktop": PlaceRow(
            "user", "desktop", "application",
            "{name}, started from this user's menu or file manager",
            "the same program started from a shell",
            "start it again from the menu",
        ),
        "command": PlaceRow(
            "user", "command", "command",
            "{name}, where ~/.local/bin comes before the program's own folder in PATH",
            "the program called by its full path, by a service or a menu entry",
            "open a new shell, or: hash -r",
        ),
    }
)  # fmt: skip
DEFAULT: Final[Mapping[str, str]] = MappingProxyType({"system": "login", "user": "session"})


@dataclass(frozen=True)
class Place:
    """One place on one machine."""

    word: str
    name: str
    row: PlaceRow

    @property
    def text(self) -> str:
        """As it is written: login, service:ollama.service."""
        return f"{self.word}:{self.name}" if self.name else self.word

    def told(self) -> tuple[str, str, str]:
        """Reach, what is beyond it, and what makes it count, in words."""
        name = self.name or ""
        return self.row.reach.replace("{name}", name), self.row.beyond, self.row.next_step.replace("{name}", name)


def find(text: str, scope: Scope) -> Place:
    """A place by its word; an empty one is the scope's own.

    Raises:
        RefusedError: there is no such place, or not in this scope, or its name is missing or no name.
    """
    word, colon, name = (text or DEFAULT[scope]).partition(":")
    row = PLACES.get(word)
    if row is None:
        raise RefusedError(f"there is no place {word!r} for environment settings", "known: " + ", ".join(sorted(PLACES)))
    if row.scope != scope:
        raise RefusedError(f"the place {word} is of {row.scope} scope, and the step is of {scope} scope")
    if bool(row.named) != bool(colon and name):
        raise RefusedError(f"the place {word} is written {word}:{row.named.upper()}" if row.named else f"the place {word} goes without a name")
    pattern = _UNIT if row.format == "unit" else _FILE
    if name and (not pattern.fullmatch(name) or ".." in name):
        raise RefusedError(f"{name!r} cannot be the name of a {row.named}")
    if row.format == "unit" and not name.endswith(".service"):
        name += ".service"
    return Place(word, name.removesuffix(".desktop") if row.format == "desktop" else name, row)


def scope_of(text: str, otherwise: Scope) -> Scope:
    """The scope that a place belongs to; `otherwise` where none is named.

    Raises:
        RefusedError: there is no such place.
    """
    if not text:
        return otherwise
    word = text.partition(":")[0]
    if word not in PLACES:
        raise RefusedError(f"there is no place {word!r} for environment settings", "known: " + ", ".join(sorted(PLACES)))
    return PLACES[word].scope


def path_of(place: Place, ground: Ground) -> str:
    """Our file there, as on that machine."""
    user_units = f"{ground.config}/systemd"
    return {
        "login": SYSTEM_PATH,
        "session": f"{ground.config}/environment.d/{DROP_IN}",
        "all-sessions": f"/etc/environment.d/{ALL_SESSIONS}",
        "service": f"/etc/systemd/system/{place.name}.d/{DROP_IN}",
        "user-service": f"{user_units}/user/{place.name}.d/{DROP_IN}",
        "all-services": f"/etc/systemd/system.conf.d/{DROP_IN}",
        "user-services": f"{user_units}/user.conf.d/{DROP_IN}",
        "desktop": f"{os.path.dirname(ground.data)}/applications/{place.name}.desktop",
        "command": f"{ground.base}/.local/bin/{place.name}",
    }[place.word]


def at_path(path: str, ground: Ground) -> Place | None:
    """The place whose file a path is; None for another path."""
    folder, _, last = path.rpartition("/")
    for word, row in PLACES.items():
        name = ""
        if row.format == "unit":
            name = os.path.basename(folder).removesuffix(".d")
        elif row.named:
            name = last.removesuffix(".desktop")
        place = Place(word, name, row)
        if row.scope == ground.scope and bool(name) == bool(row.named) and path_of(place, ground) == path:
            return place
    return None


def reader(ground: Ground) -> Root:
    """The reading side of the whole machine: units and menu entries lie outside of a home."""
    return Root("/" if ground.live else ground.anchor)


def check_unit(place: Place, ground: Ground) -> None:
    """A drop-in for a unit that is not there does nothing, for ever, silently.

    Raises:
        RefusedError: no folder has the unit.
    """
    folders = (
        _SYSTEM_UNITS if place.row.scope == "system" else (f"{ground.config}/systemd/user", f"{ground.base}/.local/share/systemd/user", *_USER_UNITS)
    )
    root = reader(ground)
    head, at, _ = place.name.partition("@")
    names = {place.name, f"{head}@.service"} if at else {place.name}
    if not any(root.exists(f"{folder}/{name}") for folder in folders for name in names):
        raise RefusedError(f"there is no unit {place.name} on this machine", f"looked in {', '.join(folders)}")


def menu_entry(place: Place, ground: Ground) -> str:
    """The text of the menu entry that the system brings for an application.

    Raises:
        RefusedError: there is none.
    """
    root = reader(ground)
    for folder in _APPLICATIONS:
        answer = root.text(f"{folder}/{place.name}.desktop")
        if isinstance(answer, Known) and answer.value is not None:
            return answer.value
    raise RefusedError(f"there is no menu entry {place.name}.desktop", f"looked in {', '.join(_APPLICATIONS)}")


def program(place: Place, ground: Ground, given: str) -> str:
    """The program that a launcher of ours starts: the one that was named, or the first of that name in the system's folders.

    Raises:
        RefusedError: there is none, or it is the launcher itself.
    """
    root = reader(ground)
    candidates = (given,) if given else tuple(f"{folder}/{place.name}" for folder in _COMMANDS)
    for path in candidates:
        answer = root.status(path)
        if isinstance(answer, Known) and answer.value is not None and answer.value.st_mode & 0o111 and not root.is_folder(path):
            if path == path_of(place, ground):
                raise RefusedError(f"{path} is the launcher itself", "name the program: --set command=/its/full/path")
            return path
    raise RefusedError(f"there is no program {given or place.name}", "name it: --set command=/its/full/path")
