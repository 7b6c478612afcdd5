"""Code objects, bundles and libraries made in memory from readable descriptions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

from rocm_patch.images.machs import GCN

MACHS = {name: number for number, name in GCN.items()}
HOST = "host-x86_64-unknown-linux-gnu-"
MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"
S_ENDPGM = struct.pack("<I", 0xBF810000)
FEATURE_BITS = {"xnack-": 0x200, "xnack+": 0x300, "sramecc-": 0x800, "sramecc+": 0xC00}


def elf(sections: Sequence[tuple[str, int, int, int, bytes, int]], *, machine: int = 62, flags: int = 0, abi: int = 0, abi_version: int = 0) -> bytes:
    """An ELF file of sections (name, type, flags, address, data, link); the section names are added at the end."""
    names, starts = b"\0", []
    for name, *_ in (*sections, (".shstrtab",)):
        starts.append(len(names))
        names += name.encode() + b"\0"
    body, headers = b"", [bytes(64)]
    for (_, kind, bits, address, data, link), start in zip((*sections, ("", 3, 0, 0, names, 0)), starts, strict=True):
        body += bytes(-len(body) % 64)
        headers.append(struct.pack("<IIQQQQIIQQ", start, kind, bits, address, 64 + len(body), len(data), link, 0, 1, 0))
        body += data
    body += bytes(-len(body) % 8)
    identity = b"\x7fELF\x02\x01\x01" + bytes((abi, abi_version)) + bytes(7)
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 3, machine, 1, 0, 0, 64 + len(body), flags, 64, 56, 0, 64, len(headers), len(headers) - 1)
    return header + body + b"".join(headers)


def elf_object(target: str = "gfx1010", kernels: Sequence[str] = ("kernel",), text: bytes = b"", *, abi_version: int = 2) -> bytes:
    """A code object for a target ID; each kernel gets an equal share of `text` (by default one s_endpgm) and a descriptor."""
    name, *features = target.split(":")
    flags = MACHS[name] | sum(FEATURE_BITS[feature] for feature in features)
    text = text or S_ENDPGM * max(len(kernels), 1)
    share = len(text) // max(len(kernels), 1)
    strings, symbols = b"\0", bytes(24)
    for index, kernel in enumerate(kernels):
        for suffix, kind, section, value, size in (("", 2, 3, 0x1000 + index * share, share), (".kd", 1, 4, 0x800 + index * 64, 64)):
            symbols += struct.pack("<IBBHQQ", len(strings), 1 << 4 | kind, 3, section, value, size)
            strings += (kernel + suffix).encode() + b"\0"
    return elf(
        [
            (".dynsym", 11, 2, 0x200, symbols, 2),
            (".dynstr", 3, 2, 0x400, strings, 0),
            (".text", 1, 6, 0x1000, text, 0),
            (".rodata", 1, 2, 0x800, bytes(64 * len(kernels)), 0),
        ],
        machine=224,
        flags=flags,
        abi=64,
        abi_version=abi_version,
    )


def entry_id(target: str) -> str:
    """The id of a bundle's entry: 'gfx1010' -> 'hipv4-amdgcn-amd-amdhsa--gfx1010', 'spirv' -> its own triple, others as they are."""
    if target == "spirv":
        return "hip-spirv64-amd-amdhsa--amdgcnspirv"
    return f"hipv4-amdgcn-amd-amdhsa--{target}" if target.startswith("gfx") else target


def plain_bundle(entries: Mapping[str, bytes], *, alignment: int = 4096) -> bytes:
    """An offload bundle of target -> code, with an empty host entry before."""
    rows = [(HOST, b""), *((entry_id(target), data) for target, data in entries.items())]
    position = len(MAGIC) + 8 + sum(24 + len(name) for name, _ in rows)
    head, body = MAGIC + struct.pack("<Q", len(rows)), b""
    start = position + -position % alignment
    for name, data in rows:
        body += bytes(-len(body) % alignment)
        head += struct.pack("<QQQ", start + len(body), len(data), len(name)) + name.encode()
        body += data
    return head + bytes(start - position) + body


def compressed_bundle(entries: Mapping[str, bytes] | bytes, version: int = 3, method: str = "zstd", *, claim: int | None = None) -> bytes:
    """The same, compressed; `claim` is what the header says of the size before compression."""
    data = entries if isinstance(entries, bytes) else plain_bundle(entries)
    packed = zlib.compress(data) if method == "zlib" else zstd(data)
    size, number = len(data) if claim is None else claim, 0 if method == "zlib" else 1
    fields = {1: "<4sHHIQ", 2: "<4sHHIIQ", 3: "<4sHHQQQ"}[version]
    sizes = (size,) if version == 1 else (struct.calcsize(fields) + len(packed), size)
    return struct.pack(fields, b"CCOB", version, number, *sizes, 0) + packed


def library(fatbin: bytes, *, more: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """A host library with a `.hip_fatbin` section, and other sections."""
    sections = [(".text", 1, 6, 0x1000, b"\x90" * 64, 0), (".hip_fatbin", 1, 2, 0x2000, fatbin, 0)]
    return elf([*sections, *((name, 1, 2, 0, data, 0) for name, data in more)])


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    try:
        from compression import zstd as module
    except ImportError:
        from backports import zstd as module
    return module.compress(data)
