"""What the field knows, as tables; one loader that refuses a bad row.

On the user's side the tables are the TOML files beside this module. The privileged zipapp carries them baked into
`tables.json`, so that root reads them with the standard library alone. `check` is the full test of every row; it
needs `packaging` and is run by the tests and by whoever adds a row.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rocm_patch import codec
from rocm_patch.errors import FormatError, KnowledgeError
from rocm_patch.model import ContentRow, DeviceRow, Evidence, GpuRow, LauncherRow, ProfileRow, RemedyRow, SettingRow, Signature, WheelRow

if TYPE_CHECKING:
    from rocm_patch.knowledge.matching import Finder

T = TypeVar("T")
A = TypeVar("A")

_REMEMBERED: Final = 8192
_RECENT: Final = 1024

TABLES: Final = ("classes", "gpus", "settings", "remedies", "evidence", "signatures", "wheels", "launchers")


@dataclass(frozen=True)
class Knowledge:
    """All tables, keyed as they are looked up."""

    causes: frozenset[str]
    remedy_classes: frozenset[str]
    gpus: Mapping[str, GpuRow]
    devices: Mapping[str, tuple[GpuRow, DeviceRow]]
    settings: Mapping[str, SettingRow]
    remedies: Mapping[str, RemedyRow]
    evidence: tuple[Evidence, ...]
    signatures: tuple[Signature, ...]
    wheels: tuple[WheelRow, ...]
    contents: tuple[ContentRow, ...]
    launchers: tuple[LauncherRow, ...]
    profiles: Mapping[str, ProfileRow]
    checked: str
    """The date of the oldest table."""

    @functools.cached_property
    def finder(self) -> Finder:
        """The signatures, ready to be searched for."""
        from rocm_patch.knowledge.matching import Finder, Pattern  # what root runs carries no signatures' machinery

        return Finder(tuple(Pattern.of(row) for row in self.signatures))

    @functools.cached_property
    def evidence_by_remedy(self) -> Mapping[str, tuple[Evidence, ...]]:
        """The observations, by the remedy that they are about."""
        found: dict[str, list[Evidence]] = {}
        for row in self.evidence:
            found.setdefault(row.remedy, []).append(row)
        return {remedy: tuple(rows) for remedy, rows in found.items()}

    @functools.cached_property
    def chips_by_name(self) -> Mapping[str, str]:
        """Targets by `plain_name`; names that several chips share are left out."""
        found: dict[str, set[str]] = {}
        for row, device in self.devices.values():
            for name in (*device.names, *device.revisions.values()):
                found.setdefault(plain_name(name), set()).add(row.gfx)
        return {name: next(iter(chips)) for name, chips in found.items() if len(chips) == 1 and len(name) > 2}

    @functools.cached_property
    def remembered(self) -> dict[Any, Any]:
        """Answers that follow from the tables alone, by question: a batch asks the same ones often."""
        return {}

    def remember(self, question: Any, answer: A) -> A:
        """Keep an answer. There is an end to how many are kept: then it starts anew."""
        if len(self.remembered) >= _REMEMBERED:
            self.remembered.clear()
        self.remembered[question] = answer
        return answer

    @functools.cached_property
    def recent(self) -> dict[Any, Any]:
        """What was made of the facts told last. Apart from the rest: many strangers must not push out what serves all."""
        return {}

    def keep(self, question: Any, answer: A) -> A:
        """Keep what was made of facts, for the next who tells the same."""
        if len(self.recent) >= _RECENT:
            self.recent.clear()
        self.recent[question] = answer
        return answer

    def covered(self, targets: frozenset[str], judge: Callable[[str, str, str], bool]) -> frozenset[str]:
        """Chips that one of the targets is for, by a judge of (target, chip, generic); remembered, for a batch asks it of few sets often."""
        if targets not in self._covered:
            rows = self.gpus.values()
            self._covered[targets] = frozenset(row.gfx for row in rows if any(judge(target, row.gfx, row.generic) for target in targets))
        return self._covered[targets]

    @functools.cached_property
    def _covered(self) -> dict[frozenset[str], frozenset[str]]:
        return {}

    def chip_of_version(self, gfx_target_version: int) -> str | None:
        """The target that KFD means by its decimal number, e.g. 100100 -> gfx1010; computed for unknown chips."""
        if gfx_target_version <= 0:
            return None
        major, minor, stepping = gfx_target_version // 10000, gfx_target_version // 100 % 100, gfx_target_version % 100
        return f"gfx{major}{minor:x}{stepping:x}"


def plain_name(name: str) -> str:
    """A marketing name as it can be looked up: 'AMD Radeon RX 6700 XT' -> 'rx6700xt'."""
    return re.sub(r"\b(?:amd|radeon|graphics|instinct|series|gpu)\b|\(tm\)|[^a-z0-9]", "", name.lower())


@functools.cache
def load() -> Knowledge:
    """Read all tables. Raises KnowledgeError, naming table, row and key."""
    return build(_raw())


def baked() -> str:
    """All tables as one JSON text, for the privileged zipapp; the same bytes for the same tables."""
    return json.dumps(_raw(), sort_keys=True, ensure_ascii=False, default=str)


def _raw() -> dict[str, Any]:
    folder = importlib.resources.files(__package__)
    packed = folder / "tables.json"
    if packed.is_file():
        tables: dict[str, Any] = json.loads(packed.read_text("utf-8"))
        return tables
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    tables = {}
    for name in TABLES:
        try:
            tables[name] = tomllib.loads((folder / f"{name}.toml").read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise KnowledgeError(f"{name}.toml: {error}") from error
    return tables


def build(tables: Mapping[str, Any]) -> Knowledge:
    """Turn raw tables into rows. Every row is read strictly and every key is unique."""
    gpus = _rows(tables, "gpus", "gpu", GpuRow)
    devices: dict[str, tuple[GpuRow, DeviceRow]] = {}
    for gpu in gpus:
        for device in gpu.devices:
            if device.id in devices:
                raise KnowledgeError(f"gpus.toml: the PCI id {device.id} stands in {devices[device.id][0].gfx} and in {gpu.gfx}")
            devices[device.id] = (gpu, device)
    classes = tables["classes"]
    return Knowledge(
        causes=frozenset(classes["cause"]),
        remedy_classes=frozenset(classes["remedy"]),
        gpus=_keyed("gpus", gpus, "gfx"),
        devices=MappingProxyType(devices),
        settings=_keyed("settings", _rows(tables, "settings", "setting", SettingRow), "name"),
        remedies=_keyed("remedies", _rows(tables, "remedies", "remedy", RemedyRow), "id"),
        evidence=_rows(tables, "evidence", "evidence", Evidence),
        signatures=tuple(_keyed("signatures", _rows(tables, "signatures", "signature", Signature), "id").values()),
        wheels=tuple(_keyed("wheels", _rows(tables, "wheels", "wheel", WheelRow), "id").values()),
        contents=tuple(_keyed("wheels", _rows(tables, "wheels", "content", ContentRow), "id").values()),
        profiles=_keyed("settings", _rows(tables, "settings", "profile", ProfileRow), "id"),
        launchers=tuple(_keyed("launchers", _rows(tables, "launchers", "launcher", LauncherRow), "name").values()),
        checked=min(str(tables[name]["checked"]) for name in TABLES if "checked" in tables[name]),
    )


_TOGETHER = {"wheels": {"wheel", "content"}, "settings": {"setting", "profile"}}
"""Tables with rows of two sorts."""


def _rows(tables: Mapping[str, Any], table: str, key: str, kind: type[T]) -> tuple[T, ...]:
    unknown = set(tables[table]) - {"checked", key} - _TOGETHER.get(table, set())
    if unknown:
        raise KnowledgeError(f"{table}.toml: unknown top-level key {', '.join(sorted(unknown))}")
    rows = []
    for number, row in enumerate(tables[table].get(key, []), 1):
        raw = row
        name = next((str(raw[word]) for word in ("id", "name", "gfx", "remedy") if word in raw), "")
        if kind is SettingRow:
            raw = {**raw, "effects": [_effect(effect) for effect in raw.get("effects", raw.get("effect", []))]}
            raw.pop("effect", None)
        if kind is Signature and "reading" in raw:
            raw = {**raw, "readings": raw["reading"]}
            raw.pop("reading")
        try:
            rows.append(codec.decode(kind, raw, f"{table}.toml, {key} {number} ({name})"))
        except FormatError as error:
            raise KnowledgeError(error.what) from error
    return tuple(rows)


def _effect(raw: dict[str, Any]) -> dict[str, Any]:
    return {"values": "", "when": {}, **raw}


def _keyed(table: str, rows: tuple[T, ...], key: str) -> Mapping[str, T]:
    keyed: dict[str, T] = {}
    for row in rows:
        name = getattr(row, key)
        if name in keyed:
            raise KnowledgeError(f"{table}.toml: {key} {name!r} stands there twice")
        keyed[name] = row
    return MappingProxyType(keyed)
