"""Machines whose initramfs is not ours to make: it is sealed in one file with the kernel, or belongs to a deployment."""

from __future__ import annotations

import re
from typing import Final

from rocm_patch.errors import RefusedError
from rocm_patch.root import Root

UNIFIED: Final = ("boot/efi/EFI/Linux", "efi/EFI/Linux", "boot/EFI/Linux")
INSTALL_CONF: Final = ("etc/kernel/install.conf", "usr/lib/kernel/install.conf")
OTHER_NAME: Final = "/etc/modprobe.d/local-amdgpu.conf"


def refusal(root: Root, line: str) -> RefusedError | None:
    """What owns the image, and how its owner gets this line of modprobe.d into it; None: nothing stands in the way."""
    by_hand = f"echo '{line}' | sudo tee {OTHER_NAME} && sudo"
    for folder in UNIFIED:
        images = [name for name in root.list(folder) if name.lower().endswith(".efi")]
        if images:
            return RefusedError(
                f"/{folder}/{images[-1]} is a unified kernel image: kernel, initramfs and command line are one file, signed where Secure Boot is on, "
                "and a drop-in is read from it only once it was built, and signed, anew",
                f"{by_hand} {_builder(root)}",
            )
    for path in INSTALL_CONF:
        text = getattr(root.text(path), "value", None) or ""
        if re.search(r"^[ \t]*layout[ \t]*=[ \t]*uki\b", text, re.MULTILINE):
            return RefusedError(f"/{path} says layout=uki: kernel-install builds kernel and initramfs into one image", f"{by_hand} {_builder(root)}")
    if root.is_folder("ostree") and (root.exists("usr/bin/rpm-ostree") or root.exists("usr/bin/bootc")):
        command = f"rpm-ostree initramfs-etc --track={OTHER_NAME}"
        return RefusedError("this system is deployed by ostree, and its initramfs belongs to the deployment", f"{by_hand} {command}")
    if root.exists("etc/NIXOS"):
        hint = f'boot.extraModprobeConfig = "{line}"; and then: sudo nixos-rebuild boot'
        return RefusedError("NixOS makes /etc and the initramfs from its configuration", hint)
    return None


def _builder(root: Root) -> str:
    if root.exists("usr/bin/mkinitcpio"):
        return "mkinitcpio -P"
    if root.exists("usr/bin/kernel-install"):
        return 'kernel-install add "$(uname -r)" "/lib/modules/$(uname -r)/vmlinuz"'
    return "dracut --force --uefi"
