"""Both versions of a file that somebody changed after us: what we left, and what is there now."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from rocm_patch.changes.journal import Journal
from rocm_patch.changes.record import Record
from rocm_patch.errors import RocmPatchError
from rocm_patch.root import State

SHOWN: Final = 64 << 10
"""Bytes of a version that are compared for people; an initramfs is named and not shown."""


def difference(journal: Journal, selected: Sequence[Record], path: str) -> str:
    """A unified diff from what we left at a path to what is there; words where it is no text. `selected` is newest first."""
    found = next(((record, entry) for record in selected for entry in record.entries if entry.path == path), None)
    if found is None:
        return f"# {path}: somebody put it there\n"
    record, entry = found
    try:
        now = journal.tree.state(journal.ground.at(path), SHOWN)
        ours = State(entry.after.kind) if entry.after.kind in ("grown", "folder") else journal.content(record, entry.after)
    except (OSError, RocmPatchError):
        return f"# {path}: it is not as we left it, and cannot be compared here\n"
    if (now.kind, ours.kind) != ("file", "file"):
        return f"# {path}: we left {_named(ours)}, and now there is {_named(now)}\n"
    notes = (
        "" if (now.mode, now.uid, now.gid) == (ours.mode, ours.uid, ours.gid) else f"# {path}: we left {_owner(ours)}, and now it is {_owner(now)}\n"
    )
    if max(len(now.data), len(ours.data)) > SHOWN or b"\0" in now.data + ours.data:
        return notes + f"# {path}: {len(ours.data)} bytes were left, and {len(now.data)} other bytes are there\n"
    old, new = (data.decode("utf-8", "replace").splitlines(keepends=True) for data in (ours.data, now.data))
    lines = difflib.unified_diff(old, new, f"{path} (as rocm-patch left it)", f"{path} (now)")
    return notes + "".join(line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n" for line in lines)


def _named(state: State) -> str:
    return {"absent": "nothing", "link": f"a link to {state.target}", "grown": "a folder of ours"}.get(state.kind, f"a {state.kind}")


def _owner(state: State) -> str:
    return f"mode {state.mode:04o} of {state.uid}:{state.gid}"
