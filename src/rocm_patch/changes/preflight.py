"""Programs that must still start: each is run harmlessly with a library loaded before all others, and must do as without it.

`ld.so --preload LIBRARY PROGRAM` shows in one process what an entry in /etc/ld.so.preload would do to every one, with
nothing changed; LD_BIND_NOW finds what would otherwise be missed until somebody calls it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import system_tools
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.root import Root
from rocm_patch.run import CLEAN, Ended, check_program, run

LEAST: Final = 25
"""With fewer programs tried, nothing is said to be safe."""
LIMIT: Final = 5.0
"""Seconds for one program."""
TOTAL: Final = 45.0
"""Seconds for the round after the entry is written: less than the guard's patience."""
_CHROOT: Final = ("/usr/sbin/chroot", "/usr/bin/chroot")
_ENVIRONMENT: Final = {**CLEAN, "LD_BIND_NOW": "1"}

PROGRAMS: Final[tuple[tuple[str, str], ...]] = (
    # Names in the usual folders, or paths with alternatives; and the words with which it does nothing.
    # Whoever loses these loses the machine:
    ("sh", "-c :"), ("bash", "--norc --noprofile -c :"), ("dash", "-c :"), ("zsh", "-f -c :"), ("login", "--help"), ("su", "--help"), ("sudo", "-h"),
    ("sshd", "-t"), ("passwd", "--help"), ("agetty", "--version"), ("getty", "--version"), ("systemctl", "--version"), ("loginctl", "--version"),
    ("journalctl", "--version"), ("udevadm", "--version"), ("/usr/lib/systemd/systemd|/lib/systemd/systemd", "--version"),
    ("/usr/lib/systemd/systemd-udevd|/lib/systemd/systemd-udevd", "--version"), ("/usr/lib/systemd/systemd-executor", "--version"),
    ("systemd-tmpfiles", "--version"), ("systemd-run", "--version"), ("/usr/sbin/openrc|/sbin/openrc", "--version"),
    # What repairs it:
    ("apt", "--version"), ("apt-get", "--version"), ("dpkg", "--version"), ("rpm", "--version"), ("dnf5", "--version"), ("pacman", "--version"),
    ("zypper", "--version"), ("python3", "-I -S -c pass"), ("perl", "-e 0"), ("busybox", "true"), ("kmod", "--version"), ("mount", "--version"),
    ("umount", "--version"), ("fsck", "--version"), ("blkid", "--version"), ("lsblk", "--version"), ("ip", "-V"), ("ss", "-V"), ("cp", "--version"),
    ("mv", "--version"), ("rm", "--version"), ("ls", "--version"), ("cat", "--version"), ("chmod", "--version"), ("chown", "--version"),
    ("ln", "--version"), ("env", "--version"), ("date", "--version"), ("sed", "--version"), ("grep", "--version"), ("find", "--version"),
    ("tar", "--version"), ("gzip", "--version"), ("ps", "--version"), ("kill", "--version"), ("sync", "--version"), ("nano", "--version"),
    ("vim.tiny", "--version"), ("less", "--version"),
    # What starts a session:
    ("dbus-daemon", "--version"), ("dbus-broker", "--version"), ("NetworkManager", "--version"), ("nmcli", "--version"),
    ("gdm3", "--version"), ("gdm", "--version"), ("sddm", "--help"), ("lightdm", "--version"), ("gnome-shell", "--version"),
    ("Xwayland", "-version"),
    # A program of the other word size, where there is one: the C library is a program too.
    ("/usr/lib/i386-linux-gnu/libc.so.6|/lib/i386-linux-gnu/libc.so.6|/usr/lib32/libc.so.6|/lib32/libc.so.6|/lib/libc.so.6", ""),
)  # fmt: skip
_FOLDERS: Final = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/libexec")


@dataclass(frozen=True)
class Program:
    """A program as a path in the root, its harmless words, and the loader that it asks for; none: it is static."""

    path: str
    words: tuple[str, ...]
    loader: str


def programs(ground: Ground, rows: Sequence[tuple[str, str]] = PROGRAMS) -> tuple[Program, ...]:
    """Those that are there, in the order of the table."""
    found = list[Program]()
    for names, words in rows:
        paths = names.split("|") if names.startswith("/") else [f"{folder}/{names}" for folder in _FOLDERS]
        for path in paths:
            real = _real(ground, path)
            if not real or not _may_run(ground, real):
                continue
            kind, loader = _header(_host(ground, real))
            if kind:
                found.append(Program(path, tuple(words.split()), loader))
                break
    return tuple(found)


