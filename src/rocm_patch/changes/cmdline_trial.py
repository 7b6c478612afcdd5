"""The trial of new kernel words: one boot of a copied entry, and a unit of ours that notes that the machine came up.

What stands by itself in custom.cfg and in GRUB's environment block is put there by `activate`, since it is made from
grub.cfg, which only root may read on many systems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import boot_loaders, custom_menu, grub_compare, grub_environment, grub_menu, loader_entries, system_tools
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.kind import Change, Look, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.root import Root, State, Tree

ENTRY: Final = "rocm-patch-trial"
TITLE: Final = "rocm-patch: the default entry with new kernel words, for one start"
UNIT: Final = "/etc/systemd/system/rocm-patch-trial.service"
WANTED: Final = "/etc/systemd/system/multi-user.target.wants/rocm-patch-trial.service"
NOTE: Final = "/run/rocm-patch/trial"
"""Boot id and command line of the boot that came up. In /run, for a later boot says nothing of this one."""
SYSTEMD: Final = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
FREE: Final = 1 << 20
"""Bytes that /boot must have free before anything is written there."""
DIRECT: Final = "without a trial, the words count at every start from the next one on: --set stage=direct"
_UNIT: Final = """\
# rocm-patch: notes that this machine came up with words that are on trial. A program keeps this file.
# To keep the words: rocm-patch confirm. To take it back: rocm-patch rollback
[Unit]
Description=Note that this system came up with the kernel words that rocm-patch has on trial
After=multi-user.target graphical.target
{conditions}
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'umask 022; mkdir -p /run/rocm-patch && cat /proc/sys/kernel/random/boot_id /proc/cmdline >/run/rocm-patch/.trial \
&& mv /run/rocm-patch/.trial /run/rocm-patch/trial'

