"""What is in a folder of libraries: one line for each file and link, `build` writes it and root copies nothing that it does not name.

file<TAB>0644 or 0755<TAB>sha256<TAB>path
link<TAB>-<TAB>target<TAB>path
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.root import join, parent_of

MANIFEST: Final = "manifest"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ROWS: Final = 100_000


@dataclass(frozen=True)
class Row:
    """One line of a manifest. `mark` is a file's sha256 or a link's target."""

    kind: str
    mode: int
    mark: str
    path: str


def manifest_of(folder: str) -> bytes:
    """Describe a staged folder of this machine, as `build` does it. The file `manifest` at its top is left out.

    Raises:
        RefusedError: something in it is neither a plain file nor a link that stays inside.
        FormatError: a name that is never installed, or nothing at all.
    """
    lines = []
    for at, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(at, name)))]:
            host = os.path.join(at, name)
            path = os.path.relpath(host, folder)
            if path == MANIFEST:
                continue
            if os.path.islink(host):
                target = os.readlink(host)
                if not _stays(path, target):
                    raise RefusedError(f"{path} -> {target} is a link that leads out of the folder")
                lines.append(f"link\t-\t{target}\t{path}")
            elif os.path.isfile(host):
                lines.append(f"file\t{'0755' if os.stat(host).st_mode & 0o100 else '0644'}\t{_mark(host)}\t{path}")
            else:
                raise RefusedError(f"{host} is neither a file nor a link")
    text = "".join(f"{line}\n" for line in sorted(lines)).encode("utf-8", "surrogateescape")
    parse(text)
    return text


def _mark(path: str) -> str:
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):  # a library may have 900 MiB
            value.update(chunk)
    return value.hexdigest()


def parse(data: bytes) -> tuple[Row, ...]:
    """Read a manifest.

    Raises:
        FormatError: a line that no manifest of ours has, or a path or link that leaves the folder.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("the manifest is not UTF-8") from error
    if lines.pop() or not lines or len(lines) > _ROWS:
        raise FormatError("the manifest is empty, too long, or its last line has no end")
    rows, places = list[Row](), set[str]()
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) != 4 or not line.replace("\t", "").isprintable():
            raise FormatError(f"the manifest's line {number} has not the four words of one")
        kind, mode, mark, path = parts
        good = mode in ("0644", "0755") and bool(_DIGEST.fullmatch(mark)) if kind == "file" else kind == "link" and mode == "-" and _stays(path, mark)
        if not good or not _inside(path) or path in places:
            raise FormatError(f"the manifest's line {number} is not one that is ever installed: {line[:200]!r}")
        places.add(path)
        rows.append(Row(kind, int(mode, 8) if kind == "file" else 0o777, mark, path))
    above = {"/".join(path.split("/")[:depth]) for path in places for depth in range(1, path.count("/") + 1)}
    if above & places:
        raise FormatError(f"the manifest has {min(above & places)} as a folder and as something else")
    links = {row.path for row in rows if row.kind == "link"}
    for row in rows:
        if row.kind == "link" and (way := _through(row.path, row.mark) & links):
            raise FormatError(
                f"the manifest's link {row.path} -> {row.mark} goes through another, {min(way)}: where it ends cannot be told from its words"
            )
    return tuple(rows)


def _inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and os.path.normpath(path) == path and path.split("/", 1)[0] not in ("..", ".", MANIFEST)


def _through(path: str, target: str) -> set[str]:
    """The folders on a link's way: `..` behind one that is a link itself is above where that leads, which may be out of the prefix."""
    found, at = set[str](), parent_of(path)
    for word in target.split("/")[:-1]:
        at = parent_of(at) if word == ".." else join(at, word) if word not in ("", ".") else at
        found.add(at)
    return found


def _stays(path: str, target: str) -> bool:
    return bool(target) and not target.startswith("/") and os.path.normpath(join(parent_of(path), target)).split("/")[0] != ".."
