"""Paths to device code: folders to files, files and the members of wheels to readers, what they find to items.

To add a container format: one module with NAME, `recognise` and `read`, and its word in FORMATS.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rocm_patch.errors import FormatError
from rocm_patch.images import aotriton, code_object, fatbin, kpack, miopen, split, standalone, tensile
from rocm_patch.images.files import File, open_file
from rocm_patch.images.source import Item, Source, Unread

if TYPE_CHECKING:
    import zipfile

HEAD: Final = 64
"""Bytes by which a format is recognised."""
FILE_LIMIT: Final = 1 << 20
"""Files in the folders of one call."""
_NEVER: Final = (
    ".py",
    ".pyc",
    ".pyi",
    ".h",
    ".hpp",
    ".cuh",
    ".txt",
    ".json",
    ".md",
    ".rst",
    ".html",
    ".css",
    ".js",
    ".svg",
    ".png",
    ".yaml",
    ".toml",
)
"""Endings of files that are not even opened: nine in ten of an environment."""
_CATALOGUES: Final = ("TensileLibrary_lazy_", "Kernels.so-000-", tensile.MANIFEST)
_ZIP: Final = b"PK\x03\x04"
_ARCHIVES: Final = (".whl", ".zip", ".egg")


class Format(Protocol):
    """What a module of a container format offers."""

    NAME: str

    def recognise(self, path: str, head: bytes) -> bool:
        """Whether a file is of this format, by its path and its first 64 bytes."""

    def read(self, source: Source, path: str) -> Iterator[Item]:
        """The code in it."""


FORMATS: Final = (kpack, tensile, aotriton, miopen, standalone, fatbin)
"""The first that recognises a file reads it: what folders mean goes before what bytes mean."""


@dataclass(frozen=True)
class Candidate:
    """A file that may hold device code, or a `why` it could not be looked at; `size` in bytes."""

    path: str
    size: int = 0
    why: str = ""


def format_of(path: str, head: bytes) -> Format | None:
    """The format of a file, None where it cannot hold device code."""
    return next((known for known in FORMATS if known.recognise(path, head)), None)


def candidates(paths: Iterable[str]) -> Iterator[Candidate]:
    """Files below paths that some format recognises, in sorted order, and what could not be opened. Links in folders are passed over.

    A folder of Tensile's is a candidate of its own, after its files: its catalogues say what is missing from it.
    """
    left = FILE_LIMIT
    for path in paths:
        if not os.path.isdir(path):
            yield from _look(path, named=True)
            continue
        for found in _below(path):
            left -= 1
            if left < 0:
                yield Candidate(path, why=f"more than {FILE_LIMIT} files; the rest is not read")
                return
            if isinstance(found, Candidate):
                yield found
            elif not found.endswith(_NEVER):
                yield from _look(found, named=False)


def items(path: str) -> Iterator[tuple[str, Item]]:
    """Everything in one candidate; the member's name goes with what lies in a wheel. Sources are valid until the next step."""
    if os.path.isdir(path):
        with contextlib.ExitStack() as files:
            for gap in tensile.gaps(_names(path), lambda name: files.enter_context(open_file(os.path.join(path, name)))):
                yield "", gap
        return
    try:
        with open_file(path) as file:
            head = file.read(0, min(HEAD, file.size))
            known = format_of(path, head)
            if known is None and head.startswith(_ZIP):
                yield from _members(file)
            elif known is not None:
                for item in _read(known, file, path):
                    yield "", item
                for item in _split(file, os.path.realpath(path)):
                    yield "", item
    except FormatError as error:
        yield "", Unread("object", "", error.what)


