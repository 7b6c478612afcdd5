"""Is code that was built for one gfx10 chip safe on another? Code object -> Judgement.

`judge` decodes every instruction by a table that LLVM made (table, decode), cuts the code into basic blocks (flow) and asks
each rule that concerns the chip (rules). No LLVM is needed at run time: it is the oracle in the tests, and `llvm` finds one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from rocm_patch.errors import KnowledgeError
from rocm_patch.images import code_object
from rocm_patch.images.code_object import CodeObject, Function
from rocm_patch.images.source import Source
from rocm_patch.isa.chips import letter

__all__ = ["Count", "Judgement", "Site", "judge", "judges", "rules", "sites", "stretches"]

NAMELESS: Final = "(code without a name)"
PADDING: Final = (0, 0xBF800000, 0xBF9F0000)
"""Words that may lie between functions: nothing, s_nop 0, s_code_end."""
CHUNK: Final = 1 << 20
"""Bytes of code that are looked at together: enough for numpy to be fast, few enough for some 100 MB of arrays."""


@dataclass(frozen=True)
class Count:
    """Places where a pattern is complete on every path, and on some path only or depending on what the bytes do not say."""

    certain: int = 0
    possible: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.certain + other.certain, self.possible + other.possible)


@dataclass(frozen=True)
class Site:
    """One place: offset in bytes within the code object's file."""

    rule: str
    offset: int
    certain: bool


@dataclass(frozen=True)
class Judgement:
    """How code fares on a chip. `kernels` holds the functions in which something was found, by symbol name."""

    instructions: int = 0
    undecoded: int = 0
    rules: Mapping[str, Count] = field(default_factory=lambda: MappingProxyType({}))
    kernels: Mapping[str, Mapping[str, Count]] = field(default_factory=lambda: MappingProxyType({}))
    functions: int = 0

    @property
    def unsafe(self) -> int:
        """Functions in which something is certain."""
        return sum(any(count.certain for count in counts.values()) for counts in self.kernels.values())


@functools.lru_cache(maxsize=1)
def rules() -> tuple[Any, ...]:
    """The rows of rules.toml, in order. Raises KnowledgeError for a bad one, or one that no function decides."""
    from rocm_patch.isa.hazards import CHECKS, Rule

    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib
    document = tomllib.loads(resources.files(__package__).joinpath("rules.toml").read_text(encoding="utf-8"))
    made = []
    for row in document.get("rule", []):
        try:
            rule = Rule(**{**row, "chips": tuple(row["chips"])})
        except (TypeError, KeyError) as error:
            raise KnowledgeError(f"rules.toml: {row.get('id', row)}: {error}") from error
        if rule.id not in CHECKS:
            raise KnowledgeError(f"rules.toml: no function decides {rule.id}")
        made.append(rule)
    missing = set(CHECKS) - {rule.id for rule in made}
    if missing:
        raise KnowledgeError(f"rules.toml has no row for {', '.join(sorted(missing))}")
    return tuple(made)


def judges(made_for: str, chip: str) -> bool:
    """Whether code for one target can be judged on a chip: both have gfx10 encodings."""
    return letter(made_for) is not None and letter(chip) is not None


def judge(source: Source, chip: str) -> Judgement:
    """Judge one code object (its bytes, an ELF file) on a chip ('gfx1010').

    Raises:
        FormatError: it is none, or is damaged.
        ValueError: its target or the chip is not gfx10; ask `judges` first.
    """
    import numpy

    read = code_object.read(source)
    total, undecoded, looked = 0, 0, 0
    by_rule: dict[str, Count] = {}
    by_function: dict[str, dict[str, Count]] = {}
    for functions, code, unknown in stretches(source, read, chip):
        total += len(code.instructions.at)
        undecoded += unknown
        looked += len(functions)
        owner = numpy.cumsum(code.first) - 1
        for rule, hits in _hits(code, chip):
            by_rule[rule] = by_rule.get(rule, Count()) + Count(len(hits.certain), len(hits.possible))
            for certain, where in ((True, hits.certain), (False, hits.possible)):
                numbers, counts = numpy.unique(owner[where], return_counts=True)
                for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                    found = by_function.setdefault(functions[number].name, {})
                    found[rule] = found.get(rule, Count()) + (Count(count, 0) if certain else Count(0, count))
    found_rules = {rule: count for rule, count in by_rule.items() if count != Count()}
    return Judgement(total, undecoded, found_rules, by_function, looked)


