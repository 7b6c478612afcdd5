"""Which stack this is: what a measurement depends on, and what a shipped table is named after."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from pathlib import Path
from types import ModuleType

import torch

from . import algorithms, direct_shape, launch, runtime


@functools.cache
def fingerprint(device: torch.device) -> str:
    """Everything that a measurement depends on, in words: another text is another stack."""
    extra = runtime.EXTRA.get(device.type)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where = f"{torch.cuda.get_device_name(device)} {properties.multi_processor_count} units"
        compiled_for = os.environ.get("ROCM_PATCH_CONV_TARGET") if torch.version.hip else None
        targets = [physical_target(device), effective_target(device), *([compiled_for] if compiled_for else [])]
        api = f"hip {torch.version.hip}" if torch.version.hip else f"cuda {torch.version.cuda}"
    else:
        where, targets, api = f"{_processor()} {torch.get_num_threads()} threads", [platform.machine()], ""
    names = ["/".join(targets), where, f"torch {torch.__version__}", api, extra.target if extra else "", f"kernels {kernels_hash()}"]
    return ", ".join(name for name in names if name)


def effective_target(device: torch.device) -> str:
    """The target that the stack sees, overrides included: gfx1030, sm_90."""
    properties = torch.cuda.get_device_properties(device)
    return str(properties.gcnArchName).split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def target(device: torch.device) -> str:
    """What a shipped table is named after."""
    return physical_target(device) if device.type == "cuda" else platform.machine()


def physical_target(device: torch.device) -> str:
    """The card's own target by KFD, which ignores overrides; several, where torch does not say which of the cards it is."""
    if not torch.version.hip:
        return effective_target(device)
    bus = getattr(torch.cuda.get_device_properties(device), "pci_bus_id", None)
    found: dict[str, bool] = {}
    for path in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        try:
            values = dict(line.split()[:2] for line in path.read_text(encoding="ascii", errors="replace").splitlines() if len(line.split()) > 1)
            number, location = int(values.get("gfx_target_version", 0)), int(values.get("location_id", 0))
        except (OSError, ValueError):
            continue
        if number:
            found[f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"] = bus is not None and location >> 8 & 0xFF == bus
    exact = [name for name, is_it in found.items() if is_it]
    return "+".join(exact or sorted(found)) or effective_target(device)


@functools.cache
def kernels_hash() -> str:
    """Changes with the kernels and with the code that prepares their launches."""
    ours = [each for each in vars(algorithms).values() if isinstance(each, ModuleType) and each.__name__.startswith(f"{__package__}.")]
    files = {Path(module.__file__) for module in (algorithms, direct_shape, launch, *ours) if module.__file__} | set(runtime.FOLDER.glob("*.[ch]*"))
    return hashlib.sha256(
        b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in sorted(files, key=lambda path: path.name))
    ).hexdigest()[:12]


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "CPU"
