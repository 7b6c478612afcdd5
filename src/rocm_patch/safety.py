"""Which code of a library a chip would run, and how it fares there: rows of `images` in, rows with their safety out.

The judging is done by children with limits (`isa.worker`), in parallel, large files in parts. What has been judged is kept by
its content as it comes: a scan that was broken off goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.images import coverage, pool
from rocm_patch.isa import Count, Judgement, judges
from rocm_patch.isa import verify as verify_module
from rocm_patch.isa.cache import Cache, from_json, version
from rocm_patch.isa.worker import seconds
from rocm_patch.knowledge import Knowledge
from rocm_patch.model import Image, Safety

__all__ = ["Chip", "Judged", "Kernel", "chip_of", "judge", "kernels", "loaded", "recall", "remember", "size", "summed", "verify"]

PART: Final = 8 << 20
"""Bytes of code in a file from which several children share it."""
SIBLINGS: Final = ("gfx1030", "gfx1010", "gfx10-3-generic", "gfx10-1-generic")
"""Whose code people make a chip run by an override, where it has none of its own; the first that is there."""
MODULE: Final = "rocm_patch.isa.worker"


@dataclass(frozen=True)
class Chip:
    """A physical chip and the generic target that covers it; the value of an override in force, and the same of the chip that it names."""

    gfx: str
    generic: str = ""
    override: str = ""
    forced: str = ""
    forced_generic: str = ""


@dataclass(frozen=True)
class Judged:
    """One code object has been judged, or could not be and `why`. `size` in bytes; `known`: it was in the cache."""

    path: str
    member: str
    store: str
    inside: str
    target: str
    size: int
    judgement: Judgement
    why: str = ""
    known: bool = False


@dataclass(frozen=True)
class Kernel:
    """A function in which something was found."""

    path: str
    member: str
    target: str
    name: str
    rules: Mapping[str, Count]


def chip_of(gfx: str, override: str, knowledge: Knowledge) -> Chip:
    """A chip, and what the value of HSA_OVERRIDE_GFX_VERSION in force (empty: none) makes of it."""
    forced = coverage.forced(override) or "" if override else ""
    other = knowledge.gpus.get(forced)
    own = knowledge.gpus.get(gfx)
    return Chip(gfx, own.generic if own else "", override, forced, other.generic if other else "")


def loaded(rows: Iterable[Image], chip: Chip) -> tuple[str, ...]:
    """Targets (without features) whose code the chip would run, or would be made to run by the usual override; empty: none of gfx10.

    What an override names is loaded whatever else is there. Without one: the chip's own, else the generic one that covers
    it. If there is neither, nothing is loaded, and the question is what an override would bring.
    """
    there = {coverage.base(target) for row in rows for target in row.targets}
    wanted = (chip.forced, chip.forced_generic) if chip.override else (chip.gfx, chip.generic, *SIBLINGS)
    found = next((target for target in wanted if target and target in there), "")
    return (found,) if found and judges(found, chip.gfx) else ()


def size(rows: Iterable[Image], chip: Chip) -> int:
    """Bytes of the code that `judge` would look at."""
    return sum(_wanted(rows, chip)[1].values())


def judge(rows: Sequence[Image], chip: Chip, cache_folder: str = "", workers: int = 0) -> Iterator[Judged]:
    """Judge the code in files that have been scanned, as it would be loaded. Code that was judged before comes from the cache.

    Rows of one file and member belong together. Without a cache folder nothing is kept.
    """
    members, sizes = _wanted(rows, chip)
    jobs = []
    for path in sorted(members, key=lambda path: -sizes[path]):
        parts = min(16, 1 + sizes[path] // PART)
        for part in range(parts):
            values = {"path": os.path.abspath(path), "members": members[path], "chip": chip.gfx, "part": part, "parts": parts, "cache": cache_folder}
            jobs.append((path, pool.Task(values, seconds(sizes[path]))))
    cache = Cache(cache_folder, write=True)
    try:
        for event in pool.run([task for _, task in jobs], MODULE, workers):
            path = jobs[event.number][0]
            if isinstance(event, pool.Ended):
                if event.why:
                    yield Judged(path, "", "object", "", "", 0, Judgement(), event.why)
                continue
            said = event.values
            where = (path, str(said["member"]), str(said["store"]), str(said["inside"]), str(said["target"]), int(said["bytes"]))
            if "why" in said:
                yield Judged(*where, Judgement(), str(said["why"]))
                continue
            found = from_json(said["judgement"])
            if said["key"]:
                cache.put(said["key"], found)
            yield Judged(*where, found, known=not said["key"])
    finally:
        cache.close()


def verify(rows: Sequence[Image], chip: Chip, llvm: str, workers: int = 0) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Have the code that would be loaded decoded by an LLVM as well: for each code object its path and the counts of `isa.verify`.

    A message with `why` says what could not be compared; a child that LLVM took with it is one.
    """
    members, sizes = _wanted(rows, chip)
    paths = sorted(members, key=lambda path: -sizes[path])
    tasks = [
        pool.Task({"path": os.path.abspath(path), "members": members[path], "chip": chip.gfx, "llvm": llvm}, 10 + sizes[path] / verify_module.RATE)
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
    wanted = {place: loaded(group, chip) for place, group in _grouped(rows).items()}
    made = []
    for row in rows:
        mine = found.pop((row.path, row.inside, row.store), [])
        if not mine and any(coverage.base(target) in wanted[row.path, row.inside] for target in row.targets):
            made.append(replace(row, unread=(*row.unread, "not judged: its code was not there any more")))
        else:
            made.append(_with_safety(row, mine, chip))
    for (path, member, store), rest in found.items():  # a child that died speaks for no row
        made.append(Image(path, member, store, {}, tuple(dict.fromkeys(f"not judged: {each.why}" for each in rest if each.why))))
    return tuple(made)


def remember(images: Iterable[Image], chip: Chip, cache_folder: str) -> None:
    """Note by file what was found, so that `recall` has it without reading the file again."""
    cache = Cache(cache_folder, write=True)
    for path, rows in _by_path(images).items():
        place = _identity(path, chip)
        if place and any(chip.gfx in row.safety for row in rows):
            told = [[row.inside, row.store, vars(row.safety[chip.gfx])] for row in rows if chip.gfx in row.safety]
            cache.put_file(place, told)
    cache.close()


def recall(images: Iterable[Image], chip: Chip, cache_folder: str) -> tuple[Image, ...]:
    """The images with what an earlier scan of the same files found. Writes nothing."""
    cache = Cache(cache_folder, write=False)
    made = []
    known: dict[str, dict[tuple[str, str], Safety]] = {}
    for image in images:
        if image.path not in known:
            known[image.path] = {}
            place = _identity(image.path, chip)
            with contextlib.suppress(TypeError, ValueError, KeyError):
                for inside, store, values in (cache.get_file(place) if place else None) or ():
                    known[image.path][inside, store] = Safety(**values)
        safety = known[image.path].get((image.inside, image.store))
        made.append(replace(image, safety={**image.safety, chip.gfx: safety}) if safety else image)
    cache.close()
    return tuple(made)


def _identity(path: str, chip: Chip) -> str:
    """What tells a file's content without reading it; empty where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    parts = (os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino, chip.gfx, chip.override, version())
    return "\0".join(str(part) for part in parts)


def _by_path(images: Iterable[Image]) -> dict[str, list[Image]]:
    groups: dict[str, list[Image]] = {}
    for image in images:
        groups.setdefault(image.path, []).append(image)
    return groups


def kernels(judged: Iterable[Judged]) -> Iterator[Kernel]:
    """Every function in which something was found."""
    for each in judged:
        for name, counts in each.judgement.kernels.items():
            yield Kernel(each.path, each.member, each.target, name, counts)


def _with_safety(row: Image, judged: Sequence[Judged], chip: Chip) -> Image:
    if not judged:
        return row
    rules: dict[str, int] = {}
    certain = possible = functions = unsafe = undecoded = 0
    why: dict[str, None] = {}
    for each in judged:
        if each.why:
            why[f"not judged: {each.inside}: {each.why}"] = None
        found = each.judgement
        functions += found.functions
        undecoded += found.undecoded
        unsafe += sum(any(count.certain for count in counts.values()) for counts in found.kernels.values())
        for rule, count in found.rules.items():
            certain += count.certain
            possible += count.possible
            rules[rule] = rules.get(rule, 0) + count.certain + count.possible
    if undecoded:
        why[f"{undecoded} words in the code are no instruction that is known"] = None
    code = next((coverage.base(each.target) for each in judged if each.target), "")
    safety = {**row.safety, chip.gfx: Safety(certain, possible, dict(sorted(rules.items())), code, functions, unsafe)}
    return replace(row, unread=(*row.unread, *why), safety=safety)


def _wanted(rows: Iterable[Image], chip: Chip) -> tuple[dict[str, dict[str, list[str]]], dict[str, int]]:
    """By path: targets to look at in each member, and bytes of their code."""
    members: dict[str, dict[str, list[str]]] = {}
    sizes: dict[str, int] = {}
    for (path, member), group in _grouped(rows).items():
        targets = loaded(group, chip)
        size = sum(code.bytes for row in group for target, code in row.targets.items() if coverage.base(target) in targets)
        if targets and size > 0:
            members.setdefault(path, {})[member] = list(targets)
            sizes[path] = sizes.get(path, 0) + size
    return members, sizes


def _grouped(rows: Iterable[Image]) -> dict[tuple[str, str], list[Image]]:
    groups: dict[tuple[str, str], list[Image]] = {}
    for row in rows:
        groups.setdefault((row.path, row.inside), []).append(row)
    return groups
