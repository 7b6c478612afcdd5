"""The distribution at hand: which package manager it has, what is installed, and the command that installs what is missing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from rocm_patch.errors import RocmPatchError
from rocm_patch.machine.platform import os_release
from rocm_patch.model import Known
from rocm_patch.root import Root
from rocm_patch.run import run

_BY_ID: Final[Mapping[str, str]] = MappingProxyType(
    {
        "debian": "apt",
        "ubuntu": "apt",
        "fedora": "dnf",
        "rhel": "dnf",
        "centos": "dnf",
        "arch": "pacman",
        "suse": "zypper",
        "opensuse": "zypper",
    }
)
_INSTALL: Final[Mapping[str, str]] = MappingProxyType(
    {"apt": "sudo apt install", "dnf": "sudo dnf install", "pacman": "sudo pacman -S --needed", "zypper": "sudo zypper install"}
)
_ASK: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "apt": ("dpkg-query", "-W", "-f=${Version}\n"),
        "dnf": ("rpm", "-q", "--qf=%{VERSION}\n"),
        "zypper": ("rpm", "-q", "--qf=%{VERSION}\n"),
        "pacman": ("pacman", "-Q"),
    }
)
_VERSION: Final = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)+)")


@dataclass(frozen=True)
class Distribution:
    """`manager` is apt, dnf, pacman or zypper; empty where it is none of them."""

    name: str
    manager: str

    def install(self, packages: Iterable[Mapping[str, str]]) -> str:
        """The one command that installs packages, or words about the lack of one."""
        words = [word for row in packages for word in row.get(self.manager, "").split()]
        if not self.manager:
            any_of = [word for row in packages for word in row.get("apt", "").split()]
            return f"{self.name} has none of the package managers known here; Debian's names are {' '.join(dict.fromkeys(any_of))}"
        return f"{_INSTALL[self.manager]} {' '.join(dict.fromkeys(words))}" if words else f"{self.name} has no package of it"

    def version_of(self, packages: Mapping[str, str]) -> str:
        """The version of an installed package, as upstream counts; empty where it is not installed."""
        name, ask = packages.get(self.manager, ""), _ASK.get(self.manager, ("",))
        program = shutil.which(ask[0], path="/usr/bin:/bin") if name else None
        if not program:
            return ""
        try:
            ended = run([program, *ask[1:], name], timeout=20)
        except RocmPatchError:
            return ""
        match = _VERSION.search(ended.out.decode("utf-8", "replace").replace(name, "", 1)) if ended.code == 0 else None
        return match.group(1) if match else ""


def read(root: Root) -> Distribution:
    """From os-release: its ID, else what it says that it is like, else the manager that is there."""
    answer = os_release(root)
    values = answer.value if isinstance(answer, Known) else {}
    name = values.get("PRETTY_NAME") or values.get("ID", "this system")
    for word in (values.get("ID", ""), *values.get("ID_LIKE", "").split()):
        if manager := _BY_ID.get(word) or _BY_ID.get(word.partition("-")[0]):
            return Distribution(name, manager)
    return Distribution(name, _there() if root.live else "")


def _there() -> str:
    programs = {"apt": "apt-get", "dnf": "dnf", "pacman": "pacman", "zypper": "zypper"}
    return next((manager for manager, program in programs.items() if os.access(f"/usr/bin/{program}", os.X_OK)), "")
