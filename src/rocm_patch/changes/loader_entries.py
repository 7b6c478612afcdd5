"""Entries of the Boot Loader Specification as GRUB's blscfg starts them: one small file a kernel in /boot/loader/entries.

The file is turned into the menu entry that GRUB makes of it (paths are relative to the device in $root, where /boot lies),
so that a copy with other words can stand in custom.cfg. The files themselves are looked after in `entry_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from rocm_patch.changes import grub_menu
from rocm_patch.errors import FormatError
from rocm_patch.model import Known
from rocm_patch.root import Root

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+~-]*")
_PATH: Final = re.compile(r"/[A-Za-z0-9_.+~/-]+")
_OPTIONS: Final = re.compile(r"[A-Za-z0-9_.,:=/@%+$~ -]*")
"""What GRUB reads as the same words when it stands in a script."""


def default_entry(root: Root, folder: str, environment: Mapping[str, str]) -> tuple[grub_menu.Menu, grub_menu.Entry]:
    """The entry that GRUB's environment block names as the saved one, as a menu of its own.

    Raises:
        FormatError: none is named, or it cannot be read.
    """
    name = environment.get("saved_entry", "")
    if not _ID.fullmatch(name):
        raise FormatError(f"the environment block names no loader entry as the default (saved_entry={name!r})")
    answer = root.text(f"{folder}/{name}.conf")
    if not isinstance(answer, Known) or answer.value is None:
        raise FormatError(f"{folder}/{name}.conf, which is the default, cannot be read")
    menu = grub_menu.parse(as_script(answer.value, name).encode())
    return menu, menu.entries[0]


def section(menu: bytes) -> str:
    """The part of grub.cfg that gets at the entries: what comes before is for fonts, which may lie on another file system."""
    text = menu.decode("utf-8", "replace")
    _, found, rest = text.partition("### BEGIN /etc/grub.d/10_linux ###")
    return rest.partition("### END /etc/grub.d/10_linux ###")[0] if found else text


def as_script(text: str, name: str) -> str:
    """A loader entry as GRUB's script for it.

    Raises:
        FormatError: it has no kernel, or words that a script would read otherwise.
    """
    fields = dict[str, list[str]]()
    for line in text.splitlines():
        key, *rest = line.split(None, 1)[:2] or [""]
        if key and not key.startswith("#"):
            fields.setdefault(key, []).append(" ".join(rest).strip())
    kernel, options = fields.get("linux", []), " ".join(fields.get("options", []))
    images = [path for line in fields.get("initrd", []) for path in line.split() if path != "$tuned_initrd"]
    if len(kernel) != 1 or not all(_PATH.fullmatch(path) for path in (*kernel, *images)) or not _OPTIONS.fullmatch(options):
        raise FormatError(f"the loader entry {name} has something that rocm-patch does not copy")
    initrd = f"\tinitrd\t{' '.join(f'($root){path}' for path in images)}\n" if images else ""
    return (
        f"menuentry '{name}' --class os --unrestricted --id '{name}' {{\n\tload_video\n\tset gfxpayload=keep\n\tinsmod gzio\n"
        f"\tlinux\t($root){kernel[0]} {options}\n{initrd}}}\n"
    )
