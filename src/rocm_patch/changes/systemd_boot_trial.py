"""The trial of new kernel words with systemd-boot: an entry of our own, chosen for one start by a variable of the firmware.

systemd-boot takes LoaderEntryOneShot out before it starts anything, so that a reset brings the default back. The variable is
no file that can be replaced and journalled; but alone it does nothing: a name without an entry is passed over. So it may be
set before the entry is there and outlive it, whatever is killed in between.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rocm_patch.changes import boot_loaders, cmdline_trial, entry_files, system_tools
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.entry_files import EntryFile
from rocm_patch.changes.kind import Change, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.root import ABSENT, Root, State, Tree

ENTRY: Final = f"{cmdline_trial.ENTRY}.conf"
BOOTCTL: Final = "/usr/bin/bootctl"
HEAD: Final = "# An entry of rocm-patch for one start. A program keeps this file; to take it back: rocm-patch rollback\n"
TIMEOUT: Final = 60.0
SORT_KEYS: Final = 251
"""The first systemd-boot that puts entries without a sort-key, such as ours, behind those that have one."""
_KEPT: Final = ("linux", "initrd", "devicetree", "devicetree-overlay", "architecture")
"""What is copied of an entry. No sort-key and no version: ours shall not come first in the list, which would make it the default."""


def check(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> None:
    """Find what stands against a trial.

    Raises:
        RefusedError: the reason, and what to do instead.
        PermissionError: the entries are closed to this user; root's side looks again.
    """
    if not ground.live:
        raise RefusedError("a trial with systemd-boot is set up by the machine itself, in its firmware's variables", cmdline_trial.DIRECT)
    cmdline_trial.check_systemd(ground)
    _like(ground, tree, loader, words, ours)


def _like(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> EntryFile:
    """The entry to copy: the one that this system was started by."""
    machine = Root(ground.anchor)
    told, started, chosen = (boot_loaders.loader_variable(machine, name) for name in ("LoaderInfo", "LoaderEntrySelected", "LoaderEntryOneShot"))
    if not told.startswith("systemd-boot"):
        raise RefusedError(
            f"no trial is possible: the firmware's variables do not say that systemd-boot started this system (LoaderInfo={told!r})",
            cmdline_trial.DIRECT,
        )
    if why := system_tools.why_not(ground, [BOOTCTL]) if os.geteuid() == 0 or not machine.exists(BOOTCTL) else "":
        raise RefusedError(f"no trial is possible: {why}", f"install systemd-boot's tools, or {cmdline_trial.DIRECT}")
    if chosen not in ("", ENTRY):
        raise RefusedError(f"the next start is already to be {chosen!r}, by somebody else's choice", "restart first, then make a new plan")
    entries = entry_files.read(ground, tree, loader)
    for entry in entries:
        if entry.id == ENTRY and not entry.state.data.startswith(HEAD.encode()):
            raise RefusedError(f"{entry.path} is somebody else's, and stays as it is; no trial is possible beside it", cmdline_trial.DIRECT)
    like = next((entry for entry in entries if entry.id == started and entry.id != ENTRY), None)
    if like is None:
        raise RefusedError(
            f"no trial is possible: this system was started by {started or 'an entry that the loader does not name'}, which is no entry file to copy",
            f"restart with the usual entry first, or {cmdline_trial.DIRECT}",
        )
    if len(like.fields.get("linux", ())) != 1:
        raise RefusedError(f"no trial is possible: {like.path} does not start one Linux kernel", cmdline_trial.DIRECT)
    _check_order(machine, told, like, entries)
    entry_files.check_entry(like, words, ours, {})
    return like


def started(work: Work, loader: Loader) -> str:
    """The id of the entry that started this system, as systemd-boot tells; empty where it does not, or where it is the trial's."""
    if not work.ground.live or loader.name != "systemd-boot":
        return ""
    name = boot_loaders.loader_variable(Root(work.ground.anchor), "LoaderEntrySelected")
    return "" if name == ENTRY else name


