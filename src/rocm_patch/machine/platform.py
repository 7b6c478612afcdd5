"""The system around the card: kernel, distribution, boot loader, container, driver, kernel log."""

from __future__ import annotations

import errno
import os
import re

from rocm_patch.machine.recorded import Recorded
from rocm_patch.machine.user import User, may_open
from rocm_patch.model import Fact, Known, Platform, Unknown
from rocm_patch.root import Root

LOG_LINES = re.compile(r"amdgpu|kfd|\[drm|AMD-Vi|NVRM|secureboot", re.IGNORECASE)
LOG_LIMIT = 2000
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def collect(root: Root, recorded: Recorded, user: User, log: Fact[tuple[str, ...]]) -> Platform:
    """Read it all; each answer by itself may be unknown."""
    kernel = _word(root, "proc/sys/kernel/osrelease")
    release = os_release(root)
    return Platform(
        kernel=kernel,
        command_line=_command_line(root),
        distribution=_field(release, "ID"),
        distribution_version=_field(release, "VERSION_ID"),
        boot_loader=_boot_loader(root),
        secure_boot=_secure_boot(root, log),
        container=_container(root),
        wsl=_wsl(root, kernel),
        amdgpu_loaded=Known(root.exists("sys/module/amdgpu"), "sys/module/amdgpu"),
        kfd_present=Known(root.exists("dev/kfd"), "dev/kfd"),
        kfd_access=may_open(root, recorded, user, "dev/kfd"),
        groups=user.groups,
    )


def kernel_log(root: Root) -> Fact[tuple[str, ...]]:
    """Lines of the kernel's log that are about GPUs, oldest first."""
    if root.live:
        live = _live_log()
        if isinstance(live, Known):
            return live
    for path in ("var/log/dmesg", "var/log/kern.log"):
        answer = root.text(path, 8 << 20)
        if isinstance(answer, Known) and answer.value is not None:
            return Known(_gpu_lines(answer.value.splitlines()), path)
    return live if root.live else Unknown("no kernel log in this tree", "var/log")


def _live_log() -> Fact[tuple[str, ...]]:
    lines = list[str]()
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Unknown(error.strerror or str(error), "/dev/kmsg")
    try:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten while we read; the next read goes on
                    continue
                if error.errno == errno.EAGAIN:
                    return Known(_gpu_lines(lines), "/dev/kmsg")
                return Unknown(error.strerror or str(error), "/dev/kmsg")
            if not record:
                return Known(_gpu_lines(lines), "/dev/kmsg")
            lines.append(record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0])
    finally:
        os.close(descriptor)


def _gpu_lines(lines: list[str]) -> tuple[str, ...]:
    return tuple(line.strip() for line in lines if LOG_LINES.search(line))[-LOG_LIMIT:]


def _word(root: Root, path: str) -> Fact[str]:
    answer = root.word(path)
    if isinstance(answer, Unknown):
        return answer
    return Known(answer.value, path) if answer.value else Unknown("not there", path)


def _command_line(root: Root) -> Fact[tuple[str, ...]]:
    answer = _word(root, "proc/cmdline")
    return Known(tuple(answer.value.split()), answer.source) if isinstance(answer, Known) else answer


def os_release(root: Root) -> Fact[dict[str, str]]:
    """The fields of os-release(5)."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        answer = root.text(path)
        if isinstance(answer, Known) and answer.value is not None:
            pairs = (line.partition("=") for line in answer.value.splitlines() if "=" in line and not line.startswith("#"))
            return Known({key.strip(): value.strip().strip("\"'") for key, _, value in pairs}, path)
    return Unknown("not there", "etc/os-release")


def _field(release: Fact[dict[str, str]], key: str) -> Fact[str]:
    if isinstance(release, Unknown):
        return release
    return Known(release.value[key], release.source) if release.value.get(key) else Unknown(f"no {key}", release.source)


def _boot_loader(root: Root) -> Fact[str | None]:
    for path, name in (
        ("run/ostree-booted", "ostree"),
        ("etc/kernelstub/configuration", "kernelstub"),
        ("boot/loader/loader.conf", "systemd-boot"),
        ("boot/efi/loader/loader.conf", "systemd-boot"),
        ("efi/loader/loader.conf", "systemd-boot"),
    ):
        if root.exists(path):
            return Known(name, path)
    grub = next((path for path in ("etc/default/grub", "boot/grub/grub.cfg", "boot/grub2/grub.cfg") if root.exists(path)), None)
    if grub:
        entries = root.names("boot/loader/entries")
        bls = isinstance(entries, Unknown) or bool(entries.value)
        return Known("grub with boot loader specification entries" if bls else "grub", grub)
    return Known(None, "boot")


def _secure_boot(root: Root, log: Fact[tuple[str, ...]]) -> Fact[bool]:
    answer = root.read(SECURE_BOOT, 8)
    if isinstance(answer, Known) and answer.value is not None and len(answer.value) == 5:
        return Known(answer.value[4] == 1, SECURE_BOOT)
    for line in log.value if isinstance(log, Known) else ():
        match = re.search(r"secureboot: Secure boot (enabled|disabled)", line, re.IGNORECASE)
        if match:
            return Known(match.group(1).lower() == "enabled", "kernel log")
    if root.live and not root.exists("sys/firmware/efi"):
        return Known(False, "no sys/firmware/efi: not an EFI boot")
    return answer if isinstance(answer, Unknown) else Unknown("no EFI variable and no kernel line about it", SECURE_BOOT)


def _container(root: Root) -> Fact[str | None]:
    if root.exists(".dockerenv"):
        return Known("docker", "/.dockerenv")
    if root.exists("run/.containerenv"):
        return Known("podman", "/run/.containerenv")
    told = root.word("run/systemd/container")
    if isinstance(told, Known) and told.value:
        return Known(told.value, "/run/systemd/container")
    groups = root.text("proc/1/cgroup")
    if isinstance(groups, Unknown):
        return groups
    match = re.search(r"docker|kubepods|lxc|libpod|containerd", groups.value or "")
    return Known(match.group() if match else None, "proc/1/cgroup")


def _wsl(root: Root, kernel: Fact[str]) -> Fact[bool]:
    if root.exists("dev/dxg"):
        return Known(True, "dev/dxg")
    return Known("microsoft" in kernel.value.lower(), kernel.source) if isinstance(kernel, Known) else kernel