def examine(ground: Ground, library: str) -> int:
    """Try a library, by its path in the root, on every program there is; returns how many did as without it.

    Raises:
        RefusedError: a program does not do as without it, or there are too few to tell.
    """
    enter, tried = _enter(ground), 0
    for program in programs(ground):
        if not program.loader:
            continue  # static: no loader, nothing is loaded into it
        plain = [*enter, program.loader, program.path, *program.words]
        with_it = [*enter, program.loader, "--preload", library, program.path, *program.words]
        tried += _same(program, plain, with_it)
    if tried < LEAST:
        why = f"only {tried} of at least {LEAST} programs could be tried with it"
        raise RefusedError(f"{library} was not proved harmless: {why}, so no entry is written", f"for one program: LD_PRELOAD={library} PROGRAM")
    return tried


def now(ground: Ground) -> tuple[tuple[Program, Ended], ...]:
    """What each program does, started as everybody starts it; the static ones as well."""
    enter = _enter(ground)
    return tuple((program, _run([*enter, program.path, *program.words])) for program in programs(ground))


def examine_again(ground: Ground, before: Sequence[tuple[Program, Ended]]) -> int:
    """The same, now that the entry is written, and compare; returns how many did as before.

    Raises:
        RocmPatchError: one did not, or it took too long.
    """
    enter, deadline, tried = _enter(ground), time.monotonic() + TOTAL, 0
    for program, was in before:
        if time.monotonic() > deadline:
            raise RocmPatchError(f"trying the programs with the entry in place took more than {TOTAL:.0f} seconds; it was taken back")
        ended = _run([*enter, program.path, *program.words])
        if _differs(was, ended):
            # Only what differs from itself is let off, and only in what it says.
            if ended.code != was.code or ended.timed_out:
                raise RocmPatchError(f"with the entry in place {_words(program, was, ended)}; it was taken back")
            continue
        tried += 1
    return tried


def _same(program: Program, plain: list[str], with_it: list[str]) -> bool:
    """Whether it does as without the library; False: it cannot be told, since it never does the same twice.

    Raises:
        RefusedError: it does something else.
    """
    was, ended = _run(plain), _run(with_it)
    if was.timed_out and ended.timed_out:
        return False
    if not _differs(was, ended):
        return True
    again = _run(plain)
    if _differs(was, again) and ended.code in (was.code, again.code) and not ended.timed_out:
        return False
    raise RefusedError(f"with the library {_words(program, was, ended)}; nothing was written", "see it yourself: " + " ".join(with_it))


def _differs(one: Ended, other: Ended) -> bool:
    return (one.code, one.out, one.err, one.timed_out) != (other.code, other.out, other.err, other.timed_out)


def _words(program: Program, was: Ended, ended: Ended) -> str:
    if ended.timed_out:
        return f"{program.path} does not come to its end"
    how = f"is killed by signal {-ended.code}" if ended.code < 0 else f"ends with {ended.code}"
    if ended.code == was.code:
        how = "says something else"
    said = f": {ended.text.splitlines()[-1]}" if ended.text else ""
    return f"{program.path} {how}{said}"


def _run(argv: list[str]) -> Ended:
    return run(argv, timeout=LIMIT, environment=_ENVIRONMENT)


# ------------------------------------------------------------------ where the programs are


def _enter(ground: Ground) -> tuple[str, ...]:
    """The words that go before a program of this root.

    Raises:
        RefusedError: the programs of another root, and we are not root.
    """
    if ground.live:
        return ()
    if os.geteuid() != 0:
        raise RefusedError(f"the programs below {ground.anchor} can be tried by root only, and without that no entry is written")
    chroot = next((path for path in _CHROOT if os.access(path, os.X_OK)), "")
    if not chroot:
        raise RefusedError(f"there is no chroot, so the programs below {ground.anchor} cannot be tried, and without that no entry is written")
    if found := system_tools.weak(ground, ()):
        raise RefusedError(f"{found}, and root does not run what others could have changed; without trying the programs no entry is written")
    return (chroot, ground.anchor)


def _real(ground: Ground, path: str) -> str:
    """The path behind all links, as in the root; empty if there is none."""
    host = os.path.realpath(path) if ground.live else Root(ground.anchor).host(path)
    if not os.path.isfile(host):
        return ""
    return host if ground.live else host[len(ground.anchor.rstrip("/")) :]


def _host(ground: Ground, path: str) -> str:
    return path if ground.live else f"{ground.anchor.rstrip('/')}{path}"


def _may_run(ground: Ground, path: str) -> bool:
    """As root nothing is run that others could have put there: the file and every folder down to it are root's."""
    host = _host(ground, path)
    if not os.access(host, os.X_OK):
        return False
    if os.geteuid() != 0:
        return True
    try:
        check_program(host)
    except RocmPatchError:
        return False
    return weak_folder(ground, path) == ""


def weak_folder(ground: Ground, path: str) -> str:
    """The first folder or link on the way down to a path that others than root and we could change; empty: none."""
    return system_tools.weak_way(ground, os.path.dirname(path), (0, os.geteuid()))


def _header(path: str) -> tuple[bool, str]:
    """Whether a file is an ELF program of this byte order, and the loader that it asks for."""
    with open(path, "rb") as file:
        return system_tools.elf_loader(file.read(1 << 16))
