"""The system's own programs, run on the running system or inside a mounted one; never one that others than root could change."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import stat
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes.places import Ground
from rocm_patch.root import Root
from rocm_patch.run import CLEAN, Ended, run

CHROOT: Final = ("/usr/sbin/chroot", "/usr/bin/chroot", "/sbin/chroot")
OUTPUT_LIMIT: Final = 16 << 20
LIBRARIES: Final = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
LOADER_FILES: Final = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload")
"""What the dynamic loader goes by; the folders that ld.so.conf names are looked at too."""
HELPERS: Final = (
    "/usr/lib/initramfs-tools", "/usr/share/initramfs-tools", "/usr/lib/dracut", "/usr/lib/initcpio", "/usr/lib/kernel",
    "/usr/lib/grub", "/usr/share/grub", "/usr/share/grub2", "/usr/lib/os-probes", "/usr/lib/os-prober",
)  # fmt: skip
"""Scripts that the tools run or source, and nobody names."""
SEARCHED: Final = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")
_ROOT: Final = (0,)
_STAFF: Final = 100
"""Users and groups below this are the distribution's own; Debian gives /usr/local/lib to group staff, which is empty."""
_LINKS: Final = 40
FOLDERS: Final = ("/", "/bin", "/usr", "/usr/bin", "/usr/sbin", "/etc")


def why_not(ground: Ground, programs: Sequence[str], reads: Sequence[str] = ()) -> str:
    """Why these programs of a machine cannot be run from here; empty: they can.

    `reads`: files and folders of the machine that the programs execute or source; a folder's files are looked at too.
    """
    root = Root(ground.anchor)
    for program in programs:
        if not root.exists(program):
            return f"{program} is not there"
    if os.geteuid() != 0:
        return "it takes root's rights"
    if ground.live:
        return ""
    if _chroot() == "":
        return "there is no chroot on this system"
    if found := weak(ground, programs, reads):
        return f"{found}, and root does not run what others could have changed"
    if not root.exists("/proc/self/mountinfo") or not root.exists("/dev/null"):
        return f"/proc and /dev are not mounted in {ground.anchor}"
    return ""


def run_there(
    ground: Ground, argv: Sequence[str], *, timeout: float, stdin: bytes = b"", keep: Sequence[int] = (), environment: Mapping[str, str] = CLEAN
) -> Ended:  # fmt: skip
    """Run a program of the machine in its own root; ask `why_not` first. Its output is collected."""
    there = list(argv) if ground.live else [_chroot(), ground.anchor, *argv]
    return run(there, timeout=timeout, stdin=stdin, keep=keep, environment=environment, output_limit=OUTPUT_LIMIT)


def words_for(ground: Ground, command: str) -> str:
    """A command as a user would type it for this machine."""
    return f"sudo {command}" if ground.live else f"sudo chroot {shlex.quote(ground.anchor)} {command}"


def hint_for(ground: Ground, hint: str) -> str:
    """A hint as it is for this machine: pasted as it stands, `sudo mv /etc/...` would change the system that runs."""
    if ground.live:
        return hint
    root = shlex.quote(ground.anchor)
    own = re.sub(r"\bmv /", lambda _: f"mv {root}/", hint)
    # These ask the deployment that runs; in a chroot there is none.
    own = re.sub(r"\bsudo (?=rpm-ostree |bootc |ostree )", "on that machine itself: sudo ", own)
    return re.sub(r"\bsudo (?!chroot |rocm-patch |mv |rpm-ostree |bootc |ostree )", lambda _: f"sudo chroot {root} ", own)


def _chroot() -> str:
    return next((path for path in CHROOT if os.access(path, os.X_OK)), "")


# ------------------------------------------------------------------ who else could change it


def weak(ground: Ground, programs: Sequence[str], reads: Sequence[str] = ()) -> str:
    """What others than root could change of all that these programs load, run and source; empty: nothing.

    Looked at: every folder and link on the way from `/` down to each path, the programs and the interpreters that they name,
    the loader's folders and files, and `reads` and the tools' own scripts to their full depth.
    """
    seen = set[str]()
    if found := _above(ground.anchor, _ROOT):
        return f"{found.path} {found.why}"
    listed = tuple(f"{folder}/{name}" for folder in LIBRARIES for name in _names(ground, folder))
    hosts = [path for path in listed if path.endswith(("-linux-gnu", "-linux-gnux32", "-linux-gnueabihf"))]
    listed += tuple(f"{folder}/{name}" for folder in hosts for name in _names(ground, folder))
    hwcaps = tuple(f"{folder}/glibc-hwcaps" for folder in (*LIBRARIES, *hosts))
    interpreters = tuple(path for program in programs if (path := _interpreter(ground, program)))
    ways = itertools.chain(
        (_way(ground, path, seen) for path in (*FOLDERS, *LIBRARIES, *listed, *programs, *interpreters)),
        (_way(ground, inner, seen) for path in (*LOADER_FILES, *hwcaps, *reads, *HELPERS) for inner in _tree(ground, path)),
        # /usr/bin/at is user daemon's; nobody logs in as that.
        (_way(ground, f"{folder}/{name}", seen, owners=range(_STAFF)) for folder in SEARCHED for name in _names(ground, folder)),
        (_way(ground, folder, seen, staff=True) for folder in _configured(ground)),
    )
    return next((f"{found.path} {found.why}" for found in ways if found), "")


