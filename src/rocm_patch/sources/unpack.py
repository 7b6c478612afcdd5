"""A release archive to a folder: every member looked at before it is written, nothing outside, no surprise in size.

Python's own filter for this came with 3.10.12, and a distribution's 3.11.2 has none.
"""

from __future__ import annotations

import errno
import itertools
import os
import tarfile
from collections.abc import Iterator
from typing import Final

from rocm_patch.errors import FormatError, RocmPatchError

_OURS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENOMEM))
"""What this machine may say while it writes. All else an archive brings about: a name twice, a name of 300 letters."""
MEMBERS: Final = 500_000
BYTES: Final = 16 << 30
"""A Linux tree has 100 000 members and 1.5 GiB."""


def unpack(archive: str, folder: str) -> None:
    """Unpack a tar archive into a new folder; a top folder that all members share is left out.

    Links come last, so that no file is ever written through one, in whatever order, letters or disguise their names come.

    Raises:
        FormatError: it is no archive, or a member does not stay inside.
    """
    os.mkdir(folder, 0o700)
    folder = os.path.realpath(folder)
    try:
        with tarfile.open(archive) as tar:
            members = list(_checked(tar, archive))
            for _ in range(BYTES >> 20):  # gzip's checksum is in its last bytes, which tarfile never reads: a changed byte went through
                if tar.fileobj is None or not tar.fileobj.read(1 << 20):
                    break
            top = _top(members)
            for member in sorted(members, key=tarfile.TarInfo.issym):
                name = os.path.normpath(member.name)
                path = os.path.relpath(name, top) if top else name
                if member.issym() and leads_out(os.path.dirname(path), member.linkname):
                    raise FormatError(f"{archive}: the link {member.name!r} leads outside")
                if path != ".":
                    _write(tar, member, os.path.join(folder, path), top, folder)
    except RocmPatchError:
        raise
    except Exception as error:  # what decoders raise for bytes that mean harm is written nowhere: zlib.error, OverflowError, RecursionError
        if isinstance(error, OSError) and error.errno in _OURS:
            raise
        raise FormatError(f"{archive} is no archive that can be unpacked: {error}") from error


def leads_out(at: str, leads: str) -> bool:
    """True if a link in the folder `at` of a tree can lead out of the tree: by itself, or with others.

    What goes up after a name may start from where another link leads, and is refused: if all links only go up from the real folder
    in which they lie, and not above the top, then no chain of them gets out.
    """
    parts = [part for part in leads.split("/") if part not in ("", ".")]
    up = len(list(itertools.takewhile("..".__eq__, parts)))
    depth = len([part for part in at.split("/") if part not in ("", ".")])
    return leads.startswith("/") or up > depth or ".." in parts[up:]


def _checked(tar: tarfile.TarFile, archive: str) -> Iterator[tarfile.TarInfo]:
    total = 0
    for count, member in enumerate(tar, 1):
        if not _stays(member.name) or "\0" in member.name:
            raise FormatError(f"{archive}: the member {member.name!r} would lie outside")
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise FormatError(f"{archive}: the member {member.name!r} is neither a file, a folder nor a link")
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
    parent = os.path.dirname(path)
    if member.issym() and os.path.realpath(parent) != parent:
        raise FormatError(f"the member {member.name!r} goes through a link")
    os.makedirs(parent, mode=0o700, exist_ok=True)
    if member.isdir():
        os.makedirs(path, mode=0o700, exist_ok=True)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        name = os.path.normpath(member.linkname)
        first = os.path.join(folder, os.path.relpath(name, top) if top else name)
        if not os.path.isfile(first):
            raise FormatError(f"the hard link {member.name!r} is to no file before it")
        os.link(first, path, follow_symlinks=False)
    else:
        source = tar.extractfile(member)
        if source is None:
            raise FormatError(f"{member.name!r} has no bytes")
        with source, open(path, "xb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
        os.chmod(path, 0o755 if member.mode & 0o100 else 0o644)
        os.utime(path, (member.mtime, member.mtime))
