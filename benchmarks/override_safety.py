"""The tables of docs/override-safety.md: what is found in real libraries when their code is judged on another chip.

    python benchmarks/override_safety.py [--for gfx1010] NAME=PATH[,PATH...]...

A NAME is a row of the table, its PATHs are libraries, wheels, folders or code objects. Code for gfx1030 is judged on the chip that
`--for` names; code for that chip itself is the control. Counts are places; `a + b` is certain plus possible. A kernel counts as
unsafe where anything certain is in it. Markdown on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

from rocm_patch.errors import FormatError
from rocm_patch.images import code_object, walk
from rocm_patch.images.source import Code
from rocm_patch.isa import Count, judge, rules


@dataclass
class Row:
    """What was found in one library's code for one target."""

    objects: int = 0
    instructions: int = 0
    undecoded: int = 0
    kernels: int = 0
    unsafe: int = 0
    prefetching: int = 0
    size: int = 0
    seconds: float = 0.0
    rules: dict[str, Count] = field(default_factory=dict)

    def add(self, item: Code, chip: str) -> None:
        """Judge one code object."""
        begin = time.process_time()
        found = judge(item.data, chip)
        self.seconds += time.process_time() - begin
        read = code_object.read(item.data)
        names = set(read.kernel_names)
        self.objects += 1
        self.instructions += found.instructions
        self.undecoded += found.undecoded
        self.kernels += len(names)
        self.size += sum(function.size for function in read.functions)
        self.unsafe += sum(any(count.certain for count in counts.values()) for name, counts in found.kernels.items() if name in names)
        self.prefetching += sum("inst-prefetch" in counts for name, counts in found.kernels.items() if name in names)
        for rule, count in found.rules.items():
            self.rules[rule] = self.rules.get(rule, Count()) + count


def cell(count: Count) -> str:
    """A count in a table."""
    if not count.possible:
        return f"{count.certain:,}"
    return f"{count.certain:,} + {count.possible:,}"


def show(title: str, rows: dict[str, Row]) -> None:
    """One table."""
    used = [rule.id for rule in rules() if any(rule.id in row.rules for row in rows.values())]
    print(f"\n### {title}\n")
    heads = ["library", "code objects", "instructions", "kernels", "unsafe kernels", "with s_inst_prefetch", *used]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name, row in rows.items():
        share = f"{row.unsafe:,} ({100 * row.unsafe / row.kernels:.1f} %)" if row.kernels else "0"
        prefetch = f"{row.prefetching:,} ({100 * row.prefetching / row.kernels:.1f} %)" if row.prefetching else "0"
        counts = [cell(row.rules.get(rule, Count())) for rule in used]
        print("| " + " | ".join([name, f"{row.objects:,}", f"{row.instructions:,}", f"{row.kernels:,}", share, prefetch, *counts]) + " |")
    undecoded = {name: row.undecoded for name, row in rows.items() if row.undecoded}
    total = sum(row.instructions for row in rows.values())
    print(f"\n{total:,} instructions, not decoded: {undecoded or 'none'}.")
    size, seconds = sum(row.size for row in rows.values()), sum(row.seconds for row in rows.values())
    sys.stderr.write(f"{title}: {size / 1e6:.1f} MB of code in {seconds:.1f} s of one core: {size / 1e6 / max(seconds, 1e-9):.1f} MB/s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="chip", default="gfx1010")
    parser.add_argument("--code", default="gfx1030")
    parser.add_argument("libraries", nargs="+", metavar="NAME=PATH")
    arguments = parser.parse_args()
    foreign: dict[str, Row] = {}
    native: dict[str, Row] = {}
    for argument in arguments.libraries:
        name, _, paths = argument.partition("=")
        for candidate in walk.candidates(paths.split(",")):
            sys.stderr.write(f"{name}: {candidate.path[-70:]}\n")
            for _, item in walk.items(candidate.path):
                if not isinstance(item, Code):
                    sys.stderr.write(f"  not read: {item.inside}: {item.why}\n")
                    continue
                table = {arguments.code: foreign, arguments.chip: native}.get(item.target.partition(":")[0])
                if table is None:
                    continue
                try:
                    table.setdefault(name, Row()).add(item, arguments.chip)
                except FormatError as error:
                    sys.stderr.write(f"  not judged: {item.inside}: {error.what}\n")
    show(f"Code for {arguments.code}, judged on {arguments.chip}", foreign)
    if native:
        show(f"Controls: code made for {arguments.chip}, judged on it", native)


if __name__ == "__main__":
    main()
