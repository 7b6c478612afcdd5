"""GPUs from the PCI bus and from KFD's topology, joined by address: also a card that KFD refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rocm_patch.errors import FormatError
from rocm_patch.knowledge import Knowledge
from rocm_patch.machine import atomics
from rocm_patch.machine.recorded import Recorded
from rocm_patch.machine.user import User, may_open
from rocm_patch.model import Atomics, Fact, Gpu, Known, Unknown
from rocm_patch.root import Root

TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
DEVICES = "sys/bus/pci/devices"
VENDORS = {"8086": "Intel", "10de": "NVIDIA", "1002": "AMD", "1af4": "virtio", "15ad": "VMware", "1234": "QEMU", "1a03": "ASPEED"}


@dataclass(frozen=True)
class Node:
    """One KFD topology node that is a GPU."""

    number: int
    properties: Mapping[str, int]
    pci: str
    link_flags: int | None


def parse_properties(text: str, where: str) -> dict[str, int]:
    """Read 'key number' lines. Raises FormatError if a line is anything else."""
    values = {}
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdigit() or len(words[1]) > 20:
            raise FormatError(f"{where}: {line[:60]!r} is no property")
        values[words[0]] = int(words[1])
    return values


def nodes(root: Root) -> tuple[list[Node], list[Unknown]]:
    """All GPU nodes in numeric order; an unreadable one is reported and hides nothing."""
    found, unread = [], []
    for name in root.list(TOPOLOGY):
        where = f"{TOPOLOGY}/{name}/properties"
        answer = root.text(where)
        if isinstance(answer, Unknown) or answer.value is None or not name.isdigit():
            unread.append(answer if isinstance(answer, Unknown) else Unknown("no properties", where))
            continue
        try:
            values = parse_properties(answer.value, where)
        except FormatError as error:
            unread.append(Unknown(error.what.partition(": ")[2], where))
            continue
        if values.get("simd_count", 0) > 0:
            location = values.get("location_id", 0)
            pci = f"{values.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}" if location else ""
            found.append(Node(int(name), values, pci, _link_flags(root, name)))
    return found, unread


def _link_flags(root: Root, node: str) -> int | None:
    # The link towards the CPU is the one that atomics travel; KFD writes it first.
    answer = root.text(f"{TOPOLOGY}/{node}/io_links/0/properties")
    if isinstance(answer, Unknown) or not answer.value:
        return None
    try:
        return parse_properties(answer.value, "io_links").get("flags")
    except FormatError:
        return None


def collect(
    root: Root, recorded: Recorded, user: User, knowledge: Knowledge, log: Fact[tuple[str, ...]]
) -> tuple[tuple[Gpu, ...], tuple[str, ...], list[Unknown]]:
    """AMD GPUs, the names of others, and what could not be read."""
    kfd, unread = nodes(root)
    by_pci = {node.pci: node for node in kfd if node.pci}
    topology = root.names(TOPOLOGY)
    kfd_runs = isinstance(topology, Known) and topology.value is not None
    gpus, others = [], []
    for pci in root.list(DEVICES):
        where = f"{DEVICES}/{pci}"
        kind, vendor, device = (_hex(root, f"{where}/{word}") for word in ("class", "vendor", "device"))
        if isinstance(kind, Unknown) or kind.value is None or kind.value >> 16 not in (0x03, 0x12):
            continue
        if isinstance(vendor, Unknown) or vendor.value is None or isinstance(device, Unknown) or device.value is None:
            unread.append(Unknown("a display device without vendor and device", where))
            continue
        if vendor.value != 0x1002:
            others.append(f"{VENDORS.get(f'{vendor.value:04x}', 'vendor')} {vendor.value:04x}:{device.value:04x} at {pci}")
            continue
        gpus.append(_gpu(root, recorded, user, knowledge, log, pci, f"{device.value:04x}", by_pci.pop(pci, None), kfd_runs))
    # A container or an old kernel may show KFD's node and not the PCI device.
    left = [node for node in kfd if not node.pci or node.pci in by_pci]
    if gpus:
        left = [node for node in left if node.pci]
    for node in left:
        device_id = f"{node.properties.get('device_id', 0):04x}"
        gpus.append(_gpu(root, recorded, user, knowledge, log, node.pci, device_id, node, kfd_runs))
    return tuple(gpus), tuple(others), unread


def _gpu(
    root: Root,
    recorded: Recorded,
    user: User,
    knowledge: Knowledge,
    log: Fact[tuple[str, ...]],
    pci: str,
    device: str,
    node: Node | None,
    kfd_runs: bool,
) -> Gpu:
    where = f"{DEVICES}/{pci}"
    row, names = knowledge.devices.get(device, (None, None))
    revision = _hex(root, f"{where}/revision")
    gfx: Fact[str] = Known(row.gfx, f"PCI id 1002:{device}") if row else Unknown(f"PCI id 1002:{device} is in no table of ours", "gpus.toml")
    told = knowledge.chip_of_version(node.properties.get("gfx_target_version", 0)) if node else None
    if told and node:
        gfx = Known(told, f"{TOPOLOGY}/{node.number}")
        row = knowledge.gpus.get(told, row)
    firmware = _firmware(root, where, node)
    kfd_node: Fact[int | None] = Unknown("KFD shows no topology here", TOPOLOGY)
    if node:
        kfd_node = Known(node.number, TOPOLOGY)
    elif kfd_runs:
        kfd_node = Known(None, TOPOLOGY)
    render = _render_node(root, where, node)
    access: Fact[bool] = Unknown("there is no render node", where)
    if isinstance(render, Known) and render.value:
        access = may_open(root, recorded, user, f"dev/dri/{render.value}")
    link = root.link(f"{where}/driver")
    verdict: Atomics = atomics.judge(root, row, pci, node.link_flags if node else None, firmware, kfd_node, log)
    return Gpu(
        pci=pci,
        vendor_id="1002",
        device_id=device,
        revision=Known(revision.value or 0, revision.source) if isinstance(revision, Known) else revision,
        name=_name(names, row, device, revision),
        gfx=gfx,
        integrated=bool(row and row.integrated),
        kfd_node=kfd_node,
        driver=Known(link.rpartition("/")[2] if link else None, f"{where}/driver"),
        render_node=render,
        render_access=access,
        memory_bytes=_number(root, f"{where}/mem_info_vram_total"),
        atomics=verdict,
    )


def _name(names: object, row: object, device: str, revision: Known[int | None] | Unknown) -> str:
    from rocm_patch.model import DeviceRow, GpuRow

    if not isinstance(names, DeviceRow):
        return f"{row.codename} GPU" if isinstance(row, GpuRow) else f"AMD GPU 1002:{device}"
    if isinstance(revision, Known) and revision.value is not None:
        exact = names.revisions.get(f"{revision.value:02x}")
        if exact:
            return exact
    return " / ".join(names.names[:3])


def _firmware(root: Root, where: str, node: Node | None) -> Fact[int]:
    if node and node.properties.get("fw_version"):
        # The upper bits carry feature flags on some kernels; the version itself fits in 16.
        return Known(node.properties["fw_version"] & 0xFFFF, f"{TOPOLOGY}/{node.number}")
    answer = _hex(root, f"{where}/fw_version/mec_fw_version")
    if isinstance(answer, Unknown):
        return answer
    if answer.value is None:
        return Unknown("the driver shows no MEC firmware version", f"{where}/fw_version")
    return Known(answer.value, answer.source)


def _render_node(root: Root, where: str, node: Node | None) -> Fact[str | None]:
    names = [name for name in root.list(f"{where}/drm") if name.startswith("renderD")]
    if names:
        return Known(names[0], f"{where}/drm")
    minor = node.properties.get("drm_render_minor", 0) if node else 0
    return Known(f"renderD{minor}" if minor else None, f"{where}/drm")


def _hex(root: Root, where: str) -> Known[int | None] | Unknown:
    answer = root.word(where)
    if isinstance(answer, Unknown):
        return answer
    if answer.value is None:
        return Known(None, where)
    try:
        return Known(int(answer.value, 16), where)
    except ValueError:
        return Unknown(f"{answer.value[:20]!r} is no hexadecimal number", where)


def _number(root: Root, where: str) -> Fact[int]:
    answer = root.word(where)
    if isinstance(answer, Unknown):
        return answer
    if answer.value is None or not answer.value.isdigit():
        return Unknown("not there", where)
    return Known(int(answer.value), where)
