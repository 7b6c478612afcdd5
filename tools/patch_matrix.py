#!/usr/bin/env python3
"""Every source patch against a folder of real trees; the tables of docs/patches.md.

    python tools/patch_matrix.py TREES [--compiler clang-19]

TREES/COMPONENT/VERSION is a source tree: miopen/6.2.2, hip/..., rocr/..., kernel/... Of each tree only the files that a patch names
are copied, patched twice, taken back and compared, and mutated: the first word of a place renamed, its lines doubled. With a compiler
that knows amdgcn, MIOpen's batch norm kernels are built with the value that the host code gives them, before and after.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rocm_patch import sources
from rocm_patch.errors import RefusedError
from rocm_patch.knowledge.conditions import parse_version
from rocm_patch.sources import Outlook, Patch, Sources
from rocm_patch.sources.patch import Edit
from rocm_patch.sources.syntax import Found, Text

HEAD = "| source | edits | files | diff, bytes | found as | applied twice, taken back | renamed, doubled |"
BUILT = "| MIOpen | chip | the guard, before and after | kernels built before | after |"
CHIPS = ("gfx1010", "gfx1012", "gfx1030")
KERNELS = ("FwdTrainSpatial", "BwdSpatial", "ActivFwdTrainSpatial", "ActivBwdSpatial")
SIZES = {
    "MIOPEN_USE_FP16": 0, "MIOPEN_USE_FP32": 1, "MIOPEN_USE_FPMIX": 0, "MIOPEN_USE_BFPMIX": 0, "MIO_SAVE_MEAN_VARIANCE": 1, "MIO_RUNNING_RESULT": 1,
    "MIO_BN_USESAVED": 1, "MIO_BN_N": 4, "MIO_BN_C": 8, "MIO_BN_HW": 64, "MIO_BN_NHW": 256, "MIO_BN_CHW": 512, "MIO_BN_NCHW": 2048,
    "MIO_BN_LDS_SIZE": 256, "MIO_BN_LDSGCN_SIZE": 16, "MIO_BN_GRP0": 256, "MIO_BN_GRP1": 1, "MIO_BN_GRP2": 1, "MIO_BN_NGRPS": 1,
    "MIOPEN_NRN_OP_ID": 0, "MIOPEN_YES_ACTIV": 1, "MIO_BN_NODPP": 0, "MIOPEN_SBN_BOUNDS": 1, "MIO_BN_SAVED": 1,
}  # fmt: skip
"""A shape for which all parts of the kernels are compiled; the guard does not depend on it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path)
    parser.add_argument("--compiler", default="", help="builds the batch norm kernels, e.g. clang-19")
    chosen = parser.parse_args()
    failed = 0
    for patch in sources.load().values():
        rows = list(_rows(patch, chosen.trees))
        if rows:
            print(f"### {patch.id} ({patch.status})\n\n{HEAD}\n{_rule(HEAD)}")
        for row, fine in rows:
            print(f"| {' | '.join(row)} |", flush=True)
            failed += not fine
        print()
    if chosen.compiler:
        print(f"### What {_version(chosen.compiler)} says\n\n{BUILT}\n{_rule(BUILT)}")
        for row, fine in _compiled(chosen.trees / "miopen", chosen.compiler):
            print(f"| {' | '.join(row)} |", flush=True)
            failed += not fine
    print(f"{failed} rows are not as they should be" if failed else "all rows are as they should be", file=sys.stderr)
    return 1 if failed else 0


def _rule(head: str) -> str:
    return re.sub("[^|]+", "---", head)


def _rows(patch: Patch, trees: Path) -> Iterator[tuple[tuple[str, ...], bool]]:
    for tree in _versions(trees / patch.component):
        outlook = sources.examine(patch, Sources(str(tree)))
        if outlook.state == "upstream":
            yield (tree.name, "0", "0", "0", "upstream", "nothing to do", ""), True
        elif outlook.state == "refused":
            yield (tree.name, "0", "0", "0", f"refused: {'; '.join(outlook.reasons)[:110]}", "", ""), True
        else:
            there_and_back, mutants = _there_and_back(patch, tree, outlook), _mutants(patch, tree, outlook)
            figures = (str(len(outlook.sites)), str(len(outlook.changes)), str(len(sources.render(outlook))))
            yield (tree.name, *figures, outlook.form, there_and_back, mutants), there_and_back == "same, exact" and "not" not in mutants


def _versions(folder: Path) -> list[Path]:
    trees = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(trees, key=lambda path: (parse_version(re.sub(r"^[a-z-]+-(?=\d)", "", path.name)) or parse_version("0"), path.name))


def _copy(patch: Patch, tree: Path, target: Path) -> dict[str, bytes]:
    """The files that a patch names, in a folder of ours."""
    files = {}
    for name in Sources(str(tree)).find(patch.files):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, place)
        files[name] = place.read_bytes()
    return files


