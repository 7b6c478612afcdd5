"""Whether KFD gets the PCIe atomics that it wants.

The kernel takes a gfx10 card if the path from the card to the root port carries 32- and 64-bit AtomicOps, or if the
compute firmware (MEC) is new enough to do without. Sources: drivers/gpu/drm/amd/amdkfd/kfd_device.c and
pci_enable_atomic_ops_to_root in drivers/pci/pci.c of the Linux kernel; PCI Express Base Specification, Device
Capabilities 2.
"""

from __future__ import annotations

import re

from rocm_patch.model import Atomics, Fact, GpuRow, Known, Unknown
from rocm_patch.root import Root

_NO_32_BIT, _NO_64_BIT = 1 << 2, 1 << 3  # CRAT_IOLINK_FLAGS_NO_ATOMICS_32_BIT, _64_BIT
_ROUTING, _COMPLETER_32, _COMPLETER_64 = 1 << 6, 1 << 7, 1 << 8
_EXPRESS = 0x10


def judge(
    root: Root, row: GpuRow | None, pci: str, link_flags: int | None, firmware: Fact[int], node: Fact[int | None], log: Fact[tuple[str, ...]]
) -> Atomics:
    """Combine slot, firmware, threshold, and what the driver did."""
    needed = row.atomics_free_firmware if row else 0
    slot = _slot(root, pci, link_flags)
    taken = isinstance(node, Known) and node.value is not None
    if row and (row.integrated or needed < 0):
        return Atomics("not needed", "the kernel asks for no atomics here", slot, firmware, needed)
    if isinstance(slot, Known) and slot.value:
        return Atomics("available", "the whole path carries AtomicOps", slot, firmware, needed)
    if taken:
        return Atomics("not needed", "the kernel's compute driver took the card" + _than(firmware, needed), slot, firmware, needed)
    lines = log.value if isinstance(log, Known) else ()
    device = _device(root, pci)
    refusal = next((line for line in lines if re.search(rf"kfd: .*skipped device 1002:{device}, PCI rejects atomics", line)), None)
    if refusal:
        return Atomics("refused", f"kernel log: {refusal.strip()}", slot, firmware, needed)
    new_enough = isinstance(firmware, Known) and 0 < needed <= firmware.value
    if new_enough:
        return Atomics("not needed", "the firmware does without" + _than(firmware, needed), slot, firmware, needed)
    if isinstance(slot, Known) and isinstance(firmware, Known):
        return Atomics("refused", "the slot carries no AtomicOps and the firmware is too old" + _than(firmware, needed), slot, firmware, needed)
    return Atomics("unknown", "slot or firmware could not be read (the slot's registers need root)", slot, firmware, needed)


def _than(firmware: Fact[int], needed: int) -> str:
    return f" (MEC firmware {firmware.value}, from {needed} on atomics are not needed)" if isinstance(firmware, Known) and needed > 0 else ""


def _device(root: Root, pci: str) -> str:
    answer = root.word(f"sys/bus/pci/devices/{pci}/device")
    return (answer.value or "").removeprefix("0x") if isinstance(answer, Known) else ""


def _slot(root: Root, pci: str, link_flags: int | None) -> Fact[bool]:
    if link_flags is not None:
        return Known(not link_flags & (_NO_32_BIT | _NO_64_BIT), "KFD io_links")
    where = f"sys/bus/pci/devices/{pci}"
    target = root.link(where)
    if not target:
        return Unknown("no PCI device", where)
    addresses = re.findall(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", target)
    for index, address in enumerate(addresses[:-1]):
        capabilities = _capabilities_2(root, address)
        if isinstance(capabilities, Unknown):
            return capabilities
        wanted = (_COMPLETER_32 | _COMPLETER_64) if index == 0 else _ROUTING
        if capabilities.value & wanted != wanted:
            return Known(False, f"Device Capabilities 2 of {address}")
    if len(addresses) < 2:
        return Unknown("no bridge above the card", where)
    return Known(True, "Device Capabilities 2 along the path")


def _capabilities_2(root: Root, address: str) -> Known[int] | Unknown:
    where = f"sys/bus/pci/devices/{address}/config"
    answer = root.read(where, 4096)
    if isinstance(answer, Unknown):
        return answer
    config = answer.value or b""
    if len(config) < 256:
        return Unknown("the kernel shows these registers to root only", where)
    offset, seen = config[0x34] & 0xFC, 0
    while offset and offset + 0x28 <= len(config) and seen < 48:
        if config[offset] == _EXPRESS:
            return Known(int.from_bytes(config[offset + 0x24 : offset + 0x28], "little"), where)
        offset, seen = config[offset + 1] & 0xFC, seen + 1
    return Unknown("no PCI Express capability", where)
