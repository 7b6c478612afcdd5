"""Environment settings: all that we set or take away in one scope stands in one drop-in of ours.

System scope is a file for login shells, which can take away a value judged harmful and leave any other alone. User scope
is environment.d, which can only set: there a name gets the value that equals not setting it, where one is known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.changes.kind import Change, Kind, Look, Tables, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import SettingRow, Step
from rocm_patch.root import State
from rocm_patch.run import CLEAN, run

SYSTEM_PATH: Final = "/etc/profile.d/zz-rocm-patch.sh"
USER_NAME: Final = "environment.d/90-rocm-patch.conf"
VALUE_LIMIT: Final = 256
SHELL: Final = "/bin/sh"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN: Final = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}")
_PARAMETERS: Final = ("set", "unset", "own")
_HEAD: Final = """\
# Settings of rocm-patch for PyTorch on AMD cards. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
_SYSTEM_LINE: Final = re.compile(
    r"""if \[ "\$\{(?P<unset>\w+)-\}" = '(?P<harmful>[^']+)' \]; then unset (?P=unset); fi"""
    r"""|if \[ "\$\{(?P<empty>\w+)\+x\}\$\{(?P=empty)-\}" = x \]; then unset (?P=empty); fi"""
    r"""|export (?P<set>\w+)='(?P<value>[^']*)'"""
)
_USER_LINE: Final = re.compile(r"(?P<remark># not )?(?P<name>\w+)=(?P<value>.*)")


@dataclass(frozen=True)
class Setting:
    """What shall become of one name."""

    harmful: tuple[str, ...] = ()
    """Values to take away; any other that the user sets stays."""
    value: str | None = None
    neutral: str | None = None
    """User scope: what stands there instead of a harmful value."""


Settings = Mapping[str, Setting]


# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check a step's names and values against the settings table.

    Raises:
        RefusedError: a name or value that no row allows.
        FormatError: it is not NAME=VALUE.
    """
    for key in step.parameters:
        if key not in _PARAMETERS:
            raise RefusedError(f"remedy {step.remedy}: an environment step has no parameter {key!r}")
    own = step.parameters.get("own", ())
    if len(own) > 1 or any(not _OWN.fullmatch(item) for item in own):
        raise RefusedError(f"remedy {step.remedy}: 'own' is one version like 10.1.0")
    to_set, to_unset = _pairs(step, "set"), _pairs(step, "unset")
    if not to_set and not to_unset:
        raise RefusedError(f"remedy {step.remedy}: an environment step that changes nothing")
    if len({name for name, _ in to_set}) != len(to_set) or set(to_set) & set(to_unset):
        raise RefusedError(f"remedy {step.remedy}: contradicts itself")
    for name, value in to_set:
        row = _row(name, tables)
        if not row.may_set or not re.fullmatch(row.may_set, value):
            raise RefusedError(f"{name}={value!r} is not a value that our tables allow to set")
        if not _plain(value) or (step.scope == "user" and not _plain_in_conf(value)):
            raise RefusedError(f"{name}: a value with quotes or control characters is never written")
    for name, value in to_unset:
        row = _row(name, tables)
        if not _plain(value):
            raise RefusedError(f"{name}: a value with quotes, control characters or more than {VALUE_LIMIT} characters is never written")
        if step.scope == "user" and name not in dict(to_set):
            _neutral(row, own)


def _pairs(step: Step, key: str) -> list[tuple[str, str]]:
    pairs = []
    for text in step.parameters.get(key, ()):
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise FormatError(f"remedy {step.remedy}: {text!r} is not NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _row(name: str, tables: Tables) -> SettingRow:
    row = tables.settings.get(name)
    if row is None or row.kind != "environment":
        raise RefusedError(f"{name} is no environment setting that our tables know")
    return row


def _plain(value: str) -> bool:
    return len(value) <= VALUE_LIMIT and value.isprintable() and not set(value) & set("'\"`")


def _plain_in_conf(value: str) -> bool:
    return not set(value) & set("$\\") and value == value.strip()


def _neutral(row: SettingRow, own: Sequence[str]) -> str:
    if not row.neutral:
        raise RefusedError(
            f"{row.name} cannot be taken away by environment.d, which only sets, and no value equals not setting it",
            "remove it where it is set, or use the system scope",
        )
    if "{own}" in row.neutral and not own:
        raise RefusedError(f"{row.name}: the card's own version is needed and the plan does not say it")
    value = row.neutral.replace("{own}", own[0] if own else "")
    if not _plain(value) or not _plain_in_conf(value):
        raise RefusedError(f"{row.name}: the neutral value {value!r} cannot be written")
    return value


# ------------------------------------------------------------------ render


def path_in(ground: Ground) -> str:
    """Our drop-in, as on that machine."""
    return SYSTEM_PATH if ground.scope == "system" else f"{ground.config}/{USER_NAME}"


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """One drop-in with what is already in force of ours and what these steps add.

    Raises:
        RefusedError: a file of that name is there and is not as we left it.
    """
    path = path_in(look.ground)
    now = look.now(path)
    settings: Settings = {}
    if now.kind != "absent":
        known = look.ours(path) if look.journal_read else reads_as_ours(now, look.ground.scope)
        if not known:
            hint = f"look at it, and move it away if it is not needed: mv {path} ~/"
            raise RefusedError(f"{path} is there and is not as rocm-patch left it; it stays as it is", hint)
        settings = parse(now.data, look.ground.scope)
    for step in steps:
        settings = _merge(settings, step, look.tables)
    data = text_of(settings, look.ground.scope).encode()
    return (Change(path, now if now.data == data else State("file", 0o644, os.geteuid(), os.getegid(), data)),)


def reads_as_ours(now: State, scope: str) -> bool:
    """Whether a file is exactly what we would write: all that can be told without the journal."""
    try:
        return now.kind == "file" and text_of(parse(now.data, scope), scope).encode() == now.data
    except FormatError:
        return False


def _merge(settings: Settings, step: Step, tables: Tables) -> Settings:
    merged = dict(settings)
    for name, value in _pairs(step, "unset"):
        old = merged.get(name, Setting())
        kept = None if old.value == value else old.value
        neutral = _neutral(_row(name, tables), step.parameters.get("own", ())) if step.scope == "user" and kept is None else None
        merged[name] = Setting(tuple(sorted({*old.harmful, value})), kept, neutral)
    for name, value in _pairs(step, "set"):
        old = merged.get(name, Setting())
        merged[name] = Setting(tuple(item for item in old.harmful if item != value), value)
    # environment.d sets whatever was there before, so beside a set value nothing need be taken away.
    return {name: replace(item, harmful=()) if step.scope == "user" and item.value is not None else item for name, item in merged.items()}


def text_of(settings: Settings, scope: str) -> str:
    """The drop-in's text; `parse` reads it back."""
    lines = []
    for name, item in sorted(settings.items()):
        for value in item.harmful:
            if scope == "user":
                lines.append(f"# not {name}={value}")
            elif value:
                lines.append(f"""if [ "${{{name}-}}" = '{value}' ]; then unset {name}; fi""")
            else:
                lines.append(f"""if [ "${{{name}+x}}${{{name}-}}" = x ]; then unset {name}; fi""")
        if scope == "system" and item.value is not None:
            lines.append(f"export {name}='{item.value}'")
        elif scope == "user":
            lines.append(f"{name}={item.value if item.value is not None else item.neutral}")
    return _HEAD + "".join(f"{line}\n" for line in lines)


