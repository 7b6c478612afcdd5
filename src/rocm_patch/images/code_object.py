"""An AMDGPU code object: the target it was built for, its kernels, and where their instructions lie.

The target stands in the ELF header's flags, a kernel is a symbol `NAME.kd` (its descriptor) beside the function NAME:
https://llvm.org/docs/AMDGPUUsage.html#elf-code-object, values in
https://github.com/llvm/llvm-project/blob/main/llvm/include/llvm/BinaryFormat/ELF.h.

Symbol tables are read as columns with numpy: a library holds 140 code objects of 12,000 symbols, which is a second and
a half of pure Python and 0.1 s like this. Memory is bounded by the limits below whatever the file claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rocm_patch.errors import FormatError
from rocm_patch.images import elf
from rocm_patch.images.machs import GCN
from rocm_patch.images.source import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Kernels = tuple[NDArray[np.int64], NDArray[np.int64], bytes]

SYMBOL_LIMIT: Final = 1 << 20
STRINGS_LIMIT: Final = 1 << 26
"""Bytes of symbol names."""
NAME_LIMIT: Final = 1 << 16
"""Bytes of one name; C++ templates of composable kernels reach some 4,000."""
CODE_LIMIT: Final = 4096
"""Sections of instructions in one code object: one is usual, -ffunction-sections makes one a function."""
_SYMBOL_SIZE: Final = 24
_CHUNK: Final = 1 << 20
_SYMBOL_TABLE, _DYNAMIC_SYMBOLS = 2, 11
_EXECUTABLE: Final = 4
_PROPERTIES: Final = 56
"""Where the properties stand in a kernel's descriptor of 64 bytes."""
_WAVE32: Final = 1 << 10
_OBJECT, _FUNCTION, _OLD_KERNEL = 1, 2, 10
_HSA: Final = 64
_V2, _V3 = 0, 1
_FEATURES: Final = (("sramecc", 10), ("xnack", 8))
"""Name and lowest bit of a two-bit field from code object version 4 on: 0 unsupported, 1 any, 2 off, 3 on."""


@dataclass(frozen=True)
class Function:
    """A run of instructions: `address` as linked, `offset` in the source, both in bytes.

    `wave`: lanes of a wave, as a kernel's descriptor says; 0 where there is none to say it.
    """

    name: str
    address: int
    size: int
    offset: int
    kernel: bool
    wave: int = 0


@dataclass(frozen=True)
class CodeObject:
    """One code object. `functions` are in order of address, one an address: of aliases the kernel stays.

    `target` is the target ID as in 'gfx90a:sramecc+:xnack-'. The text fields are 0 where there is no code. `code` is every
    executable section with bytes in the file, as (offset in the source, address, size), in order of offset, none over another.
    """

    target: str
    kernel_names: tuple[str, ...]
    functions: tuple[Function, ...]
    text_offset: int
    text_address: int
    text_size: int
    code: tuple[tuple[int, int, int], ...] = ()

    @property
    def kernels(self) -> int:
        """How many kernels there are."""
        return len(self.kernel_names)


def target(source: Source) -> str:
    """The target ID alone. Raises FormatError where the file is not an AMDGPU code object or names no processor."""
    return _target(_header(source))


def count(source: Source) -> tuple[str, int]:
    """Target ID and number of kernels, without making their names. Raises FormatError."""
    header = _header(source)
    return _target(header), len(_tables(source, header)[1][0])


def read(source: Source) -> CodeObject:
    """Everything about a code object. Raises FormatError."""
    header = _header(source)
    tables, (starts, ends, strings) = _tables(source, header)
    kernels = _names(strings, starts, ends)
    text, code = _text(header), _code(header, source.size)
    # .symtab also has what is local; a stripped file keeps .dynsym.
    whole = next((table for table in tables if table.type == _SYMBOL_TABLE), tables[0] if tables else None)
    functions = _functions(source, header, whole, frozenset(kernels)) if whole else ()
    return CodeObject(_target(header), kernels, functions, text.offset, text.address, text.size, code)


def _header(source: Source) -> elf.Elf:
    header = elf.read(source)
    if header.machine != elf.MACHINE_AMDGPU:
        raise FormatError(f"an ELF file for machine {header.machine}, not AMDGPU")
    if not header.sections:
        # The loader does without; we would find no code in it and call it safe.
        raise FormatError("a code object without section headers")
    return header


