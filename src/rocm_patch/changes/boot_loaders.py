"""Which boot loader starts a machine, what of it can be changed by files of our own, and whose command does it otherwise.

Looked up in files alone, so that a mounted system and a recorded tree answer as the machine itself would. On the running
system the loader's own words in the firmware's variables come first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError
from rocm_patch.model import Known, Unknown
from rocm_patch.root import Root, State

Name = Literal[
    "grub", "grub, one file of settings", "grub, loader entries", "systemd-boot", "unified image", "kernelstub", "rpm-ostree", "bootc", "unknown"
]  # fmt: skip

DROP_INS: Final = "/etc/default/grub.d"
_LOADER_GUID: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_VARIABLES: Final = "sys/firmware/efi/efivars"
LOADER_CONF: Final = ("boot/loader/loader.conf", "efi/loader/loader.conf", "boot/efi/loader/loader.conf")
_BY_KERNEL_INSTALL: Final = "add {words} to /etc/kernel/cmdline (make it from /proc/cmdline if it is not there), then: sudo kernel-install add-all"
_IMAGES: Final = ("boot/EFI/Linux", "efi/EFI/Linux", "boot/efi/EFI/Linux")
_UNWRITABLE: Final = (
    "lvm", "mdraid", "diskfilter", "raid", "btrfs", "zfs", "cryptodisk", "luks", "geli", "squash", "iso9660", "cpio", "tar", "romfs", "ldm", "f2fs",
)  # fmt: skip
"""GRUB's modules for what it reads and cannot write: an environment block there stays as it is at every start."""
_MODULE: Final = re.compile(r"^[ \t]*insmod[ \t]+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Loader:
    """A recognised layout. Paths are as on that machine; empty where the layout has none."""

    name: Name
    title: str
    """For messages."""
    menu: str = ""
    """GRUB: the generated grub.cfg."""
    generator: str = ""
    checker: str = ""
    command: str = ""
    """The command by which the owner of the command line adds words, with {words} in it, or {each} as options of their own."""
    entries: str = ""
    """Loader specification: the folder of the entries; empty where it is closed to this user."""
    installer: str = ""
    """Loader specification: kernel-install, where it makes the entries, so that a plugin of ours can add to them."""

    @property
    def environment(self) -> str:
        """GRUB's environment block."""
        return f"{self.menu.rpartition('/')[0]}/grubenv"

    @property
    def custom(self) -> str:
        """The file that GRUB reads beside grub.cfg."""
        return f"{self.menu.rpartition('/')[0]}/custom.cfg"

    @property
    def keeps(self) -> bool:
        """Whether a drop-in of ours can make words permanent."""
        return self.name == "grub" or self.installer != ""

    @property
    def regenerate(self) -> str:
        """What a user types to have the menu made anew."""
        name = self.generator.rpartition("/")[2] or ("grub2-mkconfig" if "/grub2/" in self.menu else "grub-mkconfig")
        return f"{name} -o {self.menu}"

    def owners_command(self, words: Sequence[str]) -> str:
        """How the words get onto the line by its owner's means."""
        each = " ".join(f"--append-if-missing={word}" for word in words)
        return self.command.replace("{words}", " ".join(words)).replace("{each}", each)


def recognise(root: Root) -> Loader:
    """Find the layout. Reads only; `unknown` is an answer too."""
    for found in (_image_based(root), _by_owner(root)):
        if found is not None:
            return found
    told = _loader_info(root)
    if not told.startswith("GRUB"):
        found = _systemd_boot(root, told)
        if found is not None:
            return found
    return _grub(root) or Loader("unknown", "no boot loader that rocm-patch knows")


def _image_based(root: Root) -> Loader | None:
    ostree = root.exists("run/ostree-booted") or (root.is_folder("ostree") and root.is_folder("sysroot"))
    if ostree and root.exists("usr/bin/rpm-ostree"):
        return Loader("rpm-ostree", "rpm-ostree, which keeps the line with each deployment", command="sudo rpm-ostree kargs {each}")
    if (ostree or root.exists("usr/lib/bootc")) and root.exists("usr/bin/bootc"):
        command = "sudo bootc loader-entries set-options-for-source --source rocm-patch --options '{words}'"
        return Loader("bootc", "bootc, which keeps the line with each deployment", command=command)
    if ostree:
        return Loader(
            "rpm-ostree",
            "ostree, which keeps the line with each deployment",
            command="sudo ostree admin kargs edit-in-place {each}",
        )
    return None


def _by_owner(root: Root) -> Loader | None:
    if root.exists("etc/kernelstub/configuration"):
        return Loader("kernelstub", "kernelstub, which writes the entries anew from its own list", command="sudo kernelstub -a '{words}'")
    return None


def _systemd_boot(root: Root, told: str) -> Loader | None:
    image = next((f"/{folder}/{name}" for folder in _IMAGES for name in root.list(folder) if name.lower().endswith(".efi")), "")
    conf = next((path for path in LOADER_CONF if root.exists(path)), "")
    if not conf and told.startswith("systemd-boot") and any(isinstance(root.status(path), Unknown) for path in LOADER_CONF):
        return Loader("systemd-boot", "systemd-boot", command=_BY_KERNEL_INSTALL, installer=_installer(root))  # root's side sees more
    entries = f"/{conf.rpartition('/')[0]}/entries" if conf else ""
    written = [name for name in root.list(entries) if name.endswith(".conf")] if entries else []
    if image and not written:
        text = f"a unified kernel image ({image}), whose line is sealed in it"
        how = "add {words} to /etc/kernel/cmdline, then build the image anew (kernel-install add-all, dracut --regenerate-all or mkinitcpio -P)"
        return Loader("unified image", text, command=how)
    if not conf or (told and not told.startswith("systemd-boot")):
        return None
    how = "add {words} to the options line of your entry in " + entries
    if root.exists("etc/kernel/cmdline") or root.exists("usr/bin/kernel-install"):
        how = _BY_KERNEL_INSTALL
    return Loader("systemd-boot", "systemd-boot", command=how, entries=entries, installer=_installer(root))


def _installer(root: Root) -> str:
    if root.exists("usr/bin/sdbootutil"):
        return ""  # openSUSE's own: it makes the entries anew from /etc/kernel/cmdline and snapshots
    return next((path for path in ("usr/bin/kernel-install", "bin/kernel-install") if root.exists(path)), "")


def _grub(root: Root) -> Loader | None:
    for folder, prefix in (("boot/grub", "grub"), ("boot/grub2", "grub2")):
        menu = f"{folder}/grub.cfg"
        answer = root.status(menu)
        if isinstance(answer, Unknown):
            raise RefusedError(f"/{menu} cannot be looked at: {answer.unknown}", "make the plan as root")
        if answer.value is None:
            continue
        generator = next((path for name in ("usr/sbin", "usr/bin", "sbin") if root.exists(path := f"{name}/{prefix}-mkconfig")), "")
        checker = next((path for name in ("usr/bin", "usr/sbin") if root.exists(path := f"{name}/{prefix}-script-check")), "")
        names = (f"/{menu}", f"/{generator}" if generator else "", f"/{checker}" if checker else "")
        if _uses_loader_entries(root, menu):
            command = "sudo grubby --update-kernel=ALL --args='{words}'"
            title = "GRUB with loader entries, which grubby keeps"
            return Loader("grub, loader entries", title, *names, command, "/boot/loader/entries", _installer(root))
        script = _text(root, generator) if generator else None
        if root.is_folder(DROP_INS) if script is None else DROP_INS[5:] in script:
            return Loader("grub", "GRUB", *names)
        edit = "sudo sed -i.before 's/^GRUB_CMDLINE_LINUX_DEFAULT=\"/&{words} /' /etc/default/grub"
        command = f"{edit} && sudo {prefix}-mkconfig -o /{menu}"
        return Loader("grub, one file of settings", "GRUB whose generator reads /etc/default/grub alone, a file of yours", *names, command)
    return None


def _uses_loader_entries(root: Root, menu: str) -> bool:
    text = _text(root, menu)
    if text is not None:
        return re.search(r"^[ \t]*blscfg\b", text, re.MULTILINE) is not None
    settings = _text(root, "etc/default/grub") or ""  # a closed menu: the setting that its generator goes by
    return re.search(r"^[ \t]*GRUB_ENABLE_BLSCFG=[\"']?true", settings, re.MULTILINE) is not None


def _text(root: Root, path: str) -> str | None:
    answer = root.text(path, 8 << 20)
    return answer.value if isinstance(answer, Known) else None


def _loader_info(root: Root) -> str:
    """What the loader that started this system calls itself; empty where it says nothing."""
    return loader_variable(root, "LoaderInfo")


def loader_variable(root: Root, name: str) -> str:
    """One of the firmware's variables by which a loader and a system talk; empty where it is not there."""
    answer = root.read(f"{_VARIABLES}/{name}-{_LOADER_GUID}", 4096)
    if isinstance(answer, Unknown) or answer.value is None or len(answer.value) < 4:
        return ""
    return answer.value[4:].decode("utf-16-le", "replace").rstrip("\0")


# ------------------------------------------------------------------ what a trial needs


def environment_problem(menu: bytes, way: str, block: State, mounted: str) -> str:
    """Why GRUB could not take a choice for one boot back; empty: it can, for all that is known.

    `menu` is grub.cfg, `way` the commands by which GRUB gets at /boot, `block` what is at the environment block's place,
    `mounted` type and source of the file system it lies on, empty where that is not known.
    """
    if block.kind != "file":
        return "GRUB's environment block is not there" if block.kind == "absent" else f"GRUB's environment block is a {block.kind}"
    text = menu.decode("utf-8", "replace")
    if "save_env next_entry" not in text:
        return "this boot menu has no choice for one boot"
    if "custom.cfg" not in text:
        return "this boot menu reads no custom.cfg"
    if re.search(r"^[ \t]*set[ \t]+check_signatures=enforce", text, re.MULTILINE):
        return "GRUB takes signed files only, and ours would not be"
    lacks = re.search(r"GRUB lacks write support for (\S+?),", text)
    if lacks:
        return f"GRUB cannot write its environment block on {lacks[1]}"
    for module in sorted(set(_MODULE.findall(way))):
        if module.startswith(_UNWRITABLE):
            return f"GRUB reads /boot through {module}, and cannot write its environment block there"
    for word in ("btrfs", "zfs", "f2fs", "overlay", "tmpfs", "/dev/md", "/dev/mapper/", "/dev/dm-"):
        if word in mounted.split() or (word.startswith("/") and word in mounted):
            return f"/boot lies on {mounted}, where GRUB cannot write its environment block"
    return ""


def mounted_on(path: str) -> str:
    """Type and source of the file system that a file of the running system lies on; empty where it cannot be told."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            lines = [line.split() for line in stream]
    except OSError:
        return ""
    best, said = "", ""
    for fields in lines:
        point = fields[4]
        if (path.startswith(f"{point.rstrip('/')}/")) and len(point) >= len(best) and "-" in fields:
            dash = fields.index("-")
            best, said = point, f"{fields[dash + 1]} {fields[dash + 2]}"
    return said


def fstype(ground: Ground, path: str) -> str:
    """Type of the file system that a path of the running system lies on; empty where that is not known."""
    return mounted_on(path).partition(" ")[0] if ground.live else ""
