"""A folder of libraries, one for each version, and the one link that selects it.

    BASE/current                            -> NAME-VERSION-DIGEST/prefix
    BASE/NAME-VERSION-DIGEST/manifest       what is in it; DIGEST is the beginning of its sha256
    BASE/NAME-VERSION-DIGEST/prefix/        lib/, share/, ..., there whole by one rename

BASE is /opt/rocm-patched, or `prefixes` in our folder of the user's data. What is copied was built and staged elsewhere, as
a user: a step names the staged folder and the digest of its manifest, and every byte is checked against that on the way.
A step also names whom it is for: site folders of torches, or the system. What fits none of them is refused (`prefix_means`).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Final

from rocm_patch.changes import grown, prefix_means, prefix_reach, prefix_users
from rocm_patch.changes.kind import NOTE, Change, Held, Kind, Look, Tables, Work
from rocm_patch.changes.places import Ground
from rocm_patch.changes.prefix_manifest import MANIFEST, Row, parse
from rocm_patch.changes.record import digest
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import TEMPORARY_PREFIX, Root, State, Tree, join

SYSTEM_BASE: Final = "/opt/rocm-patched"
CURRENT: Final = "current"
PREFIX: Final = "prefix"
FILE_LIMIT: Final = 1 << 30
"""Bytes of one file: the largest library of ROCm that we know has some 900 MiB."""
_WORDS: Final = {
    "name": re.compile(r"[a-z0-9][a-z0-9.+_]{0,31}"),
    "version": re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,47}"),  # what `build --version` takes
    "sha256": re.compile(r"[0-9a-f]{64}"),
}


# ------------------------------------------------------------------ validate


def validate(step: Step, _tables: Tables) -> None:
    """Check the shape of a step's words.

    Raises:
        RefusedError: one is missing or is no name that we would make a folder of.
    """
    for key, shape in _WORDS.items():
        words = step.parameters.get(key, ())
        if len(words) != 1 or not shape.fullmatch(words[0]):
            hint = "--set name=miopen --set version=6.4.3 --set sha256=DIGEST-OF-MANIFEST --set source=/STAGED/FOLDER"
            raise RefusedError(f"remedy {step.remedy}: {key} is missing or is not one", hint)
    source = step.parameters.get("source", ())
    if len(source) > 1 or not all(map(_absolute, source)):
        raise RefusedError(f"remedy {step.remedy}: source is one absolute path")
    if not all(site == prefix_reach.SYSTEM or _absolute(site) for site in step.parameters.get("torch", ())):
        raise RefusedError(f"remedy {step.remedy}: torch is the site folder of one, or {prefix_reach.SYSTEM!r}")


def _absolute(path: str) -> bool:
    return path.startswith("/") and os.path.normpath(path) == path and "\0" not in path


# ------------------------------------------------------------------ render


def base_in(ground: Ground) -> str:
    """Where the versions lie, as on that machine."""
    return SYSTEM_BASE if ground.scope == "system" else f"{ground.data}/prefixes"


def folder_of(step: Step, ground: Ground) -> str:
    """The folder of one version."""
    name, version, mark = (step.parameters[key][0] for key in ("name", "version", "sha256"))
    return f"{base_in(ground)}/{name}-{version}-{mark[:12]}"


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """The version's folder, unless it is there, and the link.

    Raises:
        RefusedError: two at once, no staged folder with this manifest, libraries that fit nobody, or something that is not ours
            in the way.
        FormatError: a manifest that is none.
    """
    if len(steps) > 1:
        raise RefusedError("one version at a time: the link selects one")
    folder, current = folder_of(steps[0], look.ground), f"{base_in(look.ground)}/{CURRENT}"
    at = look.ground.at(folder)
    if look.tree.state_kind(at) == "absent":
        _manifest(steps[0], look.ground)
        mode = 0o755 if look.ground.scope == "system" else 0o700
        first = Change(folder, grown.folder_state(mode), grown=True)
    elif digest(look.tree.state(join(at, MANIFEST)).data) == steps[0].parameters["sha256"][0]:
        first = Change(folder, look.now(folder))
    else:
        raise RefusedError(f"{folder} is there and does not hold what its name says; it stays as it is", f"look at it: ls -la {folder}")
    prefix_means.check(_libraries(steps[0], look), _places(steps[0], look.ground))
    now = look.now(current)
    if now.kind not in ("absent", "link"):
        raise RefusedError(f"{current} is a {now.kind} and no link of ours; it stays as it is")
    target = f"{folder.rpartition('/')[2]}/{PREFIX}"
    after = now if (now.kind, now.target) == ("link", target) else State("link", 0o777, os.geteuid(), os.getegid(), target=target)
    return (first, Change(current, after))


def _source(step: Step, ground: Ground) -> tuple[Tree, str]:
    """The staged folder, to be read without following a link in it."""
    path = (step.parameters.get("source") or ("",))[0]
    if not path:
        hint = "name the folder in which it was staged: --set source=FOLDER"
        raise RefusedError(f"{folder_of(step, ground)} is not there yet, and the step names no staged folder", hint)
    if ground.live:
        return Tree("/"), os.path.realpath(path)[1:]
    return Tree(ground.anchor), path[1:]


def _manifest(step: Step, ground: Ground) -> bytes:
    tree, source = _source(step, ground)
    try:
        found = tree.state(join(source, MANIFEST))
    except OSError as error:
        raise RefusedError(f"the manifest of /{source} cannot be read: {error.strerror}") from error
    if found.kind != "file" or digest(found.data) != step.parameters["sha256"][0]:
        raise RefusedError(f"/{source}/{MANIFEST} is not there, or is not the one that the step names by its sha256", "make a new plan")
    parse(found.data)
    return found.data


# ------------------------------------------------------------------ whom it reaches


def also(steps: Sequence[Step], look: Look) -> tuple[str, ...]:
    """What a plan says of each torch: by what means it takes these libraries, or that nothing of ours reaches it."""
    given, current = _libraries(steps[0], look), f"{base_in(look.ground)}/{CURRENT}"
    lines = list[str]()
    for there in _places(steps[0], look.ground):
        wrong = prefix_means.misfits(given, there)
        found = prefix_means.means(given, there, current)
        lines += [f"not for everybody: {line}" for line in wrong] or [found.words or found.lacks]
    if not lines:
        lines.append("nothing is here that these would stand in for, so whether they fit is not known: --set torch=VENV names a torch")
    return tuple(dict.fromkeys(lines)) if given else ()


def _places(step: Step, ground: Ground) -> list[prefix_reach.Place]:
    root = Root("/" if ground.live else ground.anchor)
    found = (prefix_reach.place(root, site) for site in step.parameters.get("torch", (prefix_reach.SYSTEM,)))
    return [there for there in found if there is not None]


def _libraries(step: Step, look: Look) -> tuple[prefix_reach.Library, ...]:
    """Of the version that is there, else of the staged folder."""
    folder = look.ground.host(f"{folder_of(step, look.ground)}/{PREFIX}")
    if os.path.isdir(folder):
        return prefix_reach.libraries(folder)
    if not step.parameters.get("source"):
        return ()
    tree, source = _source(step, look.ground)
    return prefix_reach.libraries(f"{tree.anchor.rstrip('/')}/{source}")


# ------------------------------------------------------------------ staging, checking, one rename


def prepare(steps: Sequence[Step], change: Change, work: Work) -> None:
    """Before the link is changed, what it will point to is there, whole and checked.

    Raises:
        RefusedError: a staged file is not what the manifest says.
        RocmPatchError: it does not read back as it was written.
    """
    if change.path.endswith(f"/{CURRENT}"):
        _fill(steps[0], work)


def activate(steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """Where the link was right already and the folder was not there, it is filled here."""
    if not work.back:
        _fill(steps[0], work)
    return ()


def _fill(step: Step, work: Work) -> None:
    folder = work.ground.at(folder_of(step, work.ground))
    if work.tree.state_kind(join(folder, PREFIX)) != "absent":
        return
    text = _manifest(step, work.ground)
    rows, (tree, source) = parse(text), _source(step, work.ground)
    inner = 0o755 if work.ground.scope == "system" else 0o700
    stage = join(folder, TEMPORARY_PREFIX + digest(work.transaction.encode())[:16])
    folders = {stage: None}
    work.tree.make_folder(stage, inner)
    work.say(f"copying {len(rows)} files and links into {work.ground.on_machine(folder)}")
    for row in rows:
        there = join(stage, row.path)
        for missing in [*work.tree.missing_folders(there)]:
            work.tree.make_folder(missing, inner)
            folders[missing] = None
        if row.kind == "link":
            work.tree.make_link(there, row.mark)
            continue
        try:
            found = tree.state(join(source, row.path), FILE_LIMIT)
        except OSError as error:
            raise RefusedError(f"/{source}/{row.path} cannot be read: {error.strerror}") from error
        if found.kind != "file" or digest(found.data) != row.mark:
            raise RefusedError(f"/{source}/{row.path} is not what the manifest says; nothing is kept", "stage it again and make a new plan")
        work.tree.create(there, found.data, row.mode)
        work.tree.sync(there)
    for path in reversed(folders):
        work.tree.sync_folder(path)
    wrong = _strange(work.tree, stage, rows)
    if wrong:
        raise RocmPatchError(f"{wrong} does not read back as it was written; nothing is kept")
    work.tree.put(join(folder, MANIFEST), State("file", 0o644, os.geteuid(), os.getegid(), text))
    work.tree.rename(stage, join(folder, PREFIX))
    work.tree.sync_folder(folder)


def _strange(tree: Tree, folder: str, rows: Sequence[Row]) -> str:
    """The first path that is not as the manifest says; empty: all are."""
    for row in rows:
        found = tree.state(join(folder, row.path), FILE_LIMIT)
        mark = digest(found.data) if found.kind == "file" else found.target
        if (found.kind, mark, found.mode) != (row.kind, row.mark, row.mode):
            return row.path
    return ""


def verify(steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """The link leads to this version; in a rollback, what of it stays in a cache.

    Raises:
        RocmPatchError: it does not.
    """
    if work.back:
        left = filter(None, (prefix_users.left_behind(folder_of(step, work.ground), work.ground) for step in steps))
        return tuple(f"{NOTE}MIOpen's databases of it stay, nothing else reads them: rm -r {shlex.quote(path)}" for path in dict.fromkeys(left))
    folder, current = folder_of(steps[0], work.ground), f"{base_in(work.ground)}/{CURRENT}"
    at = work.tree.state(work.ground.at(current))
    if at.target != f"{folder.rpartition('/')[2]}/{PREFIX}" or work.tree.state_kind(work.ground.at(f"{folder}/{PREFIX}")) != "folder":
        raise RocmPatchError(f"{current} does not lead to {folder}")
    return (f"{current}: {at.target}; programs get it by: rocm-patch run --prefix {current} -- COMMAND",)


# ------------------------------------------------------------------ what uses it


def release(steps: Sequence[Step], look: Look) -> None:
    """Whether these versions may go.

    Raises:
        RefusedError: a link that somebody else set leads there, a virtual environment names it, or a program has it loaded.
    """
    current = f"{base_in(look.ground)}/{CURRENT}"
    for step in steps:
        folder = folder_of(step, look.ground)
        if not any(entry.path == folder and entry.after.kind == "grown" for record in look.active for entry in record.entries):
            continue
        now = look.now(current)
        if now.kind == "link" and now.target.split("/")[-2:-1] == [folder.rpartition("/")[2]] and not look.ours(current):
            raise RefusedError(f"{current} was set by somebody else and leads to {folder}", f"set it elsewhere or remove it: rm {current}")
        user = prefix_users.environment_with(folder, look) or prefix_users.process_with(folder, look.ground)
        if user:
            raise RefusedError(f"{folder} is in use: {user}", "end it or take it out there, then roll back again")


def in_force(steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Which version the link selects; the newest step is the one that counts."""
    if not steps:
        return ()
    current = f"{base_in(look.ground)}/{CURRENT}"
    wanted = f"{folder_of(steps[-1], look.ground).rpartition('/')[2]}/{PREFIX}"
    now = look.now(current)
    return (Held("prefix", wanted, now.target or None, current, now.target == wanted),)


KIND: Final = Kind(
    "prefix", ("user", "system"), "", validate, render, activate, verify,
    prepare=prepare, release=release, in_force=in_force, also=also, asked_back=True,
)  # fmt: skip
