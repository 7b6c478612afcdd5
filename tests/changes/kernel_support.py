"""Small kernels for tests: a module that is an ELF file with one section, and initramfs archives, both built in memory."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import subprocess

TEXTS_612 = {
    "mtype_local": ("int", "MTYPE for local memory (0 = MTYPE_RW (default), 1 = MTYPE_NC, 2 = MTYPE_CC)"),
    "noretry": ("int", "Disable retry faults (0 = retry enabled, 1 = retry disabled, -1 auto (default))"),
    "vm_fragment_size": ("int", "VM fragment size in bits (4, 5, etc. 4 = 64K (default), Max 9 = 2M)"),
    "gpu_recovery": ("int", "Enable GPU recovery mechanism, (1 = enable, 0 = disable, -1 = auto)"),
    "lockup_timeout": ("string", "GPU lockup timeout in ms (0: keep default value. negative: infinity timeout)"),
    "cwsr_enable": ("int", "CWSR enable (0 = Off, 1 = On (Default))"),
    "dcdebugmask": ("uint", "all debug options disabled (default))"),
    "msi": ("int", "MSI support (1 = enable, 0 = disable, -1 = auto)"),
    "queue_preemption_timeout_ms": ("int", "queue preemption timeout in ms (1 = Minimum, 9000 = default)"),
    "ignore_min_pcap": ("bool", ""),
}
"""As Debian's linux 6.12.117 has them, shortened here and there."""
TEXTS_61 = {name: row for name, row in TEXTS_612.items() if name != "mtype_local"}
TEXTS_63 = {"mtype_local": ("int", "MTYPE for local memory (0 = MTYPE_CC (default), 1 = MTYPE_NC, 2 = MTYPE_RW)")}
"""The numbering before it changed."""


def modinfo(texts, prefix=b""):
    """The content of a .modinfo section, or of modules.builtin.modinfo with a prefix."""
    entries = [b"license=GPL and additional rights"]
    for name, (kind, text) in texts.items():
        entries += [f"parmtype={name}:{kind}".encode(), f"parm={name}:{text}".encode()]
    return b"".join(prefix + entry + b"\0" for entry in entries)


def module(texts, section=b".modinfo"):
    """A 64-bit little-endian ELF file with that section and nothing else."""
    names = b"\0" + section + b"\0.shstrtab\0"
    body = modinfo(texts)
    at_names = 64 + len(body)
    table = at_names + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    row = struct.Struct("<IIQQQQIIQQ")
    rows = row.pack(*[0] * 10) + row.pack(1, 1, 0, 0, 64, len(body), 0, 0, 1, 0)
    rows += row.pack(2 + len(section), 3, 0, 0, at_names, len(names), 0, 0, 1, 0)
    return header + body + names + rows


def pack(data, suffix):
    """Compressed as its suffix says; zstd by the program."""
    if suffix == ".ko.xz":
        return lzma.compress(data)
    if suffix == ".ko.gz":
        return gzip.compress(data)
    if suffix == ".ko.zst":
        return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout
    return data


def put(root, path, data):
    """A file and its folders."""
    path = os.path.join(str(root), path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return path


AMDGPU = "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu"


def kernel(root, version="6.12.117-test", texts=TEXTS_612, suffix=".ko.xz", place=AMDGPU, bootable=True):
    """A kernel with one module in a root."""
    put(root, f"lib/modules/{version}/{place}{suffix}", pack(module(texts), suffix))
    put(root, f"lib/modules/{version}/modules.dep", f"{place}{suffix}: kernel/drivers/gpu/drm/drm.ko\n")
    if bootable:
        put(root, f"boot/vmlinuz-{version}", b"kernel\n")
    return version


def archive(files):
    """A newc archive: names to bytes."""
    out = bytearray()
    for inode, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        raw = name.encode() + b"\0"
        fields = [inode, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def squeeze(data):
    """gzip without the time of day."""
    return gzip.compress(data, mtime=0)


def image(files, early=True, packed=squeeze):
    """An initramfs: microcode in front, then the files, compressed."""
    front = archive({"kernel/x86/microcode/AuthenticAMD.bin": b"microcode" * 9}) + b"\0" * 512 if early else b""
    return front + packed(archive(files))


DEBIAN_MARKS = {"conf/initramfs.conf": b"MODULES=most\n", "scripts/functions": b"#\n", "init": b"#!/bin/sh\n"}


def driver(version="6.12.117-test"):
    """The name that makes an image one that loads the driver."""
    return {f"usr/lib/modules/{version}/{AMDGPU}.ko.xz": b"driver" * 50}