def _target(header: elf.Elf) -> str:
    name = GCN.get(header.flags & 0xFF)
    if name is None:
        raise FormatError(f"a code object for the unknown processor number {header.flags & 0xFF:#x}")
    if header.abi != _HSA or header.abi_version <= _V2:
        return name
    if header.abi_version == _V3:
        return name + "".join(f":{feature}+" for feature, bit in (("sramecc", 0x200), ("xnack", 0x100)) if header.flags & bit)
    return name + "".join(f":{feature}{'-+'[state & 1]}" for feature, low in _FEATURES if (state := header.flags >> low & 3) >= 2)


def _executable(header: elf.Elf) -> list[elf.Section]:
    # Not PROGBITS alone: a loader goes by segments, and what it maps as code is code.
    return [section for section in header.sections if section.flags & _EXECUTABLE and section.type != elf.NO_BITS]


def _text(header: elf.Elf) -> elf.Section:
    executable = _executable(header)
    named = [section for section in executable if section.name == ".text"]
    return next(iter(named + executable), elf.Section(".text", 1, 0, 0, 0, 0, 0))


def _code(header: elf.Elf, size: int) -> tuple[tuple[int, int, int], ...]:
    """All executable sections, see CodeObject. Raises FormatError where they are too many, lie over each other or beyond the file."""
    found = sorted((section.offset, section.address, section.size) for section in _executable(header) if section.size)
    if len(found) > CODE_LIMIT:
        raise FormatError(f"{len(found)} sections of code")
    end = 0
    for offset, _, length in found:
        if offset < end:
            raise FormatError(f"sections of code lie over each other at {offset}")
        end = offset + length
    if end > size:
        raise FormatError(f"the code ends at {end}, beyond the file of {size} bytes")
    return tuple(found)


def _tables(source: Source, header: elf.Elf) -> tuple[list[elf.Section], Kernels]:
    """The symbol tables, the one that has the kernels first: .dynsym, or .symtab where that has none (relocatable files); and the kernels."""
    import numpy as np

    none = np.zeros(0, np.int64)
    kernels: Kernels = (none, none, b"")
    tables = sorted((section for section in header.sections if section.type in (_DYNAMIC_SYMBOLS, _SYMBOL_TABLE)), key=lambda section: -section.type)
    for number, table in enumerate(tables):
        kernels = _kernels(source, header, table)
        if len(kernels[0]):
            return [table, *tables[:number], *tables[number + 1 :]], kernels
    return tables, kernels


def _symbols(source: Source, table: elf.Section) -> NDArray[Any]:
    import numpy as np

    rows = table.size // _SYMBOL_SIZE
    if rows > SYMBOL_LIMIT:
        raise FormatError(f"{rows} symbols")
    layout = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
    return np.frombuffer(source.read(table.offset, rows * _SYMBOL_SIZE), layout)


def _strings(source: Source, header: elf.Elf, table: elf.Section) -> bytes:
    if not 0 < table.link < len(header.sections):
        raise FormatError("a symbol table without its names")
    section = header.sections[table.link]
    if section.size > STRINGS_LIMIT:
        raise FormatError(f"{section.size} bytes of symbol names")
    return source.read(section.offset, section.size)


def _kernels(source: Source, header: elf.Elf, table: elf.Section) -> Kernels:
    """Where the kernels' names start and end in the string table, and that table."""
    import numpy as np

    symbols = _symbols(source, table)
    kind = symbols["info"] & 15
    defined = symbols["section"] != 0
    if header.abi == _HSA and header.abi_version == _V2:
        starts = symbols["name"][defined & (kind == _OLD_KERNEL)].astype(np.int64)
        strings = _strings(source, header, table) if len(starts) else b""
        return starts, _ends(strings, starts), strings
    starts = symbols["name"][defined & (kind == _OBJECT)].astype(np.int64)
    if not len(starts):
        return starts, starts, b""
    strings = _strings(source, header, table)
    ends = _ends(strings, starts)
    text = np.frombuffer(strings, np.uint8)
    long = ends - starts > len(".kd")
    starts, ends = starts[long], ends[long]
    descriptor = np.ones(len(starts), bool)
    for back, letter in enumerate(b"dk.", 1):
        descriptor &= text[ends - back] == letter
    return starts[descriptor], ends[descriptor] - len(".kd"), strings


