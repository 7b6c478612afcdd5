"""Who sets options of a module: the files of modprobe.d in the order in which modprobe reads them, and the kernel's command line.

modprobe joins all `options` lines and puts the words of the command line behind them; the kernel takes the last value of
a name. Seen with kmod 30 and /proc/cmdline replaced in a mount namespace. Formats: modprobe.d(5), kernel-command-line(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rocm_patch.model import Unknown
from rocm_patch.root import Root

FOLDERS: Final = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
"""A file hides those of the same name in later folders; order among different names is by name alone."""
LINES: Final = ("etc/kernel/cmdline", "etc/default/grub", "usr/lib/kernel/cmdline")
LINE_FOLDERS: Final = (("etc/default/grub.d", ".cfg"), ("boot/loader/entries", ".conf"))


@dataclass(frozen=True)
class Option:
    """One value that somebody gives to a parameter."""

    name: str
    value: str
    path: str
    line: int
    """0 on a kernel command line."""

    @property
    def where(self) -> str:
        """For a message."""
        return f"{self.path} line {self.line}" if self.line else f"the kernel command line in {self.path}"


@dataclass(frozen=True)
class Options:
    """All of them, in the order in which they are given to the module; what could not be read is named."""

    given: tuple[Option, ...]
    unread: tuple[str, ...]

    def of(self, name: str) -> tuple[Option, ...]:
        """Those of one parameter; the last one wins."""
        return tuple(option for option in self.given if option.name == name)


def read(root: Root, module: str) -> Options:
    """Look at every place of a machine that can set an option of a module."""
    unread = list[str]()
    found = [option for path in files(root) for option in _options(root, path, module, unread)]
    return Options((*found, *_words(root, module, unread)), tuple(unread))


def files(root: Root) -> tuple[str, ...]:
    """The files that modprobe reads, in its order."""
    by_name = dict[str, str]()
    for folder in FOLDERS:
        for name in root.list(folder):
            if name.endswith((".conf", ".alias")):
                by_name.setdefault(name, f"{folder}/{name}")
    return tuple(by_name[name] for name in sorted(by_name))


def _options(root: Root, path: str, module: str, unread: list[str]) -> Iterator[Option]:
    for number, line in _lines(root, path, unread, joined=True):
        words = line.split()
        if len(words) > 2 and words[0] == "options" and words[1].replace("-", "_") == module:
            for word in words[2:]:
                name, _, value = word.partition("=")
                yield Option(name.replace("-", "_"), value.strip('"'), f"/{path}", number)


def _words(root: Root, module: str, unread: list[str]) -> Iterator[Option]:
    """The running kernel's line, on the live system, and the lines of the next start: both can win over a file."""
    pattern = re.compile(rf"(?:^|[\s\"'=]){re.escape(module)}\.([\w-]+)=([^\s\"']*)")
    paths = [*(["proc/cmdline"] if root.live else []), *LINES]
    paths += [f"{folder}/{name}" for folder, ending in LINE_FOLDERS for name in root.list(folder) if name.endswith(ending)]
    for path in paths:
        for _, line in _lines(root, path, unread, joined=False):
            for match in pattern.finditer(line):
                yield Option(match[1].replace("-", "_"), match[2], f"/{path}", 0)


def _lines(root: Root, path: str, unread: list[str], *, joined: bool) -> Iterator[tuple[int, str]]:
    """Lines that say something; a backslash at the end joins lines, and joins a remark to the next as well."""
    answer = root.text(path)
    if isinstance(answer, Unknown):
        unread.append(f"/{path}: {answer.unknown}")
        return
    held, first = "", 0
    for number, line in enumerate((answer.value or "").split("\n"), 1):
        first = first or number
        if joined and line.endswith("\\"):
            held += line[:-1]
            continue
        text = (held + line).strip()
        if text and not text.startswith("#"):
            yield first, text
        held, first = "", 0
