"""What a recorded tree says about itself in `recording.toml`: facts that files cannot carry through git."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rocm_patch.errors import FormatError
from rocm_patch.model import Known
from rocm_patch.root import Root

FILE = "recording.toml"


@dataclass(frozen=True)
class Recorded:
    """Home of the recorded user, device modes, and the environment of the recorded shell."""

    home: str = ""
    modes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def read(root: Root) -> Recorded:
    """The tree's own words; empty for a machine's real root. Raises FormatError for a file that cannot be meant."""
    if root.live:
        return Recorded()
    answer = root.text(FILE)
    if not isinstance(answer, Known) or answer.value is None:
        return Recorded()
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        raw = tomllib.loads(answer.value)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{root.path}/{FILE}: {error}") from error
    unknown = set(raw) - {"about", "sources", "home", "modes", "environment"}
    if unknown:
        raise FormatError(f"{root.path}/{FILE}: unknown key {', '.join(sorted(unknown))}")
    modes, environment, home = raw.get("modes", {}), raw.get("environment", {}), raw.get("home", "")
    if not isinstance(modes, dict) or not isinstance(environment, dict):
        raise FormatError(f"{root.path}/{FILE}: modes and environment are tables")
    if not isinstance(home, str) or (home and not re.fullmatch(r"/[^\x00-\x1f]*", home)):
        raise FormatError(f"{root.path}/{FILE}: home is an absolute path")
    for path, mode in modes.items():
        if not isinstance(mode, str) or not re.fullmatch(r"0[0-7]{3} \S+:\S+", mode):
            raise FormatError(f'{root.path}/{FILE}: modes: {path}: "0660 root:render" is the form')
    if not all(isinstance(value, str) for value in environment.values()):
        raise FormatError(f"{root.path}/{FILE}: environment: values are strings")
    return Recorded(home, MappingProxyType(dict(modes)), MappingProxyType(dict(environment)))
