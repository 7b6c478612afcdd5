"""Source patches that find their places by syntax: looked at, rendered as a diff, applied and taken back on any tree.

    sources = Sources("/usr/src/miopen")
    patch = find("miopen-batchnorm-gfx101x")
    outlook = examine(patch, sources)     # ready, applied, partly applied, upstream, foreign, refused
    render(outlook)                       # bytes of a unified diff
    apply(patch, sources)                 # RefusedError with the reasons, or what is done
    revert(patch, sources)

None of this asks whether a patch is wise: whoever calls looks at `patch.status`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rocm_patch.errors import RefusedError
from rocm_patch.sources import marks
from rocm_patch.sources.diff import unified
from rocm_patch.sources.outlook import Change, Outlook, Site, examine
from rocm_patch.sources.patch import Patch, find, load
from rocm_patch.sources.tree import Sources

__all__ = ["Change", "Outlook", "Patch", "Site", "Sources", "apply", "clear", "examine", "find", "load", "render", "revert"]


def render(outlook: Outlook) -> bytes:
    """The patch as a unified diff for this tree, from the files without it to the files with it."""
    return b"".join(unified(change.file, change.original, change.patched) for change in outlook.changes)


def apply(patch: Patch, sources: Sources) -> Outlook:
    """Make the edits; what is there already stays. Returns what was found before. Raises RefusedError with the reasons.

    Files are replaced one by one; an error takes those before it back, a kill leaves a tree that the next `apply` or `revert` ends.
    """
    outlook = examine(patch, sources)
    if outlook.state in ("refused", "foreign"):
        raise RefusedError(f"{patch.id} does not fit {sources.folder}: {'; '.join(outlook.reasons)}", _hint(patch, outlook))
    _write(sources, ((change.file, change.current, change.patched) for change in outlook.changes))
    return outlook


def revert(patch: Patch, sources: Sources) -> Outlook:
    """Take the edits back, to the byte. Returns what was found before. Raises RefusedError where they are not ours any more."""
    outlook = examine(patch, sources)
    if outlook.state == "refused" and any(change.current != change.original for change in outlook.changes):
        pass  # our marks are in order, only the text between them is of another version of the patch: that goes as well
    elif outlook.state == "refused":
        raise RefusedError(f"{patch.id} cannot be taken out of {sources.folder}: {'; '.join(outlook.reasons)}", _hint(patch, outlook))
    _write(sources, ((change.file, change.current, change.original) for change in outlook.changes))
    return outlook


def clear(sources: Sources, patterns: Iterable[str], kept: Collection[str]) -> None:
    """Take all edits of ours out of the files that end like one of the patterns, of whatever version, but those of the patches to be kept.

    Raises RefusedError where marks were changed by somebody: nothing is written then.
    """
    files = []
    for path in sources.find(patterns):
        now = without = sources.read(path)
        for name in sorted(marks.names(now) - set(kept)):
            without, _ = marks.strip(without, name)
        if left := sorted(marks.names(without) - set(kept)):
            who = ", ".join(left)
            raise RefusedError(f"{path}: what {who} wrote there was changed by somebody: it cannot be taken out", "start from other sources")
        files.append((path, now, without))
    _write(sources, files)


def _hint(patch: Patch, outlook: Outlook) -> str:
    if outlook.state == "foreign":
        return f"rocm-patch patches revert {patch.id} takes it away"
    return f"it is made for {patch.component} {patch.versions}; a tree of another shape needs a form of its own: docs/patches.md"


def _write(sources: Sources, files: Iterable[tuple[str, bytes, bytes]]) -> None:
    done: list[tuple[str, bytes, bytes]] = []
    try:
        for path, now, wanted in files:
            if now != wanted:
                sources.write(path, now, wanted)
                done.append((path, now, wanted))
    except BaseException:
        for path, now, wanted in reversed(done):
            sources.write(path, wanted, now)
        raise
