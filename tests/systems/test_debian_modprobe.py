"""Module options on whole Debian systems: what kmod, initramfs-tools and dpkg themselves make of them."""

from __future__ import annotations

import pytest

from systems import debian
from systems.support import MANAGED, changed

FILE = "/etc/modprobe.d/zz-rocm-patch.conf"
MTYPE_LOCAL = (debian.DEBIAN_13,)


def in_image(system, path="/etc/modprobe.d", image=None):
    """The files below a folder of the initramfs, by unmkinitramfs."""
    image = image or f"/boot/{system.initramfs.name}"
    system.call("rm", "-rf", "/run/unpacked")
    system.call("unmkinitramfs", image, "/run/unpacked")
    tops = [top for top in (system.path("/run/unpacked/main"), system.path("/run/unpacked")) if top.is_dir()]
    folder = tops[0] / path.lstrip("/")
    return {found.name: found.read_text() for found in folder.iterdir() if found.is_file()} if folder.is_dir() else {}


def option(system):
    """A remedy that this release's kernel takes, its parameter and a value that is not the default."""
    return ("mtype-local", "mtype_local", "1") if system.release in MTYPE_LOCAL else ("vm-fragment-size", "vm_fragment_size", "9")


def test_written_read_by_kmod_put_into_the_image_and_taken_back_to_the_byte(system, tool):
    """The whole way there and back with the system's own programs."""
    before = system.digest(*MANAGED)
    boots_before = system.initramfs.read_bytes()
    remedy, name, value = option(system)
    tool.apply(remedy, f"value={value}")

    line = f"options amdgpu {name}={value}"
    assert line in system.path(FILE).read_text().splitlines()
    asked = system.call("modprobe", "-c")
    assert line in asked.stdout.splitlines()
    assert FILE.rpartition("/")[2] not in asked.stderr
    assert f"{name}:" in system.call("modinfo", "-k", system.kernel, "-F", "parm", "amdgpu").stdout
    shown = system.call("modprobe", "-S", system.kernel, "--show-depends", "amdgpu").stdout.splitlines()
    assert [words for words in shown if "/amdgpu.ko" in words and f" {name}={value}" in f" {words} "], shown[-1]

    assert FILE.lstrip("/") in system.call("lsinitramfs", f"/boot/{system.initramfs.name}").stdout.splitlines()
    assert in_image(system)[FILE.rpartition("/")[2]] == system.path(FILE).read_text()
    copy = system.initramfs.with_name(f"{system.initramfs.name}.rocm-patch")
    assert copy.read_bytes() == boots_before
    system.call("grub-script-check", "/boot/grub/custom.cfg")
    assert f"/boot/{copy.name}" in system.path("/boot/grub/custom.cfg").read_text()

    tool.rollback()
    assert changed(before, system.digest(*MANAGED)) == []


def test_what_packages_do_afterwards_keeps_it_and_rollback_removes_it_from_their_image_too(system, tool):
    """A kernel's update makes image and menu anew while our file is there."""
    before = in_image(system)
    remedy, name, value = option(system)
    tool.apply(remedy, f"value={value}")
    held = system.path(FILE).read_text()

    system.call("update-initramfs", "-u", "-k", "all")
    system.call("dpkg-reconfigure", f"linux-image-{system.kernel}")
    assert system.path(FILE).read_text() == held
    assert in_image(system)[FILE.rpartition("/")[2]] == held
    assert "rocm-patch" not in system.call("dpkg", "--verify", check=False).stdout
    entries = system.path("/boot/grub/grub.cfg").read_text()
    assert ".rocm-patch" not in entries, "grub-mkconfig took our copy of the image for a kernel's own"

    tool.rollback()
    assert in_image(system) == before
    assert not system.path(FILE).exists()
    left = [name for name in system.digest("/boot", "/etc") if "rocm-patch" in name]
    assert left == []


def test_a_parameter_that_the_kernel_does_not_have_is_refused_by_name(debian_12):
    """Linux 6.1 would log and ignore mtype_local: there would be nothing but a false promise."""
    before = debian_12.digest(*MANAGED)
    ended = debian.Tool(debian_12, inside=False).plan("mtype-local", "value=1", check=False)
    assert ended.returncode == 5
    assert "amdgpu.mtype_local" in ended.stderr
    assert debian_12.kernel in ended.stderr
    assert not debian_12.path("/run/plan.json").exists()
    assert debian_12.digest(*MANAGED) == before


@pytest.mark.parametrize(("remedy", "value"), [("mtype-local", "3"), ("noretry", "none"), ("vm-fragment-size", "9 mtype_local=1")])
def test_a_value_that_would_keep_the_driver_from_loading_is_refused(debian_13, remedy, value):
    """The kernel does not load a module with a value of the wrong type: a black screen."""
    ended = debian.Tool(debian_13, inside=False).plan(remedy, f"value={value}", check=False)
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert not debian_13.path("/run/plan.json").exists()
