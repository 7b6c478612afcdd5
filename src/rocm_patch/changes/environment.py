"""Environment settings: all that we set or take away in one place stands in one file of ours.

Shells and systemd units can take away a value judged harmful and leave any other alone. The other places can only set:
there a name gets the value that equals not setting it, where one is known. What the files say is in `environment_text`,
where they lie in `environment_places`, how it is seen that they work in `environment_check`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rocm_patch.changes import environment_check, environment_places
from rocm_patch.changes.environment_places import Format, Place, check_unit, menu_entry, path_of, program
from rocm_patch.changes.environment_text import Setting, Settings, parse, program_of, text_of
from rocm_patch.changes.kind import Change, Kind, Look, Tables, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.model import SettingRow, Step
from rocm_patch.root import State

VALUE_LIMIT: Final = 256
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN: Final = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}")
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.,:=+/@-]*")
"""What needs no quotes, no escapes and no percent signs in systemd's files and in menu entries."""
_PARAMETERS: Final = ("set", "unset", "own", "place", "when", "command")
_ONLY_SETS: Final[tuple[Format, ...]] = ("conf", "manager")


# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check a step's names and values against the settings table, and its place.

    Raises:
        RefusedError: a name, value, place or card that no row allows.
        FormatError: it is not NAME=VALUE.
    """
    for key in step.parameters:
        if key not in _PARAMETERS:
            raise RefusedError(f"remedy {step.remedy}: an environment step has no parameter {key!r}")
    for key in ("own", "place", "command"):
        if len(step.parameters.get(key, ())) > 1:
            raise RefusedError(f"remedy {step.remedy}: {key!r} is given more than once")
    own = step.parameters.get("own", ())
    if any(not _OWN.fullmatch(item) for item in own):
        raise RefusedError(f"remedy {step.remedy}: 'own' is one version like 10.1.0")
    place = _place(step)
    form = place.row.format
    _cards(step, tables)
    if step.parameters.get("command") and form != "command":
        raise RefusedError(f"remedy {step.remedy}: 'command' goes with the place command:NAME only")
    for path in step.parameters.get("command", ()):
        if not path.startswith("/") or os.path.normpath(path) != path or not _plain(path):
            raise RefusedError(f"a program is named by a plain absolute path, not {path!r}")
    to_set, to_unset = _pairs(step, "set"), _pairs(step, "unset")
    if not to_set and not to_unset:
        raise RefusedError(f"remedy {step.remedy}: an environment step that changes nothing")
    if len({name for name, _ in to_set}) != len(to_set) or set(to_set) & set(to_unset):
        raise RefusedError(f"remedy {step.remedy}: contradicts itself")
    for name, value in to_set:
        row = _row(name, tables)
        if not row.may_set or not re.fullmatch(row.may_set, value):
            raise RefusedError(f"{name}={value!r} is not a value that our tables allow to set")
        _check_writable(name, value, form)
    for name, value in to_unset:
        row = _row(name, tables)
        if form == "desktop":
            raise RefusedError(f"{name} cannot be taken away by a menu entry", "use the place command:NAME")
        if not _plain(value):
            raise RefusedError(f"{name}: a value with quotes, control characters or more than {VALUE_LIMIT} characters is never written")
        if form == "unit":
            _check_writable(name, value, form)
        if form in _ONLY_SETS and name not in dict(to_set):
            _check_writable(name, _neutral(row, own), form)


def _place(step: Step) -> Place:
    return environment_places.find(next(iter(step.parameters.get("place", ())), ""), step.scope)


def _cards(step: Step, tables: Tables) -> tuple[str, ...]:
    """PCI ids of the cards that a step is for; empty: for every machine."""
    chips = step.parameters.get("when", ())
    if chips and _place(step).row.format not in ("shell", "command"):
        raise RefusedError("only a shell can look for the card; the other places set for every machine", "leave `when` out, or use the place login")
    rows: Mapping[str, Any] = getattr(tables, "gpus", {})
    for chip in chips:
        if chip not in rows or not rows[chip].scope:
            raise RefusedError(f"{chip!r} is no card that this tool is for")
    return tuple(sorted({device.id for chip in chips for device in rows[chip].devices}))


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


def _check_writable(name: str, value: str, form: Format) -> None:
    plain = _plain(value)
    if form == "conf":
        plain = plain and not set(value) & set("$\\") and value == value.strip()
    elif form not in ("shell", "command"):
        plain = plain and bool(_UNQUOTED.fullmatch(value))
    if not plain:
        raise RefusedError(f"{name}: a value with quotes, control characters or what this place would expand is never written")


def _neutral(row: SettingRow, own: Sequence[str]) -> str:
    if not row.neutral:
        raise RefusedError(
            f"{row.name} cannot be taken away by environment.d and the like, which only set, and no value equals not setting it",
            "remove it where it is set, or use the system scope",
        )
    if "{own}" in row.neutral and not own:
        raise RefusedError(f"{row.name}: the card's own version is needed and the plan does not say it")
    return row.neutral.replace("{own}", own[0] if own else "")


# ------------------------------------------------------------------ render


def path_in(ground: Ground) -> str:
    """The drop-in of a scope's own place, as on that machine."""
    return path_of(environment_places.find("", ground.scope), ground)


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """For each place one file with what is already in force of ours and what these steps add.

    Raises:
        RefusedError: a file of that name is there and is not as we left it, or the unit, application or program is not there.
    """
    places = dict.fromkeys(_place(step) for step in steps)
    return tuple(_render(place, [step for step in steps if _place(step) == place], look) for place in places)


