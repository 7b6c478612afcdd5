"""Root runs nothing of a mounted machine that others than root could have changed: what is loaded, sourced, linked to."""

from __future__ import annotations

import os
import shutil

import pytest
from kernel_support import put

from rocm_patch.changes import Locations, initramfs, preflight, system_tools

pytestmark = pytest.mark.root
USER = 1000
DRACUT = next(maker for maker in initramfs.MAKERS if maker.name == "dracut")
LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


@pytest.fixture
def machine(tmp_path):
    """A root with one maker, an ELF file of this system, whose loader and scripts lie where they lie on Debian."""
    if os.geteuid() != 0:
        pytest.skip("files of several owners need root")
    if any(os.stat(path).st_mode & 0o022 and not os.stat(path).st_mode & 0o1000 for path in (tmp_path, *tmp_path.parents)):
        pytest.skip("a folder above the tests' own can be written by others than root")
    for folder in ("proc/self", "dev", "usr/lib64", "home/somebody"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("bin", "lib", "lib64"):
        (tmp_path / folder).symlink_to(f"usr/{folder}")
    put(tmp_path, "usr/bin/dracut", b"")
    shutil.copy("/bin/true", tmp_path / "usr/bin/dracut")
    put(tmp_path, f"usr/{LOADER}", b"loader")
    (tmp_path / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(f"/{LOADER}")
    for path in ("proc/self/mountinfo", "dev/null", "usr/lib/dracut/modules.d/99x/deep/module-setup.sh", "usr/lib/x86_64-linux-gnu/libc.so.6"):
        put(tmp_path, path, b"")
    os.chown(tmp_path / "home/somebody", USER, USER)
    return tmp_path


def why_not(root):
    return system_tools.why_not(Locations(str(root)).ground("system"), (DRACUT.program,), DRACUT.reads)


@pytest.mark.parametrize(
    "path",
    [
        f"usr/{LOADER}", "usr/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/bin", "usr/bin/dracut", "lib64",
        "usr/lib/dracut", "usr/lib/dracut/modules.d/99x", "usr/lib/dracut/modules.d/99x/deep/module-setup.sh", "",
    ],
)  # fmt: skip
def test_what_a_user_owns_on_the_way_is_refused(machine, path):
    assert why_not(machine) == ""
    os.chown(machine / path, USER, USER, follow_symlinks=False)
    assert f"belongs to user {USER}" in why_not(machine)


def test_what_others_can_write_is_refused(machine):
    os.chmod(machine / "usr/lib/dracut/modules.d/99x/deep", 0o775)  # noqa: S103
    assert "modules.d/99x/deep can be written by others than root" in why_not(machine)


@pytest.mark.parametrize("link", ["usr/lib/dracut/modules.d/98y", "usr/bin/sed", "etc/ld.so.preload"])
def test_a_link_to_what_a_user_owns_is_refused(machine, link):
    put(machine, "home/somebody/file", b"")
    (machine / link).parent.mkdir(exist_ok=True)
    (machine / link).symlink_to("/home/somebody/file")
    assert f"home/somebody belongs to user {USER}" in why_not(machine)


def test_a_folder_of_libraries_that_a_user_owns_is_refused(machine):
    put(machine, "etc/ld.so.conf.d/own.conf", "/home/somebody/lib\n")
    assert f"home/somebody belongs to user {USER}" in why_not(machine)


def test_what_distributions_do_themselves_is_no_reason(machine):
    """/usr/local/lib of group staff, /usr/bin/at of user daemon, a setting that is masked."""
    put(machine, "etc/ld.so.conf.d/libc.conf", "/usr/local/lib\n")
    (machine / "usr/local/lib").mkdir(parents=True)
    os.chown(machine / "usr/local/lib", 0, 50)
    os.chmod(machine / "usr/local/lib", 0o2775)
    os.chown(put(machine, "usr/bin/at", b""), 1, 1)
    (machine / "etc/dracut.conf.d").mkdir()
    (machine / "etc/dracut.conf.d/x.conf").symlink_to("/dev/null")
    assert why_not(machine) == ""


def test_a_folder_above_the_machine_is_looked_at(machine):
    """Its owner could put another machine in its place while root is at work."""
    ground = Locations(str(machine)).ground("system")
    assert preflight.weak_folder(ground, "/usr/bin/dracut") == ""
    os.chown(machine.parent, USER, USER)
    try:
        assert preflight.weak_folder(ground, "/usr/bin/dracut") == str(machine.parent)
        assert f"{machine.parent} belongs to user {USER}" in why_not(machine)
    finally:
        os.chown(machine.parent, 0, 0)
