"""Where control goes in a stretch of code, and what of a past instruction still holds when it gets there.

A fact (a register read by a load, a branch after an LDS access) is made by some instructions and ended by others. Along
direct branches two answers are computed for the start of every basic block: facts that hold on *some* path to it, and facts
that hold on *every* path. The first makes a finding possible, the second certain. Calls are stepped over, indirect jumps
end a path, and functions begin with nothing: that is what LLVM's own pass does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy

__all__ = ["PLANES", "Blocks", "blocks", "spread"]

Array = Any
PLANES: Final = 5
"""Columns of 64 bits in a state: two for the scalar registers that loads read, two for those that vector memory reads, one of flags."""


@dataclass(frozen=True)
class Blocks:
    """Basic blocks of a stretch of instructions: first and one-past-last instruction, and the edges between them."""

    start: Array
    end: Array
    of: Array
    """Block of each instruction."""
    source: Array
    target: Array
    entry: Array
    """Blocks that begin a function, or that no direct branch leads to."""


def blocks(at: Array, length: Array, words: int, branch: Array, falls: Array, offset: Array, first: Array) -> Blocks:
    """Cut instructions into blocks.

    `at` and `length`: first word and words of each instruction; `branch`: it is a direct branch, to `offset` words after its
    end; `falls`: control can go on to the next; `first`: it begins a function.
    """
    count = len(at)
    index = numpy.full(words + 1, -1, numpy.int32)
    index[at] = numpy.arange(count, dtype=numpy.int32)
    jumps = numpy.flatnonzero(branch)
    goal = at[jumps] + length[jumps] + offset[jumps]
    inside = (goal >= 0) & (goal < words)
    jumps, goal = jumps[inside], index[goal[inside]]
    jumps, goal = jumps[goal >= 0], goal[goal >= 0]
    leader = first.copy()
    leader[goal] = True
    leader[1:] |= (branch | ~falls)[:-1]
    leader[:1] = True
    start = numpy.flatnonzero(leader)
    of = numpy.cumsum(leader) - 1
    end = numpy.append(start[1:], count)
    last = end - 1
    onward = numpy.flatnonzero(falls[last][:-1] & ~first[start[1:]])
    source = numpy.concatenate([of[jumps], onward])
    target = numpy.concatenate([of[goal], onward + 1])
    reached = numpy.zeros(len(start), bool)
    reached[target] = True
    order = numpy.argsort(target, kind="stable")
    return Blocks(start, end, of, source[order], target[order], first[start] | ~reached)


def spread(graph: Blocks, made: Array, kept: Array, moved: Array) -> tuple[Array, Array]:
    """The state at the start of each block: what holds on some path, and what holds on every path.

    `made` and `kept` (blocks x PLANES, uint64): a block ends with `made | (state & kept)`. `moved`: where it ends with a
    branch, the low two bits of the flags (an LDS access, a vector memory access) move up by two: a branch has followed.
    """
    none = numpy.zeros_like(made)
    some = _fixpoint(graph, made, kept, moved, none, numpy.bitwise_or)
    # Where nothing holds on some path nothing holds on every path: that is most code.
    if not some.any():
        return some, none
    every = _fixpoint(graph, made, kept, moved, some, numpy.bitwise_and)
    return some, every


def _fixpoint(graph: Blocks, made: Array, kept: Array, moved: Array, begin: Array, join: Any) -> Array:
    if not len(graph.target):
        return numpy.zeros_like(made)
    state = begin.copy()
    state[graph.entry] = 0
    heads = numpy.flatnonzero(numpy.append(True, graph.target[1:] != graph.target[:-1]))
    into = graph.target[heads]
    enters = graph.entry[into]
    while True:
        out = state & kept
        flags = out[:, -1]
        out[:, -1] = numpy.where(moved, (flags & ~numpy.uint64(3)) | ((flags & numpy.uint64(3)) << numpy.uint64(2)), flags)
        out |= made
        joined = join.reduceat(out[graph.source], heads, axis=0)
        if join is numpy.bitwise_and:
            joined[enters] = 0  # a function may also be entered from outside, with nothing
        if numpy.array_equal(joined, state[into]):
            return state
        state[into] = joined
