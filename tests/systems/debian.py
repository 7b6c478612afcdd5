"""Whole Debian systems to be changed and thrown away: bootable disks, built once with mmdebstrap and kept in a cache folder.

A disk is what a PC has: a boot record, GRUB, one ext4 partition with kernel, initramfs, systemd. The tests mount its
partition and call the system's own programs in it; QEMU boots it. Needs root and loop devices. Partition nodes of loop
devices are not needed (many virtual machines have none), so GRUB's first sectors are put in place here.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import inspect
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
# Read when this is imported: the tests' conftest hides the home of whoever runs them.
CACHE: Final = Path(os.environ.get("ROCM_PATCH_TEST_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rocm-patch-tests")
PROGRAMS: Final = ("mmdebstrap", "mke2fs", "losetup", "mount", "umount", "chroot")
PACKAGES: Final = (
    "linux-image-amd64", "initramfs-tools", "zstd", "busybox", "grub-pc", "kmod", "systemd-sysv", "udev", "python3", "e2fsprogs",
)  # fmt: skip
SECTOR: Final = 512
PARTITION_START: Final = 2048  # sectors, as every partitioning program does it; GRUB's image lies before
DISK_BYTES: Final = 3 << 30
PARTITION_TYPE_LINUX: Final = 0x83
DEVICE: Final = "system"
"""The partition's name in that system's /dev. Debian's 10_linux writes no entry at all for a root on /dev/loop0."""
TOOL: Final = "/opt/rocm-patch"

# What differs from Debian's defaults, and why: an emulated machine has a serial port and no hurry at the menu.
# panic= is not set: a panic must wait for the reset button, as it does on the user's machine.
DEFAULT_GRUB: Final = """GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=ttyS0"
GRUB_TERMINAL="serial"
"""
# The modules of the emulated machine, and amdgpu: loaded in the initramfs as on machines that boot with a picture, so
# that a parameter arrives only if the initramfs was rebuilt with it. MODULES=most would make images four times as large.
INITRAMFS_CONF: Final = "MODULES=list"
INITRAMFS_MODULES: Final = "ext4\nvirtio_pci\nvirtio_blk\namdgpu\n"


@dataclass(frozen=True)
class Release:
    """A Debian release and how its kernel's version begins."""

    codename: str
    number: int
    kernel: str
    python: str


DEBIAN_12: Final = Release("bookworm", 12, "6.1.", "3.11")
DEBIAN_13: Final = Release("trixie", 13, "6.12.", "3.13")
RELEASES: Final = (DEBIAN_12, DEBIAN_13)


