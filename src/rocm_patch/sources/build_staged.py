"""What a build made: a staged folder with its manifest, looked through by our own scan, tried by a child.

The manifest is the one that the `prefix` change reads, made by its own function: with two of them a build could end well whose
result was then refused.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import prefix_manifest
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.run import CLEAN, run
from rocm_patch.sources.build_recipe import Proof

MANIFEST: Final = prefix_manifest.MANIFEST
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
    """Describe a folder as the `prefix` change reads it.

    Raises:
        RefusedError: the build installed nothing, or something that is never installed.
    """
    try:
        return prefix_manifest.manifest_of(folder)
    except (FormatError, RefusedError) as error:
        words = "the build installed nothing" if not os.listdir(folder) else f"the result cannot be installed: {error.what}"
        raise RefusedError(words, "this is a gap of the recipe") from error


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