def sites(source: Source, chip: str) -> Iterator[Site]:
    """Every place found in a code object, rule by rule within each stretch. Raises as `judge`."""
    read = code_object.read(source)
    for _, code, _ in stretches(source, read, chip):
        for rule, hits in _hits(code, chip):
            for certain, where in ((True, hits.certain), (False, hits.possible)):
                for index in where.tolist():
                    yield Site(rule, code.base + 4 * int(code.instructions.at[index]), certain)


def _hits(code: Any, chip: str) -> Iterator[tuple[str, Any]]:
    from rocm_patch.isa.hazards import CHECKS

    name = chip.partition(":")[0]
    name = {"gfx10-1-generic": "gfx1010", "gfx10-3-generic": "gfx1030"}.get(name, name)
    for rule in rules():
        if name in rule.chips:
            yield rule.id, CHECKS[rule.id](code)


def stretches(source: Source, read: CodeObject, chip: str) -> Iterator[tuple[Sequence[Function], Any, int]]:
    """Functions in groups of about CHUNK bytes, decoded; and the code between them that no symbol names."""
    made_for, here = letter(read.target), letter(chip)
    if made_for is None or here is None:
        raise ValueError(f"code for {read.target} on {chip} cannot be judged: not gfx10")
    group: list[Function] = []
    for function in _whole(source, read):
        if group and function.offset + function.size - group[0].offset > CHUNK:
            yield _stretch(source, group, made_for, here)
            group = []
        group.append(function)
    if group:
        yield _stretch(source, group, made_for, here)


def _whole(source: Source, read: CodeObject) -> list[Function]:
    """All code, in the order of the file: functions, and what lies between them in sections of code and is no padding.

    Hand-written assembly labels its code without saying that it is a function; nobody shall call that safe unread.
    """
    named = {function.offset: function for function in read.functions if function.size >= 4}
    ordered = [named[offset] for offset in sorted(named)]
    nameless = [function for section in read.code for function in _gaps(source, section, ordered)]
    return sorted([*ordered, *nameless], key=lambda function: function.offset)


def _gaps(source: Source, section: tuple[int, int, int], ordered: Sequence[Function]) -> Iterator[Function]:
    """Code in a section (offset in the file, address, size) that no function covers, without the padding around it."""
    import numpy

    start, address, size = section
    free = numpy.zeros(size // 4, bool)
    for offset in range(0, len(free) * 4, CHUNK):
        words = numpy.frombuffer(source.read(start + offset, min(CHUNK, len(free) * 4 - offset)), "<u4")
        free[offset // 4 : offset // 4 + len(words)] = ~numpy.isin(words, PADDING)
    for function in ordered:
        first = function.offset - start
        free[max(first, 0) // 4 : max(first + function.size, 0) // 4] = False
    used = numpy.flatnonzero(free)
    if not len(used):
        return
    # A gap is one run from its first word to its last, as long as no function lies between them.
    borders = numpy.array([function.offset for function in ordered], numpy.int64)
    between = numpy.searchsorted(borders, start + 4 * used)
    heads = numpy.flatnonzero(numpy.append(True, between[1:] != between[:-1]))
    tails = numpy.append(heads[1:], len(used)) - 1
    for head, tail in zip(used[heads].tolist(), used[tails].tolist(), strict=True):
        yield Function(NAMELESS, address + 4 * head, 4 * (tail - head + 1), start + 4 * head, False)


def _stretch(source: Source, functions: Sequence[Function], made_for: str, chip: str) -> tuple[Sequence[Function], Any, int]:
    from rocm_patch.isa.stretch import prepare

    base = functions[0].offset
    end = max(function.offset + function.size for function in functions)
    places = [(function.offset - base, function.size, function.wave) for function in functions]
    return functions, *prepare(source.read(base, end - base), base, places, made_for, chip)