def _there_and_back(patch: Patch, tree: Path, outlook: Outlook) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        files = _copy(patch, tree, Path(scratch))
        if shutil.which("git"):  # the diff says the same to others
            (Path(scratch) / "p.diff").write_bytes(sources.render(outlook))
            if subprocess.run(["git", "apply", "--check", "p.diff"], cwd=scratch, capture_output=True, check=False).returncode:
                return "git does not take the diff"
            os.unlink(f"{scratch}/p.diff")
        sources.apply(patch, Sources(scratch))
        once = {name: (Path(scratch) / name).read_bytes() for name in files}
        again = sources.apply(patch, Sources(scratch))
        twice = {name: (Path(scratch) / name).read_bytes() for name in files}
        sources.revert(patch, Sources(scratch))
        back = {name: (Path(scratch) / name).read_bytes() for name in files}
        same = once == twice and again.state == "applied" and once != files
        return f"{'same' if same else 'NOT the same'}, {'exact' if back == files else 'NOT exact'}"


def _mutants(patch: Patch, tree: Path, outlook: Outlook) -> str:
    """A name that the place rests on renamed in its file; the lines of the place doubled. Both must be refused."""
    site = outlook.sites[0]
    form = next(form for form in patch.form if form.name == outlook.form)
    edit = next(edit for edit in form.edit if edit.what == site.what)
    said = []
    for mutate in (_renamed, _doubled):
        with tempfile.TemporaryDirectory() as scratch:
            data = _copy(patch, tree, Path(scratch))[site.file]
            (Path(scratch) / site.file).write_bytes(mutate(data, edit, Text(data, site.file).find(edit)[0]))
            try:
                sources.apply(patch, Sources(scratch))
                said.append("not refused")
            except RefusedError:
                said.append("refused")
    return ", ".join(said)


def _renamed(data: bytes, edit: Edit, found: Found) -> bytes:
    last = re.findall(rb"\w+", data[found.start : found.end])[-1]
    name = edit.function.rpartition("::")[2].encode() or found.captures.get("called") or found.captures.get("getter") or last
    return re.sub(rb"\b%b\b" % name, rb"\g<0>_renamed", data)


def _doubled(data: bytes, edit: Edit, found: Found) -> bytes:  # noqa: ARG001
    first, last = data.rfind(b"\n", 0, found.start) + 1, data.find(b"\n", found.end) + 1
    return data[:last] + data[first:last] + data[last:]


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _compiled(trees: Path, compiler: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    patch = sources.find("miopen-batchnorm-gfx101x")
    for tree in _versions(trees):
        outlook = sources.examine(patch, Sources(str(tree)))
        change = next((change for change in outlook.changes if "forward_spatial_single" in change.file), None)
        if change is None:
            continue
        for chip in CHIPS:
            before, after = (_guard(text, chip) for text in (change.original, change.patched))
            built = [_build(tree / "src/kernels", compiler, chip, *guard) for guard in (before, after)]
            needs = chip != "gfx1030"
            fine = (
                built[1][0] == built[1][1]
                and (before[1], after[1]) == (("0", "1") if needs else ("1", "1"))
                and (not needs or built[0][0] == 0 < built[1][0])
            )
            yield (tree.name, chip, f"{before[0]}={before[1]}, {after[1]}", *(f"{good} of {all_}" for good, all_ in built)), fine


def _guard(text: bytes, chip: str) -> tuple[str, str]:
    """The definition and the value that the host code gives it, by compiling and running its own expression."""
    found = re.search(rb'\{"(MIO_BN_GFX103\w+)",\s*(\(.*?\? "1" : "0"\))\}', text)
    if found is None:
        raise SystemExit("the guard is not written as it was")
    program = (
        "#include <cstdio>\n#include <string>\n"
        "static bool StartsWith(const std::string& text, const std::string& head) { return text.compare(0, head.size(), head) == 0; }\n"
        "struct Handle { std::string name; std::string GetDeviceName() const { return name; } };\n"
        f"int main(int, char** words) {{ const Handle handle{{words[1]}}; (void)StartsWith; std::puts({found.group(2).decode()}); }}\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["c++", "-x", "c++", "-std=c++17", "-", "-o", f"{scratch}/guard"], input=program, text=True, check=True)
        value = subprocess.run([f"{scratch}/guard", chip], capture_output=True, text=True, check=True).stdout.strip()
    return found.group(1).decode(), value


def _build(folder: Path, compiler: str, chip: str, name: str, value: str) -> tuple[int, int]:
    """How many were built, of how many that hold a kernel: each variant of a file counts."""
    good = tried = 0
    for kernel, variant in itertools.product(KERNELS, range(4)):
        path = folder / f"MIOpenBatchNorm{kernel}.cl"
        if not path.is_file():
            continue
        words = [f"-D{key}={text}" for key, text in {**SIZES, name: value, "MIO_BN_VARIANT": variant}.items()]
        language = ["-x", "cl", "-cl-std=CL2.0", "-Xclang", "-finclude-default-header", "-target", "amdgcn-amd-amdhsa", f"-mcpu={chip}", "-nogpulib"]
        with tempfile.TemporaryDirectory() as scratch:
            command = [compiler, *language, "-O1", "-w", "-c", f"-I{folder}", *words, str(path), "-o", f"{scratch}/made.o"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            built = ended.returncode == 0
            if built and b".kd\0" not in Path(scratch, "made.o").read_bytes():
                continue  # this variant of the file is empty
        tried, good = tried + 1, good + built
    return good, tried


if __name__ == "__main__":
    raise SystemExit(main())
