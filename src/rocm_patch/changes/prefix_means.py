"""Whether the libraries of a prefix fit a torch, and what brings the loader to take them: LD_LIBRARY_PATH, LD_PRELOAD, or neither."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes.prefix_reach import STACK, SYSTEM, Library, Place, stem
from rocm_patch.errors import RefusedError

CUTTING: Final = (":", ";", "$")
"""What ends a path in LD_LIBRARY_PATH, or begins a word that the loader puts another in the place of ($LIB): ld.so(8)."""

# ------------------------------------------------------------------ do they fit


def misfits(given: Sequence[Library], there: Place) -> tuple[str, ...]:
    """Why these libraries do not go with that place, naming both majors; empty: they do, as far as can be told.

    A library's own number is one half: MIOpen's has been 1 in every release. The other is what it needs: a second HIP runtime in
    the process has its own streams and memory, and the first call that takes a pointer of the other's fails or crashes.
    """
    own = {library.soname for library in given}
    said = []
    for library in given:
        used = there.uses.get(stem(library.soname), frozenset())
        if used and library.soname not in used:
            said.append(f"this is {library.soname}, and {there.words} uses {_listed(used)}")
        for name in filter(STACK.match, library.needed):
            used = there.uses.get(stem(name), frozenset())
            if used and name not in used | own and any(key != stem(key) for key in used):
                said.append(f"{library.soname} needs {name}, and {there.words} uses {_listed(used)}")
    return tuple(dict.fromkeys(said))


def concerned(given: Sequence[Library], there: Place) -> bool:
    """Whether the place has one of these libraries at all."""
    return any(stem(library.soname) in there.uses for library in given)


def check(given: Sequence[Library], places: Sequence[Place]) -> tuple[str, ...]:
    """What does not fit, in words, where something else does.

    Raises:
        RefusedError: there is no place that they fit, and one that they do not.
    """
    found = {there.site: misfits(given, there) for there in places if concerned(given, there)}
    wrong = tuple(line for lines in found.values() for line in lines)
    if found and all(found.values()):
        hint = "build the version that goes with it (--version), or name the torch that it is for: --set torch=VENV"
        raise RefusedError(f"{'; '.join(wrong)}: programs would not take it, or would load two stacks at once", hint)
    return wrong


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))


# ------------------------------------------------------------------ how they get there


@dataclass(frozen=True)
class Means:
    """What makes one torch take the libraries of a folder."""

    words: str
    preload: tuple[str, ...] = ()
    """For LD_PRELOAD, in this order; the folder is first in LD_LIBRARY_PATH in any case."""
    folders: tuple[str, ...] = ()
    """What these libraries need lies here: for the end of LD_LIBRARY_PATH."""
    lacks: str = ""
    """Why nothing of ours reaches it; empty: it is reached."""


def means(given: Sequence[Library], there: Place, folder: str) -> Means:
    """How `run --prefix FOLDER` reaches a place, or that it does not."""
    if there.site == SYSTEM:
        return Means("programs that take ROCm from the system take it by LD_LIBRARY_PATH, which `rocm-patch run --prefix` sets")
    by_path = f"{there.words} takes it by LD_LIBRARY_PATH, which `rocm-patch run --prefix` sets"
    wanted = [library for library in given if stem(library.soname) in there.uses]
    if not wanted and there.asks.keys() <= there.held.keys():
        return Means("", lacks=f"no library of {there.words} asks for {', '.join(sorted(library.soname for library in given)) or 'any'}")
    own, preload, brought = {library.soname for library in given}, list[str](), list[str]()
    for library in wanted:
        key = stem(library.soname)
        names = sorted(there.asks[key])
        if missing := [name for name in names if name not in library.names]:
            return _by_hand(there, folder, library, f"it asks for {', '.join(missing)}, and the folder has no file of that name")
        brought += [there.brought[name] for name in filter(STACK.match, library.needed) if name in there.brought and name not in own]
        if key in there.held:
            # By the name that is asked for: the number is in the file. Names without it must stand there as they are.
            preload += [name for name in names if name != library.soname] or [library.soname]
    if not preload:
        folders = tuple(dict.fromkeys(path.rpartition("/")[0] for path in brought))
        if broken := next((path for path in folders if any(mark in path for mark in CUTTING)), ""):
            return _by_hand(there, folder, wanted[0], f"LD_LIBRARY_PATH cannot name {broken}")
        return Means(by_path, folders=folders)
    # What it needs by number is there under another name, and in any case not yet loaded when LD_PRELOAD is read.
    preload = list(dict.fromkeys([*brought, *preload]))
    if broken := next((word for word in preload if any(mark in word for mark in (" ", *CUTTING))), ""):
        return _by_hand(there, folder, wanted[0], f"LD_PRELOAD cannot name {broken}")
    kept = sorted(there.held[key] for library in wanted if (key := stem(library.soname)) in there.held)
    how = "opened by its path from Python" if any(stem(library.soname) in there.opened for library in wanted) else "held by DT_RPATH"
    words = f"{there.words} has its own, {how}: {', '.join(kept)}. LD_LIBRARY_PATH does nothing there; `rocm-patch run --prefix` sets LD_PRELOAD"
    return Means(words, tuple(preload))


def _by_hand(there: Place, folder: str, library: Library, why: str) -> Means:
    own, lacks = there.held.get(stem(library.soname), ""), f"nothing of ours reaches {there.words}: {why}"
    if own:
        place, _, name = own.rpartition("/")
        aside = shlex.quote(f"{place}/before-{name}")  # rocm_sdk takes the first name that begins as the library's
        link = f"mv {shlex.quote(own)} {aside} && ln -s {shlex.quote(f'{folder}/lib/{library.soname}')} {shlex.quote(own)}"
        lacks += f". By hand: {link}; back: mv -f {aside} {shlex.quote(own)}"
    return Means("", lacks=lacks)
