"""A folder of sources: found by the ends of paths, read and written by descriptor, no link ever followed."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import stat
from collections.abc import Iterable
from typing import Final

from rocm_patch.errors import FormatError, RefusedError, RocmPatchError, UsageError
from rocm_patch.root import Tree
from rocm_patch.sources.syntax import LIMIT

ENTRIES: Final = 2_000_000
"""Names that are looked at. A Linux tree has a hundred thousand."""


class Sources:
    """The user's source tree. Paths are relative to it, with '/'."""

    def __init__(self, folder: str) -> None:
        """Raises UsageError if there is no such folder. The folder itself may be named through links, as users do."""
        if not os.path.isdir(folder):
            raise UsageError(f"--source {folder}: there is no such folder")
        self.folder = os.path.realpath(folder)
        self._tree = Tree(self.folder)
        self._names: tuple[str, ...] | None = None

    def find(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Regular files whose path ends like one of the patterns. Links and hidden folders (.git, quilt's .pc) are left out."""
        wanted = [pattern.split("/") for pattern in patterns]
        return tuple(path for path in self._paths() if any(self.ends(path, parts) for parts in wanted))

    @staticmethod
    def ends(path: str, pattern: list[str]) -> bool:
        """True if the last parts of a path fit a pattern, part by part."""
        parts = path.split("/")[-len(pattern) :]
        return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises FormatError for what is no readable regular file of bearable size."""
        try:
            state = self._tree.state("/" + path, LIMIT + 1)
        except (OSError, RocmPatchError) as error:
            raise FormatError(f"{path} cannot be read: {error}") from error
        if state.kind != "file":
            raise FormatError(f"{path} is no regular file")
        return state.data

    def write(self, path: str, before: bytes, after: bytes) -> None:
        """Put a file in the place of itself. Raises RefusedError if it is no longer what it was."""
        try:
            state = self._tree.state("/" + path, LIMIT + 1)
            if state.kind != "file" or state.data != before:
                raise RefusedError(f"{path} changed meanwhile", "try again")
            self._tree.put("/" + path, dataclasses.replace(state, data=after))
            self._tree.sweep_temporaries("/" + path.rpartition("/")[0])  # what an earlier kill left here
        except OSError as error:
            raise RefusedError(f"{path} cannot be written: {error.strerror or error}", "the folder must be yours") from error

    def _paths(self) -> tuple[str, ...]:
        if self._names is None:
            self._names = tuple(sorted(self._walk()))
        return self._names

    def _walk(self) -> list[str]:
        found, folders, seen = [], [""], 0
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(self.folder, folder)))
            except OSError as error:
                raise FormatError(f"{folder or '.'} cannot be read: {error.strerror or error}") from error
            seen += len(entries)
            if seen > ENTRIES:
                raise FormatError(f"more than {ENTRIES} names below {self.folder}: this is no source tree")
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except OSError:
                    continue  # gone meanwhile
                if stat.S_ISDIR(mode):
                    if not entry.name.startswith("."):
                        folders.append(path)
                elif stat.S_ISREG(mode):
                    found.append(path)
        return found
