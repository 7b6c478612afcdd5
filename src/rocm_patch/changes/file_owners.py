"""Which package a file belongs to, and whether it still stands as the package brought it: dpkg, pacman, rpm.

What a package brought is the package's to change. A configuration file that somebody edited since is the administrator's.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError
from rocm_patch.model import Unknown
from rocm_patch.root import Root
from rocm_patch.run import run

_LIMIT: Final = 64 << 20
_DPKG: Final = "/var/lib/dpkg"
_PACMAN: Final = "/var/lib/pacman/local"
_RPM: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm", "/usr/share/rpm")
_RPM_FILES: Final = ("rpmdb.sqlite", "Packages", "Packages.db")
_RPM_PROGRAM: Final = "/usr/bin/rpm"
_RPM_CONFIG: Final = 1


def refuse_packaged(path: str, data: bytes, ground: Ground) -> None:
    """Leave what a package brought to the package.

    Raises:
        RefusedError: the file is a package's and no configuration file, or stands as the package brought it; or nobody can tell.
    """
    root = Root(ground.anchor)
    for find in (_dpkg, _pacman, _rpm):
        found = find(root, path)
        if found is None:
            continue
        package, marks = found
        if not marks:
            raise RefusedError(f"{path} belongs to the package {package}, whose next update puts it back; it stays as it is")
        if any(_mark(data, mark) == mark for mark in marks):
            raise RefusedError(f"{path} stands as the package {package} brought it, so the line is the package's own; it stays as it is")


def _mark(data: bytes, like: str) -> str:
    name = {32: "md5", 64: "sha256", 40: "sha1"}.get(len(like), "sha256")
    return hashlib.new(name, data, usedforsecurity=False).hexdigest()


def _read(root: Root, path: str) -> bytes:
    answer = root.read(path, _LIMIT)
    if isinstance(answer, Unknown):
        raise RefusedError(f"{path} cannot be read, so nobody can say whose files are whose; nothing was changed")
    return answer.value or b""


def _dpkg(root: Root, path: str) -> tuple[str, tuple[str, ...]] | None:
    """(package, digest of the conffile as it came) or None. No digest: it is no conffile."""
    line = b"\n" + path.encode() + b"\n"
    for name in root.list(f"{_DPKG}/info"):
        if name.endswith(".list") and line in b"\n" + _read(root, f"{_DPKG}/info/{name}"):
            package = name[: -len(".list")]
            start = b"\n " + path.encode() + b" "
            status = _read(root, f"{_DPKG}/status")
            rows = [piece.split(b"\n", 1)[0].split() for piece in status.split(start)[1:]]
            return package, tuple(row[0].decode("ascii", "replace") for row in rows if row and b"obsolete" not in row)
    return None


def _pacman(root: Root, path: str) -> tuple[str, tuple[str, ...]] | None:
    for name in root.list(_PACMAN):
        text = _read(root, f"{_PACMAN}/{name}/files")
        files, _, backup = text.partition(b"%BACKUP%\n")
        if path[1:].encode() in files.split(b"\n"):
            rows = [row.split(b"\t") for row in backup.split(b"\n") if row.startswith(path[1:].encode() + b"\t")]
            return name.rsplit("-", 2)[0], tuple(row[1].decode("ascii", "replace") for row in rows)
    return None


def _check_roots(root: Root, folder: str) -> None:
    """As root a program of ours parses this database: one that others can write would be their input to it."""
    for path in (folder, *(f"{folder}/{name}" for name in root.list(folder))):
        there = os.lstat(root.host(path))
        if there.st_uid != 0 or there.st_mode & 0o022:
            raise RefusedError(f"{path} is not root's alone, so nobody can say whose files are whose; nothing was changed", "do it without root")


def _rpm(root: Root, path: str) -> tuple[str, tuple[str, ...]] | None:
    folder = next((folder for folder in _RPM if set(root.list(folder)) & set(_RPM_FILES)), "")
    if not folder:
        return None
    if not root.live and os.geteuid() == 0:
        _check_roots(root, folder)
    if not os.access(_RPM_PROGRAM, os.X_OK):
        raise RefusedError(f"{folder} says whose files are whose, and there is no {_RPM_PROGRAM} to read it; nothing was changed")
    where = [] if root.live else ["--dbpath", root.host(folder)]
    words = "[%{=NAME}\t%{FILENAMES}\t%{FILEFLAGS}\t%{FILEDIGESTS}\n]"
    ended = run([_RPM_PROGRAM, *where, "-q", "--queryformat", words, "--whatprovides", path] if root.live else
                [_RPM_PROGRAM, *where, "-qa", "--queryformat", words], timeout=120, output_limit=_LIMIT)  # fmt: skip
    if ended.code not in (0, 1) or ended.timed_out:
        raise RefusedError(f"{_RPM_PROGRAM} cannot read {folder}: {ended.text}; nothing was changed")
    for line in ended.out.decode("utf-8", "replace").split("\n"):
        parts = line.split("\t")
        if len(parts) == 4 and parts[1] == path:
            return parts[0], (parts[3],) if int(parts[2]) & _RPM_CONFIG else ()
    return None
