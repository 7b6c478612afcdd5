"""Our decoder against LLVM's, instruction by instruction: length, mnemonic, and what is not an instruction; speeds side by side.

    python benchmarks/decode_against_llvm.py [--llvm LIBLLVM] [--chip gfx1010] CODE_OBJECT...

Each file is an AMDGPU code object. Every instruction is decoded by both for the target that the file was built for, and its
mnemonic on `--chip` is compared as well. LLVM is asked once for each distinct pair of first words. A row a folder; ends with 1 if
anything differs. `blind`: LLVM reads no instruction there and we do. The speed of LLVM is that of a loop over its C interface.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from rocm_patch.images import code_object
from rocm_patch.images.source import Bytes
from rocm_patch.isa import judge, judges
from rocm_patch.isa.llvm import Disassembler, find, open_library
from rocm_patch.isa.verify import Comparison, blind_spots, compare

SAMPLE = 100_000


def speed_of(loaded: object, source: Bytes) -> float:
    """MB a second of a plain loop over LLVM's decoder, on the first instructions of a code object."""
    read = code_object.read(source)
    llvm = Disassembler(loaded, read.target.partition(":")[0])
    data = source.read(read.text_offset, min(read.text_size, SAMPLE))
    begin, at = time.process_time(), 0
    while at < len(data):
        at += llvm.one(data[at : at + 20])[0] or 4
    return at / 1e6 / (time.process_time() - begin)


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
    print(f"LLVM {library.version}, which cannot read: {', '.join(blind_spots(loaded)) or 'nothing known'}; MB of code a second, one process")
    heads = ("instructions", "distinct", "different", "blind", "undecoded")
    print(f"{'folder':44} {'files':>5} " + " ".join(f"{head:>12}" for head in heads) + f" {'judge':>7} {'LLVM':>6} {'ratio':>6}")
    groups: dict[str, list[str]] = {}
    for file in arguments.files:
        groups.setdefault(os.path.dirname(file), []).append(file)
    wrong = 0
    for folder, files in sorted(groups.items()):
        total = Comparison()
        seen: dict[tuple[str, bytes], tuple[int, str, str]] = {}
        seconds = 0.0
        size = 0
        theirs = 0.0
        for file in files:
            with open(file, "rb") as stream:
                source = Bytes(stream.read())
            if not judges(code_object.target(source), arguments.chip):
                continue
            begin = time.process_time()
            judge(source, arguments.chip)
            seconds += time.process_time() - begin
            size += sum(function.size for function in code_object.read(source).functions)
            compare(source, loaded, arguments.chip, seen, total)
            theirs = theirs or speed_of(loaded, source)
        if not total.instructions:
            continue
        wrong += total.different
        row = " ".join(f"{count:12}" for count in (total.instructions, total.distinct, total.different, total.blind, total.undecoded))
        ours = size / 1e6 / max(seconds, 1e-9)
        print(f"{folder[-44:]:44} {len(files):5} {row} {ours:7.1f} {theirs:6.2f} {ours / theirs:6.1f}")
        for example in total.examples:
            print(f"    {example}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