def why_not() -> str:
    """Why no system can be built or mounted here; empty: it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install mmdebstrap debian-archive-keyring e2fsprogs)"
    if not os.path.exists("/dev/loop-control"):
        return "no loop devices here"
    return ""


def run(argv: Sequence[str | os.PathLike[str]], *, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 900, stdin: str = ""):
    """A child with its output as text; a failure raises with that output in the message, not only the exit code."""
    ended = subprocess.run([os.fspath(word) for word in argv], input=stdin, capture_output=True, text=True, env=env, timeout=timeout, check=False)
    if check and ended.returncode:
        raise AssertionError(f"{' '.join(map(os.fspath, argv))}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended


# ------------------------------------------------------------------ a mounted system


@dataclass(frozen=True)
class System:
    """A mounted system. `root` is its top folder here."""

    root: Path
    release: Release
    device: str
    """The loop device of its partition."""

    @property
    def kernel(self) -> str:
        """The full version of its kernel."""
        (found,) = (name[len("vmlinuz-") :] for name in os.listdir(self.root / "boot") if name.startswith("vmlinuz-"))
        return found

    @property
    def initramfs(self) -> Path:
        """Its kernel's initramfs."""
        return self.root / "boot" / f"initrd.img-{self.kernel}"

    def path(self, inside: str) -> Path:
        """Where a path of that system lies here."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Put a file there, folders too."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def call(self, *argv: str, check: bool = True, timeout: float = 900, stdin: str = "", env: Mapping[str, str] | None = None):
        """One of that system's own programs, inside it, with an environment made from nothing."""
        clean = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        return run(["chroot", self.root, *argv], check=check, timeout=timeout, stdin=stdin, env={**clean, **(env or {})})

    def install_tool(self) -> None:
        """This checkout and what it needs, owned by root, for that system's own Python."""
        shutil.copytree(_site(self.release), self.path(f"{TOOL}/site"), symlinks=True)
        shutil.copytree(REPOSITORY / "src" / "rocm_patch", self.path(f"{TOOL}/src/rocm_patch"), ignore=shutil.ignore_patterns("__pycache__"))
        run(["chown", "-R", "root:root", self.path(TOOL)])
        run(["chmod", "-R", "go-w", self.path(TOOL)])

    def digest(self, *folders: str) -> dict[str, tuple[object, ...]]:
        """Every path below the folders with all that a rollback must bring back: kind, mode, owner, attributes, content."""
        found: dict[str, tuple[object, ...]] = {}
        for folder in folders:
            top = self.path(folder)
            for place, folders_here, files in os.walk(top):
                for name in [".", *folders_here, *files] if place == str(top) else [*folders_here, *files]:
                    path = os.path.normpath(os.path.join(place, name))
                    found["/" + os.path.relpath(path, self.root)] = _shape(path)
        return found


def _shape(path: str) -> tuple[object, ...]:
    status = os.lstat(path)
    attributes = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(os.listxattr(path, follow_symlinks=False)))
    content = ""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return (oct(status.st_mode), status.st_uid, status.st_gid, attributes, content)


EXIT_FINE: Final = 0
EXIT_NEEDS_RESTART: Final = 4


@dataclass(frozen=True)
class Tool:
    """rocm-patch for a system: inside it, installed and as on the live one; or outside, from a rescue system with --root."""

    system: System
    inside: bool

    def __call__(self, verb: str, *words: str, check: bool = True):
        """One verb. With `check`, an exit code that says neither done nor done but for a restart is an error."""
        if self.inside:
            env = {"PYTHONPATH": f"{TOOL}/site:{TOOL}/src"}
            ended = self.system.call("/usr/bin/python3", "-m", "rocm_patch", verb, *words, check=False, env=env)
        else:
            env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(REPOSITORY / "src"), "LC_ALL": "C.UTF-8"}
            ended = run([sys.executable, "-m", "rocm_patch", verb, "--root", self.system.root, *words], check=False, env=env)
        if check:
            assert ended.returncode in (EXIT_FINE, EXIT_NEEDS_RESTART), f"{verb}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended

    def plan(self, remedy: str, *values: str, check: bool = True):
        """Plan one remedy by its name, into the file that `apply` takes."""
        chosen = [word for value in values for word in ("--set", value)]
        return self("plan", "--remedy", remedy, *chosen, "--output", self.file, check=check)

    def apply(self, remedy: str, *values: str):
        """Plan one remedy by its name and carry it out."""
        self.plan(remedy, *values)
        return self("apply", self.file, "--yes")

    def rollback(self):
        """Take back everything."""
        return self("rollback", "--all", "--yes")

    @property
    def file(self) -> str:
        """Where `plan` leaves the plan."""
        return "/run/plan.json" if self.inside else str(self.system.path("/run/plan.json"))


@contextlib.contextmanager
def mounted(disk: Path, release: Release) -> Iterator[System]:
    """The system on a disk, mounted with what its programs need: /proc, /sys, a /dev of its own."""
    offset = str(PARTITION_START * SECTOR)
    loop = run(["losetup", "--find", "--show", "--offset", offset, disk]).stdout.strip()
    root = Path(tempfile.mkdtemp(prefix="rocm-patch-root-"))
    try:
        run(["mount", loop, root])
        try:
            _mount_kernel_folders(root, loop)
            yield System(root, release, loop)
        finally:
            run(["umount", "--recursive", root])
    finally:
        run(["losetup", "--detach", loop])
        root.rmdir()