def weak_way(ground: Ground, path: str, owners: Container[int]) -> str:
    """The first name on the way to a path of the machine that others than `owners` could change or swap; empty: none."""
    found = _above(ground.anchor, owners)
    if found is None and (found := _way(ground, path, set(), owners=owners)) and not ground.live:
        return found.path[len(ground.anchor.rstrip("/")) :]
    return found.path if found else ""


@dataclass(frozen=True)
class _Weak:
    """A file or folder of this system that others could change, and how."""

    path: str
    why: str


def _above(anchor: str, owners: Container[int]) -> _Weak | None:
    """The machine's root and the folders above it: by the name that it was given by, and by the one behind links."""
    for top in dict.fromkeys((anchor, os.path.realpath(anchor))):
        folders = [top]
        while folders[-1] != "/":
            folders.append(os.path.dirname(folders[-1]))
        for folder in folders:
            if found := _reason(folder, owners, sticky=folder != top):
                return found
    return None


def _reason(path: str, owners: Container[int], *, sticky: bool = False, staff: bool = False) -> _Weak | None:
    status = os.lstat(path)
    if status.st_uid not in owners:
        return _Weak(path, f"belongs to user {status.st_uid}")
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return None  # a link's mode says nothing, and /dev/null, to which settings are masked, is everybody's
    # In a sticky folder above the machine's root nobody moves what is root's (/tmp, /var/tmp).
    if sticky and status.st_mode & stat.S_ISVTX:
        return None
    others = 0o002 if staff and status.st_gid < _STAFF else 0o022
    return _Weak(path, "can be written by others than root") if status.st_mode & others else None


def _way(ground: Ground, path: str, seen: set[str], *, owners: Container[int] = _ROOT, staff: bool = False) -> _Weak | None:
    """Look at every name on the way to a path, links followed inside the machine's root; what is not there ends the way."""
    top = ground.anchor.rstrip("/")
    todo, done, links = [part for part in reversed(path.split("/")) if part], list[str](), 0
    while todo:
        part = todo.pop()
        if part in (".", ".."):
            del done[-1 if part == ".." else len(done) :]
            continue
        here = "/".join((top, *done, part))
        try:
            if here not in seen and (found := _reason(here, owners, staff=staff)):
                return found
            target = os.readlink(here) if os.path.islink(here) else ""
        except OSError:
            return None
        seen.add(here)
        if not target:
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            return _Weak(here, "is one of a ring of links")
        if target.startswith("/"):
            done.clear()
        todo += [name for name in reversed(target.split("/")) if name]
    return None


def _names(ground: Ground, folder: str) -> tuple[str, ...]:
    root = Root(ground.anchor)
    return root.list(folder) if root.is_folder(folder) else ()


def _tree(ground: Ground, path: str) -> Iterator[str]:
    """A path and all below it; links are named and not entered, but for the path itself."""
    yield path
    todo = [path]
    while todo:
        folder = todo.pop()
        for name in _names(ground, folder):
            inner = f"{folder}/{name}"
            yield inner
            if not os.path.islink(os.path.join(Root(ground.anchor).host(folder), name)):
                todo.append(inner)


def _configured(ground: Ground) -> tuple[str, ...]:
    """The folders that ld.so.conf and its parts name."""
    root = Root(ground.anchor)
    files = ("/etc/ld.so.conf", *(f"/etc/ld.so.conf.d/{name}" for name in _names(ground, "/etc/ld.so.conf.d")))
    lines = [line.strip() for file in files for line in (getattr(root.text(file), "value", None) or "").splitlines()]
    return tuple(line for line in lines if line.startswith("/"))


def _interpreter(ground: Ground, program: str) -> str:
    """What the kernel starts a program with: the loader of an ELF file, the shell of a script; empty: nothing else."""
    try:
        with open(Root(ground.anchor).host(program), "rb") as file:
            data = file.read(1 << 16)
    except OSError:
        return ""
    if data.startswith(b"#!"):
        words = data[2:512].partition(b"\n")[0].split()
        return os.fsdecode(words[0]) if words else ""
    return elf_loader(data)[1]


def elf_loader(data: bytes) -> tuple[bool, str]:
    """Whether bytes begin an ELF program of this byte order, and the loader that it asks for."""
    if data[:4] != b"\x7fELF" or data[5:6] != b"\x01":
        return False, ""
    try:
        if data[4] == 2:
            (table,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
        else:
            (table,), (size, count) = struct.unpack_from("<I", data, 28), struct.unpack_from("<HH", data, 42)
        for number in range(min(count, 128)):
            at = table + number * size
            if struct.unpack_from("<I", data, at)[0] == 3:  # PT_INTERP
                place, length = (struct.unpack_from("<Q", data, at + 8)[0], struct.unpack_from("<Q", data, at + 32)[0]) if data[4] == 2 else (
                    struct.unpack_from("<I", data, at + 4)[0], struct.unpack_from("<I", data, at + 16)[0]
                )  # fmt: skip
                return True, data[place : place + length].rstrip(b"\0").decode("ascii", "replace")
    except struct.error:
        return False, ""
    return True, ""
