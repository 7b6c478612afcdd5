"""What we find in files against what LLVM's own tools find: targets, sizes and kernels of every code object.

    python benchmarks/scan_against_llvm.py [--llvm FOLDER] [--scratch FOLDER] PATH...

A path is a library, a bundle, a code object, a wheel, or a folder (its files, not those of folders in it); each is a row.
LLVM's side shares no code with ours: `llvm-objdump --offloading` takes libraries apart, and `clang-offload-bundler` lists
each bundle that begins at a page of the section (LLVM 23's objdump passes over compressed bundles that follow plain ones,
so that its count is checked; where it is short, each bundle is taken apart alone). `llvm-readelf` gives the target of lone
code objects from their header, and kernels are counted twice: `.kd` symbols by `llvm-nm`, entries of the metadata note by
`llvm-readelf`. The tools must be LLVM 22 or newer; they are sought in FOLDER or on PATH, with or without a version at the
end of the name.

The row's words: `equal`, or what differs; what we say cannot be read stands below and is no difference of its own (what
LLVM reads and we do not is). Ends with 1 if anything differs. Code objects are unpacked into the scratch
folder, which needs as much room as the largest file.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rocm_patch.images import walk
from rocm_patch.images.source import Unread

PAGE = 4096
MAGICS = (b"__CLANG_OFFLOAD_BUNDLE__", b"CCOB")
ELF_MAGIC = b"\x7fELF"
AMDGPU = 224
VERSIONS = ("", *(f"-{version}" for version in range(30, 21, -1)))
BATCH = 200
"""Files a call of a tool."""
DOUBTS = 3
"""Doubts told of one row."""
TRIPLE = re.compile(r"^(?:hipv?4?|openmp)?-?amdgcn-amd-amdhsa-[a-z]*-")

Found = Counter[tuple[str, int, int]]
"""(target, bytes, kernels) of each code object."""


@dataclass
class Theirs:
    """What LLVM says of the files of a row, and what it says differently in two places."""

    codes: Found = field(default_factory=Counter)
    bundles: int = 0
    doubts: list[str] = field(default_factory=list)


class Llvm:
    """LLVM's tools in one folder or on PATH."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def path(self, tool: str) -> str:
        """The newest of a tool; ends the program where there is none."""
        for version in VERSIONS:
            found = shutil.which(tool + version, path=self.folder)
            if found:
                return found
        sys.exit(f"{tool} of LLVM 22 or newer was not found; name its folder with --llvm")

    def run(self, tool: str, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One call, never an exception."""
        return subprocess.run([self.path(tool), *arguments], capture_output=True, text=True, errors="replace", cwd=folder, check=False)

    def kernels(self, files: Sequence[Path]) -> list[tuple[int, int]]:
        """Of each code object: kernels by symbols and by metadata."""
        counts: list[tuple[int, int]] = []
        for first in range(0, len(files), BATCH):
            some = files[first : first + BATCH]
            names = [str(file) for file in some]
            symbols = dict.fromkeys(names, 0)
            notes = dict.fromkeys(names, 0)
            self._symbols(["--dynamic", *names], symbols)
            # Relocatable files have no dynamic symbols.
            self._symbols([name for name, number in symbols.items() if number == 0], symbols)
            self._notes(names, notes)
            counts += [(symbols[name], notes[name]) for name in names]
        return counts

    def _symbols(self, arguments: list[str], into: dict[str, int]) -> None:
        if not arguments:
            return
        command = [self.path("llvm-nm"), "--defined-only", "--print-file-name", "--format=posix", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace") as child:
            for line in child.stdout or ():
                name, _, rest = line.partition(": ")
                if rest.split(" ", 1)[0].endswith(".kd") and name in into:
                    into[name] += 1

    def _notes(self, names: list[str], into: dict[str, int]) -> None:
        # One file has no heading, so that a lone one is counted for its name.
        current = names[0]
        with subprocess.Popen(
            [self.path("llvm-readelf"), "--notes", *names], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as child:
            for line in child.stdout or ():
                if line.startswith("File: "):
                    current = line[6:].rstrip("\n")
                elif line.lstrip(" -").startswith((".symbol:", "SymbolName:")):
                    into[current] += 1

    def target(self, file: Path) -> str:
        """The target of a lone code object; features that may be on or off are not in it."""
        said = re.search(r"Flags:\s+0x[0-9a-f]+, (.+)", self.run("llvm-readelf", "--file-header", str(file)).stdout)
        if not said:
            return "?"
        name, *features = said.group(1).split(", ")
        return name + "".join(f":{feature}" for feature in sorted(features) if feature.endswith(("+", "-")))


def entry_target(identifier: str) -> str | None:
    """The target in a bundle entry's id; None for the host's entry."""
    if identifier.startswith("host-"):
        return None
    if identifier.startswith(("spirv64", "hip-spirv", "hipv4-spirv")):
        return "spirv"
    return TRIPLE.sub("", identifier)


def start(path: Path) -> bytes:
    """The first 24 bytes."""
    with path.open("rb") as stream:
        return stream.read(24)


def machine(path: Path) -> int:
    """`e_machine` of an ELF file, -1 of any other."""
    head = start(path)
    return int.from_bytes(head[18:20], "little") if head.startswith(ELF_MAGIC) and len(head) >= 20 else -1


def slices(path: Path) -> Iterator[bytes]:
    """Bundles that begin at a page of a section or a file, each with everything up to the next."""
    data = path.read_bytes()
    starts = [at for at in range(0, len(data), PAGE) if data.startswith(MAGICS, at)]
    for at, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield data[at:end]


def listed(llvm: Llvm, scratch: Path, section: Path) -> list[tuple[Path, list[str]]]:
    """The bundles of a section, each in a file of its own, and the ids in it, by clang-offload-bundler."""
    bundles: list[tuple[Path, list[str]]] = []
    for number, data in enumerate(slices(section)):
        bundle = scratch / f"bundle{number}"
        bundle.write_bytes(data)
        said = llvm.run("clang-offload-bundler", "-list", "-type=o", f"-input={bundle}")
        if said.returncode == 0:
            bundles.append((bundle, said.stdout.split()))
        else:
            bundle.unlink()
    return bundles


def unbundled(llvm: Llvm, scratch: Path, bundles: list[tuple[Path, list[str]]]) -> list[tuple[str, Path]]:
    """Every code object of the bundles, each bundle put into an ELF file of its own for llvm-objdump."""
    codes: list[tuple[str, Path]] = []
    for bundle, _ in bundles:
        room = scratch / f"{bundle.name}.codes"
        room.mkdir()
        wrapped = room / "wrapped"
        # The bundler of LLVM 23 lists, but refuses to unbundle, what clang 16 made (a host id without environment).
        llvm.run("llvm-objcopy", "-Ibinary", "-Oelf64-x86-64", "--rename-section=.data=.hip_fatbin", str(bundle), str(wrapped))
        codes += [(target, file) for _, identifier, file in objdumped(llvm, room, wrapped) if (target := entry_target(identifier)) is not None]
    return codes


def objdumped(llvm: Llvm, scratch: Path, path: Path) -> list[tuple[int, str, Path]]:
    """Every entry of a library, by llvm-objdump: number of the bundle, id, file."""
    link = scratch / "library"
    link.symlink_to(path.resolve())
    said = llvm.run("llvm-objdump", "--offloading", link.name, folder=scratch).stdout
    entries = re.findall(r"^Extracting offload bundle: library\.(\d+)\.(.+)$", said, re.MULTILINE)
    return [(int(number), identifier, scratch / f"library.{number}.{identifier}") for number, identifier in entries]


def library(llvm: Llvm, scratch: Path, path: Path, told: Theirs) -> list[tuple[str, Path]]:
    """The code objects of a host's ELF or PE file."""
    section = scratch / "section"
    elf = machine(path) >= 0
    llvm.run("llvm-objcopy", f"--dump-section={'.hip_fatbin' if elf else '.hip_fat'}={section}", str(path), os.devnull)
    if not section.exists():
        return []
    bundles = listed(llvm, scratch, section)
    section.unlink()
    if not elf:
        told.bundles += len(bundles)
        return unbundled(llvm, scratch, bundles)
    entries = objdumped(llvm, scratch, path)
    told.bundles += len(bundles)
    by_objdump = Counter(target for _, identifier, _ in entries if (target := entry_target(identifier)) is not None)
    by_bundler = Counter(target for _, names in bundles for name in names if (target := entry_target(name)) is not None)
    if by_objdump != by_bundler:
        objdump = f"{by_objdump.total()} codes in {len({number for number, _, _ in entries})} bundles"
        told.doubts.append(f"llvm-objdump saw {objdump}, clang-offload-bundler {by_bundler.total()} in {len(bundles)}")
        return unbundled(llvm, scratch, bundles)
    for bundle, _ in bundles:
        bundle.unlink()
    return [(target, file) for _, identifier, file in entries if (target := entry_target(identifier)) is not None]


def theirs(llvm: Llvm, scratch: Path, files: Sequence[Path]) -> Theirs:
    """LLVM's side of a row."""
    told = Theirs()
    lone = [file for file in files if machine(file) == AMDGPU]
    counted(llvm, [(llvm.target(file), file) for file in lone], told)
    for file in files:
        if file in lone:
            continue
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            room = Path(name)
            head = start(file)
            if head.startswith((ELF_MAGIC, b"MZ")):
                counted(llvm, library(llvm, room, file, told), told)
            elif head.startswith(MAGICS):
                bundles = listed(llvm, room, file)
                told.bundles += len(bundles)
                counted(llvm, unbundled(llvm, room, bundles), told)
    return told


def counted(llvm: Llvm, codes: list[tuple[str, Path]], told: Theirs) -> None:
    """Add code objects with their sizes and kernels."""
    some = [(target, file) for target, file in codes if file.stat().st_size]
    for (target, file), (symbols, notes) in zip(some, llvm.kernels([file for _, file in some]) if some else [], strict=True):
        if symbols != notes and target != "spirv":
            told.doubts.append(f"{target}: {symbols} .kd symbols, {notes} kernels in the metadata")
        told.codes[target, file.stat().st_size, symbols] += 1


def ours(paths: Sequence[Path]) -> tuple[Found, list[str]]:
    """Our side of a row, and what we could not read."""
    found: Found = Counter()
    unread: list[str] = []
    for path in paths:
        for _, item in walk.items(str(path)):
            told, why = walk.tell(item, count=True)
            if why:
                unread.append(f"{why[0]}: {why[1]}")
            if told and not isinstance(item, Unread) and told[3]:
                found[told[1], told[3], max(told[2], 0)] += 1
    return found, unread


def rows(arguments: Sequence[str], scratch: Path) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """Label, files for LLVM, paths for us."""
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.is_file() and not file.is_symlink())
            yield argument, inside, inside
        elif zipfile.is_zipfile(path):
            with tempfile.TemporaryDirectory(dir=scratch) as folder, zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder)
                yield argument, sorted(file for file in Path(folder).rglob("*") if file.is_file()), [path]
        else:
            yield argument, [path], [path]