def _check_order(machine: Root, told: str, like: EntryFile, entries: Sequence[EntryFile]) -> None:
    """Our entry must not become the default: systemd-boot takes the first of its list where nobody chose one, and sorts by names without keys."""
    ids = [entry.id for entry in entries if entry.id != ENTRY]
    patterns = [boot_loaders.loader_variable(machine, "LoaderEntryDefault"), *_defaults(machine)]
    if "@saved" in patterns:
        patterns.append(boot_loaders.loader_variable(machine, "LoaderEntryLastBooted"))
    for pattern in patterns:
        if fnmatch.fnmatchcase(ENTRY, pattern):
            break
        if any(fnmatch.fnmatchcase(id_, pattern) for id_ in ids):
            return
    else:
        version = re.match(r"systemd-boot (\d+)", told)
        keyed = [entry for entry in entries if entry.fields.get("sort-key") and "+0" not in entry.path]
        if keyed and version and int(version[1]) >= SORT_KEYS:
            return
    raise RefusedError("no trial is possible: a new entry could become the default", f"choose one first: sudo bootctl set-default {like.id}")


def _defaults(machine: Root) -> list[str]:
    found = list[str]()
    for path in boot_loaders.LOADER_CONF:
        text = getattr(machine.text(path), "value", None) or ""
        found += [words[1] for words in (line.split(None, 1) for line in text.splitlines()) if len(words) == 2 and words[0] == "default"]
    return [pattern.strip() for pattern in found]


# ------------------------------------------------------------------ the entry and the choice


def begin(work: Work, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> tuple[Change, ...]:
    """Our entry, a copy of the one that started this system with the words; and the choice of it for one start.

    Raises:
        RefusedError, RocmPatchError: see `check`, or bootctl failed.
    """
    like = _like(work.ground, work.tree, loader, words, ours)
    path = f"{os.path.dirname(like.path)}/{ENTRY}"
    _choose(work, ENTRY)
    work.watch.callback(lambda: _settle(work, path))
    return (Change(path, replace(like.state, data=text_of(like, words))),)


def text_of(like: EntryFile, words: Sequence[str]) -> bytes:
    """The trial's entry."""
    lines = [f"title {cmdline_trial.TITLE}", *(f"{key} {value}" for key in _KEPT for value in like.fields.get(key, ()))]
    options = " ".join((*like.words, *(word for word in words if word not in like.words)))
    return (HEAD + "\n".join((*lines, f"options {options}")) + "\n").encode()


def _settle(work: Work, path: str) -> None:
    if work.tree.state_kind(work.ground.at(path)) == "absent":
        _give_up(work)


def _choose(work: Work, name: str) -> None:
    if why := system_tools.why_not(work.ground, [BOOTCTL]):
        raise RocmPatchError(f"the next start cannot be chosen: {why}")
    ended = system_tools.run_there(work.ground, [BOOTCTL, "set-oneshot", name], timeout=TIMEOUT, keep=[work.lock])
    if ended.code != 0:
        raise RocmPatchError(f"{BOOTCTL} set-oneshot failed ({ended.code}): {ended.text}")


def _give_up(work: Work) -> None:
    if work.ground.live and boot_loaders.loader_variable(Root(work.ground.anchor), "LoaderEntryOneShot") == ENTRY:
        try:
            _choose(work, "")
        except RocmPatchError as error:
            work.say(f"{error.what}; the name {ENTRY} stays for the next start, where there is no such entry any more")


def end(work: Work, loader: Loader) -> tuple[Change, ...]:
    """Take our entry away, and the choice if it still names ours."""
    unit: State = work.tree.state(work.ground.at(cmdline_trial.UNIT))
    if unit.kind != "absent":
        return ()  # another transaction was taken back, and the trial goes on
    _give_up(work)
    entries = entry_files.read(work.ground, work.tree, loader)
    return tuple(Change(entry.path, ABSENT) for entry in entries if entry.id == ENTRY and entry.state.data.startswith(HEAD.encode()))


def check_chosen(work: Work, loader: Loader) -> None:
    """Check that the next start is the trial's.

    Raises:
        RocmPatchError: it is not.
    """
    chosen = boot_loaders.loader_variable(Root(work.ground.anchor), "LoaderEntryOneShot")
    there = [entry for entry in entry_files.read(work.ground, work.tree, loader) if entry.id == ENTRY]
    if chosen != ENTRY or not there:
        raise RocmPatchError(f"the firmware's variable for the next start names {chosen!r}, not {ENTRY!r}")
