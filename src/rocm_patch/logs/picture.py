"""Facts -> Machine and Images: the values that the rules judge, as `machine.collect` and `images.installed` make them of a system.

What nobody told is Unknown, and a rule that needs it stays silent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from rocm_patch.errors import UsageError
from rocm_patch.images import installed
from rocm_patch.knowledge import Knowledge, plain_name
from rocm_patch.logs.facts import NAMES, Told
from rocm_patch.model import (
    Atomics,
    Fact,
    Gpu,
    Images,
    Known,
    Machine,
    Package,
    Platform,
    RocmInstall,
    Setting,
    TorchInstall,
    Unknown,
)

_UNTOLD: Final = Unknown("not told", "the log and the facts given")
_SOURCE: Final = "told"
_PLATFORM: Final = Platform(
    kernel=_UNTOLD,
    command_line=_UNTOLD,
    distribution=_UNTOLD,
    distribution_version=_UNTOLD,
    boot_loader=_UNTOLD,
    secure_boot=_UNTOLD,
    container=_UNTOLD,
    wsl=_UNTOLD,
    amdgpu_loaded=_UNTOLD,
    kfd_present=_UNTOLD,
    kfd_access=_UNTOLD,
    groups=_UNTOLD,
)
_NOBODY: Final = Machine("", (), (), _PLATFORM, (), (), (), _UNTOLD, ())
"""A machine of which nothing is told."""
_MOST: Final = 16
_OF_TORCH: Final = ("torch", "hip", "cuda", "python", "numpy")
_NIGHTLY: Final = re.compile(r"(?:a|rc|dev)20\d{6}")
_TARGET: Final = re.compile(r"gfx[0-9a-f]{3,4}")
_INTEGRATED: Final = re.compile(r"(?i)\biGPU|integrated|\bAPU\b")


def given(pairs: Mapping[str, object]) -> Told:
    """What a user says: names as `NAMES` lists them, variables as 'env.NAME'. UsageError for a name that is none."""
    values: dict[str, str] = {}
    environment: dict[str, str] = {}
    for name, value in pairs.items():
        text = value if isinstance(value, str) else str(value)
        if name.startswith("env."):
            environment[name[4:]] = text
        elif name in NAMES:
            values[name] = text
        else:
            raise UsageError(f"--given {name}: there is no such fact", f"known: {', '.join(NAMES)}, env.NAME")
    return Told(values, environment)


def picture(told: Told, knowledge: Knowledge, base: Machine | None = None, code: Images | None = None) -> tuple[Machine, Images]:
    """The machine that the facts describe, laid over one that was read (`base`, with `code`), if there is one."""
    values = told.values
    machine = base or _NOBODY
    images = code or Images()
    cards = _cards(values, knowledge)
    if cards:
        machine = replace(machine, gpus=cards)
    if "torch" in values or "hip" in values or "cuda" in values:
        torch, images = _torch_and_code(values, knowledge)
        machine = replace(machine, torches=(torch,))
    if "rocm" in values:
        number = re.search(r"\d+(?:\.\d+)+", values["rocm"])
        version: Fact[str] = Known(number.group(), _SOURCE) if number else Unknown(f"{values['rocm'][:40]!r} is no version", _SOURCE)
        machine = replace(machine, rocms=(RocmInstall(_SOURCE, version),))
    if told.environment:
        said = tuple(Setting(name, value, "environment", "process", _SOURCE, 0, "process", True) for name, value in told.environment.items())
        kept = tuple(replace(item, in_force=item.in_force and item.name not in told.environment) for item in machine.settings)
        machine = replace(machine, settings=kept + said)
    return replace(machine, platform=_platform(values, machine.platform)), images


def _platform(values: Mapping[str, str], platform: Platform) -> Platform:
    known: dict[str, Known[Any]] = {}
    if "kernel" in values:
        known["kernel"] = Known(values["kernel"], _SOURCE)
    if "distro" in values:
        name, _, version = values["distro"].partition(" ")
        known["distribution"] = Known(name.lower(), _SOURCE)
        known["distribution_version"] = Known(version, _SOURCE)
    if values.get("os") == "wsl":
        known["wsl"] = Known(True, _SOURCE)
    if values.get("container"):
        known["container"] = Known(values["container"], _SOURCE)
    if values.get("groups"):
        known["groups"] = Known(tuple(re.findall(r"[a-z_][\w-]*", values["groups"])), _SOURCE)
    return replace(platform, **known) if known else platform


def _cards(values: Mapping[str, str], knowledge: Knowledge) -> tuple[Gpu, ...]:
    """The cards told of; a batch speaks of the same few again and again."""
    name, targets = values.get("gpu", ""), values.get("gfx", "")
    key = ("cards", name, targets)
    found = knowledge.remembered.get(key)
    return knowledge.remember(key, _gpus(name, targets, knowledge)) if found is None else found


def _gpus(name: str, targets: str, knowledge: Knowledge) -> tuple[Gpu, ...]:
    chips = _TARGET.findall(targets.lower())
    names = [part.strip() for part in re.split(r"[;+,]| and | & ", name) if part.strip()]
    if not chips:
        chips = [gfx for part in names if (gfx := _chip(part, knowledge))]
    if not chips:
        return (_gpu(name, "", knowledge),) if name else ()
    times = re.search(r"\b([2-9]|1\d)\s?x\b|\bx\s?([2-9])\b", name, re.IGNORECASE)
    if times and len(chips) == 1:
        chips *= min(int(times.group(1) or times.group(2)), _MOST)
    labels = names if len(names) == len(chips) else [name] * len(chips)
    return tuple(_gpu(label, gfx, knowledge) for label, gfx in zip(labels[:_MOST], chips[:_MOST], strict=True))


def _chip(part: str, knowledge: Knowledge) -> str:
    """A target by a name in free text: the longest run of words that is one."""
    words = re.sub(r"\(.{0,80}\)", " ", part).split()
    for length in range(min(len(words), 6), 0, -1):
        for start in range(len(words) - length + 1):
            gfx = knowledge.chips_by_name.get(plain_name(" ".join(words[start : start + length])))
            if gfx:
                return gfx
    return ""


def _gpu(name: str, gfx: str, knowledge: Knowledge) -> Gpu:
    row = knowledge.gpus.get(gfx)
    return Gpu(
        pci="",
        vendor_id="1002",
        device_id="",
        revision=_UNTOLD,
        name=name or (f"{row.codename} GPU" if row else gfx or "AMD GPU"),
        gfx=Known(gfx, _SOURCE) if gfx else _UNTOLD,
        integrated=row.integrated if row else bool(_INTEGRATED.search(name)),
        kfd_node=_UNTOLD,
        driver=_UNTOLD,
        render_node=_UNTOLD,
        render_access=_UNTOLD,
        memory_bytes=_UNTOLD,
        atomics=Atomics("unknown", "not told", _UNTOLD, _UNTOLD, row.atomics_free_firmware if row else 0),
    )


def _torch_and_code(values: Mapping[str, str], knowledge: Knowledge) -> tuple[TorchInstall, Images]:
    """The torch told of and what it contains; many users have the same."""
    key = ("torch", *map(values.get, _OF_TORCH))
    found = knowledge.remembered.get(key)
    if found is None:
        torch = _torch(values)
        found = knowledge.remember(key, (torch, _code(torch, knowledge)))
    return found


def _torch(values: Mapping[str, str]) -> TorchInstall:
    text = values.get("torch", "")
    number = re.search(r"\d+\.\d+(?:\.\d+)?(?:a0|rc\d|\.dev20\d{6})?", text)
    build: Fact[Literal["rocm", "cuda", "cpu"]] = _UNTOLD
    toolkit: Fact[str | None] = _UNTOLD
    hip = re.search(r"rocm[\w ().-]{0,12}?(\d{1,2}\.\d{1,2}(?:\.\d{1,3})?(?:(?:a|rc)\d+)?)", text.lower())
    cuda = re.search(r"\+cu(\d{2,3})", text)
    if hip or "hip" in values:
        build, toolkit = Known("rocm", _SOURCE), Known(hip.group(1) if hip else values["hip"], _SOURCE)
    elif cuda or "cuda" in values:
        build = Known("cuda", _SOURCE)
        toolkit = Known(f"{cuda.group(1)[:-1]}.{cuda.group(1)[-1]}" if cuda else values["cuda"], _SOURCE)
    elif "+cpu" in text:
        build, toolkit = Known("cpu", _SOURCE), Known(None, _SOURCE)
    python: Fact[str] = Known(values["python"], _SOURCE) if "python" in values else _UNTOLD
    tag = f"+rocm{toolkit.value}" if hip and isinstance(toolkit, Known) else ""
    version: Fact[str] = Known(number.group() + tag, _SOURCE) if number else _UNTOLD
    return TorchInstall("told", "python", "told", version, build, toolkit, python, _packages(values), ())


def _packages(values: Mapping[str, str]) -> tuple[Package, ...]:
    return tuple(Package(name, values[name]) for name in ("numpy",) if name in values)


def _code(torch: TorchInstall, knowledge: Knowledge) -> Images:
    """What a wheel of this tag contains; a nightly or a split wheel says nothing without its device packages."""
    if isinstance(torch.toolkit, Known) and torch.toolkit.value and _NIGHTLY.search(torch.toolkit.value):
        return Images()
    split = {row.id for row in knowledge.contents if row.split}
    return Images(tuple(image for image in installed.names(torch, knowledge) if image.inside not in split))
