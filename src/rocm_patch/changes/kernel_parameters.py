"""What parameters a module of the kernel has, in the kernel's own words, and whether a value would be accepted.

A parameter that the kernel does not know is logged and ignored; a bad value for one that it knows makes the module's
load fail, and for amdgpu that is a machine without a display driver. So both are looked up in the very module that would
be loaded: its `.modinfo` section lists names, types and one sentence each.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import unpack
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Unknown
from rocm_patch.root import Root, natural_key

MODULES: Final = "lib/modules"
MODULE_LIMIT: Final = 256 << 20
SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
PLACES: Final = ("updates/dkms", "updates", "extra", "extra/amdgpu", "weak-updates", "kernel/drivers/gpu/drm/amd/amdgpu")
"""Where a module lies, in the order in which depmod prefers them; asked only where modules.dep does not say."""
STRING_LIMIT: Final = 255
"""Bytes of a text for a module; amdgpu's own buffer has 256."""
_SECTION_LIMIT: Final = 4 << 20
_WORD: Final = re.compile(r"[A-Za-z0-9_.,:=+-]*")
_NUMBERS: Final = {
    "byte": (0, 2**8 - 1), "short": (-(2**15), 2**15 - 1), "ushort": (0, 2**16 - 1), "int": (-(2**31), 2**31 - 1),
    "uint": (0, 2**32 - 1), "hexint": (0, 2**32 - 1), "long": (-(2**63), 2**63 - 1), "ulong": (0, 2**64 - 1),
    "ullong": (0, 2**64 - 1), "bint": (0, 1),
}  # fmt: skip
_TRUTH: Final = {"bool": "01yYnN", "invbool": "01yYnN", "bint": "01yYnN"}
_TRUTH_NUMBERS: Final = {"y": "1", "Y": "1", "n": "0", "N": "0"}
_VALUE: Final = re.compile(r"(?<![\w.-])(-?\d{1,19})(?!\d)\s*(?:[=:]\s*|\s(?=auto))([^,;()=]*)")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a module."""

    name: str
    type: str
    text: str
    """The kernel's sentence about it."""


@dataclass(frozen=True)
class Module:
    """A module of one kernel. `path`: the file that was read, as on that machine."""

    name: str
    kernel: str
    path: str
    builtin: bool
    parameters: Mapping[str, Parameter]


# ------------------------------------------------------------------ which kernel


@dataclass(frozen=True)
class Kernel:
    """A kernel that this machine runs or would boot."""

    version: str
    why: str
    """running, or newest."""


def kernels(root: Root, module: str = "amdgpu") -> tuple[Kernel, ...]:
    """The kernels that a setting has to suit: the running one, on the live system, and the newest that is installed.

    Raises:
        RefusedError: there is none.
    """
    installed = sorted((name for name in root.list(MODULES) if _is_kernel(root, name)), key=natural_key)
    if not installed:
        where = f"{_shown(root, MODULES)}: {'no kernel lies there' if root.is_folder(MODULES) else 'there is no such folder'}"
        raise RefusedError(f"no kernel was found whose {module} could be asked for its parameters; looked for {where}")
    bootable = [name for name in installed if any(root.exists(path) for path in (f"boot/vmlinuz-{name}", f"{MODULES}/{name}/vmlinuz"))]
    newest = (bootable or installed)[-1]
    running = os.uname().release if root.live else ""
    found = [Kernel(running, "running")] if running in installed else []
    return (*found, *([Kernel(newest, "newest")] if newest != running else []))


def _is_kernel(root: Root, name: str) -> bool:
    """A removed kernel leaves a folder with what dkms put there, and no modules.dep or modules of its own."""
    return any(root.exists(f"{MODULES}/{name}/{part}") for part in ("kernel", "modules.dep", "modules.builtin.modinfo"))


# ------------------------------------------------------------------ which parameters


def read(root: Root, kernel: str, module: str = "amdgpu") -> Module:
    """The parameters of a module of one kernel.

    Raises:
        RefusedError: it is not there, or cannot be read; names the file.
    """
    folder = f"{MODULES}/{kernel}"
    path = _find(root, folder, module)
    if path:
        return Module(module, kernel, f"/{path}", False, _of_file(root, path))
    builtin = f"{folder}/modules.builtin.modinfo"
    answer = root.read(builtin, MODULE_LIMIT)
    if isinstance(answer, Unknown):
        raise RefusedError(f"{_shown(root, builtin)} cannot be read: {answer.unknown}; without it nothing is known of {module}'s parameters")
    mark = f"{module}.".encode()
    entries = [entry[len(mark) :] for entry in (answer.value or b"").split(b"\0") if entry.startswith(mark)]
    if not entries:
        where = ", ".join(f"{place}/{module}.ko" for place in PLACES)
        raise RefusedError(
            f"linux {kernel} has no module {module}: looked in modules.dep and modules.builtin.modinfo of {_shown(root, folder)}, and for {where}",
            "install the kernel's modules, then make a new plan",
        )
    return Module(module, kernel, f"/{builtin}", True, _parameters(entries))


def _shown(root: Root, path: str) -> str:
    return "/" + path if root.live else os.path.join(root.path, path)


def _find(root: Root, folder: str, module: str) -> str:
    """The file that modprobe would load, relative to the root; empty: none."""
    listed = root.read(f"{folder}/modules.dep", MODULE_LIMIT)
    if isinstance(listed, Unknown):
        raise RefusedError(f"{_shown(root, folder)}/modules.dep cannot be read: {listed.unknown}; it says which file {module} is loaded from")
    for line in (listed.value or b"").decode("utf-8", "replace").splitlines():
        path = line.partition(":")[0]
        name = path.rpartition("/")[2].replace("-", "_")
        if name.startswith(f"{module}.ko") and name[len(module) :] in SUFFIXES:
            return path.lstrip("/") if path.startswith("/") else f"{folder}/{path}"
    return next(
        (path for place in PLACES for suffix in SUFFIXES if root.exists(path := f"{folder}/{place}/{module}{suffix}")),
        "",
    )


