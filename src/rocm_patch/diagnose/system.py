"""Rules about driver, permissions, kernel and the place where the system runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rocm_patch.diagnose.case import Case, finding, older
from rocm_patch.knowledge.conditions import holds
from rocm_patch.model import Finding, Gpu, Known


def driver(case: Case) -> Iterator[Finding]:
    """No driver, no KFD, or a card that KFD refused."""
    platform = case.machine.platform
    if _true(platform.wsl) or not case.card:
        return
    for gpu in case.cards:
        bound = gpu.driver.value if isinstance(gpu.driver, Known) else "unknown"
        if gpu.atomics.verdict == "refused":
            yield _refused(case, gpu)
        elif bound == "vfio-pci":
            yield finding("kfd_missing", "info", 0.9, [f"The {gpu.name} at {gpu.pci} is set aside for a virtual machine (vfio-pci)."])
        elif _true(platform.container):
            continue
        elif bound is None and gpu.kfd_node == Known(None, getattr(gpu.kfd_node, "source", "")):
            why = [f"The {gpu.name} at {gpu.pci} is on the bus and no driver is bound to it."]
            yield finding("kfd_missing", "problem", 0.85, why, case.advise("load-driver", have="no driver"))
        elif bound is None or (isinstance(platform.kfd_present, Known) and not platform.kfd_present.value and not isinstance(gpu.kfd_node, Known)):
            why = [f"The {gpu.name} at {gpu.pci} has no compute device: /dev/kfd is absent and KFD shows no topology."]
            yield finding("kfd_missing", "problem", 0.85, why, case.advise("load-driver", have=bound or "no driver"))
        elif isinstance(gpu.kfd_node, Known) and gpu.kfd_node.value is None and not gpu.integrated:
            why = [f"KFD runs and has no node for the {gpu.name} at {gpu.pci}; {gpu.atomics.why}."]
            yield finding("pcie_atomics", "problem", 0.5, why, _firmware(case, gpu))


def _refused(case: Case, gpu: Gpu) -> Finding:
    why = [f"The kernel's compute driver refused the {gpu.name} at {gpu.pci}: {gpu.atomics.why}."]
    if isinstance(gpu.atomics.firmware, Known) and gpu.atomics.firmware_needed > 0:
        why.append(
            f"MEC firmware {gpu.atomics.firmware.value} is installed; from {gpu.atomics.firmware_needed} on the kernel does without PCIe atomics."
        )
    return finding("pcie_atomics", "problem", 0.95, why, _firmware(case, gpu))


def _firmware(case: Case, gpu: Gpu):  # type: ignore[no-untyped-def]  # tuple[Advice, ...]
    have = gpu.atomics.firmware.value if isinstance(gpu.atomics.firmware, Known) else None
    ids = ["newer-firmware"] if gpu.atomics.firmware_needed > 0 and (have is None or have < gpu.atomics.firmware_needed) else []
    return case.advise(*ids, "other-slot", needed=gpu.atomics.firmware_needed, have=have if have is not None else "not readable")


def devices(case: Case) -> Iterator[Finding]:
    """Nodes that are absent in a container, or closed to this user."""
    platform, card = case.machine.platform, case.card
    if card is None or _true(platform.wsl):
        return
    if isinstance(platform.kfd_present, Known) and not platform.kfd_present.value:
        if _true(platform.container):
            name = platform.container.value if isinstance(platform.container, Known) else ""
            why = [f"The {card.name} is visible in sysfs, and this {name} container has no /dev/kfd{'' if _render(card) else ' and no render node'}."]
            yield finding("container_devices", "problem", 0.95, why, case.advise("pass-devices", path="/dev/kfd"))
        return
    closed = []
    if isinstance(platform.kfd_access, Known) and not platform.kfd_access.value:
        closed.append(("/dev/kfd", platform.kfd_access.source))
    if isinstance(card.render_access, Known) and not card.render_access.value and isinstance(card.render_node, Known) and card.render_node.value:
        if "absent" not in card.render_access.source:
            closed.append((f"/dev/dri/{card.render_node.value}", card.render_access.source))
        elif _true(platform.container):
            why = [f"This container has /dev/kfd and not /dev/dri/{card.render_node.value}, which the runtime opens as well."]
            yield finding("container_devices", "problem", 0.9, why, case.advise("pass-devices", path="/dev/dri"))
    if closed:
        match = re.search(r"mode (\d+), (\S+):(\S+)$", closed[0][1])
        mode, owner, group = match.groups() if match else ("", "", "")
        ungrouped = group in ("root", "0") or (mode.endswith("00") and bool(mode))
        mine = ", ".join(platform.groups.value) if isinstance(platform.groups, Known) else "not known"
        why = [f"This user may not open {path} ({source.partition(': ')[2] or source})." for path, source in closed]
        why.append(f"Groups of this user: {mine or 'none'}.")
        advice = case.advise(
            "kfd-udev-rule" if ungrouped else "device-group",
            path=closed[0][0],
            group=group or "render",
            mode=mode or "closed",
            owner=f"{owner}:{group}",
        )
        yield finding("kfd_permission", "problem", 0.95, why, advice)


def kernel(case: Case) -> Iterator[Finding]:
    """Kernels that are too old for the card."""
    version = case.machine.platform.kernel
    if case.gfx.startswith("gfx101") and isinstance(version, Known) and older(version.value, "5.10"):
        why = [
            f"Kernel {version.value} is older than 5.10: compute queues on Navi 1x can hang while fetching instructions there, "
            "unless the distribution carries the correction."
        ]
        yield finding("kernel_driver_mismatch", "warning", 0.6, why, case.advise("newer-kernel", needed="5.10", have=version.value))


def wsl(case: Case) -> Iterator[Finding]:
    """WSL hides the card; what is known about cards there."""
    if not _true(case.machine.platform.wsl) or not (case.rocm_torches or case.machine.rocms):
        return
    why = [
        "This is WSL2: the card cannot be seen from here (no KFD, no PCI device), only Windows knows it.",
        "AMD supports RDNA3 and RDNA4 there; RDNA1 was stopped by the WSL GPU driver, RDNA2 worked for one reporter with ROCm 10.2.",
    ]
    yield finding("wsl", "warning", 0.6, why, case.advise("native-linux"))


def other_cards(case: Case) -> Iterator[Finding]:
    """AMD GPUs that this tool is not for, named so that nobody wonders."""
    if case.card or case.log:
        return
    for gpu in case.machine.gpus:
        gfx = gpu.gfx.value if isinstance(gpu.gfx, Known) else "of unknown target"
        row = case.knowledge.gpus.get(gfx)
        kind = f"{row.architecture}, not a card that this tool judges" if row else "no card that this tool knows"
        yield finding("unsupported_hw", "info", 0.9, [f"{gpu.name} at {gpu.pci} ({gfx}): {kind}."])


EFFECTS_OF_FOREIGN_CODE = ("gpu_page_fault", "ring_timeout_reset", "numerical")


def log(case: Case) -> Iterator[Finding]:
    """What the kernel's log says about these cards, by signature."""
    lines = case.machine.kernel_log
    if not case.card or not isinstance(lines, Known) or case.log:
        return
    context = case.context(case.rocm_torches[0] if case.rocm_torches else None)
    for pattern in case.knowledge.finder.patterns:
        hits = [line for line in lines.value if pattern.matches(line)] if pattern.row.kernel else []
        reading = next((reading for reading in pattern.row.readings if holds(reading.when, context)), None) if hits else None
        # An accident of weeks ago is no state of the machine: the log is evidence for, never the cause by itself.
        if reading and reading.severity != "info" and reading.cause != "pcie_atomics":
            why = [f"The kernel's log says so {len(hits)} time{'s' if len(hits) > 1 else ''}: {hits[-1][:200]}", reading.meaning]
            yield finding(reading.cause, "warning", min(reading.certainty, 0.6), why, case.advise(*reading.remedies))


def _render(gpu: Gpu) -> bool:
    return isinstance(gpu.render_access, Known) and "absent" not in gpu.render_access.source


def _true(fact: object) -> bool:
    return isinstance(fact, Known) and bool(fact.value)