def tell(item: Item, count: bool) -> tuple[tuple[str, str, int, int] | None, tuple[str, str] | None]:
    """An item in plain values: (store, target, kernels or -1, bytes), and (store, why) of what could not be read."""
    if isinstance(item, Unread):
        return None, (item.store, f"{item.inside}: {item.why}" if item.inside else item.why)
    try:
        size = item.data.size
        kernels = item.kernels
        if kernels is None:
            # SPIR-V is compiled on the user's machine: it has no kernels yet.
            kernels = code_object.count(item.data)[1] if count and item.target != "spirv" else -1
    except FormatError as error:
        where = f"{item.inside}: " if item.inside else ""
        return (item.store, item.target, -1, 0), (item.store, f"{where}{item.target}: {error.what}")
    return (item.store, item.target, kernels, size), None


def _below(folder: str) -> Iterator[str | Candidate]:
    """Files below a folder in sorted order, without recursion: folders of strangers can be a thousand deep."""
    waiting: list[str | Candidate] = [folder + os.sep]
    while waiting:
        path = waiting.pop()
        if isinstance(path, Candidate) or not path.endswith(os.sep):
            yield path
            continue
        folder = path.rstrip(os.sep) or os.sep
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield Candidate(folder, why=error.strerror or str(error))
            continue
        if any(entry.name.startswith(_CATALOGUES) for entry in listed):
            waiting.append(Candidate(folder))
        for entry in listed:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path + os.sep)
                elif entry.is_file(follow_symlinks=False):
                    waiting.append(entry.path)


def _look(path: str, *, named: bool) -> Iterator[Candidate]:
    try:
        with open_file(path) as file:
            head = file.read(0, min(HEAD, file.size))
            if format_of(path, head) or (head.startswith(_ZIP) and (named or path.endswith(_ARCHIVES))):
                yield Candidate(path, file.size)
            elif named:
                yield Candidate(path, why="neither a library nor a wheel, nor anything else that holds device code")
    except FormatError as error:
        if named or not stat.S_ISREG(_mode(path)) or not path.endswith(_NEVER):
            yield Candidate(path, why=error.what)


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _read(known: Format, source: Source, path: str) -> Iterator[Item]:
    try:
        yield from known.read(source, path)
    except FormatError as error:
        # Readers tell what is broken themselves; this is for what they left out.
        yield Unread(known.NAME, "", error.what)


def _split(source: Source, path: str) -> Iterator[Item]:
    """What a library of a split package points to, beside it on disk."""
    with contextlib.ExitStack() as opened:
        try:
            said = split.reference(source)
        except FormatError as error:
            yield Unread(kpack.NAME, "", error.what)
            return
        if said is not None:
            yield from split.follow(said, os.path.dirname(path), _names, lambda place: opened.enter_context(open_file(place)))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _members(file: File) -> Iterator[tuple[str, Item]]:
    from rocm_patch.images import archive  # zipfile is a tenth of the start of a child, and most files are none

    with archive.opened(file) as whole:
        names = [row.filename for row in whole.infolist()]
        for row in whole.infolist():
            if row.is_dir() or row.filename.endswith(_NEVER):
                continue
            try:
                yield from _member(file, whole, row, names)
            except FormatError as error:
                yield row.filename, Unread("object", "", error.what)


def _member(file: File, whole: zipfile.ZipFile, row: zipfile.ZipInfo, names: list[str]) -> Iterator[tuple[str, Item]]:
    from rocm_patch.images import archive

    known = format_of(row.filename, archive.head(whole, row, HEAD))
    if known is None:
        return
    source = archive.member(file, whole, row)
    for item in _read(known, source, row.filename):
        yield row.filename, item

    def listed(folder: str) -> list[str]:
        return [posixpath.basename(name) for name in names if posixpath.dirname(name) == folder]

    try:
        said = split.reference(source)
        if said is not None:
            # Device packages are wheels of their own: here it is only told, and the installed pair is read whole.
            for item in split.follow(said, posixpath.dirname(row.filename), listed, lambda name: archive.member(file, whole, whole.getinfo(name))):
                yield row.filename, item
    except FormatError as error:
        yield row.filename, Unread(kpack.NAME, "", error.what)
