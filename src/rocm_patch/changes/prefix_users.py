"""Who uses a version of libraries: a virtual environment that names it, a program that has it loaded; and what it left in a cache."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from typing import Final

from rocm_patch.changes.kind import Look
from rocm_patch.changes.places import NAME, Ground
from rocm_patch.errors import RocmPatchError

DATABASES: Final = "miopen"
"""The folder in our cache below which each version has MIOpen's databases to itself."""
_VERSION: Final = re.compile(r".*/(?P<name>[^/]+-[^/]+-[0-9a-f]{12})/prefix")


def databases(cache: str, folder: str) -> str:
    """Where MIOpen keeps what it compiled and measured with the libraries of a folder: a version's `prefix`, or any other.

    MIOpen finds a compiled kernel again by file name and options, not by its source, in a folder that is named by the release
    (src/include/miopen/kern_db.hpp, src/binary_cache.cpp): a patched kernel would never be compiled where the release's own was.
    """
    folder = os.path.realpath(folder)
    if version := _VERSION.fullmatch(folder):  # its name holds a digest of what is in it
        return f"{cache}/{NAME}/{DATABASES}/{version['name']}"
    # Two staged folders have one name, and one folder is staged again with another MIOpen in it.
    mark = hashlib.sha256("\0".join([folder, *_identities(folder)]).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{cache}/{NAME}/{DATABASES}/{os.path.basename(folder)}-{mark}"


def _identities(folder: str) -> list[str]:
    """Which files are the MIOpen of a folder, as far as it shows without reading hundreds of megabytes."""
    found = []
    for path in sorted(glob.glob(f"{glob.escape(folder)}/lib*/libMIOpen.*")):
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    return found


def left_behind(folder: str, ground: Ground) -> str:
    """The databases of a version's folder, if they are there; as on that machine."""
    if ground.scope != "user":
        return ""
    cache = os.environ.get("XDG_CACHE_HOME", "") if ground.live else ""
    path = databases(cache if cache.startswith("/") else f"{ground.base}/.cache", f"{folder}/prefix")
    return path if os.path.isdir(path if ground.live else f"{ground.anchor}{path}") else ""


def environment_with(folder: str, look: Look) -> str:
    """A virtual environment of ours in which a file names this version."""
    if look.ground.scope != "user":
        return ""
    venvs = look.ground.at(f"{look.ground.data}/venvs")
    for name in look.tree.names(venvs):
        for inner in ("pyvenv.cfg", "bin/activate", "bin/activate.csh", "bin/activate.fish"):
            try:
                found = look.tree.state(f"{venvs}/{name}/{inner}", 1 << 20)
            except (OSError, RocmPatchError):
                continue
            if folder.encode() in found.data:
                return f"{look.ground.data}/venvs/{name}/{inner} names it"
    return ""


def process_with(folder: str, ground: Ground) -> str:
    """A running program that has a file of it mapped. One may be gone while it is looked at; others are closed to us."""
    if not ground.live:
        return ""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/maps", "rb") as maps:
                if f" {folder}/".encode() not in maps.read():
                    continue
            with open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as comm:
                return f"process {number} ({comm.read().strip()}) has a library of it loaded"
        except OSError:
            continue
    return ""
