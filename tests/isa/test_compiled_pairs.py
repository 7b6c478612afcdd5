"""The rules against compiled programs: native code is clean, and where LLVM finds a bug's pattern in gfx1030 code, so do we.

Some 400 programs (programs.py), each for gfx1010 and gfx1030 at four levels and for gfx1011 and gfx1012 at two; the judge's
answers are held against what LLVM itself would have mended (llvm_truth.py). Debian's clang is asked as well where it is installed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kernel_text import DOT, ONLY_10_3
from programs import PROGRAMS

from rocm_patch.images.source import Bytes
from rocm_patch.isa import Count, Judgement, judge

pytest.importorskip("llvmlite", reason="no llvmlite for this Python: it is the compiler of these tests")
from llvm_truth import RULES, SEQUENCES, Build, all_builds, code_of, fixes  # noqa: E402

pytestmark = pytest.mark.slow

NEEDS_OPCODES = {program.name for program in PROGRAMS if program.chips in (DOT, ONLY_10_3)}
CLANG = next((path for version in range(30, 15, -1) if (path := shutil.which(f"clang-{version}"))), None)
FIRST = "gfx1010"


class Judged:
    """Judgements of builds, each distinct code once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, bytes], Judgement] = {}

    def __call__(self, made_for: str, data: bytes, chip: str) -> Judgement:
        key = (made_for, chip, code_of(data))
        if key not in self.known:
            self.known[key] = judge(Bytes(data), chip)
        return self.known[key]


@pytest.fixture(scope="session")
def judged() -> Judged:
    return Judged()


@pytest.fixture(scope="session")
def builds() -> list[Build]:
    return all_builds(program.name for program in PROGRAMS)


@pytest.fixture(scope="session")
def foreign(builds) -> list[Build]:
    return [build for build in builds if build.chip == "gfx1030"]


def place(build: Build) -> str:
    return f"{build.program} for {build.chip} at level {build.level}"


def test_there_is_enough_to_judge(builds, foreign):
    assert len({build.program for build in builds}) == len(PROGRAMS) >= 200
    assert {build.level for build in builds} == {0, 1, 2, 3}
    assert min(len({build.code for build in builds if build.chip == chip}) for chip in ("gfx1010", "gfx1011", "gfx1012", "gfx1030")) > 500
    triggering = {rule: {build.program for build in foreign if rule in build.found} for rule in RULES}
    assert {rule: len(names) for rule, names in triggering.items() if len(names) < 5} == {}


def test_native_code_is_clean(builds, judged):
    for build in builds:
        if build.chip != "gfx1030":
            judgement = judged(build.chip, build.data, build.chip)
            assert (dict(judgement.rules), judgement.undecoded) == ({}, 0), place(build)
            assert judgement.instructions > 0


def test_code_is_clean_at_home(foreign, judged):
    for build in foreign:
        assert dict(judged("gfx1030", build.data, "gfx1030").rules) == {}, place(build)


@pytest.mark.parametrize("rule", RULES)
def test_what_llvm_would_mend_is_found_and_nothing_else_is_certain(rule, foreign, judged):
    table: Counter[tuple[str, str]] = Counter()
    wrong = []
    for build in foreign:
        count = judged("gfx1030", build.data, FIRST).rules.get(rule, Count())
        said = "certain" if count.certain else "possible" if count.possible else "none"
        found = build.found.get(rule, 0)
        table["found" if found else "clean", said] += 1
        # What a wide access in LDS is at run time, the bytes do not say: that rule may be loud, never sure.
        loud = rule != "lds-misaligned" and said == "possible"
        few = rule != "lds-misaligned" and count.certain + count.possible < found
        if (found and (said == "none" or few)) or (not found and (said == "certain" or loud)):
            wrong.append((place(build), found, count))
    assert not wrong, (dict(table), len(wrong), wrong[:5])
    assert table["found", "certain"] + table["found", "possible"] >= 12


@pytest.mark.parametrize("rule", ["inst-prefetch", "flat-offset", "smem-to-vector-write", "vcmpx-exec-war", "vcmpx-permlane", "lds-branch-vmem"])
def test_as_many_places_as_llvm_mends(rule, foreign, judged):
    for build in foreign:
        count = judged("gfx1030", build.data, FIRST).rules.get(rule, Count())
        assert count.certain + count.possible == build.found.get(rule, 0), place(build)


def test_instructions_that_the_chip_lacks_are_found(builds, judged):
    lacking = set()
    for build in builds:
        if build.chip not in ("gfx1030", *(DOT if build.program in NEEDS_OPCODES else ())):
            continue
        rules = judged(build.chip, build.data, FIRST).rules
        if any(rules.get(rule, Count()).certain for rule in ("illegal-instruction", "other-instruction")):
            lacking.add((build.program, build.chip))
    for program in PROGRAMS:
        if program.name in NEEDS_OPCODES:
            assert {(program.name, chip) for chip in program.chips} <= lacking, program.name
    # The others were compiled for gfx1010 too; a compiler for a chip with more may still choose more.
    extra = {name for name, _ in lacking} - NEEDS_OPCODES
    assert all(name.startswith(("halves", "bytes")) for name in extra), extra


@pytest.mark.skipif(CLANG is None, reason="no clang-16 or newer here")
def test_a_second_compiler_agrees(tmp_path, judged):
    """A sixth of the programs, at its own -O2; some use what an older LLVM lacks."""

    def compiled(program, chip, *bugs):
        source, made = tmp_path / f"{program.name}.ll", tmp_path / f"{program.name}.{chip}.{len(bugs)}.o"
        features = [*(f"+{bug.feature}" for bug in bugs), *filter(None, [program.features])]
        options = [word for feature in features for word in ("-Xclang", "-target-feature", "-Xclang", feature)]
        command = [
            CLANG,
            "-x",
            "ir",
            str(source),
            "-target",
            "amdgcn-amd-amdhsa",
            f"-mcpu={chip}",
            "-nogpulib",
            "-O2",
            "-w",
            *options,
            "-c",
            "-o",
            str(made),
        ]
        source.write_text(program.text)
        return made.read_bytes() if subprocess.run(command, capture_output=True, timeout=120).returncode == 0 else None

    def pair(program):
        return program, [compiled(program, chip, *bugs) for chip, bugs in ((FIRST, ()), ("gfx1030", ()), ("gfx1030", SEQUENCES))]

    chosen = [program for program in PROGRAMS if FIRST in program.chips and program.name != "long-branch"][::6]
    with ThreadPoolExecutor(2) as pool:
        results = [(program, objects) for program, objects in pool.map(pair, chosen) if None not in objects]
    assert len(results) > len(chosen) * 0.7
    agreed: Counter[str] = Counter()
    for program, (native, foreign, mended) in results:
        assert not any(count.certain for count in judged(FIRST, native, FIRST).rules.values()), program.name
        for bug in SEQUENCES:
            count = judged("gfx1030", foreign, FIRST).rules.get(bug.rule, Count())
            found = fixes(bug, code_of(foreign), code_of(mended))
            assert count.certain + count.possible >= found, (program.name, bug.rule, found, count)
            assert found or not count.certain, (program.name, bug.rule, count)
            agreed[bug.rule] += bool(found)
    assert agreed["vmem-to-scalar-write"] >= 10
