"""The image is made anew by its own maker, in a copy of this very system: what it mounts is an overlay, and nothing of it stays.

The quick tests put a maker of ours there, since the real ones take half a minute; the slow ones are initramfs-tools and dracut.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess

import pytest
from changes_support import snapshot
from kernel_support import DEBIAN_MARKS, image, kernel, put

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts, rollback, status
from rocm_patch.changes import Locations, custom_menu, engine, initramfs, initramfs_entry, modprobe, unpack
from rocm_patch.changes.journal import Journal
from rocm_patch.changes.kind import Work
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import SCHEMA, Plan, Step
from rocm_patch.root import Root

VERSION = "6.12.117-test"
IMAGE = f"boot/initrd.img-{VERSION}"
COPY = f"{IMAGE}.rocm-patch"
DROP_IN = "etc/modprobe.d/zz-rocm-patch.conf"
STEP = Step("noretry", "system", {"value": ("0",)})
MAKER = """#!/bin/sh
# A maker that takes two words and a version as mkinitramfs does, and adds up what it finds.
set -e
[ "$1" = -o ]
folder=$(mktemp -d); cd "$folder"
mkdir -p conf scripts etc lib/modules
cp -a /lib/modules/"$3" lib/modules/
cp -a /etc/modprobe.d etc/
touch conf/initramfs.conf scripts/functions
find . -print | cpio -o -H newc --quiet | gzip -n >"$2"
rm -rf "$folder"
"""
GRUB = """set default="0"
menuentry 'Debian' --class os $menuentry_id_option 'gnulinux-simple' {
\tlinux\t/boot/vmlinuz-%s root=/dev/vda1 ro quiet
\tinitrd\t/boot/initrd.img-%s
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""

pytestmark = pytest.mark.root


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def system(tmp_path):
    """This system with its changes in memory, with /boot, kernels and modprobe.d of the test's."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    root, layer = tmp_path / "root", tmp_path / "layer"
    root.mkdir()
    layer.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", layer)
        for name in ("upper", "work"):
            (layer / name).mkdir()
        mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work", "overlay", root)
        for inside, options in (
            ("boot", "mode=755,size=96m"),
            ("usr/lib/modules", "mode=755"),
            ("etc/modprobe.d", "mode=755"),
            ("var/tmp", "mode=1777"),
            ("tmp", "mode=1777"),
        ):
            (root / inside).mkdir(parents=True, exist_ok=True)
            mount("-t", "tmpfs", "-o", options, "tmpfs", root / inside)
        mount("-t", "proc", "proc", root / "proc")
        mount("--bind", "/dev", root / "dev")
    except (subprocess.CalledProcessError, OSError) as error:
        for place in (root, layer):
            subprocess.run(["umount", "--recursive", "--lazy", place], check=False, capture_output=True)
        pytest.skip(f"no overlay can be mounted here: {error}")
    try:
        for weak in ("bin", "etc", "usr", "usr/bin", "usr/sbin"):
            if (root / weak).stat().st_mode & 0o022:
                pytest.skip(f"/{weak} of this machine can be written by others than root")
        kernel(root, VERSION, suffix=".ko")
        put(root, f"boot/config-{VERSION}", "CONFIG_RD_ZSTD=y\nCONFIG_RD_GZIP=y\n")
        put(root, "boot/grub/grub.cfg", GRUB % (VERSION, VERSION))
        yield root
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", root], check=False)
        subprocess.run(["umount", "--lazy", layer], check=False)


@pytest.fixture
def small(system):
    """The same with a quick maker, and an image that it made."""
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    maker(system, MAKER)
    subprocess.run(["chroot", system, "/usr/sbin/mkinitramfs", "-o", f"/{IMAGE}", VERSION], check=True)
    os.chmod(system / IMAGE, 0o600)
    return system


def maker(root, text):
    os.chmod(put(root, "usr/sbin/mkinitramfs", text), 0o755)


def do(root, *steps):
    where = Locations(str(root))
    return apply(Plan(SCHEMA, steps or (STEP,), facts(steps or (STEP,), where)), where, say=lambda _: None)[0]


def back(root):
    return rollback(Locations(str(root)), everything=True)[0]


def inside(root, path=IMAGE):
    return unpack.contents((root / path).read_bytes(), (DROP_IN,)).files.get(DROP_IN)


def seen(root):
    """What the change may touch."""
    return {path: snapshot(root / path) for path in ("boot", "etc/modprobe.d", "var/lib")}


# ------------------------------------------------------------------ there and back


def test_made_anew_kept_and_taken_back(small):
    before, old = seen(small), (small / IMAGE).read_bytes()
    receipt = do(small)
    assert receipt.changed == (f"/{DROP_IN}", f"/{COPY}", "/boot/grub/custom.cfg", f"/{IMAGE}")
    assert inside(small) == (small / DROP_IN).read_bytes()
    assert (small / COPY).read_bytes() == old
    assert (small / IMAGE).stat().st_mode & 0o777 == 0o600
    menu = (small / "boot/grub/custom.cfg").read_text()
    assert f"initrd\t/boot/initrd.img-{VERSION}.rocm-patch\n" in menu
    assert f"linux\t/boot/vmlinuz-{VERSION} root=/dev/vda1 ro quiet\n" in menu
    assert any("holds amdgpu and this file, byte for byte" in line for line in receipt.verified)
    assert any("an entry of GRUB's menu starts with it" in line for line in receipt.verified)
    assert {file.state for file in status(Locations(str(small)))[0].files} == {"as left"}
    assert back(small).left == ()
    assert seen(small) == before


def test_two_changes_keep_the_first_copy(small):
    before, old = seen(small), (small / IMAGE).read_bytes()
    do(small)
    second = do(small, Step("cwsr-disable", "system", {}))
    assert second.changed == (f"/{DROP_IN}", f"/{IMAGE}")
    assert (small / COPY).read_bytes() == old
    assert b"cwsr_enable=0" in inside(small)
    rollback(Locations(str(small)))
    assert b"cwsr_enable" not in inside(small)
    back(small)
    assert seen(small) == before


def test_made_by_a_package_since(small):
    """A firmware package had the image made anew with our file in it: going back to the old bytes would lose the firmware."""
    do(small)
    put(small, "etc/modprobe.d/new-package.conf", "blacklist x\n")
    subprocess.run(["chroot", small, "/usr/sbin/mkinitramfs", "-o", f"/{IMAGE}", VERSION], check=True)
    assert inside(small) is not None
    receipt = back(small)
    assert receipt.left == ()
    assert inside(small) is None
    assert "etc/modprobe.d/new-package.conf" in unpack.contents((small / IMAGE).read_bytes()).names
    assert not (small / COPY).exists()
    assert not (small / "boot/grub/custom.cfg").exists()


def test_a_kernel_that_came_since(small):
    do(small)
    kernel(small, "6.13.0-new", suffix=".ko")
    subprocess.run(["chroot", small, "/usr/sbin/mkinitramfs", "-o", "/boot/initrd.img-6.13.0-new", "6.13.0-new"], check=True)
    assert inside(small, "boot/initrd.img-6.13.0-new") is not None
    back(small)
    assert inside(small, "boot/initrd.img-6.13.0-new") is None


def test_two_images_share_one_change_of_the_menu(small):
    """The running kernel's and the newest one's: two changes of custom.cfg were refused, and the remedy could not be had."""
    newer = "6.13.0-new"
    kernel(small, newer, suffix=".ko")
    subprocess.run(["chroot", small, "/usr/sbin/mkinitramfs", "-o", f"/boot/initrd.img-{newer}", newer], check=True)
    put(small, "boot/grub/grub.cfg", GRUB % (VERSION, VERSION) + GRUB % (newer, newer))
    put(small, DROP_IN, "options amdgpu noretry=0\n")
    ground = Locations(str(small)).ground("system")
    (small / ground.state).mkdir(mode=0o700, parents=True)
    with Journal(ground).opened() as journal:
        name = engine.new_transaction()
        work = Work(ground, journal.tree, knowledge.load(), name, journal.lock, lambda _: None)
        journal.tree.ensure_folder(f"{ground.state}/{name}", 0o700)
        images = [initramfs.look(work, f"/boot/initrd.img-{version}", version, f"/{DROP_IN}") for version in (VERSION, newer)]
        changes = tuple(initramfs.renew(work, f"/{DROP_IN}", images))
        paths = [change.path for change in changes]
        assert paths == [f"/{COPY}", f"/boot/initrd.img-{newer}.rocm-patch", "/boot/grub/custom.cfg", f"/{IMAGE}", f"/boot/initrd.img-{newer}"]
        assert {initramfs_entry.entry_id(version) for version in (VERSION, newer)} == custom_menu.parse(changes[2].after.data).keys()
        put(small, "boot/grub/custom.cfg", changes[2].after.data)
        os.remove(small / DROP_IN)
        (gone,) = initramfs.renew(dataclasses.replace(work, back=True), f"/{DROP_IN}", images)
        assert (gone.path, gone.after.kind) == ("/boot/grub/custom.cfg", "absent")


def test_a_link_to_the_boot_partition_is_one_place_and_holds_up_no_rollback(small):
    """/efi as a link to /boot/efi: the image was listed twice, and the rollback ended at the link."""
    machine = "0123456789abcdef0123456789abcdef"
    before = seen(small)
    do(small)
    for name in ("efi", "etc/machine-id"):
        if (small / name).is_dir():
            (small / name).rmdir()
        (small / name).unlink(missing_ok=True)
    put(small, "etc/machine-id", machine + "\n")
    put(small, f"boot/efi/{machine}/{VERSION}/initrd", image(DEBIAN_MARKS))
    (small / "efi").symlink_to("boot/efi")
    assert initramfs.paths_of(Root(str(small)), VERSION) == (f"/{IMAGE}", f"/boot/efi/{machine}/{VERSION}/initrd")
    assert back(small).left == ()
    shutil.rmtree(small / "boot/efi")
    assert seen(small) == before


def test_an_image_that_cannot_be_read_holds_up_no_rollback(small, monkeypatch):
    do(small)
    subprocess.run(["chroot", small, "/usr/sbin/mkinitramfs", "-o", f"/{IMAGE}", VERSION], check=True)
    monkeypatch.setattr(initramfs, "CONTENT_LIMIT", 100)
    receipt = back(small)
    assert not (small / DROP_IN).exists()
    assert receipt.outcome == "partly rolled back"
    assert any(f"/{IMAGE}: not looked into" in line for line in receipt.unfinished)
    assert status(Locations(str(small)))[0].transactions == ()


def test_an_image_without_the_driver_is_left_alone(small):
    put(small, IMAGE, image(DEBIAN_MARKS))
    old = (small / IMAGE).read_bytes()
    receipt = do(small)
    assert receipt.changed == (f"/{DROP_IN}",)
    assert (small / IMAGE).read_bytes() == old
    assert any("holds no amdgpu" in line for line in receipt.verified)


def test_a_foreign_custom_cfg_stays(small):
    put(small, "boot/grub/custom.cfg", "menuentry 'mine' { true }\n")
    receipt = do(small)
    assert "/boot/grub/custom.cfg" not in receipt.changed
    assert any("press e in the boot menu" in line for line in receipt.verified)


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("#!/bin/sh\necho E: no space >&2\nexit 1\n", "no space"),
        ("#!/bin/sh\nexit 0\n", "stays as it was"),
        ("#!/bin/sh\nhead -c 3000 /dev/urandom >$2\n", "not put in place"),
        (MAKER.replace("cp -a /lib/modules", ": cp -a /lib/modules"), "no longer holds amdgpu"),
        (MAKER.replace("cp -a /etc/modprobe.d etc/", ":"), "our file is not in it"),
        (MAKER.replace("touch conf", "head -c 90000 /dev/urandom >big; touch conf"), "bytes where the one before has"),
        (MAKER.replace("touch conf/initramfs.conf scripts/functions", ":"), "does not look like the one before"),
    ],
)
def test_what_is_not_put_in_place(small, text, word):
    before = seen(small)
    maker(small, text)
    with pytest.raises(RocmPatchError) as caught:
        do(small)
    assert word in caught.value.what
    assert seen(small) == before


def test_too_little_space_is_refused_before_anything_is_made(small):
    size = (small / IMAGE).stat().st_size
    space = os.statvfs(small / "boot")
    (small / "boot/filler").write_bytes(bytes(space.f_bavail * space.f_frsize - size))
    before = seen(small)
    with pytest.raises(RefusedError) as caught:
        do(small)
    assert "twice its size" in caught.value.what
    assert seen(small) == before


def test_a_rollback_is_not_held_up_by_a_maker_that_fails(small):
    do(small)
    subprocess.run(["chroot", small, "/usr/sbin/mkinitramfs", "-o", f"/{IMAGE}", VERSION], check=True)
    (small / IMAGE).write_bytes((small / IMAGE).read_bytes() + b"\0" * 4)
    maker(small, "#!/bin/sh\nexit 1\n")
    receipt = back(small)
    assert not (small / DROP_IN).exists()
    assert receipt.outcome == "partly rolled back"
    assert any(f"update-initramfs -u -k {VERSION}" in line for line in receipt.unfinished)
    assert not any(VERSION in line and "not made anew" in line for line in receipt.verified)
    # It stays on record until the image is without our file.
    (small / IMAGE).write_bytes(image(DEBIAN_MARKS))
    assert back(small).outcome == "rolled back"
    assert status(Locations(str(small)))[0].transactions == ()


def test_a_maker_that_others_could_have_changed_is_not_run(small):
    os.chmod(small / "usr/sbin/mkinitramfs", 0o777)
    old = (small / IMAGE).read_bytes()
    receipt = do(small)
    assert (small / IMAGE).read_bytes() == old
    assert any("can be written by others than root" in line and "update-initramfs" in line for line in receipt.verified)


def test_what_the_running_kernel_shows_is_not_asked_under_another_root(small):
    do(small)
    look = engine.peek(Locations(str(small)).ground("system"), knowledge.load())
    assert [held.holds for held in modprobe.in_force((), look)] == [None]


# ------------------------------------------------------------------ the real makers


def real(root, program, build):
    if not os.path.exists(program):
        pytest.skip(f"{program} is not installed")
    ended = subprocess.run(["chroot", root, *build], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_initramfs_tools(system):
    with open(system / "etc/initramfs-tools/modules", "a", encoding="utf-8") as file:
        file.write("amdgpu\n")
    subprocess.run(["depmod", "-b", system, VERSION], check=False, capture_output=True)
    real(system, "/usr/sbin/mkinitramfs", ["/usr/sbin/mkinitramfs", "-o", f"/{IMAGE}", VERSION])
    before = seen(system)
    listed = set(unpack.contents((system / IMAGE).read_bytes()).names)
    if shutil.which("lsinitramfs"):
        said = subprocess.run(["lsinitramfs", system / IMAGE], capture_output=True, text=True, check=True).stdout
        assert listed - {"", "."} == set(said.split("\n")) - {"", "."}
    receipt = do(system)
    assert inside(system) == (system / DROP_IN).read_bytes(), receipt.verified
    assert back(system).left == ()
    assert seen(system) == before


@pytest.mark.slow
@pytest.mark.parametrize("hostonly", ["yes", "no"])
def test_dracut(system, hostonly):
    path = f"boot/initramfs-{VERSION}.img"
    put(system, "etc/dracut.conf.d/test.conf", f'hostonly="{hostonly}"\nadd_drivers+=" amdgpu "\ncompress="gzip"\n')
    subprocess.run(["depmod", "-b", system, VERSION], check=False, capture_output=True)
    real(system, "/usr/bin/dracut", ["/usr/bin/dracut", "--force", f"/{path}", VERSION])
    before = seen(system)
    receipt = do(system)
    assert inside(system, path) == (system / DROP_IN).read_bytes(), receipt.verified
    assert back(system).left == ()
    assert seen(system) == before
