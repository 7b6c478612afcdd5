"""Which code of a library a chip would run, and how it fares there: rows of `images` in, rows with their safety out.

The judging is done by children with limits (`isa.worker`), in parallel, large files in parts. What has been judged is kept by
its content as it comes: a scan that was broken off goes on where it stopped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rocm_patch.images import coverage, pool
from rocm_patch.isa import Count, judges
from rocm_patch.isa.cache import Cache, counts_of
from rocm_patch.isa.worker import seconds
from rocm_patch.model import Image, Safety
from rocm_patch.safety.memory import recall, remember, state
from rocm_patch.safety.outlook import Chip, Outlook, chip_of, libraries, outlook, outlooks

__all__ = [
    "Chip",
    "Judged",
    "Kernel",
    "Outlook",
    "chip_of",
    "judge",
    "libraries",
    "outlook",
    "outlooks",
    "recall",
    "remember",
    "size",
    "state",
    "summed",
    "verify",
]

PART: Final = 8 << 20
"""Bytes of code in a file from which several children share it."""
PARTS: Final = 16
GROWTH: Final = 16
"""Times its own size that the packed code in a file counts for; plain code can count once. What a file claims is not believed."""
NAMES: Final = 20_000
"""Functions that are named in all."""
MODULE: Final = "rocm_patch.isa.worker"
REASONS: Final = 16
"""Reasons told of one row."""


@dataclass(frozen=True)
class Judged:
    """One code object has been judged, or could not be and `why`. `size` in bytes; `known`: it was in the cache."""

    path: str
    member: str
    store: str
    inside: str
    target: str
    size: int
    why: str = ""
    known: bool = False
    rules: Mapping[str, Count] = field(default_factory=dict)
    functions: int = 0
    unsafe: int = 0
    undecoded: int = 0
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A function in which something was found."""

    path: str
    member: str
    target: str
    name: str
    rules: Mapping[str, Count]


def size(rows: Iterable[Image], chip: Chip) -> int:
    """Bytes of the code that `judge` would look at."""
    return sum(_wanted(rows, chip)[1].values())


