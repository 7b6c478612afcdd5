"""What a build made: a staged folder with its manifest, looked through by our own scan, tried by a child.

The manifest is the one that the `prefix` change reads, one line for each file and link:

    file<TAB>0644 or 0755<TAB>sha256<TAB>path
    link<TAB>-<TAB>target<TAB>path
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.run import CLEAN, run
from rocm_patch.sources.build_recipe import Proof

MANIFEST: Final = "manifest"
_TRY: Final = "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], os.RTLD_NOW | os.RTLD_LOCAL)"


@dataclass(frozen=True)
class Proven:
    """What was seen of one file of the result. `targets`: whose device code is in it."""

    file: str
    soname: str
    targets: tuple[str, ...]
    loads: str
    """'yes', 'not tried', or the loader's words."""


def manifest_of(folder: str) -> bytes:
    """Describe a folder. Raises RefusedError for what is neither a plain file nor a link that stays inside."""
    lines = []
    for at, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(at, name)))]:
            path = os.path.join(at, name)
            relative = os.path.relpath(path, folder)
            if relative == MANIFEST:
                continue
            if os.path.islink(path):
                target = os.readlink(path)
                if target.startswith("/") or os.path.normpath(os.path.join(os.path.dirname(relative), target)).split("/")[0] == "..":
                    raise RefusedError(f"the result holds a link that leads out of it: {relative} -> {target}", "this is a gap of the recipe")
                lines.append(f"link\t-\t{target}\t{relative}")
            elif os.path.isfile(path):
                value = hashlib.sha256()
                with open(path, "rb") as file:
                    while chunk := file.read(1 << 20):
                        value.update(chunk)
                lines.append(f"file\t{'0755' if os.stat(path).st_mode & 0o100 else '0644'}\t{value.hexdigest()}\t{relative}")
            else:
                raise RefusedError(f"the result holds {relative}, which is neither a file nor a link", "this is a gap of the recipe")
    if not lines:
        raise RefusedError("the build installed nothing", "this is a gap of the recipe")
    return "".join(f"{line}\n" for line in sorted(lines)).encode("utf-8", "surrogateescape")


def whole(folder: str, digest: str) -> bool:
    """True if a staged folder is what its manifest of this digest says, to the byte."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            manifest = file.read()
        return hashlib.sha256(manifest).hexdigest() == digest and manifest_of(folder) == manifest
    except (OSError, RefusedError):
        return False


def prove(folder: str, proofs: tuple[Proof, ...], gpu: str, environment: Mapping[str, str]) -> tuple[Proven, ...]:
    """Hold the result against what the recipe promises. Raises RefusedError, naming what is missing."""
    paths = sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)
    found = []
    for proof in proofs:
        path = next((path for path in paths if fnmatch.fnmatchcase(path, proof.file) and not os.path.islink(os.path.join(folder, path))), "")
        if not path:
            raise RefusedError(f"the build made no {proof.file}", "look at the log of the stage 'staged'")
        found.append(_proven(folder, path, proof, gpu, environment))
    return tuple(found)


def _proven(folder: str, path: str, proof: Proof, gpu: str, environment: Mapping[str, str]) -> Proven:
    whole_path = os.path.join(folder, path)
    soname, symbols = _elf(whole_path)
    if proof.soname and not fnmatch.fnmatchcase(soname, proof.soname):
        raise RefusedError(
            f"{path} calls itself {soname or 'nothing'}; {proof.soname} was expected", "programs would not find it: build another version"
        )
    if missing := [name for name in proof.symbols if name not in symbols]:
        raise RefusedError(f"{path} does not export {', '.join(missing)}", "the build is not what it should be: look at the log")
    targets = _targets(whole_path)
    if proof.device_code and gpu not in targets:
        raise RefusedError(f"{path} holds code for {', '.join(targets) or 'no GPU'}, and none for {gpu}", "--gpu names the card's own target")
    loads = "not tried"
    if proof.loads:
        child = {**CLEAN, **environment, "LD_LIBRARY_PATH": os.path.dirname(whole_path)}
        python = os.path.realpath(sys.executable)
        try:
            ended = run([python, "-I", "-c", _TRY, whole_path], timeout=120, environment=child)
        except RefusedError as error:  # as root, with an interpreter that others can write
            return Proven(path, soname, targets, f"not tried: {error.what}")
        if ended.code != 0:
            said = ended.text.rpartition("\n")[2]
            raise RefusedError(
                f"{path} cannot be loaded: {said or f'the child ended with {ended.code}'}", "a library that it needs is missing or of another version"
            )
        loads = "yes"
    return Proven(path, soname, targets, loads)


def _elf(path: str) -> tuple[str, frozenset[str]]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    soname, symbols = "", set[str]()
    try:
        with open(path, "rb") as file:
            for section in ELFFile(file).iter_sections():
                if isinstance(section, DynamicSection):
                    soname = next((str(getattr(tag, "soname", "")) for tag in section.iter_tags("DT_SONAME")), soname)
                elif isinstance(section, SymbolTableSection) and section.name == ".dynsym":
                    symbols |= {symbol.name for symbol in section.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
    except (ELFError, OSError) as error:
        raise RocmPatchError(f"{path} is no ELF file: {error}", "the build is not what it should be: look at the log") from error
    return str(soname), frozenset(symbols)


def _targets(path: str) -> tuple[str, ...]:
    """Whose device code our scan finds in a file."""
    from rocm_patch.images import pool, walk

    tasks = list(walk.candidates([path]))
    return tuple(sorted({target.partition(":")[0] for done in pool.scan(tasks) for image in done.images for target in image.targets}))
