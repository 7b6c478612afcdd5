"""Loader entries that kernel-install made on this machine: which they are, and the same entry with our words or without.

They are generated files: kernel-install and grubby write them anew as they like. One that a person wrote, one of another
system on the same disk, one for repairs and one of a unified image are none of these, and are never touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.changes import grub_compare, grub_generate, install_plugin
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.grub_menu import RECOVERY_WORDS
from rocm_patch.changes.kind import Change, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.root import Root, State, Tree

_LINE: Final = re.compile(rb"^options[ \t][^\r\n]*", re.MULTILINE)
_COUNTER: Final = re.compile(r"\+\d+(?:-\d+)?$")


@dataclass(frozen=True)
class EntryFile:
    """One entry. `generated`: made by kernel-install for this machine, and not for repairs."""

    path: str
    state: State
    fields: Mapping[str, tuple[str, ...]]
    generated: bool

    @property
    def id(self) -> str:
        """Its name to the loader: without the counter of starts that are left."""
        return f"{_COUNTER.sub('', os.path.basename(self.path)[:-5])}.conf"

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its options."""
        return tuple(word for line in self.fields.get("options", ()) for word in line.split())


def folders(ground: Ground, loader: Loader) -> tuple[str, ...]:
    """Where the loader looks for entries: GRUB in one folder, systemd-boot on two partitions. One folder is named once."""
    found, seen = list[str](), set[tuple[int, int]]()
    for path in (
        (loader.entries,)
        if loader.name.startswith("grub")
        else dict.fromkeys((*((loader.entries,) if loader.entries else ()), *install_plugin.FOLDERS))
    ):
        try:
            status = os.stat(ground.host(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if (status.st_dev, status.st_ino) not in seen and not _through_link(ground, path):
            seen.add((status.st_dev, status.st_ino))
            found.append(path)
    return tuple(found)


def _through_link(ground: Ground, path: str) -> bool:
    parts = path.strip("/").split("/")
    return any(os.path.islink(ground.host("/" + "/".join(parts[: number + 1]))) for number in range(len(parts)))


def read(ground: Ground, tree: Tree, loader: Loader) -> tuple[EntryFile, ...]:
    """Every entry in the loader's folders.

    Raises:
        PermissionError: they are closed to this user.
    """
    names, found = _tokens(Root(ground.anchor)), list[EntryFile]()
    for folder in folders(ground, loader):
        for name in tree.names(ground.at(folder)):
            if name.endswith(".conf") and not name.startswith("."):
                state = tree.state(ground.at(f"{folder}/{name}"))
                if state.kind == "file":
                    found.append(_entry(f"{folder}/{name}", state, names))
    return tuple(found)


def _entry(path: str, state: State, tokens: Iterable[str]) -> EntryFile:
    fields = dict[str, tuple[str, ...]]()
    for line in state.data.decode("utf-8", "replace").splitlines():
        key, *rest = line.split(None, 1) or [""]
        if key and not key.startswith("#"):
            fields[key] = (*fields.get(key, ()), *(part.strip() for part in rest))
    version, name = "".join(fields.get("version", ())), _COUNTER.sub("", os.path.basename(path)[:-5])
    versions = (version, version.removesuffix("-debug"))  # Fedora's kernels +debug have this at the end of the field alone
    mine = any(name == f"{token}-{item}" for token in tokens for item in versions) and not version.startswith("0-rescue")
    words = {word for line in fields.get("options", ()) for word in line.split()}
    plain = b"\r" not in state.data and state.data.endswith(b"\n")
    generated = mine and plain and len(fields.get("linux", ())) == 1 and "options" in fields and not words & RECOVERY_WORDS
    return EntryFile(path, state, fields, generated)


def _tokens(root: Root) -> tuple[str, ...]:
    """What kernel-install begins the names of this machine's entries with."""

    def first(path: str) -> str:
        answer = root.word(path)
        return getattr(answer, "value", None) or ""

    release = dict(line.partition("=")[::2] for line in first("etc/os-release").splitlines())
    chosen, machine = first("etc/kernel/entry-token"), first("etc/machine-id")
    # Another system on this disk may have the same ID in its os-release, so that counts only where nothing of this machine's own was chosen.
    known = (
        (chosen, machine)
        if chosen or re.fullmatch(r"[0-9a-f]{32}", machine)
        else tuple(release.get(key, "").strip("\"'") for key in ("IMAGE_ID", "ID"))
    )
    return tuple(token for token in known if token)


# ------------------------------------------------------------------ the words


def with_words(data: bytes, words: Sequence[str]) -> bytes:
    """An entry with the words that it lacks, at the end of its last line of options; everything else byte for byte."""
    lines = list(_LINE.finditer(data))
    have = {word for line in lines for word in line[0].split()[1:]}
    missing = [word.encode() for word in words if word.encode() not in have]
    if not lines or not missing:
        return data
    return data[: lines[-1].end()] + b"".join(b" " + word for word in missing) + data[lines[-1].end() :]


def without_words(data: bytes, words: Sequence[str]) -> bytes:
    """The reverse of `with_words`."""
    if not words:
        return data
    one = re.compile(rb"[ \t](?:" + b"|".join(re.escape(word.encode()) for word in words) + rb")(?=[ \t]|$)")
    return _LINE.sub(lambda line: one.sub(b"", line[0]), data)


def check(entries: Sequence[EntryFile], words: Sequence[str], ours: Sequence[str], variables: Mapping[str, str], loader: Loader) -> None:
    """Check the lines that would get the words: none there by somebody else's hand, and room for all. `variables`: GRUB's, e.g. kernelopts.

    Raises:
        RefusedError: what is in the way, or no entry at all.
    """
    chosen = [entry for entry in entries if entry.generated]
    if not chosen:
        raise RefusedError(
            f"no entry of kernel-install for this machine is there{f' in {loader.entries}' if loader.entries else ''}; nothing was changed",
            f"your own entries are yours to edit: {loader.owners_command(words)}",
        )
    for entry in chosen:
        check_entry(entry, words, ours, variables)


def check_entry(entry: EntryFile, words: Sequence[str], ours: Sequence[str], variables: Mapping[str, str]) -> None:
    """The same for one entry."""
    line = [item for word in entry.words for item in (variables.get(word[1:], "").split() if word.startswith("$") else (word,))]
    there = [word for word in line if word not in ours]
    for word in words:
        same = [other for other in there if other.partition("=")[0] == word.partition("=")[0]]
        if same:
            beside = (
                "is on the kernel's line already" if same == [word] else f"would stand beside {' '.join(same)}, which is on the kernel's line already"
            )
            raise RefusedError(f"{word} {beside}, by somebody else's hand; nothing was changed", f"look in {entry.path}")
    images = [f"initrd={path}" for path in entry.fields.get("initrd", ())]
    grub_compare.check_bytes(" ".join((f"BOOT_IMAGE={entry.fields['linux'][0]}", *images, *there, *dict.fromkeys((*ours, *words)))))


# ------------------------------------------------------------------ what the kind does with them


def generated(words: Sequence[str], loader: Loader, work: Work, started: str = "") -> tuple[Change, ...]:
    """The entries with our words. `started`: the id of the one that boots by itself, as far as it is known.

    Raises:
        RefusedError: see `check`; or the default is none of them, so that the words would not count.
    """
    entries = read(work.ground, work.tree, loader)
    variables = grub_generate.block_values(loader, work) if loader.menu else {}
    check(entries, (), words, variables, loader)
    default = started or (f"{variables['saved_entry']}.conf" if variables.get("saved_entry") else "")
    other = next((entry for entry in entries if entry.id == default and not entry.generated), None)
    if other is not None:
        raise RefusedError(
            f"the entry that boots by itself, {other.path}, is not one that kernel-install made; nothing was changed",
            f"your own entries are yours to edit: {loader.owners_command(words)}",
        )
    found = list[Change]()
    for entry in entries:
        if entry.generated:
            data = with_words(entry.state.data, words)
            added = [word for word in words if word not in entry.words]
            if without_words(data, added) != entry.state.data:
                raise RefusedError(f"{entry.path} would change by more than {' '.join(added)}; nothing was changed")
            found.append(Change(entry.path, replace(entry.state, data=data)))
    return tuple(found)


def taken_back(words: Sequence[str], kept: Sequence[str], loader: Loader, work: Work) -> tuple[Change, ...]:
    """After a rollback: the entries that were made, or made anew, while our plugin was there, without our words."""
    gone = [word for word in words if word not in kept]
    entries = [entry for entry in read(work.ground, work.tree, loader) if entry.generated and set(gone) & set(entry.words)]
    return tuple(Change(entry.path, replace(entry.state, data=without_words(entry.state.data, gone))) for entry in entries)


def left(words: Sequence[str], kept: Sequence[str], loader: Loader, work: Work) -> list[str]:
    """After a rollback: entries that are not ours to change and have our words, from the line of a running kernel for example."""
    gone = {word for word in words if word not in kept}
    entries = [entry for entry in read(work.ground, work.tree, loader) if gone & set(entry.words)]
    return [f"{entry.path} has {' '.join(sorted(gone & set(entry.words)))}, and stays as it is: it is not ours to change" for entry in entries]


def seen(words: Sequence[str], loader: Loader, work: Work) -> list[str]:
    """What is there now, for the receipt; the plugin is run on a copy of an entry.

    Raises:
        RocmPatchError: an entry lacks a word, or the plugin makes something else of an entry than we do.
    """
    entries = read(work.ground, work.tree, loader)
    have = [entry for entry in entries if entry.generated]
    for entry in have:
        if not set(words) <= set(entry.words):
            raise RocmPatchError(f"{entry.path} does not have {' '.join(words)}")
    bare = without_words(have[0].state.data, words) if have else b""
    others = f"{len(entries) - len(have)} (for repairs, by hand, of other systems) are as they were"
    said = [f"loader entries: {len(have)} have {' '.join(words)}, {others}"]
    if have and os.access(install_plugin.SHELL, os.X_OK):
        if install_plugin.tried(words, bare, [work.lock]) != with_words(bare, words):
            raise RocmPatchError(f"{install_plugin.PATH} does not add {' '.join(words)} to a copy of {have[0].path}")
        said.append(f"{install_plugin.PATH}: run on a copy of {os.path.basename(have[0].path)}, it adds {' '.join(words)}")
    return said
