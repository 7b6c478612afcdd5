"""Which libraries of ROCm a torch takes, and what decides it. Read from outside; `prefix_means` says what follows from it.

Three kinds of torch, by what decides there (`ld.so(8)`, and for wheels the scripts that make them):

- it asks the system: a distribution's build or one's own. LD_LIBRARY_PATH goes before DT_RUNPATH, ld.so.conf and /usr/lib.
- it brings its own (wheels of download.pytorch.org): copied to torch/lib under names without a number, which the libraries there
  ask for, and held by DT_RPATH, which goes before LD_LIBRARY_PATH. The files keep the numbered name inside, so that a library
  that asks for the number finds them if they are loaded already.
  https://github.com/pytorch/pytorch/blob/05f1bbb84b9513eaa66fd019ec86180dacec4246/.ci/manywheel/build_common.sh
- rocm_sdk brings them (AMD's wheels): before torch's own libraries are loaded Python opens those of `_rocm_sdk_*/lib` by their paths.
  https://github.com/ROCm/TheRock/blob/61dc2618b4e0baa865b0253fce0ae56d621c292d/build_tools/packaging/python/templates/rocm/src/rocm_sdk/__init__.py

What is loaded first under a name is what all others get by that name: so LD_PRELOAD wins in the last two, if the name is the one that
is asked for. A path in LD_PRELOAD has only the number inside for a name, and the wheel's own is then loaded beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rocm_patch.changes import prefix_elf
from rocm_patch.model import Known
from rocm_patch.root import Root

SYSTEM: Final = "system"
"""Stands for the machine's own ROCm where a torch is named."""
_LIBRARY: Final = re.compile(r"(?P<stem>lib[A-Za-z0-9_.+-]*?\.so)(\.[0-9]+)*")
STACK: Final = re.compile(r"lib(MIOpen|amd|hip|hsa|roc|rccl)")
"""Libraries of ROCm: two majors of one of them in a process are two stacks."""
_NUMBERED: Final = re.compile(STACK.pattern + r"[A-Za-z0-9_.+-]*?\.so\.[0-9]+")
_SYSTEM_FOLDERS: Final = ("opt/rocm/lib", "opt/rocm/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")
_SDK_FOLDERS: Final = ("lib", "lib/rocm_sysdeps/lib", "lib/host-math/lib")


def stem(name: str) -> str:
    """libMIOpen.so.1 -> libMIOpen.so; empty for what is no library's name."""
    match = _LIBRARY.fullmatch(name)
    return match["stem"] if match else ""


@dataclass(frozen=True)
class Library:
    """A library of a prefix: its own name, the names of files that lead to it, the names that it needs."""

    soname: str
    names: frozenset[str]
    needed: tuple[str, ...]


def libraries(folder: str) -> tuple[Library, ...]:
    """Those in `lib` and `lib64` of a folder of this machine."""
    found = dict[str, tuple[prefix_elf.Dynamic, set[str]]]()
    for inner in ("lib", "lib64"):
        try:
            names = sorted(filter(stem, os.listdir(f"{folder}/{inner}")))
        except OSError:
            continue
        for name in names:
            real = os.path.realpath(f"{folder}/{inner}/{name}")
            if real not in found and (said := prefix_elf.read(real)) is not None:
                found[real] = (said, set())
            if real in found:
                found[real][1].add(name)
    return tuple(Library(said.soname or min(names), frozenset(names), said.needed) for said, names in found.values())


# ------------------------------------------------------------------ who would use them


@dataclass(frozen=True)
class Place:
    """A torch, or the system. All by stem (libMIOpen.so); paths as on that machine."""

    site: str
    uses: Mapping[str, frozenset[str]]
    """The libraries in use, by their own names."""
    asks: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The names by which they are asked for."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Files that are taken whatever LD_LIBRARY_PATH says."""
    opened: frozenset[str] = frozenset()
    """Of these, those that Python opens by their paths."""
    brought: Mapping[str, str] = field(default_factory=dict)
    """What comes along or is found by its run paths, own name -> file."""

    @property
    def words(self) -> str:
        """How people call it."""
        return "the system's ROCm" if self.site == SYSTEM else f"the torch in {self.site}"


