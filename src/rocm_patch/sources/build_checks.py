"""What is looked at before anything is fetched: tools, libraries, disk, memory, rights. Every lack with the command that ends it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from packaging.version import InvalidVersion, Version

from rocm_patch.errors import RocmPatchError
from rocm_patch.run import run
from rocm_patch.sources.build_distribution import Distribution
from rocm_patch.sources.build_memory import memory_free, process_limit
from rocm_patch.sources.build_recipe import Library, Recipe, Tool, within

PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/rocm/bin:/opt/rocm/llvm/bin"
_RESERVE: Final = 1024
"""MiB that the rest of the machine keeps."""
ELSEWHERE: Final = "set XDG_CACHE_HOME to a folder of yours elsewhere, as: XDG_CACHE_HOME=/var/tmp/$USER rocm-patch build ..."
_UNFIT: Final = frozenset("\"'`$\\:;&|<>()[]{}*?#%!=,")
_NUMBERS: Final = (re.compile(r"\d+(?:\.\d+)+"), re.compile(r"\d+"))


@dataclass(frozen=True)
class Miss:
    """Something without which the build would fail later. `remedy` is the command for this distribution, or what to do."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Found:
    """A tool that is there."""

    path: str
    version: str


@dataclass(frozen=True)
class Checks:
    """What was found. A build starts only without misses. Sizes in MiB."""

    misses: tuple[Miss, ...]
    notes: tuple[str, ...]
    tools: Mapping[str, Found]
    jobs: int
    disk_free: int
    memory_free: int
    places: Mapping[str, str]
    """By name of a library that a recipe gives one: the folder of what was found; by NAME_file the file itself."""
    install: str
    """One command for all missing packages; empty where none is missing."""
    marks: tuple[tuple[str, int, int], ...] = ()
    """(path, bytes, ns) of every tool and library: an upgrade in place is another machine to a build."""


