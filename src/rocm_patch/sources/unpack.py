"""A release archive to a folder: every member looked at before it is written, nothing outside, no surprise in size.

Python's own filter for this came with 3.10.12, and a distribution's 3.11.2 has none.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Final

from rocm_patch.errors import FormatError

MEMBERS: Final = 500_000
BYTES: Final = 16 << 30
"""A Linux tree has 100 000 members and 1.5 GiB."""


def unpack(archive: str, folder: str) -> None:
    """Unpack a tar archive into a new folder; a top folder that all members share is left out.

    Raises:
        FormatError: it is no archive, or a member does not stay inside.
    """
    os.mkdir(folder, 0o700)
    try:
        with tarfile.open(archive) as tar:
            members = list(_checked(tar, archive))
            top = _top(members)
            for member in members:
                name = os.path.normpath(member.name)
                path = os.path.relpath(name, top) if top else name
                if member.issym() and not _stays(os.path.join(os.path.dirname(path), member.linkname)):
                    raise FormatError(f"{archive}: the link {member.name!r} leads outside")
                if path != ".":
                    _write(tar, member, os.path.join(folder, path), top, folder)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise FormatError(f"{archive} is no archive that can be unpacked: {error}") from error


def _checked(tar: tarfile.TarFile, archive: str) -> Iterator[tarfile.TarInfo]:
    total, links = 0, set[str]()
    for count, member in enumerate(tar, 1):
        name = os.path.normpath(member.name)
        if not _stays(member.name) or "\0" in member.name:
            raise FormatError(f"{archive}: the member {member.name!r} would lie outside")
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise FormatError(f"{archive}: the member {member.name!r} is neither a file, a folder nor a link")
        # A link out, and after it a file through the link: the old way to write anywhere.
        above = {name[:at] for at, letter in enumerate(name) if letter == "/"}
        if above & links or name in links:
            raise FormatError(f"{archive}: the member {member.name!r} goes through a link")
        if member.issym():
            if member.linkname.startswith("/") or not _stays(os.path.join(os.path.dirname(name), member.linkname)):
                raise FormatError(f"{archive}: the link {member.name!r} leads outside")
            links.add(name)
        if member.islnk() and not _stays(member.linkname):
            raise FormatError(f"{archive}: the link {member.name!r} leads outside")
        total += member.size
        if count > MEMBERS or total > BYTES:
            raise FormatError(f"{archive} holds more than {MEMBERS} members or {BYTES >> 30} GiB: this is no source")
        yield member


def _stays(path: str) -> bool:
    return not path.startswith("/") and os.path.normpath(path).split("/", 1)[0] != ".."


def _top(members: list[tarfile.TarInfo]) -> str:
    tops = {os.path.normpath(member.name).split("/", 1)[0] for member in members} - {"."}
    only = next(iter(tops)) if len(tops) == 1 else ""
    return only if only and all(member.isdir() for member in members if os.path.normpath(member.name) == only) else ""


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, top: str, folder: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if member.isdir():
        os.makedirs(path, mode=0o700, exist_ok=True)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        name = os.path.normpath(member.linkname)
        os.link(os.path.join(folder, os.path.relpath(name, top) if top else name), path, follow_symlinks=False)
    else:
        source = tar.extractfile(member)
        if source is None:
            raise FormatError(f"{member.name!r} has no bytes")
        with source, open(path, "xb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
        os.chmod(path, 0o755 if member.mode & 0o100 else 0o644)
        os.utime(path, (member.mtime, member.mtime))