def place(root: Root, site: str) -> Place | None:
    """Look at one torch by its site folder, or at the system. None: there is nothing to look at."""
    return _system(root) if site == SYSTEM else _torch(root, site)


def _system(root: Root) -> Place | None:
    uses = dict[str, set[str]]()
    versions = [f"opt/{name}/lib" for name in root.list("opt") if name.startswith("rocm-")]
    for folder in (*_SYSTEM_FOLDERS, *versions, *_configured(root)):
        for name in filter(_NUMBERED.fullmatch, root.list(folder)):
            if root.exists(f"{folder}/{name}"):  # an upgrade may leave a link to nothing
                uses.setdefault(stem(name), set()).add(name)
    return Place(SYSTEM, _frozen(uses)) if uses else None


def _configured(root: Root) -> list[str]:
    """Folders that ld.so.conf adds."""
    files = ["etc/ld.so.conf", *(f"etc/ld.so.conf.d/{name}" for name in root.list("etc/ld.so.conf.d") if name.endswith(".conf"))]
    return [line.strip() for path in files for line in _text(root, path).splitlines() if line.startswith("/")]


def _torch(root: Root, site: str) -> Place | None:
    found, opened = dict[str, prefix_elf.Dynamic](), _opened(root, site)
    for folder in _folders(root, site, bool(opened)):
        for name in filter(stem, root.list(folder)):
            if (said := prefix_elf.read(root.host(f"{folder}/{name}"))) is not None:
                found[f"{folder}/{name}"] = said
    if not found:
        return None
    brought = {said.soname or path.rpartition("/")[2]: path for path, said in found.items()}
    held = {stem(name): path for name, path in brought.items() if stem(name).removeprefix("lib").removesuffix(".so").lower() in opened}
    by_python = frozenset(held)
    # What has no DT_RUNPATH is also sought in the DT_RPATH of whoever asked for what asks for it.
    above = [where for path, said in found.items() for where in _expanded(said.rpath, path)]
    uses, asks = dict[str, set[str]](), dict[str, set[str]]()
    queue = list(found.items())
    for path, said in queue:
        fixed = () if said.runpath else (*_expanded(said.rpath, path), *above)
        for name in filter(STACK.match, said.needed):
            kept = _first(root, fixed, name)
            file = held.get(stem(name)) or kept or _first(root, _expanded(said.runpath, path), name)
            if file and file not in found and (more := prefix_elf.read(root.host(file))) is not None:
                found[file] = more  # of a ROCm elsewhere: what its libraries ask for counts as well
                brought.setdefault(more.soname or name, file)
                queue.append((file, more))
            inside = (found[file].soname if file in found else "") or name
            key = stem(inside)  # a wheel's packer may give a file any name; what it calls itself stays
            asks.setdefault(key, set()).add(name)
            uses.setdefault(key, set()).add(inside)
            if kept:
                held.setdefault(key, kept)
    return Place(site, _frozen(uses), _frozen(asks), held, by_python, brought)


def _folders(root: Root, site: str, sdk: bool) -> list[str]:
    packages = [name for name in root.list(site) if sdk and name.startswith("_rocm_sdk_") and not name.startswith("_rocm_sdk_devel")]
    return [f"{site}/torch/lib", *(f"{site}/{name}/{inner}" for name in packages for inner in _SDK_FOLDERS)]


def _opened(root: Root, site: str) -> frozenset[str]:
    """The short names of what torch has rocm_sdk open: amdhip64, miopen."""
    text = _text(root, f"{site}/torch/_rocm_init.py")
    return frozenset(name.lower() for name in re.findall(r"['\"]([A-Za-z0-9_-]+)['\"]", text)) if "rocm_sdk" in text else frozenset()


def _first(root: Root, folders: Iterable[str], name: str) -> str:
    return next((f"{folder}/{name}" for folder in folders if root.exists(f"{folder}/{name}")), "")


def _expanded(folders: Iterable[str], path: str) -> list[str]:
    origin = path.rpartition("/")[0]
    return [os.path.normpath(folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)) for folder in folders]


def _text(root: Root, path: str) -> str:
    answer = root.text(path, 1 << 16)
    return answer.value or "" if isinstance(answer, Known) else ""


def _frozen(found: Mapping[str, Iterable[str]]) -> Mapping[str, frozenset[str]]:
    return {key: frozenset(names) for key, names in found.items()}