def check(recipe: Recipe, distribution: Distribution, folder: str, version: str = "", jobs: int = 0) -> Checks:
    """Look at the machine. `folder` is where the build will lie; `version` what is built; `jobs` 0: as many as memory bears."""
    misses, notes, missing = list[Miss](), list[str](), list[Mapping[str, str]]()
    tools = dict[str, Found]()
    for tool in recipe.tool:
        found, complaint = _tool(tool)
        if found:
            tools[tool.name] = found
        else:
            missing.append(tool.packages)
            misses.append(Miss(complaint, distribution.install([tool.packages])))
    values = {**placeholders(tools), **numbers(version)}
    places = dict[str, str]()
    files = [os.path.realpath(found.path) for found in tools.values()]
    for library in recipe.library:
        if library.versions and version and not within(version, library.versions):
            continue
        packages = MappingProxyType({manager: fill(names, values) for manager, names in library.packages.items()})
        there, file = _has(library, values)
        files += [file] if file else []
        if library.name and file:
            places |= {library.name: os.path.dirname(file), f"{library.name}_file": file}
        if not there:
            missing.append(packages)
            misses.append(Miss(f"not installed: {fill(library.what, values)}", distribution.install([packages])))
    install = distribution.install(missing) if missing else ""
    base = _there(folder)
    if not os.path.isdir(base) or not os.access(base, os.W_OK | os.X_OK):
        misses.append(Miss(f"{folder} cannot be made: {base} is no folder that this user can write", ELSEWHERE))
    elif stranger := _stranger(folder):
        misses.append(Miss(f"{folder}: {stranger} can be changed by others, and so could what is built there", ELSEWHERE))
    if odd := unfit(folder):
        misses.append(Miss(f"{folder}: make and CMake do not bear {odd} in a path", ELSEWHERE))
    disk = _disk(base)
    used = _used(folder)
    if disk + used < recipe.disk:
        misses.append(Miss(f"{folder} lies where {disk} MiB are free; the build takes {recipe.disk} MiB", f"free some, or: {ELSEWHERE}"))
    memory = memory_free()
    best = max(1, min(len(os.sched_getaffinity(0)), (memory - _RESERVE) // recipe.memory))
    if 0 <= (limit := process_limit()) < recipe.memory:
        misses.append(
            Miss(f"a limit of {limit} MiB lies on each process; a compiler may take {recipe.memory} MiB", "ulimit -v unlimited -d unlimited")
        )
    if memory < recipe.memory:
        misses.append(
            Miss(f"{memory} MiB of memory are free; one job alone may take {recipe.memory} MiB", "close other programs, or add swap: man swapon")
        )
    if jobs > best:
        notes.append(f"{jobs} jobs may take {jobs * recipe.memory} MiB of memory, {memory} MiB are free; {best} would be safe")
    for name in ("ccache", "sccache"):
        if path := shutil.which(name, path=PATH):
            tools[name] = Found(path, "")
            break
    return Checks(tuple(misses), tuple(notes), MappingProxyType(tools), jobs or best, disk, memory, MappingProxyType(places), install, _marks(files))


def placeholders(tools: Mapping[str, Found]) -> dict[str, str]:
    """`{name}` -> path of a tool, `{name_version}` -> its major; `{llvm}` is the folder in which the compiler lies."""
    values = {name: found.path for name, found in tools.items()}
    values |= {f"{name}_version": found.version.partition(".")[0] for name, found in tools.items()}
    if "clang" in tools:
        values["llvm"] = os.path.dirname(os.path.dirname(os.path.realpath(tools["clang"].path)))
    return values


def numbers(version: str) -> dict[str, str]:
    """Of what is built and of the kernel that runs; `{running}` is filled only where that is of the series that is built."""
    release = os.uname().release
    values = {"version": version, "kernel": release}
    if series := re.match(r"\d+\.\d+", version):
        values["series"] = series.group()
        if re.match(rf"{re.escape(series.group())}(?!\d)", release):
            values["running"] = release
    return values


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders replaced; an unknown one stays, so that a pattern with it finds nothing."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _tool(tool: Tool) -> tuple[Found | None, str]:
    complaint = f"not installed: {os.path.basename(tool.commands[0])}"
    for command in tool.commands:
        path = shutil.which(command, path=PATH)
        if not path:
            continue
        version = _version(path)
        if tool.least and _older(version, tool.least):
            complaint = f"{command} is {version or 'of unknown version'}; {tool.least} is the oldest that does"
            continue
        return Found(path, version), ""
    return None, complaint


def _version(path: str) -> str:
    try:
        said = run([os.path.realpath(path) if os.geteuid() == 0 else path, "--version"], timeout=30).out.decode("utf-8", "replace")
    except RocmPatchError:
        return ""
    match = next((found for pattern in _NUMBERS if (found := pattern.search(said))), None)  # x86_64-linux-gnu-gcc-12 (...) 12.2.0
    return match.group() if match else ""


def _older(version: str, least: str) -> bool:
    try:
        return Version(version) < Version(least)
    except InvalidVersion:
        return True


def _has(library: Library, values: Mapping[str, str]) -> tuple[bool, str]:
    """Whether it is there, and the file by which it was found."""
    file = next((path for pattern in library.files for path in sorted(glob.glob(fill(pattern, values)), reverse=True)), "")
    program = shutil.which("pkg-config", path=PATH) or shutil.which("pkgconf", path=PATH)
    if file or not library.pkg_config or not program:
        return bool(file), file
    try:
        return run([os.path.realpath(program), "--exists", library.pkg_config], timeout=30).code == 0, ""
    except RocmPatchError:
        return False, ""


def unfit(path: str) -> str:
    """What in a path breaks make, CMake or the scripts of a build; empty if nothing does. The kernel refuses blanks and colons itself."""
    if not path.isprintable():
        return "characters that cannot be printed"
    return ", ".join(dict.fromkeys("blanks" if letter.isspace() else letter for letter in path if letter in _UNFIT or letter.isspace()))


def _there(folder: str) -> str:
    """The nearest that there is on the way to a path."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def _stranger(folder: str) -> str:
    """What on the way to a path somebody else but root owns or may write to; a sticky folder, as /tmp, keeps everybody's own."""
    group = os.getegid()
    while folder != "/":
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(folder)
            open_ = 0o022 if status.st_gid != group else 0o002
            if status.st_uid not in (0, os.geteuid()) or (status.st_mode & open_ and not status.st_mode & stat.S_ISVTX):
                return folder
        folder = os.path.dirname(folder)
    return ""


def _marks(files: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    found = ((path, os.stat(path)) for path in sorted(set(files)) if os.path.exists(path))
    return tuple((path, status.st_size, status.st_mtime_ns) for path, status in found)


def _disk(folder: str) -> int:
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize >> 20


def _used(folder: str) -> int:
    """What an earlier part of this build has taken already."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(at, name)).st_blocks * 512
            except OSError:
                continue
    return total >> 20