[Install]
WantedBy=multi-user.target
"""
_CONDITION: Final = re.compile(r"^ConditionKernelCommandLine=([A-Za-z0-9_.,:=-]+)$", re.MULTILINE)


# ------------------------------------------------------------------ the unit


def unit_text(words: Sequence[str]) -> bytes:
    """The unit; `unit_words` reads it back."""
    return _UNIT.format(conditions="".join(f"ConditionKernelCommandLine={word}\n" for word in words)).encode()


def unit_words(now: State) -> tuple[str, ...]:
    """The words on trial; none where there is no unit.

    Raises:
        FormatError: the unit is not what we write.
    """
    if now.kind == "absent":
        return ()
    words = tuple(_CONDITION.findall(now.data.decode("utf-8", "replace"))) if now.kind == "file" else ()
    if not words or unit_text(words) != now.data:
        raise FormatError(f"{UNIT} is not as rocm-patch writes it")
    return words


def changes(words: Sequence[str], look: Look) -> tuple[Change, ...]:
    """The unit and the link that starts it; with no words, both gone."""
    if not words:
        return tuple(Change(path, State("absent")) for path in (WANTED, UNIT) if look.now(path).kind != "absent")
    user, group = os.geteuid(), os.getegid()
    unit, link = State("file", 0o644, user, group, unit_text(words)), State("link", 0o777, user, group, target=UNIT)
    now = look.now(UNIT)
    return Change(UNIT, now if now.data == unit.data else unit), Change(WANTED, now_link if (now_link := look.now(WANTED)).target == UNIT else link)


# ------------------------------------------------------------------ whether there can be one


def check(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> None:
    """Find what stands against a trial, as far as this user may look.

    `ours`: words that are on the line already, and are ours.

    Raises:
        RefusedError: the reason, and what to do instead.
        PermissionError: grub.cfg is closed to this user; root's side looks again.
    """
    check_systemd(ground)
    _parts(ground, tree, loader, words, ours)


def check_systemd(ground: Ground) -> None:
    """Check that something could note that a trial came up.

    Raises:
        RefusedError: nothing could.
    """
    if not any(Root(ground.anchor).exists(path) for path in SYSTEMD):
        raise RefusedError("there is no systemd here, and nothing else could note that a trial came up", DIRECT)


@dataclass(frozen=True)
class _Parts:
    menu: grub_menu.Menu
    entry: grub_menu.Entry
    block: grub_environment.Block
    custom: State


def _parts(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> _Parts:
    try:
        return _read_parts(ground, tree, loader, words, ours)
    except FormatError as error:
        raise RefusedError(f"no trial is possible: {error.what}", DIRECT) from error


def _read_parts(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> _Parts:
    block = tree.state(ground.at(loader.environment))
    menu = tree.state(ground.at(loader.menu))
    custom = tree.state(ground.at(loader.custom))
    if menu.kind != "file":
        raise RefusedError(f"{loader.menu} is a {menu.kind}; rocm-patch copies entries of a plain file only", DIRECT)
    known = grub_environment.parse(block.data) if block.kind == "file" else grub_environment.Block((), 0)
    if loader.name == "grub, loader entries":
        parsed, entry = loader_entries.default_entry(Root(ground.anchor), loader.entries, known.values())
        way = loader_entries.section(menu.data)
    else:
        parsed = grub_menu.parse(menu.data)
        entry = grub_menu.default_entry(parsed, known.values())
        way = parsed.text[slice(*entry.inside)]  # what the header loads is for fonts, which may lie elsewhere
    where = boot_loaders.mounted_on(loader.environment) if ground.live else ""
    problem = boot_loaders.environment_problem(menu.data, way, block, where)
    if problem:
        hint = f"sudo grub-editenv {loader.environment} create, or {DIRECT}" if block.kind == "absent" else DIRECT
        raise RefusedError(f"no trial is possible: {problem}", hint)
    if custom.kind != "absent" and not _reads_as_ours(custom):
        raise RefusedError(f"{loader.custom} is somebody else's, and stays as it is; no trial is possible beside it", DIRECT)
    chosen = known.value("next_entry")
    if chosen not in ("", ENTRY):
        raise RefusedError(f"the next start is already to be {chosen!r}, by somebody else's choice", "restart first, then make a new plan")
    check_line(entry, words, ours, loader)
    return _Parts(parsed, entry, known, custom)


def check_line(entry: grub_menu.Entry, words: Sequence[str], ours: Sequence[str], loader: Loader) -> None:
    """Check the default entry's line: none of the words there yet but our own, and room for them.

    Raises:
        RefusedError: what is there.
    """
    if entry.kernel is None:
        raise RefusedError(f"the default entry {entry.title!r} of {loader.menu} does not start one Linux kernel", "choose another default first")
    there = [word for word in entry.kernel.values[2:] if word not in ours]
    for word in words:
        name = word.partition("=")[0]
        same = [other for other in there if other.partition("=")[0] == name]
        if same:
            what = (
                "is on the kernel's line already" if same == [word] else f"would stand beside {' '.join(same)}, which is on the kernel's line already"
            )
            raise RefusedError(f"{word} {what}, by somebody else's hand; nothing was changed", "look in /etc/default/grub and /etc/default/grub.d")
    grub_compare.check_length(entry.kernel, words)


def _reads_as_ours(now: State) -> bool:
    try:
        return now.kind == "file" and bool(custom_menu.parse(now.data))
    except FormatError:
        return False


def check_room(ground: Ground, loader: Loader, size: int = 0) -> None:
    """Check that /boot has room for what is written there.

    Raises:
        RefusedError: it has not.
    """
    status = os.statvfs(os.path.dirname(ground.host(loader.menu)))
    free, needed = status.f_bavail * status.f_frsize, FREE + 2 * size
    if free < needed:
        raise RefusedError(f"/boot has {free >> 10} KiB free, and {needed >> 10} KiB are wanted; nothing was changed", "remove an old kernel")


# ------------------------------------------------------------------ the entry and the choice


def begin(work: Work, loader: Loader, words: Sequence[str], ours: Sequence[str]) -> tuple[Change, ...]:
    """custom.cfg with a copy of the default entry, and the environment block that chooses it for one boot.

    Raises:
        RefusedError, FormatError: see `check`.
    """
    parts = _parts(work.ground, work.tree, loader, words, ours)
    check_room(work.ground, loader)
    text = grub_menu.clone(parts.menu, parts.entry, TITLE, ENTRY, words=words, once=True)
    data = custom_menu.with_entry(parts.custom.data if parts.custom.kind == "file" else None, ENTRY, text)
    check_script(work, loader, data)
    block = work.tree.state(work.ground.at(loader.environment))
    chosen = grub_environment.render(parts.block.with_value("next_entry", ENTRY))
    custom = State("file", 0o644, os.geteuid(), os.getegid(), data)
    menu = work.tree.state(work.ground.at(loader.menu))
    if menu.mode & 0o077 == 0:
        custom = State("file", 0o600, os.geteuid(), os.getegid(), data)  # who closes the menu may have a password in it
    return (
        Change(loader.custom, custom),
        Change(loader.environment, State("file", block.mode, block.uid, block.gid, chosen, "", block.attributes)),
    )  # fmt: skip


def check_script(work: Work, loader: Loader, data: bytes) -> None:
    """Let GRUB's own parser read a menu, where it can be run.

    Raises:
        RefusedError: it finds fault with it.
    """
    if loader.checker and not system_tools.why_not(work.ground, [loader.checker]):
        ended = system_tools.run_there(work.ground, [loader.checker], timeout=60, stdin=data, keep=[work.lock])
        if ended.code != 0:
            raise RefusedError(f"{loader.checker} does not accept what would be written: {ended.text}")


def end(work: Work, loader: Loader) -> tuple[Change, ...]:
    """Take our entry out of custom.cfg, and our choice out of the environment block, as far as they are ours."""
    found = list[Change]()
    block, custom = work.tree.state(work.ground.at(loader.environment)), work.tree.state(work.ground.at(loader.custom))
    if block.kind == "file":
        known = grub_environment.parse(block.data)
        # GRUB leaves the name with nothing behind it once it has taken the choice.
        if known.values().get("next_entry") in ("", ENTRY):
            data = grub_environment.render(known.with_value("next_entry", None))
            found.append(Change(loader.environment, State("file", block.mode, block.uid, block.gid, data, "", block.attributes)))
    if _reads_as_ours(custom):
        left = custom_menu.without_entry(custom.data, ENTRY)
        after = State("absent") if left is None else State("file", custom.mode, custom.uid, custom.gid, left, "", custom.attributes)
        found.append(Change(loader.custom, after))
    elif custom.kind != "absent" and ENTRY.encode() in custom.data:
        work.say(f"{loader.custom} was changed by somebody else and is left; its entry {ENTRY!r} is never chosen by itself")
    return tuple(found)


def check_chosen(work: Work, loader: Loader) -> None:
    """Check that the next start is the trial's.

    Raises:
        RocmPatchError: it is not.
    """
    block = work.tree.state(work.ground.at(loader.environment))
    if block.kind != "file" or grub_environment.parse(block.data).value("next_entry") != ENTRY:
        raise RocmPatchError(f"{loader.environment} does not name the trial for the next start")


# ------------------------------------------------------------------ did it come up?


def check_passed(words: Sequence[str], look: Look, machine: Root | None = None) -> None:
    """Whether this very boot has the words, and came up. `machine`: what runs; / unless a test says otherwise.

    Raises:
        RefusedError: why not.
    """
    if machine is None and not look.ground.live:
        raise RefusedError("only the machine itself can say that it came up", "run 'rocm-patch confirm' there, after its restart")
    root = machine or Root("/")
    line, boot = _words(root, "proc/cmdline"), _words(root, "proc/sys/kernel/random/boot_id")
    again = "to try once more: rocm-patch rollback, then apply again, then restart"
    if missing := [word for word in words if word not in line]:
        raise RefusedError(
            f"this boot runs without {' '.join(missing)}: no restart since, or the trial did not come up and this is the old entry again",
            f"not restarted yet: restart now; otherwise take it back with 'rocm-patch rollback', or {again}",
        )
    note = _words(root, NOTE)
    if not note or note[:1] != boot:
        raise RefusedError(
            "this boot has the words, but it did not come up whole (yet): its note is not there",
            "look at 'systemctl status rocm-patch-trial' and 'systemctl list-jobs'; then run 'rocm-patch confirm' again",
        )
    idle = [name for name in _cards(root) if not root.exists(f"sys/bus/pci/drivers/amdgpu/{name}")]
    if idle and len(idle) == len(_cards(root)):
        raise RefusedError(f"in this boot the amdgpu driver did not take the card at {', '.join(idle)}", "restart: the old entry comes up again")


def _cards(root: Root) -> list[str]:
    devices = "sys/bus/pci/devices"
    return [
        name
        for name in root.list(devices)
        if _words(root, f"{devices}/{name}/vendor") == ["0x1002"] and "".join(_words(root, f"{devices}/{name}/class")).startswith("0x03")
    ]


def _words(root: Root, path: str) -> list[str]:
    answer = root.text(path, 1 << 16)
    return (getattr(answer, "value", None) or "").split()
