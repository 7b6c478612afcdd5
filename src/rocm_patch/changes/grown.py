"""Folders that a child fills for us, a venv: born with a marker, taken away by one rename, removed only if all in it is ours."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection
from typing import Final

from rocm_patch.changes.record import digest
from rocm_patch.errors import RefusedError
from rocm_patch.root import TEMPORARY_PREFIX, State, Tree, join, parent_of, temporary_name

MARKER: Final = ".rocm-patch"
"""In the folder; holds the id of the transaction that made it."""
CACHE: Final = "__pycache__"
"""Python writes these whenever somebody imports; they are nobody's work."""


def marker_of(tree: Tree, path: str) -> str:
    """The transaction that made the folder at a path of the tree; empty where it is not ours."""
    if tree.state_kind(path) != "folder":
        return ""
    state = tree.state(join(path, MARKER), limit=4096)
    return state.data.decode("ascii", "replace").strip() if state.kind == "file" else ""


def plant(tree: Tree, path: str, transaction: str, mode: int) -> None:
    """Make the folder with its marker, in one rename: it is never there without saying whose it is."""
    temporary = join(parent_of(path), temporary_name())
    tree.make_folder(temporary, mode)
    try:
        tree.create(join(temporary, MARKER), transaction.encode() + b"\n", 0o644)
        tree.sync(join(temporary, MARKER))
        tree.sync_folder(temporary)
        if tree.state_kind(path) != "absent":  # rename would replace an empty folder of somebody else's
            raise RefusedError(f"{path} has come into being meanwhile; it is not ours")
        tree.rename(temporary, path)
    except Exception:
        tree.remove_tree(temporary)
        raise
    tree.sync_folder(parent_of(path))


def tomb_of(path: str, transaction: str) -> str:
    """Where a transaction moves the folder before it is removed."""
    return join(parent_of(path), TEMPORARY_PREFIX + digest(f"{transaction} {path}".encode())[:16])


def set_aside(tree: Tree, path: str, transaction: str) -> None:
    """Take the folder out of reach, undone by `bring_back`."""
    tree.rename(path, tomb_of(path, transaction))
    tree.sync_folder(parent_of(path))


def bring_back(tree: Tree, path: str, transaction: str) -> None:
    """Undo `set_aside`."""
    tree.rename(tomb_of(path, transaction), path)
    tree.sync_folder(parent_of(path))


def clear_tomb(tree: Tree, path: str, transaction: str) -> None:
    """Remove what `set_aside` took away; may be repeated after a kill."""
    tomb = tomb_of(path, transaction)
    if tree.state_kind(tomb) == "folder":
        tree.remove_tree(tomb)
        tree.sync_folder(parent_of(path))


def clear_unborn(tree: Tree, path: str, transaction: str) -> None:
    """Remove what a killed `plant` of this transaction left beside the path."""
    for found in tree.temporaries(parent_of(path)):
        if tree.state_kind(found) == "folder" and (marker_of(tree, found) == transaction or _torn_marker(tree, found, transaction)):
            tree.remove_tree(found)
            tree.sync_folder(parent_of(path))


def _torn_marker(tree: Tree, folder: str, transaction: str) -> bool:
    """Whether a power cut left a folder with nothing but the beginning of this transaction's marker; such a one stayed for ever."""
    if tree.names(folder) != [MARKER]:
        return False
    state = tree.state(join(folder, MARKER), limit=4096)
    return state.kind == "file" and transaction.encode().startswith(state.data)


def manifest(tree: Tree, path: str) -> bytes:
    """Name, kind and digest of everything in a folder of the tree, less caches.

    By descriptor: a link that somebody puts in the place of a folder while we look is refused or listed, never followed.
    """
    found: dict[str, str] = {}
    with tree.opened(path) as top:
        for at, folders, files, here in os.fwalk(".", dir_fd=top, follow_symlinks=False, onerror=_raise):
            links = [name for name in folders if _is_link(name, here)]
            # Taken out before the walk goes on: it would open what they point to, and only then see that they are links.
            folders[:] = sorted(name for name in folders if name != CACHE and name not in links)
            for name in sorted([*files, *links]):
                found[os.path.normpath(os.path.join(at, name))] = _mark(name, here)
    return json.dumps(found, sort_keys=True, indent=0, ensure_ascii=True).encode()


def strangers(tree: Tree, path: str, known: bytes, without: Collection[str] = ()) -> list[str]:
    """What in a folder of the tree is not as the manifest says: additions and changes, not what is gone.

    `without`: paths in it that are accounted for elsewhere, with all below them.
    """
    ours = json.loads(known)
    now = json.loads(manifest(tree, path))
    below = tuple(f"{name}/" for name in without)
    return sorted(name for name, mark in now.items() if ours.get(name) != mark and name not in without and not name.startswith(below))


def sums(known: bytes) -> bytes:
    """The files of a manifest as `sha256sum -c` reads them; names with control characters are left out, which fails safe."""
    rows = json.loads(known).items()
    return "".join(f"{mark[5:]}  ./{path}\n" for path, mark in rows if mark.startswith("file ") and path.isprintable() and "\\" not in path).encode()


def counts(known: bytes) -> tuple[int, int]:
    """How many files and how many links a manifest has."""
    marks = list(json.loads(known).values())
    return sum(mark.startswith("file ") for mark in marks), sum(not mark.startswith("file ") for mark in marks)


def _is_link(name: str, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _mark(name: str, folder: int) -> str:
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return "link " + os.readlink(name, dir_fd=folder)
    if not stat.S_ISREG(mode):
        return "other"
    mark = hashlib.sha256()
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:
        while chunk := file.read(1 << 20):
            mark.update(chunk)
    return "file " + mark.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def folder_state(mode: int) -> State:
    """What the planted folder looks like from outside."""
    return State("folder", mode, os.geteuid(), os.getegid())
