"""GRUB's menu: entries read from a generated grub.cfg, which of them is the default, and copies of it for our own custom.cfg.

Read is only what generators write: `menuentry` and `submenu` blocks, quotes as in a shell, `if ... fi` around a few of them.
The text of an entry is copied as it stands; nothing of it is understood but its kernel and initrd commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError

SIZE_LIMIT: Final = 8 << 20
DEPTH_LIMIT: Final = 8
KERNEL_COMMANDS: Final = ("linux", "linux16", "linuxefi")
INITRD_COMMANDS: Final = ("initrd", "initrd16", "initrdefi")
RECOVERY_WORDS: Final = frozenset({"single", "recovery", "rescue", "emergency", "1", "s", "S", "systemd.unit=rescue.target"})
_ID_OPTIONS: Final = ("--id", "$menuentry_id_option", "${menuentry_id_option}")
_TOKEN: Final = re.compile(
    r"""(?P<end>[\n;])|(?P<gap>[ \t\r]+|\\\n)|(?P<remark>\#[^\n]*)"""
    r"""|(?P<word>(?:\$\{[^}\n]*\}|'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s;'"\\])+)""",
    re.DOTALL,
)
_PIECE: Final = re.compile(r"""'(?P<plain>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<bare>[^'"\\]+)""", re.DOTALL)
_DEFAULT: Final = re.compile(r"""^[ \t]*set default=(?P<value>"[^"\n]*"|'[^'\n]*'|\S+)[ \t\r]*$""", re.MULTILINE)
_SAVED: Final = ("${saved_entry}", "$saved_entry")


@dataclass(frozen=True)
class Word:
    """One word: what GRUB sees (variables unexpanded) and where it stands in the text."""

    value: str
    start: int
    end: int


@dataclass(frozen=True)
class Command:
    """The words of one simple command."""

    words: tuple[Word, ...]

    @property
    def name(self) -> str:
        """Its first word."""
        return self.words[0].value

    @property
    def values(self) -> tuple[str, ...]:
        """All words as GRUB sees them."""
        return tuple(word.value for word in self.words)


@dataclass(frozen=True)
class Entry:
    """A menu entry or a submenu."""

    menu: bool
    """True for a submenu."""
    title: str
    id: str
    options: tuple[Word, ...]
    """The words between the title and the brace, without the id."""
    inside: tuple[int, int]
    """Where the text between the braces stands."""
    conditional: bool
    """It stands in an `if`: only GRUB knows whether it is shown."""
    commands: tuple[Command, ...]
    entries: tuple[Entry, ...]

    @property
    def kernel(self) -> Command | None:
        """The command that names kernel and command line; None where the entry starts something else."""
        found = [command for command in self.commands if command.name in KERNEL_COMMANDS]
        return found[0] if len(found) == 1 else None

    @property
    def recovery(self) -> bool:
        """Whether it is meant for repairs: those entries never get our words."""
        words = self.kernel.values[2:] if self.kernel else ()
        return "recovery" in self.title.lower() or "-recovery-" in self.id or bool(RECOVERY_WORDS.intersection(words))


@dataclass(frozen=True)
class Menu:
    """A whole grub.cfg."""

    text: str
    entries: tuple[Entry, ...]
    commands: tuple[Command, ...]
    """Those outside of all entries."""

    def every(self) -> list[Entry]:
        """All entries, submenus opened, in order."""
        found, todo = list[Entry](), list(reversed(self.entries))
        while todo:
            entry = todo.pop()
            found.append(entry)
            todo.extend(reversed(entry.entries))
        return [entry for entry in found if not entry.menu]


# ------------------------------------------------------------------ reading


def parse(data: bytes) -> Menu:
    """Read a grub.cfg.

    Raises:
        FormatError: it is not what a generator writes.
    """
    if len(data) > SIZE_LIMIT:
        raise FormatError(f"a boot menu of more than {SIZE_LIMIT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the boot menu is not UTF-8") from error
    reader = _Reader(text)
    commands, entries = reader.block(0)
    return Menu(text, entries, commands)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def block(self, depth: int) -> tuple[tuple[Command, ...], tuple[Entry, ...]]:
        """Commands and entries up to the closing brace, or to the end of the text."""
        if depth > DEPTH_LIMIT:
            raise FormatError(f"the boot menu nests deeper than {DEPTH_LIMIT}")
        commands, entries, ifs = list[Command](), list[Entry](), 0
        while True:
            words, opened, closed = self.command()
            if words:
                words = _plain(words)
                first = words[0].value
                ifs += (first == "if") - (first == "fi")
                if opened and first in ("menuentry", "submenu"):
                    entries.append(self._entry(words, ifs > 0, depth))
                elif opened:
                    if self.block(depth + 1)[1]:
                        raise FormatError("the boot menu has entries inside a function")
                else:
                    commands.append(Command(tuple(words)))
            elif opened:
                raise FormatError(f"the boot menu has a brace where none is known, at character {self.at}")
            if closed:
                if depth == 0:
                    raise FormatError(f"the boot menu closes a brace that was not opened, at character {self.at}")
                return tuple(commands), tuple(entries)
            if self.at >= len(self.text):
                if depth:
                    raise FormatError("the boot menu ends inside a brace")
                return tuple(commands), tuple(entries)

    def command(self) -> tuple[list[Word], bool, bool]:
        """The next command's words; whether a brace was opened after it, or closed."""
        words = list[Word]()
        while self.at < len(self.text):
            found = _TOKEN.match(self.text, self.at)
            if found is None:
                raise FormatError(f"the boot menu has an open quote at character {self.at}")
            self.at = found.end()
            if found["end"]:
                if words:
                    return words, False, False
                continue
            if found["word"]:
                if found["word"] == "{":
                    return words, True, False
                if found["word"] == "}":
                    return words, False, True
                words.append(Word(_value(found["word"]), found.start(), found.end()))
        return words, False, False

    def _entry(self, words: list[Word], conditional: bool, depth: int) -> Entry:
        if len(words) < 2:
            raise FormatError("the boot menu has an entry without a title")
        start = self.at
        commands, entries = self.block(depth + 1)
        options, id_ = list[Word](), ""
        rest = iter(words[2:])
        for word in rest:
            raw = self.text[word.start : word.end]
            if raw in _ID_OPTIONS:
                id_ = next(rest, Word("", 0, 0)).value
            elif word.value.startswith("--id="):
                id_ = word.value[5:]
            else:
                options.append(word)
        return Entry(
            words[0].value == "submenu", words[1].value, id_, tuple(options), (start, self.at - 1), conditional, commands, entries
        )  # fmt: skip