def _render(place: Place, steps: Sequence[Step], look: Look) -> Change:
    path, form, ground = path_of(place, look.ground), place.row.format, look.ground
    now = look.now(path)
    settings: Settings = {}
    if now.kind != "absent":
        known = look.ours(path) if look.journal_read else reads_as_ours(now, form)
        if not known:
            hint = f"look at it, and move it away if it is not needed: mv {path} ~/"
            raise RefusedError(f"{path} is there and is not as rocm-patch left it; it stays as it is", hint)
        settings = parse(now.data, form)
    for step in steps:
        settings = _merge(settings, step, look.tables, form)
    started, entry = "", ""
    if form == "unit":
        check_unit(place, ground)
    elif form == "desktop":
        entry = menu_entry(place, ground)
    elif form == "command":
        named = next((item for step in steps for item in step.parameters.get("command", ())), "")
        started = program(place, ground, named or program_of(now.data))
    data = text_of(settings, form, program=started, entry=entry).encode()
    mode = 0o755 if form == "command" else 0o644
    return Change(path, now if now.data == data else State("file", mode, os.geteuid(), os.getegid(), data))


def reads_as_ours(now: State, form: Format) -> bool:
    """Whether a file is exactly what we would write: all that can be told without the journal."""
    try:
        return now.kind == "file" and text_of(parse(now.data, form), form, program=program_of(now.data)).encode() == now.data
    except FormatError:
        return False


def _merge(settings: Settings, step: Step, tables: Tables, form: Format) -> Settings:
    merged, cards = dict(settings), _cards(step, tables)
    for name, value in _pairs(step, "unset"):
        old = merged.get(name, Setting())
        kept = None if old.value == value else old.value
        neutral = _neutral(_row(name, tables), step.parameters.get("own", ())) if form in _ONLY_SETS and kept is None else None
        merged[name] = Setting(tuple(sorted({*old.harmful, value})), kept, neutral, cards)
    for name, value in _pairs(step, "set"):
        old = merged.get(name, Setting())
        merged[name] = Setting(tuple(item for item in old.harmful if item != value), value, None, cards)
    # A file that only sets does so whatever was there before: beside a set value nothing need be taken away.
    return {name: replace(item, harmful=()) if form in _ONLY_SETS and item.value is not None else item for name, item in merged.items()}


# ------------------------------------------------------------------ activate, verify, status


def activate(_steps: Sequence[Step], _changes: Sequence[Change], _work: Work) -> tuple[Change, ...]:
    """Nothing to do: whoever reads the file does so when it starts, and restarting somebody's service is not ours to decide."""
    return ()


def verify(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read each file back, let who reads it read it, and say where it counts and where it does not.

    Raises:
        RocmPatchError: it does not do what it is for.
    """
    places = {path_of(place, work.ground): place for place in map(_place, steps)}
    return tuple(line for change in changes for line in environment_check.check(places[change.path], change, work.ground, work.tree))


KIND: Final = Kind(
    "environment", ("user", "system"), "login", validate, render, activate, verify, in_force=environment_check.in_force
)  # fmt: skip
