"""Our decoder against LLVM's, instruction by instruction: length, mnemonic, and what is not an instruction; speeds side by side.

    python benchmarks/decode_against_llvm.py [--llvm LIBLLVM] [--chip gfx1010] CODE_OBJECT...

Each file is an AMDGPU code object. Every instruction is decoded by both for the target that the file was built for, and its
mnemonic on `--chip` is compared as well. LLVM is asked once for each distinct pair of first words. A row a folder; ends with 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from rocm_patch.images import code_object
from rocm_patch.images.source import Bytes
from rocm_patch.isa import _stretches, judge, table
from rocm_patch.isa.llvm import Disassembler, find, open_library


def plain(text: str) -> str:
    name = text.partition(" ")[0]
    for ending in ("_e32", "_e64", "_sdwa", "_dpp", "_dpp8", "_e64_dpp"):
        name = name.removesuffix(ending)
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llvm", default="")
    parser.add_argument("--chip", default="gfx1010")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    path = arguments.llvm or next((library.path for library in find() if library.trusted), "")
    if not path:
        sys.exit("no LLVM of 23 or newer found; name one with --llvm")
    loaded, library = open_library(path)
    print(f"LLVM {library.version}; speeds in MB of code a second, one process")
    heads = ("instructions", "distinct", "differ", "old cmpx", "undecoded")
    print(f"{'folder':44} {'files':>5} " + " ".join(f"{head:>12}" for head in heads) + f" {'judge':>7} {'LLVM':>6} {'ratio':>6}")
    groups: dict[str, list[str]] = {}
    for file in arguments.files:
        groups.setdefault(os.path.dirname(file), []).append(file)
    wrong = 0
    opcodes = table.load()
    for folder, files in sorted(groups.items()):
        total = unknown = differing = older = size = 0
        ours = theirs = 0.0
        asked = 0
        examples: Counter[str] = Counter()
        seen: dict[tuple[str, bytes], tuple[int, str, str]] = {}
        for file in files:
            with open(file, "rb") as stream:
                source = Bytes(stream.read())
            read = code_object.read(source)
            if table.letter(read.target) is None:
                continue
            begin = time.process_time()
            judge(source, arguments.chip)
            ours += time.process_time() - begin
            native = Disassembler(loaded, read.target.partition(":")[0])
            other = Disassembler(loaded, arguments.chip)
            for _, code, undecoded in _stretches(source, read, arguments.chip):
                unknown += undecoded
                data = source.read(code.base, min(len(source.data) - code.base, (int(code.instructions.at[-1]) + 8) * 4))
                here = code.instructions
                size += int(here.length.sum()) * 4
                for at, length, opcode in zip(here.at.tolist(), here.length.tolist(), here.opcode.tolist(), strict=True):
                    total += 1
                    key = (read.target, data[4 * at : 4 * at + 8])
                    found = seen.get(key)
                    if found is None:
                        asked += 1
                        text = data[4 * at : 4 * at + 20] + b"\0" * 8
                        begin = time.process_time()
                        count, line = native.one(text)
                        theirs += time.process_time() - begin
                        _, there = other.one(text)
                        found = seen[key] = (count, plain(line), plain(there))
                    mine = (4 * length, opcodes.name(opcode, code.made_for), opcodes.name(opcode, code.chip))
                    if mine[1] == "":
                        mine = (found[0], "", mine[2])
                    if found[0] == 0 and mine[1].startswith("v_cmpx") and key[1][0] == 0:
                        older += 1  # until 2025 compilers wrote 0 where the destination is EXEC; LLVM 23 takes 126 only, those before it 0 only
                    elif mine != found:
                        differing += 1
                        examples[f"{mine} {found} {key[1].hex()}"] += 1
        if not total:
            continue
        wrong += differing
        whole = theirs / max(asked, 1) * total
        speed, theirs_speed = size / 1e6 / max(ours, 1e-9), size / 1e6 / max(whole, 1e-9)
        row = " ".join(f"{count:12}" for count in (total, asked, differing, older, unknown))
        print(f"{folder[-44:]:44} {len(files):5} {row} {speed:7.1f} {theirs_speed:6.2f} {speed / theirs_speed:6.1f}")
        for example, count in examples.most_common(5):
            print(f"    {count} x {example}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
