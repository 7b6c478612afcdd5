"""Machine -> Images: which GPU code the installed torches contain.

Bytes speak first (offload bundles in torch's libraries, targets in the names of rocBLAS files), then the names of the
distributions beside torch, then what wheels of that origin are known to contain. Each answer says by its `store` how
it was won.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from rocm_patch.images import fatbin
from rocm_patch.knowledge import Knowledge
from rocm_patch.knowledge.conditions import in_range
from rocm_patch.model import FormatError, Image, Images, Known, Machine, TargetCode, TorchInstall
from rocm_patch.root import Root

__all__ = ["READ_STORES", "scan"]

READ_STORES = ("fatbin", "compressed fatbin", "kpack", "tensile", "object")
_DEVICE_PACKAGE = re.compile(r"(amd-torch-device|rocm-sdk-device)-(gfx[0-9a-f]+)")
_FAMILY_PACKAGE = re.compile(r"rocm-sdk-libraries-(gfx\d+)x-(dgpu|all)", re.IGNORECASE)
_LIBRARIES = ("libtorch_hip.so",)


def scan(root: Root, machine: Machine, knowledge: Knowledge) -> Images:
    """Look into every ROCm torch of a machine. Only torch's own library and file names are read here."""
    files: list[Image] = []
    for torch in machine.torches:
        if isinstance(torch.build, Known) and torch.build.value == "rocm":
            files.extend(_libraries(root, torch))
            files.extend(_names(torch, knowledge))
    return Images(tuple(files))


def _libraries(root: Root, torch: TorchInstall) -> Iterator[Image]:
    folder = f"{torch.site}/torch/lib"
    for name in _LIBRARIES:
        if root.exists(f"{folder}/{name}"):
            yield _library(root, f"{folder}/{name}")


def _library(root: Root, path: str) -> Image:
    try:
        descriptor = os.open(root.host(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return Image(path, "", "fatbin", {}, ("not a regular file",))
            place = fatbin.section(stream)
            if place is None:
                return Image(path, "", "fatbin", {}, ())
            found, compressed = fatbin.targets(stream, *place)
    except OSError as error:
        return Image(path, "", "fatbin", {}, (error.strerror or str(error),))
    except FormatError as error:
        return Image(path, "", "fatbin", {}, (error.what,))
    unread = (f"{compressed} compressed bundles, not opened",) if compressed else ()
    targets = {name: TargetCode(-1, size) for name, size in sorted(found.items())}
    return Image(path, fatbin.SECTION, "fatbin", targets, unread)


def _names(torch: TorchInstall, knowledge: Knowledge) -> Iterator[Image]:
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
