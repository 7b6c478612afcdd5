"""Matrix kernels of rocBLAS and hipBLASLt: the folders `rocblas/library` and `hipblaslt/library` that Tensile writes.

Code: `TensileLibrary_gfx1030.co` (assembly), `Kernels.so-000-gfx1030.hsaco` (HIP), and of lazily loaded libraries one
`.co` or `.hsaco` a problem type; hipBLASLt adds `extop_gfx*.co` and `hipblasltTransform_gfx*.hsaco`. Each is an ELF code
object or an offload bundle, and says itself what it is for. Catalogues (`.dat`, MessagePack) hold no code, but name the
files that must be there; `gaps` holds a folder against them. A file that is missing makes rocBLAS end the process
("Cannot read TensileLibrary..."): https://github.com/ROCm/Tensile/pull/1862. Which name goes with which:
https://github.com/ROCm/Tensile/blob/develop/Tensile/Source/lib/include/Tensile/PlaceholderLibrary.hpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from rocm_patch.errors import FormatError
from rocm_patch.images.message import unpack
from rocm_patch.images.source import Item, Source, Unread
from rocm_patch.images.unwrap import device_code

NAME: Final = "tensile"
CATALOGUE_LIMIT: Final = 4 << 20
"""Bytes of a catalogue that is opened. Lazy ones take 10 to 100 KB; those that also hold the solutions, to 120 MB, name no files."""
MANIFEST: Final = "TensileManifest.txt"
MANIFEST_LIMIT: Final = 4 << 20
_CODE: Final = re.compile(r"(TensileLibrary_|Kernels\d*\.so-|extop_|hipblasltTransform|hipsparselt).*\.(co|hsaco)")
_FOLDERS: Final = ("rocblas", "hipblaslt", "hipsparselt")
_LAZY: Final = re.compile(r"TensileLibrary_lazy_(gfx[0-9a-z]+)\.dat")
_HIP: Final = re.compile(r"Kernels\.so-000-(gfx[0-9a-z]+)(?:-[a-z+-]+)?\.hsaco")
_TARGET: Final = re.compile(r"gfx[0-9a-f]+(?=[.\-_]|$)")


def recognise(path: str, head: bytes) -> bool:  # noqa: ARG001  a truncated file is ours too, and is told as unread
    """A code file by its name, or by its ending in a library folder of these packages."""
    *folders, name = path.split("/")
    ours = "library" in folders and any(folder in _FOLDERS for folder in folders)
    return bool(_CODE.fullmatch(name)) or (ours and name.endswith((".co", ".hsaco")))


def read(source: Source, path: str) -> Iterator[Item]:  # noqa: ARG001  every reader has this shape
    """The code object, or those of the bundle."""
    yield from device_code(NAME, "", source)


def gaps(names: Collection[str], open_file: Callable[[str], Source]) -> Iterator[Unread]:
    """What the catalogues of one folder name and the folder has not, one item a catalogue, `inside` its name.

    `names` are the files of the folder; only lazy catalogues and the manifest are opened. Chips of which the folder has
    no file at all are no gap: packages are split by chip.
    """
    present = frozenset(names)
    lazy = {match.group(1): name for name in sorted(present) if (match := _LAZY.fullmatch(name))}
    for target, name in lazy.items():
        try:
            wanted = _placeholders(open_file(name))
        except FormatError as error:
            yield Unread(NAME, name, error.what)
            continue
        yield from _gap(name, [missing for prefix in wanted for missing in _missing(prefix, target, present)])
    for target in sorted({match.group(1) for name in present if (match := _HIP.fullmatch(name))} - lazy.keys() if lazy else ()):
        # rocBLAS 5.3 to 6.1: kernels for gfx1010 were built, the catalogue through which they are found was not.
        yield Unread(NAME, f"TensileLibrary_lazy_{target}.dat", f"the catalogue for {target} is missing: its kernels cannot be found")
    if MANIFEST in present:
        try:
            yield from _gap(MANIFEST, _unlisted(open_file(MANIFEST), present))
        except FormatError as error:
            yield Unread(NAME, MANIFEST, error.what)


def _gap(catalogue: str, missing: list[str]) -> Iterator[Unread]:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield Unread(NAME, catalogue, f"{missing[0]}{more} should be beside it and is missing")


def _placeholders(source: Source) -> list[str]:
    """The libraries that a lazy catalogue refers to, each once."""
    if source.size > CATALOGUE_LIMIT:
        raise FormatError(f"a catalogue of {source.size} bytes")
    found: dict[str, None] = {}
    waiting: list[Any] = [unpack(source.read(0, source.size))]
    if not isinstance(waiting[0], dict) or "library" not in waiting[0]:
        raise FormatError("not a catalogue of Tensile")
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            value = part.get("value")
            if part.get("type") == "Placeholder" and isinstance(value, str):
                found[value] = None
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return sorted(found)


def _missing(prefix: str, target: str, present: frozenset[str]) -> Iterator[str]:
    """What a library needs and has not: its own catalogue, and code."""
    if f"{prefix}.dat" not in present:
        yield f"{prefix}.dat"
    if prefix.endswith("_fallback"):
        # Kernels in HIP for every chip; the file bears the chip's name, with its features if it was built for some.
        ends = [f"_{target}{feature}.hsaco" for feature in ("", "-xnack-", "-xnack+")]
    else:
        ends = [".co", *(f"{feature}.hsaco" for feature in ("", "-xnack-", "-xnack+"))]
    if not any(prefix + end in present for end in ends):
        yield prefix + ends[0]


def _unlisted(source: Source, present: frozenset[str]) -> list[str]:
    """Files of a manifest (one built path a line) that are not there though others for the same chip are."""
    if source.size > MANIFEST_LIMIT:
        raise FormatError(f"a manifest of {source.size} bytes")
    targets = {target for name in present if (target := _target(name))}
    listed = {line.strip().rpartition("/")[2] for line in source.read(0, source.size).decode("utf-8", "replace").splitlines()}
    return sorted(name for name in listed - present if name.endswith((".co", ".hsaco", ".dat")) and _target(name) in targets)


def _target(name: str) -> str:
    found = _TARGET.findall(name)
    return str(found[-1]) if found else ""