def _ends(strings: bytes, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The offset of the zero byte that ends each name. From the back, in pieces: a list of all zeros of a hostile table
    would take eight times its size. Raises FormatError for a name without an end or beyond the limit.
    """
    import numpy as np

    ends = np.full(len(starts), -1, np.int64)
    order = np.argsort(starts, kind="stable")
    ranked = starts[order]
    if len(ranked) and ranked[-1] >= len(strings):
        raise FormatError("a symbol's name lies outside of the string table")
    following = -1
    text = np.frombuffer(strings, np.uint8)
    for base in range(len(strings) // _CHUNK * _CHUNK, -1, -_CHUNK):
        zeros = np.append(np.flatnonzero(text[base : base + _CHUNK] == 0) + base, following)
        first, last = np.searchsorted(ranked, (base, base + _CHUNK))
        ends[order[first:last]] = zeros[np.searchsorted(zeros[:-1], ranked[first:last])]
        following = int(zeros[0])
    if len(ends) and (int(ends.min()) < 0 or int((ends - starts).max()) > NAME_LIMIT):
        raise FormatError("a symbol's name has no end")
    return ends


def _names(strings: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[str, ...]:
    if int((ends - starts).sum()) > STRINGS_LIMIT:
        # Names may overlap in the table: a million of 64 KiB each in one of 1 MiB.
        raise FormatError("symbol names longer than their table")
    return tuple(strings[start:end].decode("utf-8", "replace") for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _waves(source: Source, header: elf.Elf, symbols: NDArray[Any], strings: bytes, kernels: frozenset[str]) -> dict[str, int]:
    """Lanes of a wave by kernel, from descriptors that lie in the file:
    https://llvm.org/docs/AMDGPUUsage.html#code-object-v3-kernel-descriptor, ENABLE_WAVEFRONT_SIZE32 in KERNEL_CODE_PROPERTIES.
    """
    import numpy as np

    wanted = symbols[((symbols["info"] & 15) == _OBJECT) & (symbols["section"] != 0) & (symbols["section"] < len(header.sections))]
    starts = wanted["name"].astype(np.int64)
    found: dict[str, int] = {}
    for name, number, value in zip(
        _names(strings, starts, _ends(strings, starts)), wanted["section"].tolist(), wanted["value"].tolist(), strict=True
    ):
        section = header.sections[number]
        within = value - section.address + _PROPERTIES
        if name.removesuffix(".kd") in kernels and section.type != elf.NO_BITS and 0 <= within <= section.size - 2:
            properties = int.from_bytes(source.read(section.offset + within, 2), "little")
            found[name.removesuffix(".kd")] = 32 if properties & _WAVE32 else 64
    return found


def _functions(source: Source, header: elf.Elf, table: elf.Section, kernels: frozenset[str]) -> tuple[Function, ...]:
    import numpy as np

    symbols = _symbols(source, table)
    kind = symbols["info"] & 15
    # Old objects give their kernels a type of their own.
    wanted = symbols[((kind == _FUNCTION) | (kind == _OLD_KERNEL)) & (symbols["section"] != 0) & (symbols["section"] < len(header.sections))]
    if not len(wanted):
        return ()
    strings = _strings(source, header, table)
    starts = wanted["name"].astype(np.int64)
    names = _names(strings, starts, _ends(strings, starts))
    waves = _waves(source, header, symbols, strings, kernels) if kernels else {}
    places: dict[tuple[int, int], tuple[str, int]] = {}
    for name, section, value, size in zip(names, wanted["section"].tolist(), wanted["value"].tolist(), wanted["size"].tolist(), strict=True):
        known = places.get((section, value))
        if known is None or (name in kernels and known[0] not in kernels):
            places[section, value] = (name, size)
    ordered = sorted(places)
    made: list[Function] = []
    for place, after in zip(ordered, [*ordered[1:], (-1, -1)], strict=True):
        number, address = place
        name, size = places[place]
        section = header.sections[number]
        within = address - section.address
        if not section.flags & _EXECUTABLE or section.type == elf.NO_BITS or not 0 <= within <= section.size:
            raise FormatError(f"the function {name[:80]!r} lies outside of the code")
        # Hand-written assembly often gives no size: it lasts until the next symbol.
        size = size or (after[1] - address if after[0] == number else section.size - within)
        if within + size > section.size or section.offset + section.size > source.size:
            raise FormatError(f"the function {name[:80]!r} reaches beyond the code")
        made.append(Function(name, address, size, section.offset + within, name in kernels, waves.get(name, 0)))
    return tuple(made)