def parse(data: bytes, scope: str) -> dict[str, Setting]:
    """Read a drop-in of ours.

    Raises:
        FormatError: it has a line that we do not write.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the drop-in is not UTF-8") from error
    settings: dict[str, Setting] = {}
    for number, line in enumerate(text.removeprefix(_HEAD).split("\n")[:-1], 1):
        found = (_SYSTEM_LINE if scope == "system" else _USER_LINE).fullmatch(line)
        if found is None:
            raise FormatError(f"the drop-in's line {number} is not one of ours")
        if scope == "system":
            _read_system(found, settings)
        else:
            _read_user(found, settings)
    return settings


def _read_system(found: re.Match[str], settings: dict[str, Setting]) -> None:
    name = found["unset"] or found["empty"] or found["set"]
    old = settings.get(name, Setting())
    if found["set"]:
        settings[name] = replace(old, value=found["value"])
    else:
        settings[name] = replace(old, harmful=(*old.harmful, found["harmful"] or ""))


def _read_user(found: re.Match[str], settings: dict[str, Setting]) -> None:
    old = settings.get(found["name"], Setting())
    if found["remark"]:
        settings[found["name"]] = replace(old, harmful=(*old.harmful, found["value"]))
    elif old.harmful:
        settings[found["name"]] = replace(old, neutral=found["value"])
    else:
        settings[found["name"]] = replace(old, value=found["value"])


# ------------------------------------------------------------------ activate, verify


def activate(_steps: Sequence[Step], _changes: Sequence[Change], _work: Work) -> tuple[Change, ...]:
    """Nothing to do: the next login reads it."""
    return ()


def verify(_steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read the file back, and for shells let a clean /bin/sh source it with the harmful values set.

    Raises:
        RocmPatchError: it does not do what it is for.
    """
    said = []
    for change in changes:
        data = work.tree.state(work.ground.at(change.path)).data
        if data != change.after.data:
            raise RocmPatchError(f"{change.path} does not read back as it was written")
        settings = parse(data, work.ground.scope)
        if work.ground.scope == "system":
            said += [f"{change.path}: {line}" for line in _source(data, settings)]
        else:
            said += [f"{change.path}: {name}={_in_force(item)}" for name, item in sorted(settings.items())]
    return tuple(said)


def _in_force(item: Setting) -> str | None:
    return item.value if item.value is not None else item.neutral


def _source(data: bytes, settings: Settings) -> list[str]:
    """Source exactly these bytes; a path could be swapped between our look and the shell's."""
    check = run([SHELL, "-n"], stdin=data, timeout=10)
    if check.code != 0:
        raise RocmPatchError(f"{SHELL} -n does not accept the drop-in: {check.text}")
    names = sorted(settings)
    show = "".join(f"""printf '%s\\n' "{name}=${{{name}-}}" "${{{name}+set}}"\n""" for name in names)
    rounds = max((len(item.harmful) for item in settings.values()), default=0)
    for turn in range(rounds + 1):
        # Every harmful value has its turn; in the last one each name has a value that nobody judged.
        given = {name: item.harmful[turn] if turn < len(item.harmful) else "set on purpose" for name, item in settings.items()}
        ended = run([SHELL, "-euc", f". /dev/stdin\n{show}"], stdin=data, environment={**CLEAN, **given}, timeout=10)
        wanted = [line for name in names for line in _expected(name, settings[name], given[name])]
        if ended.code != 0 or ended.err or ended.out.decode("utf-8", "replace").splitlines() != wanted:
            raise RocmPatchError(f"the drop-in does not do what it is for when {SHELL} sources it: {ended.text}")
    return [f"sourced by {SHELL}: {_in_words(name, item)}" for name, item in sorted(settings.items())]


def _in_words(name: str, item: Setting) -> str:
    if item.value is not None:
        return f"{name}={item.value}"
    return f"{name} is unset where it was {' or '.join(map(repr, item.harmful))}"


def _expected(name: str, item: Setting, given: str) -> list[str]:
    if item.value is not None:
        return [f"{name}={item.value}", "set"]
    return [f"{name}=", ""] if given in item.harmful else [f"{name}={given}", "set"]


KIND: Final = Kind("environment", ("user", "system"), "login", validate, render, activate, verify)
