"""The texts of our environment files: written, and read back to the letter. Pure.

Every format holds the same settings; each says them in the words of whoever reads the file. What a format cannot say
(taking a value away, asking for the card) is refused before it comes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.changes.environment_places import Format
from rocm_patch.errors import FormatError

HEAD: Final = """\
# Settings of rocm-patch for PyTorch on AMD cards. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
INTERPRETER: Final = "#!/bin/sh\n"
_SECTION: Final[Mapping[str, str]] = {"unit": "[Service]\n", "manager": "[Manager]\n"}
_GUARD_HEAD: Final = """\
if (  # where amdgpu drives one of these cards; in a process of its own, so that no name and no option of the shell is touched
  set +eu
  [ -z "${ZSH_VERSION-}" ] || emulate sh
  for at in /sys/bus/pci/drivers/amdgpu/*:*; do
    read -r vendor < "$at/vendor" && [ "$vendor" = 0x1002 ] || continue
    read -r device < "$at/device" || continue
"""
_GUARD_TAIL: Final = """\
  done
  exit 1
) 2>/dev/null; then
"""
_GUARD: Final = re.compile(
    re.escape(_GUARD_HEAD)
    + r"    case \$device in (?P<ids>0x[0-9a-f]{4}(?:\|0x[0-9a-f]{4})*)\) exit 0 ;; esac\n"
    + re.escape(_GUARD_TAIL)
    + r"(?P<body>(?:  .*\n)+)fi\n"
)
_SHELL_LINE: Final = re.compile(
    r"""if \[ "\$\{(?P<unset>\w+)-\}" = '(?P<harmful>[^']+)' \]; then unset (?P=unset); fi"""
    r"""|if \[ "\$\{(?P<empty>\w+)\+x\}\$\{(?P=empty)-\}" = x \]; then unset (?P=empty); fi"""
    r"""|export (?P<set>\w+)='(?P<value>[^']*)'"""
)
_CONF_LINE: Final = re.compile(r"(?P<remark># not )?(?P<name>\w+)=(?P<value>.*)")
_UNIT_LINE: Final = re.compile(r'(?P<key>Environment|UnsetEnvironment)="(?P<name>\w+)=(?P<value>[^"]*)"')
_MANAGER_LINE: Final = re.compile(r'DefaultEnvironment="(?P<name>\w+)=(?P<value>[^"]*)"|# not (?P<not>\w+)=(?P<harmful>.*)')
_DESKTOP_MARK: Final = re.compile(r"# rocm-patch: (?P<name>\w+)=(?P<value>.*)")
_EXEC: Final = re.compile(r"(?m)^Exec[ \t]*=[ \t]*")
_LAUNCH: Final = re.compile(r"""exec '(?P<program>/[^']*)' "\$@"\n""")


@dataclass(frozen=True)
class Setting:
    """What shall become of one name."""

    harmful: tuple[str, ...] = ()
    """Values to take away; any other that the user sets stays."""
    value: str | None = None
    neutral: str | None = None
    """Where a file can only set: what stands there instead of a harmful value."""
    cards: tuple[str, ...] = ()
    """PCI device ids of AMD, as 731f: the setting counts where amdgpu drives one of them. Empty: everywhere."""


Settings = Mapping[str, Setting]


def in_force(item: Setting) -> str | None:
    """The value that a name has by our file; None: it is taken away."""
    return item.value if item.value is not None else item.neutral


# ------------------------------------------------------------------ writing


def text_of(settings: Settings, form: Format, *, program: str = "", entry: str = "") -> str:
    """A file's text; `parse` reads it back. `program` is what a launcher starts, `entry` the menu entry that a copy is made of."""
    if form == "conf":
        return HEAD + "".join(f"{line}\n" for line in _always(settings, "{}={}"))
    if form == "unit":
        return HEAD + _SECTION[form] + "".join(f"{line}\n" for line in _unit(settings))
    if form == "manager":
        return HEAD + _SECTION[form] + "".join(f"{line}\n" for line in _always(settings, 'DefaultEnvironment="{}={}"'))
    if form == "desktop":
        return _desktop(settings, entry)
    if form == "command":
        return INTERPRETER + HEAD + _shell(settings) + f"""exec '{program}' "$@"\n"""
    return HEAD + _shell(settings)


def _shell(settings: Settings) -> str:
    text = ""
    for cards in sorted({item.cards for item in settings.values()}):
        lines = [line for name, item in sorted(settings.items()) if item.cards == cards for line in _shell_lines(name, item)]
        if cards:
            text += guard(cards) + "".join(f"  {line}\n" for line in lines) + "fi\n"
        else:
            text += "".join(f"{line}\n" for line in lines)
    return text


def guard(cards: Iterable[str]) -> str:
    """The head of a block that counts where one of these cards is: sysfs and the shell's own words, no program is started."""
    ids = "|".join(f"0x{card}" for card in cards)
    return f"{_GUARD_HEAD}    case $device in {ids}) exit 0 ;; esac\n{_GUARD_TAIL}"