def difference(mine: Found, told: Found) -> str:
    """What one side has alone, in words; empty where both are equal."""
    words = []
    for side, alone in (("only we", mine - told), ("only LLVM", told - mine)):
        if alone:
            some = ", ".join(f"{number}x {target} {size} B {kernels} k" for (target, size, kernels), number in sorted(alone.items())[:3])
            words.append(f"{side}: {alone.total()} ({some}{', ...' if len(alone) > 3 else ''})")
    return "; ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llvm", help="folder of LLVM's tools")
    parser.add_argument("--scratch", help="folder for unpacked code objects")
    parser.add_argument("--targets", action="store_true", help="list codes and kernels by target below each row")
    parser.add_argument("paths", nargs="+")
    arguments = parser.parse_args()
    llvm = Llvm(arguments.llvm)
    print((llvm.run("llvm-objdump", "--version").stdout.split("\n") or ["?"])[0].strip())
    print(f"{'megabytes':>9} {'bundles':>7} {'codes':>6} {'targets':>7} {'kernels':>8} {'ours s':>7} {'LLVM s':>7}  path: verdict")
    wrong = total = kernels = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        for label, files, paths in rows(arguments.paths, Path(name)):
            begin = time.perf_counter()
            mine, unread = ours(paths)
            middle = time.perf_counter()
            told = theirs(llvm, Path(name), files)
            end = time.perf_counter()
            verdict = difference(mine, told.codes)
            wrong += bool(verdict)
            total += len(files)
            here = sum(count * number for (_, _, count), number in told.codes.items())
            kernels += here
            print(
                f"{sum(file.stat().st_size for file in files) / 1e6:9.1f} {told.bundles:7} {told.codes.total():6} "
                f"{len({target for target, _, _ in told.codes}):7} {here:8} {middle - begin:7.2f} {end - middle:7.2f}  {label}: {verdict or 'equal'}",
                flush=True,
            )
            if unread:
                print(f"{'':58}  we could not read {len(unread)}: {unread[0]}")
            for doubt in told.doubts[:DOUBTS]:
                print(f"{'':58}  LLVM's tools disagree: {doubt}")
            if len(told.doubts) > DOUBTS:
                print(f"{'':58}  and {len(told.doubts) - DOUBTS} more such")
            if arguments.targets:
                by_target: Counter[str] = Counter()
                for (target, _, count), number in told.codes.items():
                    by_target[target] += count * number
                print(f"{'':58}  " + " ".join(f"{target}={count}" for target, count in sorted(by_target.items())))
    print(f"{len(arguments.paths)} rows, {total} files, {kernels} kernels: {wrong} rows differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
