"""The rows of `probes.toml`, checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from rocm_patch import codec
from rocm_patch.errors import FormatError, KnowledgeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Level = Literal["passive", "interactive", "disruptive"]
LEVELS: Final[tuple[Level, ...]] = ("passive", "interactive", "disruptive")
ANY: Final = "any"
FOLDER: Final = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Configuration:
    """A way to run the same work: variables set before torch loads, and whether torch may use its convolution library."""

    id: str
    kind: Literal["any", "hip", "cuda", "cpu"]
    why: str
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cudnn: bool = True
    """torch.backends.cudnn.enabled; on ROCm that name switches MIOpen."""
    source: str = ""


@dataclass(frozen=True)
class Probe:
    """One piece of work. What each key means is said at the top of `probes.toml`."""

    id: str
    workload: str
    level: Level
    deadline: float
    dtypes: tuple[str, ...]
    why: str
    source: str
    quick: bool
    size: int | tuple[int, ...] = 0
    channels: tuple[int, ...] = ()
    batch: int = 1
    channels_last: bool = False
    repeats: int = 1
    tolerance: float = 1.0
    configurations: tuple[str, ...] = ()
    """Where it runs; none named: everywhere."""

    def level_on(self, kind: str) -> Level:
        """What it may do to a device: only HIP devices are known to hang or reset on sound work."""
        return "interactive" if self.level == "disruptive" and kind != "hip" else self.level


@dataclass(frozen=True)
class Table:
    """All rows, in running order: harmless ones first."""

    schema: int
    date: str
    configuration: tuple[Configuration, ...]
    probe: tuple[Probe, ...]

    def configurations(self, kind: str) -> tuple[Configuration, ...]:
        """Those of one kind of device."""
        return tuple(row for row in self.configuration if row.kind == kind)

    def find(self, probe: str) -> Probe:
        """The row with this id."""
        return next(row for row in self.probe if row.id == probe)


def load(path: str = os.path.join(FOLDER, "probes.toml")) -> Table:
    """Read and check the table.

    Raises:
        KnowledgeError: a row is wrong; names the row and the key.
    """
    with open(path, "rb") as file:
        raw: dict[str, Any] = tomllib.load(file)
    try:
        table: Table = codec.decode(Table, raw, os.path.basename(path))
    except FormatError as error:
        raise KnowledgeError(str(error)) from error
    known = {row.id for row in table.configuration}
    for rows in (table.configuration, table.probe):
        names = [row.id for row in rows]
        for name in names:
            if names.count(name) > 1:
                raise KnowledgeError(f"probes.toml: the id {name!r} is there twice")
    for row in table.probe:
        for name in row.configurations:
            if name not in known:
                raise KnowledgeError(f"probes.toml: {row.id}: unknown configuration {name!r}")
        if not row.dtypes or row.deadline <= 0:
            raise KnowledgeError(f"probes.toml: {row.id}: needs a dtype and a deadline")
        if not row.why or not row.source:
            raise KnowledgeError(f"probes.toml: {row.id}: say why it is there, and after whom")
    return table
