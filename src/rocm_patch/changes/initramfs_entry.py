"""A line in GRUB's menu that starts the kernel with the image as it was before ours: the way back when the new one does not come up."""

from __future__ import annotations

import os
from typing import Final

from rocm_patch.changes import boot_loaders, custom_menu, grub_menu
from rocm_patch.changes.journal import Journal
from rocm_patch.changes.kind import Change, Work
from rocm_patch.errors import FormatError
from rocm_patch.root import ABSENT, READ_STATE, Root, State

LOADERS: Final = ("grub", "grub, one file of settings")


def entry_id(kernel: str) -> str:
    """The id of the entry of one kernel, of letters that a menu takes."""
    return "rocm-patch-initramfs-" + "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in kernel)


def entry(work: Work, image: str, copy: str, kernel: str, pending: Change | None = None) -> Change | str:
    """The change of custom.cfg that adds the entry, or why there is none. `pending`: its change so far, for other kernels."""
    loader = boot_loaders.recognise(Root(work.ground.anchor))
    if loader.name not in LOADERS:
        return f"{loader.title} reads no menu entry of ours"
    now = _now(work, loader.custom, pending)
    opened = Journal(work.ground).open_record()
    if opened is not None and any(item.path == loader.custom for item in opened.entries):
        return f"{loader.custom} is changed by another step of this plan"
    if now.kind not in ("absent", "file"):
        return f"{loader.custom} is a {now.kind}"
    try:
        menu = grub_menu.parse(work.tree.state(work.ground.at(loader.menu), READ_STATE).data)
        if "custom.cfg" not in menu.text:
            return f"{loader.menu} reads no custom.cfg"
        like = next((item for item in menu.every() if not item.recovery and _starts(item, os.path.basename(image))), None)
        if like is None:
            return f"{loader.menu} has no entry that starts with {os.path.basename(image)}"
        text = grub_menu.clone(menu, like, f"Linux {kernel}, initramfs as before rocm-patch", entry_id(kernel), initrd=os.path.basename(copy))
        data = custom_menu.with_entry(now.data if now.kind == "file" else None, entry_id(kernel), text)
    except FormatError as error:
        return f"{loader.custom} stays as it is: {error.what}"
    if now.kind == "file":
        return Change(loader.custom, State("file", now.mode, now.uid, now.gid, data, "", now.attributes))
    return Change(loader.custom, State("file", 0o644, os.geteuid(), os.getegid(), data))


def _starts(item: grub_menu.Entry, name: str) -> bool:
    commands = [command for command in item.commands if command.name in grub_menu.INITRD_COMMANDS]
    return len(commands) == 1 and item.kernel is not None and commands[0].values[-1].rpartition("/")[2] == name


def _now(work: Work, path: str, pending: Change | None) -> State:
    return pending.after if pending is not None and pending.path == path else work.tree.state(work.ground.at(path))


def has_entry(work: Work, kernel: str, pending: Change | None = None) -> str:
    """The file that holds our entry for a kernel; empty: none does."""
    loader = boot_loaders.recognise(Root(work.ground.anchor))
    if loader.name not in LOADERS:
        return ""
    now = _now(work, loader.custom, pending)
    try:
        return loader.custom if now.kind == "file" and entry_id(kernel) in custom_menu.parse(now.data) else ""
    except FormatError:
        return ""


def without(work: Work, kernel: str, pending: Change | None = None) -> Change | None:
    """The change that takes the entry out of a menu that others have changed since; None: it is not there."""
    path = has_entry(work, kernel, pending)
    if not path:
        return None
    now = _now(work, path, pending)
    data = custom_menu.without_entry(now.data, entry_id(kernel))
    return Change(path, ABSENT if data is None else State("file", now.mode, now.uid, now.gid, data, "", now.attributes))
