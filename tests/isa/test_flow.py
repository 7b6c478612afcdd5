"""The sequence rules against a slow and simple reading of them, on random programs made of a few instructions."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch.isa.hazards import CHECKS
from rocm_patch.isa.stretch import prepare

S0, S2, S4, VCC, EXEC = 1 << 0 | 1 << 1, 1 << 2 | 1 << 3, 1 << 4, 1 << 106, 1 << 126

# word(s), and what each is to the rules: kind, scalar registers read, written, and marks.
WORDS: dict[str, tuple[tuple[int, ...], str, int, int, str]] = {
    "s_load_dword s4, s[0:1]": ((0xF4000100, 0xFA000000), "smem", S0, S4, ""),
    "s_load_dword s0, s[2:3]": ((0xF4000001, 0xFA000000), "smem", S2, 1, ""),
    "v_readfirstlane_b32 s0, v0": ((0x7E000500,), "valu", 0, 1, ""),
    "v_cmp_eq_u32 s2, v0, v1": ((0xD4C20002, 0x00020300), "valu", 0, 4, "names"),
    "v_cmp_eq_u32 vcc_lo, v0, v1": ((0x7D840300,), "valu", 0, VCC, "names"),
    "v_mov_b32 v0, v1": ((0x7E000301,), "valu", 0, 0, ""),
    "v_nop": ((0x7E000000,), "valu", 0, 0, "nop"),
    "s_mov_b32 s0, 0": ((0xBE800380,), "salu", 0, 1, ""),
    "s_mov_b32 s4, s2": ((0xBE840302,), "salu", 4, S4, ""),
    "s_mov_b32 exec_lo, s4": ((0xBEFE0304,), "salu", S4, EXEC, ""),
    "s_mov_b32 s4, exec_lo": ((0xBE84037E,), "salu", EXEC, S4, "reads exec"),
    "s_cmp_eq_u32 s0, s2": ((0xBF060200,), "salu", 5, 0, ""),
    "s_nop 0": ((0xBF800000,), "sopp", 0, 0, ""),
    "s_waitcnt 0": ((0xBF8C0000,), "sopp", 0, 0, "wait all"),
    "s_waitcnt lgkmcnt(0)": ((0xBF8CC07F,), "sopp", 0, 0, "wait scalar"),
    "s_waitcnt vmcnt(0)": ((0xBF8C3F70,), "sopp", 0, 0, ""),
    "s_waitcnt_vscnt null, 0": ((0xBBFD0000,), "salu", 0, 0, "inert wait store"),
    "s_waitcnt_lgkmcnt null, 0": ((0xBD7D0000,), "salu", 0, 0, "inert wait scalar"),
    "s_waitcnt_depctr vm_vsrc(0)": ((0xBFA3FFE3,), "sopp", 0, 0, "wait vector"),
    "s_waitcnt_depctr sa_sdst(0)": ((0xBFA3FFFE,), "sopp", 0, 0, "wait sdst"),
    "ds_read_b32 v0, v1": ((0xD8D80000, 0x00000001), "ds", 0, 0, "reads exec"),
    "global_load_dword v0, v1, s[0:1]": ((0xDC308000, 0x00000001), "vmem", S0, 0, "reads exec"),
    "global_load_dword v0, v[1:2], off": ((0xDC308000, 0x007D0001), "vmem", 0, 0, "reads exec"),
    "flat_load_dword v0, v[1:2]": ((0xDC300000, 0x007D0001), "flat", 0, 0, "reads exec"),
    "v_cmpx_eq_u32 v0, v1": ((0x7DA40300,), "valu", 0, EXEC, "names cmpx"),
    "v_permlane16_b32 v0, v1, s0, s0": ((0xD7770000, 0x00000101), "valu", 0, 0, "permlane"),
    "s_add_u32 s0, s2, literal": ((0x8000FF02, 0x12345678), "salu", 4, 1, ""),
}
NAMES = sorted(WORDS)
SEQUENCES = ("smem-to-vector-write", "vmem-to-scalar-write", "vcmpx-exec-war", "vcmpx-permlane", "lds-branch-vmem")


def rule(name: str, kind: str, reads: int, writes: int, marks: str, state: frozenset[int]) -> tuple[bool, frozenset[int]]:
    """One instruction against the facts before it: (is the pattern complete here, the facts after it). A fact is a register, or a tag."""
    every: frozenset[int] = frozenset(bit for bit in range(128) if reads >> bit & 1)
    written = {bit for bit in range(128) if writes >> bit & 1}
    if name == "smem-to-vector-write":
        hit = kind == "valu" and bool(written & state)
        ends = (kind == "salu" and "inert" not in marks) or "wait all" in marks or "wait scalar" in marks
        return hit, (frozenset() if ends else state) | (every if kind == "smem" else frozenset())
    if name == "vmem-to-scalar-write":
        hit = kind in ("salu", "smem") and bool(written & state)
        ends = kind == "valu" or "wait all" in marks or "wait vector" in marks
        return hit, (frozenset() if ends else state) | ((every | {126}) if kind in ("vmem", "flat", "ds") else frozenset())
    if name == "vcmpx-exec-war":
        hit = "cmpx" in marks and bool(state)
        ends = "names" in marks or "wait sdst" in marks
        return hit, (frozenset() if ends else state) | (frozenset({0}) if "reads exec" in marks else frozenset())
    if name == "vcmpx-permlane":
        hit = "permlane" in marks and bool(state)
        ends = kind == "valu" and "nop" not in marks
        return hit, (frozenset() if ends else state) | (frozenset({0}) if "cmpx" in marks else frozenset())
    # LLVM 22 counts FLAT as vector memory here, those before it did not.
    tag = {"ds": 0, "vmem": 1, **({"flat": 1} if name.endswith("since 22") else {})}.get(kind)
    hit = (tag == 0 and 3 in state) or (tag == 1 and 2 in state)
    if tag is not None:
        return hit, frozenset({tag})
    if "wait store" in marks:
        return False, frozenset()
    if kind == "branch":
        return False, frozenset({0: 2, 1: 3}.get(each, each) for each in state)
    return False, state


def expected(program: list[tuple[str, int]], name: str) -> tuple[set[int], set[int]]:
    """Certain and possible hits of a rule."""
    if name != "lds-branch-vmem":
        return simple(program, name)
    before, since = simple(program, name), simple(program, f"{name} since 22")
    certain = before[0] & since[0]
    return certain, (before[0] | before[1] | since[0] | since[1]) - certain


def simple(program: list[tuple[str, int]], name: str) -> tuple[set[int], set[int]]:
    """Certain and possible hits by instruction number, by sweeping over single instructions until nothing changes."""
    count = len(program)
    follows: list[list[int]] = []
    for index, (what, goal) in enumerate(program):
        onward = [] if what in ("s_branch", "s_endpgm") else [index + 1]
        if what in ("s_branch", "s_cbranch_scc0"):
            onward.append(goal)
        follows.append([each for each in onward if each < count])
    comes: list[list[int]] = [[] for _ in program]
    for index, onward in enumerate(follows):
        for each in onward:
            comes[each].append(index)
    facts: frozenset[int] = frozenset(range(128))

    def step(index: int, state: frozenset[int]) -> tuple[bool, frozenset[int]]:
        what = program[index][0]
        if what in WORDS:
            _, kind, reads, writes, marks = WORDS[what]
            return rule(name, kind, reads, writes, marks, state)
        # What tests EXEC reads it; s_endpgm leads nowhere.
        return rule(name, "branch" if what != "s_endpgm" else "sopp", 0, 0, "", state)

    answers = []
    for meet in ("some", "every"):
        entry = [facts if meet == "every" and index and comes[index] else frozenset() for index in range(count)]
        while True:
            leaving = [step(index, entry[index])[1] for index in range(count)]
            new = []
            for index in range(count):
                coming = [leaving[each] for each in comes[index]]
                if index == 0 or not coming:
                    new.append(frozenset[int]().union(*coming) if meet == "some" else frozenset[int]())
                else:
                    new.append(frozenset[int]().union(*coming) if meet == "some" else frozenset.intersection(*coming))
            if new == entry:
                break
            entry = new
        answers.append({index for index in range(count) if step(index, entry[index])[0]})
    some, every = answers
    return every & some, some - every


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int]]:
    count = draw(st.integers(2, 24))
    made = []
    for _ in range(count):
        what = draw(st.sampled_from([*NAMES, "s_branch", "s_cbranch_scc0", "s_cbranch_scc0", "s_cbranch_scc0", "s_endpgm"]))
        made.append((what, draw(st.integers(0, count - 1))))
    return made


def assemble(program: list[tuple[str, int]]) -> bytes:
    places = [0]
    for what, _ in program:
        places.append(places[-1] + (len(WORDS[what][0]) if what in WORDS else 1))
    words: list[int] = []
    for index, (what, goal) in enumerate(program):
        if what in WORDS:
            words.extend(WORDS[what][0])
        elif what == "s_endpgm":
            words.append(0xBF810000)
        else:
            words.append((0xBF820000 if what == "s_branch" else 0xBF840000) | (places[goal] - places[index] - 1) & 0xFFFF)
    return struct.pack(f"<{len(words)}I", *words)


@settings(max_examples=400, deadline=None)
@given(programs())
def test_random_programs(program: list[tuple[str, int]]) -> None:
    data = assemble(program)
    code, unknown = prepare(data, 0, [(0, len(data), 32)], "d", "a")
    assert unknown == 0
    assert len(code.instructions.at) == len(program)
    for name in SEQUENCES:
        hits = CHECKS[name](code)
        assert (set(hits.certain.tolist()), set(hits.possible.tolist())) == expected(program, name), name


def test_each_sequence_rule_is_reached() -> None:
    """The comparison above means something only if each rule fires in short programs."""
    firing = {
        "smem-to-vector-write": ["s_load_dword s4, s[0:1]", "v_readfirstlane_b32 s0, v0"],
        "vmem-to-scalar-write": ["global_load_dword v0, v1, s[0:1]", "s_mov_b32 s0, 0"],
        "vcmpx-exec-war": ["s_mov_b32 s4, exec_lo", "v_cmpx_eq_u32 v0, v1"],
        "vcmpx-permlane": ["v_cmpx_eq_u32 v0, v1", "v_permlane16_b32 v0, v1, s0, s0"],
        "lds-branch-vmem": ["ds_read_b32 v0, v1", "s_cbranch_scc0", "global_load_dword v0, v[1:2], off"],
    }
    for name, lines in firing.items():
        program = [(line, len(lines) - 1) for line in lines]
        data = assemble(program)
        hits = CHECKS[name](prepare(data, 0, [(0, len(data), 32)], "d", "a")[0])
        assert hits.certain.tolist() == [len(lines) - 1], name
