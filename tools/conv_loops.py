"""Inner loops of compiled kernels: how much of the multiply-add peak of a gfx10 chip they can reach, from the assembly alone."""

from __future__ import annotations

import glob
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """The innermost loop around the block with the most multiply-adds: instructions of all its blocks, each counted once.

    `local_bytes`: what the lanes of a wave ask of local memory. `cycles`: llvm-mca's, of the block alone, for one wave.
    """

    unit: str
    fmas: int
    vector: int
    local: int
    memory: int
    local_bytes: int
    block_fmas: int
    cycles: float

    @property
    def vector_share(self) -> float:
        """Share of the FMA peak if other waves hide all but vector instructions: a SIMD issues one of those a cycle."""
        return self.fmas / self.vector

    @property
    def local_share(self) -> float:
        """Share of the FMA peak that local memory feeds: 128 bytes a cycle for the two SIMDs of a compute unit, no broadcast counted."""
        return min(1.0, self.fmas / (2 * self.local_bytes / 128)) if self.local_bytes else 1.0

    @property
    def alone(self) -> float:
        """Share of the FMA peak that one wave alone reaches in the block, as llvm-mca has it."""
        return self.block_fmas / self.cycles


_FMA = re.compile(r"v_(pk_)?(fma|fmac|fmaak|fmamk|mac|mad)_(legacy_)?f\d+")
_LDS = re.compile(r"ds_(?:read|write)(2?)(?:st64)?_[biu](\d+)")


def blocks_of(assembly: str) -> tuple[list[list[str]], list[set[int]]]:
    """Basic blocks of a kernel in the order of the text, and which follow each."""
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in (raw.partition(";")[0].strip() for raw in assembly.splitlines()):
        if line.endswith(":"):
            if blocks[-1]:
                blocks.append([])
            labels[line[:-1]] = len(blocks) - 1
        elif line.startswith(("s_cbranch", "s_branch", "s_endpgm")):
            blocks[-1].append(line)
            blocks.append([])
        elif line and not line.startswith("."):
            blocks[-1].append(line)
    follow: list[set[int]] = []
    for number, block in enumerate(blocks):
        last = block[-1].split() if block else [""]
        falls = not last[0].startswith(("s_branch", "s_endpgm")) and number + 1 < len(blocks)
        goal = {labels[last[1]]} if last[0].startswith(("s_cbranch", "s_branch")) and last[1] in labels else set()
        follow.append(({number + 1} if falls else set()) | goal)
    return blocks, follow


def innermost(follow: Sequence[set[int]], block: int) -> set[int]:
    """Blocks of the innermost loop around a block; empty if there is none."""
    alive, loop = set(range(len(follow))), set[int]()
    while True:
        backward: list[set[int]] = [set() for _ in follow]
        for number in alive:
            for after in follow[number] & alive:
                backward[after].add(number)
        cycle = _reached([each & alive for each in follow], block) & _reached(backward, block)
        if block not in cycle:
            return loop
        loop = cycle
        heads = {number for number in cycle if any(number in follow[other] for other in range(len(follow)) if other not in cycle)}
        if block in heads or not heads:
            return loop
        alive = cycle - heads


def _reached(follow: Sequence[set[int]], start: int) -> set[int]:
    found: set[int] = set()
    todo = list(follow[start])
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += follow[number]
    return found


def find_mca() -> str | None:
    """The oldest llvm-mca that knows gfx10: that of LLVM 19 damages its heap on some blocks, that of 16 does not."""
    for mca in sorted(glob.glob("/usr/lib/llvm-*/bin/llvm-mca"), key=lambda path: int(re.findall(r"llvm-(\d+)", path)[0])):
        if _cycles(mca, ["v_fmac_f32_e32 v0, v1, v2", "ds_read_b128 v[4:7], v0", "s_waitcnt lgkmcnt(0)"]) is not None:
            return mca
    return None


def _cycles(mca: str, block: Sequence[str], target: str = "gfx1010") -> float | None:
    rounds = 50
    # Its model of s_waitcnt is left out: that is what dies, and other waves run while one waits.
    command = [mca, "-mtriple=amdgcn-amd-amdhsa", f"-mcpu={target}", "-disable-cb", f"-iterations={rounds}"]
    done = subprocess.run(command, input="\n".join(block), capture_output=True, text=True, check=False)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(found[1]) / rounds if done.returncode == 0 and found else None


def loop_of(label: str, assembly: str, mca: str, target: str = "gfx1010") -> Loop | None:
    """None where no loop multiplies.

    Raises:
        RuntimeError: llvm-mca gave no answer.
    """
    blocks, follow = blocks_of(assembly)
    fmas = [sum(bool(_FMA.match(line)) for line in block) for block in blocks]
    hot = max(range(len(blocks)), key=lambda number: fmas[number])
    loop = innermost(follow, hot)
    if not loop or not fmas[hot]:
        return None
    body = [line for number in sorted(loop) for line in blocks[number]]
    asked = [_LDS.match(line) for line in body]
    local_bytes = sum(32 * int(found[2]) // 8 * (2 if found[1] else 1) for found in asked if found)
    straight = [line for line in blocks[hot] if not line.startswith(("s_cbranch", "s_branch"))]
    cycles = _cycles(mca, straight, target)
    if cycles is None:
        raise RuntimeError(f"{mca} gave no answer for {label}")

    def count(start: str) -> int:
        return sum(line.startswith(start) for line in body)

    memory = count("global_") + count("flat_") + count("buffer_load") + count("buffer_store")
    return Loop(label, sum(fmas[number] for number in loop), count("v_"), count("ds_"), memory, local_bytes, fmas[hot], cycles)