def _mount_kernel_folders(root: Path, loop: str) -> None:
    for folder in ("proc", "sys", "dev", "run"):
        (root / folder).mkdir(exist_ok=True)
    run(["mount", "-t", "proc", "proc", root / "proc"])
    run(["mount", "-t", "sysfs", "-o", "ro", "sysfs", root / "sys"])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "run"])
    # Not the host's /dev: grub-probe shall find this disk alone, by its UUID as udev would name it.
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev"])
    nodes = {name: f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    for name, source in (nodes | {DEVICE: loop}).items():
        status = os.stat(source)
        os.mknod(root / "dev" / name, stat.S_IFMT(status.st_mode) | 0o666, status.st_rdev)
    # The kernel calls it loopN; followed to its node it has a name that GRUB's scripts take for a disk's.
    (root / "dev" / os.path.basename(loop)).symlink_to(DEVICE)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(target)
    uuid = run(["blkid", "-p", "-s", "UUID", "-o", "value", loop]).stdout.strip()
    if uuid:
        links = root / "dev" / "disk" / "by-uuid"
        links.mkdir(parents=True)
        (links / uuid).symlink_to(f"../../{DEVICE}")


@contextlib.contextmanager
def throwaway(release: Release, folder: Path) -> Iterator[System]:
    """A copy of a release's disk, mounted, gone afterwards."""
    disk = copy_disk(release, folder)
    try:
        with mounted(disk, release) as system:
            yield system
    finally:
        disk.unlink()


def copy_disk(release: Release, folder: Path) -> Path:
    """A copy to boot or to mount; holes stay holes."""
    target = folder / f"debian-{release.number}.img"
    run(["cp", "--sparse=always", "--reflink=auto", disk(release), target])
    return target


# ------------------------------------------------------------------ building, once


def disk(release: Release) -> Path:
    """The cached disk of a release; built first if this recipe has not been built yet (a minute or two, 150 MB to download)."""
    # As parsed: a formatter's or a comment's change is no reason to fetch everything again.
    functions = (_build, _bootstrap, _configure, _install_grub, _mount_kernel_folders)
    made_by = [ast.dump(ast.parse(inspect.getsource(function))) for function in functions]
    recipe = hashlib.sha256(repr((made_by, PACKAGES, DISK_BYTES, DEFAULT_GRUB, INITRAMFS_CONF, INITRAMFS_MODULES)).encode()).hexdigest()[:12]
    wanted = CACHE / f"debian-{release.number}-{recipe}.img"
    with _locked():
        if not wanted.exists():
            unfinished = wanted.with_suffix(".unfinished")
            _build(release, unfinished)
            for old in CACHE.glob(f"debian-{release.number}-*.img"):
                old.unlink()
            unfinished.rename(wanted)
    return wanted


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(release: Release, disk: Path) -> None:
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES)
    # GRUB 2.06 of Debian 12 reads neither of the two features that newer mke2fs switch on.
    offset, blocks = PARTITION_START * SECTOR, (DISK_BYTES // SECTOR - PARTITION_START) * SECTOR // 4096
    features = "^metadata_csum_seed,^orphan_file"
    tried = run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-E", f"offset={offset}", disk, str(blocks)], check=False)
    if tried.returncode:  # before 1.47 the second word is unknown, and off
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", f"offset={offset}", disk, str(blocks)])
    _bootstrap(release, disk)
    with mounted(disk, release) as system:
        _configure(system)
        _install_grub(system, disk)


def _bootstrap(release: Release, disk: Path) -> None:
    loop = run(["losetup", "--find", "--show", "--offset", str(PARTITION_START * SECTOR), disk]).stdout.strip()
    root = tempfile.mkdtemp(prefix="rocm-patch-bootstrap-")
    try:
        run(["mount", loop, root])
        try:
            excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
            # Before the kernel is installed: its first initramfs would else be one for every hardware, which takes a minute.
            early = f'--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"; echo {INITRAMFS_CONF} > "$1/etc/initramfs-tools/conf.d/modules"'
            packages = f"--include={','.join(PACKAGES)}"
            argv = ["mmdebstrap", "--mode=root", "--variant=minbase", packages, *excluded, early, release.codename, root, *_mirror()]
            run(argv, timeout=1800)
        finally:
            run(["umount", "--recursive", root])
    finally:
        run(["losetup", "--detach", loop])
        os.rmdir(root)


def _mirror() -> list[str]:
    """Where this machine gets Debian from, by its own sources; elsewhere mmdebstrap's default."""
    named = os.environ.get("ROCM_PATCH_TEST_MIRROR")
    if named:
        return [named]
    if shutil.which("apt-get"):
        listed = run(["apt-get", "indextargets", "--format", "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(SITE)"], check=False).stdout.splitlines()
        sites = [line.split("|")[3] for line in listed if line.startswith("Packages|Debian|Debian|")]
        return list(dict.fromkeys(sites))[:1]
    return []


def _configure(system: System) -> None:
    (device,) = os.listdir(system.path("/dev/disk/by-uuid"))
    system.write("/etc/fstab", f"UUID={device} / ext4 errors=remount-ro 0 1\n")
    system.write("/etc/hostname", "rocm-patch-test\n")
    system.write("/etc/default/grub", DEFAULT_GRUB)
    system.write("/etc/initramfs-tools/modules", INITRAMFS_MODULES)
    system.call("passwd", "--delete", "root")
    system.call("update-initramfs", "-u", "-k", "all")


def _install_grub(system: System, disk: Path) -> None:
    """What grub-install does for a PC, without asking the kernel for partition nodes."""
    shutil.copytree(system.path("/usr/lib/grub/i386-pc"), system.path("/boot/grub/i386-pc"), dirs_exist_ok=True)
    modules = ["biosdisk", "part_msdos", "ext2", "normal", "search", "search_fs_uuid", "loadenv", "linux", "serial", "terminal"]
    system.call("grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", "/boot/grub/i386-pc/core.img", *modules)
    system.call("grub-editenv", "/boot/grub/grubenv", "create")
    system.call("update-grub")
    core = system.path("/boot/grub/i386-pc/core.img").read_bytes()
    boot = bytearray(system.path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    assert len(core) < (PARTITION_START - 1) * SECTOR, "GRUB's image does not fit before the partition"
    # The core image begins with the block that loads the rest and expects it at sector 2, so it goes to sector 1.
    sectors = DISK_BYTES // SECTOR - PARTITION_START
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", PARTITION_TYPE_LINUX, b"\xfe\xff\xff", PARTITION_START, sectors)
    # All four: boot.img has code for floppies there, and one odd flag makes GRUB take the disk for one without partitions.
    boot[446:512] = entry.ljust(64, b"\0") + b"\x55\xaa"
    with open(disk, "r+b") as file:
        file.write(boot + core)
        file.flush()
        os.fsync(file.fileno())


def _site(release: Release) -> Path:
    """What rocm-patch needs to run, for that release's Python; cached."""
    import tomllib

    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    recipe = hashlib.sha256(repr((wanted, release.python)).encode()).hexdigest()[:12]
    target = CACHE / f"site-{release.python}-{recipe}"
    with _locked():
        if not target.exists():
            unfinished = tempfile.mkdtemp(prefix=f"{target.name}-", dir=CACHE)
            platforms = [word for tag in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64") for word in ("--platform", tag)]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            needed = [word for word in wanted if "python_version < '3.11'" not in word]  # markers are read for the running Python
            run([*pip, "--target", unfinished, "--only-binary=:all:", "--python-version", release.python, *platforms, *needed])
            os.rename(unfinished, target)
    return target
