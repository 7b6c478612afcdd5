"""Interpreters that an environment can be made with."""

from __future__ import annotations

import platform
import re
import sys

from rocm_patch.knowledge.conditions import parse_version
from rocm_patch.model import Known, Machine
from rocm_patch.root import Root


def find(root: Root, machine: Machine) -> tuple[tuple[str, str], ...]:
    """(path, version) of Pythons of the system, the best first guess first; in a tree also those that its torches were made with."""
    found: dict[str, str] = {}
    for folder in ("usr/bin", "usr/local/bin", "opt/python/bin"):
        for name in root.list(folder):
            match = re.fullmatch(r"python(3\.\d+)", name)
            if match:
                found[f"/{folder}/{name}"] = match.group(1)
    if root.live:
        base = getattr(sys, "_base_executable", None) or sys.executable
        found.setdefault(base, platform.python_version())
    else:
        for torch in machine.torches:
            version = parse_version(torch.python.value) if isinstance(torch.python, Known) else None
            if version:
                found.setdefault(f"/usr/bin/python{version.major}.{version.minor}", f"{version.major}.{version.minor}")
    return tuple(sorted(found.items(), key=_preference))


def _preference(item: tuple[str, str]) -> tuple[bool, tuple[int, ...], str]:
    # The index documents 3.12; applications lag behind the newest Python, so it is the best first guess.
    version = parse_version(item[1])
    release = version.release if version else (0,)
    return release[:2] != (3, 12), tuple(-part for part in release), item[0]