def _of_file(root: Root, path: str) -> Mapping[str, Parameter]:
    answer, shown = root.read(path, MODULE_LIMIT), _shown(root, path)
    if isinstance(answer, Unknown) or answer.value is None:
        why = answer.unknown if isinstance(answer, Unknown) else "it is not there, though modules.dep names it"
        raise RefusedError(f"{shown} cannot be read: {why}; without it nothing is known of its parameters")
    try:
        return _of_bytes(answer.value)
    except RocmPatchError as error:
        raise RefusedError(f"{shown} is no module that can be read: {error.what}", error.hint) from error


@functools.lru_cache(maxsize=2)
def _of_bytes(data: bytes) -> Mapping[str, Parameter]:
    """Remembered: a plan looks four times, and amdgpu.ko.xz takes more than a second to expand."""
    return _parameters([entry for entry in modinfo_section(unpack.expand(data)).split(b"\0") if entry])


def modinfo_section(data: bytes) -> bytes:
    """The `.modinfo` section of a 64-bit little-endian ELF file.

    Raises:
        FormatError: it is none, is damaged, or has no such section.
    """
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise FormatError("it is not a 64-bit little-endian ELF file")
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    if size < 64 or not 0 < count < 65280 or names >= count or offset + size * count > len(data):
        raise FormatError("its section table lies outside the file")

    def row(number: int) -> tuple[int, int, int]:
        name, at, length = struct.unpack_from("<I20xQQ", data, offset + size * number)
        return name, at, length

    _, at, length = row(names)
    if at + length > len(data) or length > _SECTION_LIMIT:
        raise FormatError("its section names lie outside the file")
    table = data[at : at + length]
    for number in range(count):
        name, at, length = row(number)
        if table[name : name + 9] == b".modinfo\0":
            if at + length > len(data) or length > _SECTION_LIMIT:
                raise FormatError("its section .modinfo lies outside the file")
            return data[at : at + length]
    raise FormatError("it has no section .modinfo")


def _parameters(entries: list[bytes]) -> dict[str, Parameter]:
    texts, types = dict(_pairs(entries, b"parm=")), dict(_pairs(entries, b"parmtype="))
    return {name: Parameter(name, types.get(name, ""), texts.get(name, "")) for name in {*texts, *types}}


def _pairs(entries: list[bytes], key: bytes) -> Iterator[tuple[str, str]]:
    for entry in entries:
        if entry.startswith(key):
            name, _, text = entry[len(key) :].decode("utf-8", "replace").partition(":")
            yield name.replace("-", "_"), text


# ------------------------------------------------------------------ which values


def check(module: Module, name: str, value: str) -> None:
    """Refuse what this kernel would not take.

    Raises:
        RefusedError: it has no such parameter, or the value is of another type or outside what the kernel describes.
    """
    parameter = module.parameters.get(name)
    if parameter is None:
        raise RefusedError(
            f"linux {module.kernel} has no parameter {module.name}.{name}: {module.path} lists {len(module.parameters)}, and it is none of them",
            "there is nothing to set on this kernel",
        )
    what, own = f"{module.name}.{name}={value}", f'linux {module.kernel} says of it: "{parameter.text}" ({parameter.type})'
    danger = f"a value that {module.name} does not take keeps it from being loaded, and the screen dark"
    if not fits(parameter, value):
        raise RefusedError(f"{what} is not of the type that the parameter has. {own}", danger)
    allowed = described(parameter)
    if allowed and int(_TRUTH_NUMBERS.get(value, value), 10) not in allowed:
        raise RefusedError(f"{what} is not among the values that the kernel describes ({_listed(allowed)}). {own}", danger)


def fits(parameter: Parameter, value: str) -> bool:
    """Whether a value is of the parameter's type. Types that are not known here take nothing."""
    if value in (letters := _TRUTH.get(parameter.type, "")) and len(value) == 1:
        return bool(letters)
    if parameter.type in ("charp", "string"):
        return 0 < len(value) <= STRING_LIMIT and _WORD.fullmatch(value) is not None
    limits = _NUMBERS.get(parameter.type)
    # Decimal and no leading zero: the kernel reads 010 as eight.
    return limits is not None and re.fullmatch(r"0|-?[1-9]\d{0,19}", value) is not None and limits[0] <= int(value) <= limits[1]


def described(parameter: Parameter) -> tuple[int, ...]:
    """The values that the kernel's sentence names, where it names at least two; empty: it does not say."""
    if parameter.type not in _NUMBERS:
        return ()
    found = sorted({int(match[1]) for match in _VALUE.finditer(parameter.text)})
    if len(found) < 2:
        return ()
    if re.search(r"\betc\b|\.\.\.|\bmax\b", parameter.text, re.IGNORECASE) and found[-1] - found[0] < 1024:
        return tuple(range(found[0], found[-1] + 1))
    return tuple(found)


def meaning(parameter: Parameter, value: str) -> str:
    """What a value means in the kernel's own words; empty: it does not say. The numbering of mtype_local changed between kernels."""
    found = next((match[2] for match in _VALUE.finditer(parameter.text) if match[1] == value), "")
    return " ".join(re.sub(r"[^A-Za-z0-9_ ./-]", " ", found).split())[:60]


def _listed(values: tuple[int, ...]) -> str:
    return f"{values[0]} to {values[-1]}" if values == tuple(range(values[0], values[-1] + 1)) else ", ".join(map(str, values))
