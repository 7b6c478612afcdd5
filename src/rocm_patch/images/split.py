"""Split libraries: the host half says in a section where the .kpack archives with its device code lie.

The section `.rocm_kpack_ref` (`.kpackrf` on Windows) is MessagePack: `kernel_name`, the library's key in the archives, and
`kpack_search_paths`, relative to the library's folder, '@GFXARCH@' standing for a target:
https://github.com/ROCm/rocm-systems/blob/develop/shared/kpack/docs/multi_arch_packaging_with_kpack.md.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import elf, fatbin, kpack, pe
from rocm_patch.images.message import unpack
from rocm_patch.images.source import Item, Source, Unread

SECTIONS: Final = (".rocm_kpack_ref", ".kpackrf")
PLACEHOLDER: Final = "@GFXARCH@"
SECTION_LIMIT: Final = 1 << 20
PATH_LIMIT: Final = 256
"""Search paths in one library."""


@dataclass(frozen=True)
class Reference:
    """Which archives a library points to, and its key there."""

    binary: str
    paths: tuple[str, ...]


def reference(source: Source) -> Reference | None:
    """What a host library points to; None if it is whole. Raises FormatError."""
    if not source.read(0, min(source.size, 6)).startswith((elf.MAGIC, pe.MAGIC)):
        return None
    section = next((found for name in SECTIONS if (found := fatbin.section_of(source, name))), None)
    if section is None:
        return None
    if section.size > SECTION_LIMIT:
        raise FormatError(f"a reference of {section.size} bytes to archives")
    said = unpack(section.read(0, section.size))
    if not isinstance(said, dict):
        raise FormatError("the reference to archives is no map")
    binary, paths = said.get("kernel_name"), said.get("kpack_search_paths")
    if not isinstance(binary, str) or not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise FormatError("the reference to archives names none")
    return Reference(binary, tuple(paths[:PATH_LIMIT]))


def follow(said: Reference, folder: str, names: Callable[[str], Sequence[str]], opened: Callable[[str], Source]) -> Iterator[Item]:
    """The library's code in the archives that are there. `names` lists a folder, `opened` opens a path."""
    for pattern in said.paths:
        place, name = posixpath.split(posixpath.normpath(posixpath.join(folder, pattern)))
        wanted = re.compile(re.escape(name).replace(re.escape(PLACEHOLDER), r"[0-9a-z:+-]+"))
        found = sorted(known for known in names(place) if wanted.fullmatch(known)) if name.endswith(".kpack") else []
        if not found:
            yield Unread(kpack.NAME, "", f"its code is split off and points to {pattern[:256]}, which is not there")
        for known in found:
            try:
                archive = opened(posixpath.join(place, known))
            except FormatError as error:
                yield Unread(kpack.NAME, known, error.what)
                continue
            for item in kpack.read(archive, known):
                # A broken archive concerns all who point to it.
                if isinstance(item, Unread) or item.inside.rpartition("#")[0] == said.binary or item.inside == said.binary:
                    yield item