def judge(rows: Sequence[Image], chip: Chip, cache_folder: str = "", workers: int = 0, *, kernels: bool = False) -> Iterator[Judged]:
    """Judge the code in files that have been scanned, as it would be loaded. Code that was judged before comes from the cache.

    Without a cache folder nothing is kept. `kernels`: name the functions in which something was found.
    """
    members, sizes = _wanted(rows, chip)
    jobs = []
    for path in sorted(members, key=lambda path: -sizes[path]):
        parts = min(PARTS, 1 + sizes[path] // PART)
        # Each part goes through the whole file, and judges its share.
        budget = seconds(sizes[path] // parts + _size_of(path))
        values = {
            "path": os.path.abspath(path),
            "members": members[path],
            "chip": chip.gfx,
            "parts": parts,
            "cache": cache_folder,
            "kernels": kernels,
        }
        jobs += [(path, pool.Task({**values, "part": part}, budget)) for part in range(parts)]
    cache = Cache(cache_folder, write=True)
    named = 0
    try:
        for event in pool.run([task for _, task in jobs], MODULE, workers):
            path = jobs[event.number][0]
            if isinstance(event, pool.Ended):
                if event.why:
                    yield Judged(path, "", "object", "", "", 0, event.why)
                continue
            said = event.values
            if said.get("packed"):
                cache.put_packed(str(said["key"]), base64.b64decode(said["packed"]))
            judged = _judged(path, said)
            named += len(judged.kernels)
            yield judged if named <= NAMES else replace(judged, kernels=())
    finally:
        cache.close()


def _judged(path: str, said: Mapping[str, Any]) -> Judged:
    member, target = str(said["member"]), str(said["target"])
    return Judged(
        path,
        member,
        str(said["store"]),
        str(said["inside"]),
        target,
        int(said["bytes"]),
        str(said.get("why", "")),
        bool(said.get("known")),
        counts_of(said.get("rules", {})),
        int(said.get("functions", 0)),
        int(said.get("unsafe", 0)),
        int(said.get("undecoded", 0)),
        tuple(Kernel(path, member, target, str(name), counts_of(pairs)) for name, pairs in said.get("kernels", {}).items()),
    )


def verify(rows: Sequence[Image], chip: Chip, llvm: str, workers: int = 0) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Have the code that would be loaded decoded by an LLVM as well: for each code object its path and the counts of `isa.verify`.

    A message with `why` says what could not be compared; a child that LLVM took with it is one.
    """
    from rocm_patch.isa.verify import RATE

    members, sizes = _wanted(rows, chip)
    paths = sorted(members, key=lambda path: -sizes[path])
    tasks = [
        pool.Task({"path": os.path.abspath(path), "members": members[path], "chip": chip.gfx, "llvm": llvm}, 10 + sizes[path] / RATE)
        for path in paths
    ]
    for event in pool.run(tasks, "rocm_patch.isa.verify", workers):
        if isinstance(event, pool.Said):
            yield paths[event.number], event.values
        elif event.why:
            yield paths[event.number], {"why": event.why}


def summed(rows: Sequence[Image], judged: Iterable[Judged], chip: Chip) -> tuple[Image, ...]:
    """The rows with what was found about their code, and with what could not be judged among what was not read."""
    found: dict[tuple[str, str, str], list[Judged]] = {}
    for each in judged:
        found.setdefault((each.path, each.member, each.store), []).append(each)
    wanted = _wanted(rows, chip)[0]
    made = []
    for row in rows:
        mine = found.pop((row.path, row.inside, row.store), [])
        targets = wanted.get(row.path, {}).get(row.inside, ())
        if not mine and any(coverage.base(target) in targets for target in row.targets):
            made.append(replace(row, unread=(*row.unread, "not judged: its code was not there any more")))
        else:
            made.append(_with_safety(row, mine, chip))
    for (path, member, store), rest in found.items():  # a child that died speaks for no row
        made.append(Image(path, member, store, {}, tuple(dict.fromkeys(f"not judged: {each.why}" for each in rest if each.why))))
    return tuple(made)


def _with_safety(row: Image, judged: Sequence[Judged], chip: Chip) -> Image:
    why = dict.fromkeys(f"not judged: {each.inside}: {each.why}" for each in judged if each.why)
    done = [each for each in judged if not each.why]
    undecoded = sum(each.undecoded for each in done)
    if undecoded:
        why[f"{undecoded:,} words in the code are no instruction that is known"] = None
    unread = (*row.unread, *tuple(why)[:REASONS], *((f"and {len(why) - REASONS} more",) if len(why) > REASONS else ()))
    if not done:
        return replace(row, unread=unread)
    rules: dict[str, Count] = {}
    for each in done:
        for rule, count in each.rules.items():
            rules[rule] = rules.get(rule, Count()) + count
    safety = Safety(
        sum(count.certain for count in rules.values()),
        sum(count.possible for count in rules.values()),
        {rule: count.certain + count.possible for rule, count in sorted(rules.items())},
        coverage.base(done[0].target),
        sum(each.functions for each in done),
        sum(each.unsafe for each in done),
        {rule: count.certain for rule, count in sorted(rules.items())},
    )
    return replace(row, unread=unread, safety={**row.safety, chip.gfx: safety})


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _wanted(rows: Iterable[Image], chip: Chip) -> tuple[dict[str, dict[str, list[str]]], dict[str, int]]:
    """By path: targets to look at in each member, and bytes of their code. The library decides, not the file: a chip that has
    files of its own in a folder never opens those of others.
    """
    rows = tuple(rows)
    members: dict[str, dict[str, list[str]]] = {}
    sizes: dict[str, int] = {}
    for look, group in outlooks(rows, chip):
        code = look.code
        if not code or not judges(code, chip.gfx):
            continue
        for row in group:
            size = sum(held.bytes for target, held in row.targets.items() if coverage.base(target) == code)
            if size > 0:
                members.setdefault(row.path, {})[row.inside] = [code]
                sizes[row.path] = sizes.get(row.path, 0) + size
    packed = {row.path for row in rows if row.inside or row.store not in ("fatbin", "object")}
    for path, size in sizes.items():
        sizes[path] = min(size, (GROWTH if path in packed else 1) * _size_of(path))
    return members, sizes