def _plain(words: list[Word]) -> list[Word]:
    """Without the words of the shell that stand before a command."""
    for index, word in enumerate(words):
        if word.value not in ("then", "else", "do", "!"):
            return words[index:]
    return words


def _value(raw: str) -> str:
    parts = []
    for piece in _PIECE.finditer(raw):
        kind = piece.lastgroup
        text = piece.group(kind or 0)
        parts.append(re.sub(r"\\([\\\"$])", r"\1", text) if kind == "quoted" else text)
    return "".join(parts)


# ------------------------------------------------------------------ the default


def default_entry(menu: Menu, environment: Mapping[str, str]) -> Entry:
    """The entry that boots by itself.

    Raises:
        FormatError: it cannot be told.
    """
    values = {found["value"].strip("\"'") for found in _DEFAULT.finditer(menu.text)} - {"${next_entry}", "$next_entry"}
    if len(values) != 1:
        raise FormatError(f"the boot menu sets its default {len(values)} times; which one counts cannot be told")
    name = values.pop()
    if name in _SAVED:
        name = environment.get("saved_entry", "") or "0"
    if "$" in name:
        raise FormatError(f"the boot menu's default {name!r} cannot be told")
    return find(menu, name)


def find(menu: Menu, name: str) -> Entry:
    """The entry that a name means: `ID`, `TITLE`, a number, or `SUBMENU>ENTRY` of these; '>>' is a plain '>'.

    Raises:
        FormatError: there is none.
    """
    entries, parts = menu.entries, [part.replace("\0", ">") for part in name.replace(">>", "\0").split(">")]
    for number, part in enumerate(parts):
        found = next((entry for entry in entries if part in (entry.id, entry.title) and part), None)
        if found is None and part.isdecimal() and int(part) < len(entries):
            if any(entry.conditional for entry in entries[: int(part) + 1]):
                raise FormatError(f"the boot menu's entry {name!r} cannot be told: some before it are not always shown")
            found = entries[int(part)]
        if found is None or found.menu == (number == len(parts) - 1):
            raise FormatError(f"the boot menu has no entry {name!r}")
        entries = found.entries
    return found  # type: ignore[return-value]  # parts has at least one member


# ------------------------------------------------------------------ copies


def clone(menu: Menu, entry: Entry, title: str, id_: str, *, words: Sequence[str] = (), initrd: str = "", once: bool = False) -> str:
    """An entry's text under another title and id, with words added to its command line, or with another initrd.

    `initrd` is a file name in the folder of the entry's own: it takes the place of the last one named. `once`: the words
    count only where GRUB could write its environment block; where it could not, the entry boots as the default does,
    since GRUB would choose it again at every start.

    Raises:
        FormatError: not one kernel command, or a title that cannot be quoted.
    """
    if entry.kernel is None:
        raise FormatError(f"the boot menu's entry {entry.title!r} does not start one Linux kernel")
    if not title.isprintable() or "'" in title or not re.fullmatch(r"[A-Za-z0-9.-]+", id_):
        raise FormatError(f"{title!r} is no title that we would write")
    text, (start, end) = menu.text, entry.inside
    edits = list[tuple[int, int, str]]()
    for command in entry.commands:
        raw = text[command.words[0].start : command.words[-1].end]
        if command.name == "savedefault":
            edits.append((command.words[0].start, command.words[-1].end, "true"))
        elif command is entry.kernel and words:
            changed = f"{raw} {' '.join(words)}"
            if once:
                changed = (
                    f'load_env next_entry\n\tif [ -n "${{next_entry}}" ]; then\n\t\techo "The environment block cannot be written: no trial."\n'
                    f"\t\t{raw}\n\telse\n\t\t{changed}\n\tfi"
                )
            edits.append((command.words[0].start, command.words[-1].end, changed))
        elif command.name in INITRD_COMMANDS and initrd:
            last = command.words[-1]
            folder = text[last.start : last.end].rpartition("/")[0]
            edits.append((last.start, last.end, f"{folder}/{initrd}"))
    body = text[start:end]
    for first, last_, new in sorted(edits, reverse=True):
        body = body[: first - start] + new + body[last_ - start :]
    options = "".join(f" {text[word.start : word.end]}" for word in entry.options)
    return f"menuentry '{title}'{options} --id {id_} {{{body.rstrip()}\n}}\n"
