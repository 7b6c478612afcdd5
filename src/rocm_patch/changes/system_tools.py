"""The system's own programs, run on the running system or inside a mounted one; never one that others than root could change."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from rocm_patch.changes.places import Ground
from rocm_patch.root import Root
from rocm_patch.run import CLEAN, Ended, run

CHROOT: Final = ("/usr/sbin/chroot", "/usr/bin/chroot", "/sbin/chroot")
OUTPUT_LIMIT: Final = 16 << 20
FOLDERS: Final = ("/", "/bin", "/usr", "/usr/bin", "/usr/sbin", "/etc")


def why_not(ground: Ground, programs: Sequence[str], reads: Sequence[str] = ()) -> str:
    """Why these programs of a machine cannot be run from here; empty: they can.

    `reads`: files and folders of the machine that the programs execute or source; a folder's files are looked at too.
    """
    root = Root(ground.anchor)
    for program in programs:
        if not root.exists(program):
            return f"{program} is not there"
    if os.geteuid() != 0:
        return "it takes root's rights"
    if ground.live:
        return ""
    if _chroot() == "":
        return "there is no chroot on this system"
    inside = tuple(f"{folder}/{name}" for folder in reads for name in root.list(folder))
    for path in (*FOLDERS, *programs, *reads, *inside):
        if root.exists(path) and (weak := _weak(root.host(path), ground.anchor)):
            return f"{weak}, and root does not run what others could have changed"
    if not root.exists("/proc/self/mountinfo") or not root.exists("/dev/null"):
        return f"/proc and /dev are not mounted in {ground.anchor}"
    return ""


def run_there(
    ground: Ground, argv: Sequence[str], *, timeout: float, stdin: bytes = b"", keep: Sequence[int] = (), environment: Mapping[str, str] = CLEAN
) -> Ended:  # fmt: skip
    """Run a program of the machine in its own root; ask `why_not` first. Its output is collected."""
    there = list(argv) if ground.live else [_chroot(), ground.anchor, *argv]
    return run(there, timeout=timeout, stdin=stdin, keep=keep, environment=environment, output_limit=OUTPUT_LIMIT)


def words_for(ground: Ground, command: str) -> str:
    """A command as a user would type it for this machine."""
    return f"sudo {command}" if ground.live else f"sudo chroot {shlex.quote(ground.anchor)} {command}"


def _chroot() -> str:
    return next((path for path in CHROOT if os.access(path, os.X_OK)), "")


def _weak(path: str, anchor: str) -> str:
    """Who else could change a file or swap a folder above it; empty: nobody."""
    inside = True
    while True:
        status = os.lstat(path)
        if status.st_uid != 0:
            return f"{path} belongs to user {status.st_uid}"
        # In a sticky folder above the machine's root nobody moves what is root's (/tmp, /var/tmp).
        sticky = not inside and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not sticky and not stat.S_ISLNK(status.st_mode):
            return f"{path} can be written by others than root"
        if path == "/":
            return ""
        inside = inside and path != anchor
        path = os.path.dirname(path)