def _shell_lines(name: str, item: Setting) -> Iterator[str]:
    for value in item.harmful:
        if value:
            yield f"""if [ "${{{name}-}}" = '{value}' ]; then unset {name}; fi"""
        else:
            yield f"""if [ "${{{name}+x}}${{{name}-}}" = x ]; then unset {name}; fi"""
    if item.value is not None:
        yield f"export {name}='{item.value}'"


def _always(settings: Settings, form: str) -> Iterator[str]:
    """Forms that can only set, not take away: `form` has a place for the name and one for the value."""
    for name, item in sorted(settings.items()):
        for value in item.harmful:
            yield f"# not {name}={value}"
        yield form.format(name, in_force(item))


def _unit(settings: Settings) -> Iterator[str]:
    for name, item in sorted(settings.items()):
        for value in item.harmful:
            yield f'UnsetEnvironment="{name}={value}"'
        if item.value is not None:
            yield f'Environment="{name}={item.value}"'


def _desktop(settings: Settings, entry: str) -> str:
    marks = "".join(f"# rocm-patch: {name}={item.value}\n" for name, item in sorted(settings.items()))
    words = " ".join(f"{name}={item.value}" for name, item in sorted(settings.items()))
    # Started over D-Bus, the program would not be started by Exec at all.
    lines = [line for line in entry.splitlines(keepends=True) if not re.match(r"DBusActivatable[ \t]*=", line)]
    text = "".join(lines)
    return HEAD + marks + _EXEC.sub(f"Exec=env {words} ", text if text.endswith("\n") else f"{text}\n")


# ------------------------------------------------------------------ reading back


def parse(data: bytes, form: Format) -> dict[str, Setting]:
    """Read a file of ours, also one that an older version wrote.

    Raises:
        FormatError: it has a line that we do not write.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the drop-in is not UTF-8") from error
    if form == "desktop":
        return _read_marks(text)
    if form == "command":
        launch = _LAUNCH.search(text)
        if launch is None or launch.end() != len(text):
            raise FormatError("the launcher does not end as ours do")
        text = text[: launch.start()].removeprefix(INTERPRETER)
    text = text.removeprefix(HEAD).removeprefix(_SECTION.get(form, ""))
    if form in ("shell", "command"):
        return _read_shell(text)
    settings: dict[str, Setting] = {}
    expression = {"conf": _CONF_LINE, "unit": _UNIT_LINE, "manager": _MANAGER_LINE}[form]
    for number, line in enumerate(text.split("\n")[:-1], 1):
        found = expression.fullmatch(line)
        if found is None:
            raise FormatError(f"the drop-in's line {number} is not one of ours")
        if form == "conf":
            _add_only_set(settings, found["name"], found["value"], taken=bool(found["remark"]))
        elif form == "manager":
            _add_only_set(settings, found["not"] or found["name"], found["harmful"] if found["not"] else found["value"], taken=bool(found["not"]))
        else:
            old = settings.get(found["name"], Setting())
            taken = found["key"] == "UnsetEnvironment"
            settings[found["name"]] = replace(old, harmful=(*old.harmful, found["value"])) if taken else replace(old, value=found["value"])
    return settings


def _read_shell(text: str) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    at = 0
    while at < len(text):
        block = _GUARD.match(text, at)
        if block is not None:
            cards = tuple(item[2:] for item in block["ids"].split("|"))
            for line in block["body"].splitlines():
                _read_shell_line(line[2:], settings, cards)
            at = block.end()
            continue
        line, newline, _ = text[at:].partition("\n")
        if not newline:
            break
        _read_shell_line(line, settings, ())
        at += len(line) + 1
    return settings


def _read_shell_line(line: str, settings: dict[str, Setting], cards: tuple[str, ...]) -> None:
    found = _SHELL_LINE.fullmatch(line)
    if found is None:
        raise FormatError(f"the drop-in has a line that is not one of ours: {line[:60]!r}")
    name = found["unset"] or found["empty"] or found["set"]
    old = replace(settings.get(name, Setting()), cards=cards)
    if found["set"]:
        settings[name] = replace(old, value=found["value"])
    else:
        settings[name] = replace(old, harmful=(*old.harmful, found["harmful"] or ""))


def _add_only_set(settings: dict[str, Setting], name: str, value: str, *, taken: bool) -> None:
    old = settings.get(name, Setting())
    if taken:
        settings[name] = replace(old, harmful=(*old.harmful, value))
    elif old.harmful:
        settings[name] = replace(old, neutral=value)
    else:
        settings[name] = replace(old, value=value)


def _read_marks(text: str) -> dict[str, Setting]:
    if not text.startswith(HEAD):
        raise FormatError("the menu entry does not begin as ours do")
    settings = {}
    for line in text[len(HEAD) :].splitlines():
        found = _DESKTOP_MARK.fullmatch(line)
        if found is None:
            break
        settings[found["name"]] = Setting((), found["value"])
    return settings


def program_of(data: bytes) -> str:
    """What a launcher of ours starts; empty if it is none."""
    found = _LAUNCH.search(data.decode("utf-8", "replace"))
    return found["program"] if found else ""
