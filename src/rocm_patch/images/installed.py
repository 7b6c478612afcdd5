"""Machine -> Images: which GPU code the installed torches contain.

Bytes speak first (offload bundles, split archives and matrix kernels of torch and of the ROCm libraries beside it), then
the names of the distributions, then what wheels of that origin are known to contain. Each answer says by its `store` how
it was won.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from rocm_patch.knowledge import Knowledge
from rocm_patch.knowledge.conditions import in_range
from rocm_patch.model import Image, Images, Known, Machine, TargetCode, TorchInstall
from rocm_patch.root import Root

__all__ = ["names", "places", "scan"]

_DEVICE_PACKAGE = re.compile(r"(amd-torch-device|rocm-sdk-device)-(gfx[0-9a-f]+)")
_FAMILY_PACKAGE = re.compile(r"rocm-sdk-libraries-(gfx\d+)x-(dgpu|all)", re.IGNORECASE)
_MUST = "torch/lib/libtorch_hip.so"
_PLACES = ("torch/lib", "torch/.kpack")
"""Below site-packages: torch's own code, and the ROCm libraries that older wheels bring along."""
_SDK = "_rocm_sdk_"
"""Folders of the packages that newer wheels share."""


def scan(root: Root, machine: Machine, knowledge: Knowledge) -> Images:
    """Look into every ROCm torch of a machine. Kernels are not counted: that is for `scan PATH`."""
    files: list[Image] = []
    for torch in machine.torches:
        if isinstance(torch.build, Known) and torch.build.value == "rocm":
            files.extend(_libraries(root, torch))
            files.extend(names(torch, knowledge))
    return Images(tuple(files))


def places(root: Root, torch: TorchInstall) -> list[str]:
    """The folders of a torch that hold device code, as paths of that machine."""
    sdks = [f"{torch.site}/{name}" for name in root.list(torch.site) if name.startswith(_SDK)]
    return [place for place in (*(f"{torch.site}/{name}" for name in _PLACES), *sdks) if root.is_folder(place)]


def _libraries(root: Root, torch: TorchInstall) -> list[Image]:
    found: list[Image] = []
    there = places(root, torch)
    if not there:
        return []
    # The readers and their decoders take 50 ms to load: only where there is something to read.
    from rocm_patch.images import pool, walk

    tasks: list[walk.Candidate] = []
    for place in there:
        tasks.extend(walk.candidates([root.host(place)]))
    must = f"{torch.site}/{_MUST}"
    if root.exists(must) and not any(os.path.samefile(task.path, root.host(must)) for task in tasks if task.path.endswith(_MUST)):
        found.append(Image(must, "", "fatbin", {}, ("not a whole ELF file",)))
    site = root.host(torch.site)
    done = {image.path: result.images for result in pool.scan(tasks, count=False) for image in result.images}
    for task in tasks:
        found.extend(replace(image, path=torch.site + task.path.removeprefix(site)) for image in done.get(task.path, ()))
    return found


def names(torch: TorchInstall, knowledge: Knowledge) -> Iterator[Image]:
    """What the names of the distributions beside a torch say, else its version tag."""
    unknown = TargetCode(-1, -1)
    # Both halves are needed: torch's own kernels, and the libraries that they call.
    halves: dict[str, set[str]] = {"amd-torch-device": set(), "rocm-sdk-device": set()}
    for package in torch.packages:
        device = _DEVICE_PACKAGE.fullmatch(package.name)
        if device:
            halves[device.group(1)].add(device.group(2))
        family = _FAMILY_PACKAGE.fullmatch(package.name)
        if family:
            prefix = family.group(1)
            targets = {gfx: unknown for gfx, row in knowledge.gpus.items() if gfx.startswith(prefix) and row.scope}
            yield Image(torch.site, package.name, "package name", targets, ())
            return
    if any(halves.values()):
        both = sorted(halves["amd-torch-device"] & halves["rocm-sdk-device"])
        lone = tuple(f"only one half of the packages for {gfx}" for gfx in sorted(halves["amd-torch-device"] ^ halves["rocm-sdk-device"]))
        yield Image(torch.site, "device packages", "package name", dict.fromkeys(both, unknown), lone)
        return
    tagged = isinstance(torch.version, Known) and "rocm" in torch.version.value.partition("+")[2]
    if not tagged or not isinstance(torch.toolkit, Known):
        return
    row = next((row for row in knowledge.contents if in_range(row.rocm, torch.toolkit.value)), None)
    if row:
        yield Image(torch.site, row.id, "version tag", dict.fromkeys(row.targets, unknown), ())
