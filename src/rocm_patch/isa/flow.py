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

__all__ = ["Blocks", "blocks", "spread"]

Array = Any
_LOW: Final = numpy.uint64(3)
_TWO: Final = numpy.uint64(2)


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


def spread(graph: Blocks, made: Array, kept: Array, moved: Array | None = None) -> tuple[Array, Array]:
    """The state at the start of each block: what holds on some path, and what holds on every path.

    `made` and `kept` (blocks x columns, uint64): a block ends with `made | (state & kept)`. `moved`: in blocks that end with
    a branch the two lowest bits (an LDS access, a vector memory access) move up by two: a branch has followed.
    """
    none = numpy.zeros_like(made)
    if not made.any() or not len(graph.target):
        return none, none
    some = _fixpoint(graph, made, kept, moved, none, numpy.bitwise_or)
    # What holds on every path holds on some path: begin with that and take away.
    return some, _fixpoint(graph, made, kept, moved, some, numpy.bitwise_and)


def _fixpoint(graph: Blocks, made: Array, kept: Array, moved: Array | None, begin: Array, join: Any) -> Array:
    def leaving(block: Array) -> Array:
        state_here = state[block] & kept[block]
        if moved is not None:
            up = ((state_here & _LOW) << _TWO) | (state_here & ~_LOW)
            state_here = numpy.where(moved[block][:, None], up, state_here)
        return state_here | made[block]

    state = begin.copy()
    state[graph.entry] = 0
    heads, into = _groups(graph.target)
    first = join.reduceat(leaving(graph.source), heads, axis=0)
    if join is numpy.bitwise_and:
        first[graph.entry[into]] = 0  # a function may also be entered from outside, with nothing
    state[into] = first
    # From here on only blocks that let something through can bring news.
    through = numpy.flatnonzero((kept[graph.source] != 0).any(axis=1))
    if not len(through):
        return state
    source = graph.source[through]
    heads, into = _groups(graph.target[through])
    while True:
        news = join(state[into], join.reduceat(leaving(source), heads, axis=0))
        if numpy.array_equal(news, state[into]):
            return state
        state[into] = news


def _groups(target: Array) -> tuple[Array, Array]:
    """Where each run of equal targets begins, and the target."""
    heads = numpy.flatnonzero(numpy.append(True, target[1:] != target[:-1]))
    return heads, target[heads]
