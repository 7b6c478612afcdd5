"""Judgements of code objects: what they count, what they refuse, and any bytes at all."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.build import S_ENDPGM, elf_object
from rocm_patch.errors import FormatError
from rocm_patch.images import code_object
from rocm_patch.images.code_object import Function
from rocm_patch.images.source import Bytes
from rocm_patch.isa import Count, Site, cache, judge, judges, rules, sites, stretches
from rocm_patch.isa.hazards import CHECKS
from rocm_patch.isa.stretch import FUNCTION_LIMIT, prepare
from rocm_patch.knowledge import load

PREFETCH = struct.pack("<I", 0xBFA00003)
DOT2 = struct.pack("<2I", 0xCC134000, 0x1C0E0501)  # v_dot2_f32_f16 v0, v1, v2, v3
NOP = struct.pack("<I", 0xBF800000)


def made(target: str, *texts: bytes) -> Bytes:
    return Bytes(elf_object(target, [f"kernel{number}" for number in range(len(texts))], b"".join(texts)))


def test_places_are_counted_by_rule_and_kernel() -> None:
    source = made("gfx1030", PREFETCH + NOP + DOT2 + S_ENDPGM)
    found = judge(source, "gfx1010")
    assert dict(found.rules) == {"inst-prefetch": Count(1, 0), "illegal-instruction": Count(1, 0)}
    assert found.kernels == {"kernel0": {"inst-prefetch": Count(1, 0), "illegal-instruction": Count(1, 0)}}
    assert (found.instructions, found.undecoded, found.functions) == (4, 0, 1)


def test_sites_are_offsets_in_the_file() -> None:
    source = made("gfx1030", NOP + PREFETCH + S_ENDPGM)
    (site,) = sites(source, "gfx1010")
    assert site == Site("inst-prefetch", source.data.index(PREFETCH), True)


def test_chips_of_one_family_share_what_they_can() -> None:
    source = made("gfx1030", PREFETCH + DOT2 + S_ENDPGM)
    assert set(judge(source, "gfx1012").rules) == {"inst-prefetch"}  # RX 5500 has dot products
    assert not judge(source, "gfx1031").rules
    assert not judge(made("gfx10-3-generic", PREFETCH + S_ENDPGM), "gfx1036").rules


def test_only_gfx10_is_judged() -> None:
    assert judges("gfx1030", "gfx1010")
    assert not judges("gfx1100", "gfx1010")
    assert not judges("gfx1030", "gfx906")
    with pytest.raises(ValueError, match="gfx906"):
        judge(made("gfx906", S_ENDPGM), "gfx1010")


def test_what_is_no_instruction_is_counted() -> None:
    found = judge(made("gfx1030", struct.pack("<I", 0xC1FFFFFF) + S_ENDPGM), "gfx1010")
    assert (found.undecoded, found.instructions) == (1, 2)


def test_a_function_that_is_too_long_is_refused_at_once() -> None:
    source = made("gfx1030", NOP * (FUNCTION_LIMIT // 4 + 1))
    begin = time.process_time()
    with pytest.raises(FormatError, match="longer than"):
        judge(source, "gfx1010")
    assert time.process_time() - begin < 2


def test_each_rule_is_a_row_for_chips_that_are_known() -> None:
    known = load().gpus
    assert {rule.id for rule in rules()} == set(CHECKS)
    for rule in rules():
        assert rule.title
        assert rule.means
        assert rule.source.startswith("https://")
        assert set(rule.chips) <= set(known)
        assert {"gfx1010", "gfx1011", "gfx1012"} <= set(rule.chips)
        assert not rule.bug or not any(chip.startswith("gfx103") for chip in rule.chips)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.sampled_from(["gfx1010", "gfx1012", "gfx1030"]), st.sampled_from(["gfx1010", "gfx1030"]))
def test_any_text(text: bytes, target: str, chip: str) -> None:
    source = made(target, text[: len(text) & ~3] + S_ENDPGM)
    found = judge(source, chip)
    assert found.undecoded <= found.instructions <= len(text) // 4 + 1
    assert sum(count.certain + count.possible for count in found.rules.values()) == len(list(sites(source, chip)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_damaged_files(changes: list[tuple[int, int]]) -> None:
    data = bytearray(made("gfx1030", PREFETCH + DOT2 + S_ENDPGM, NOP + S_ENDPGM).data)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        judge(Bytes(bytes(data)), "gfx1010")
    except FormatError:
        pass
    except ValueError as error:
        assert "not gfx10" in str(error)  # the target itself was changed


def test_the_cache_gives_back_what_it_got(tmp_path) -> None:
    found = judge(made("gfx1030", PREFETCH + DOT2 + S_ENDPGM), "gfx1010")
    assert cache.from_json(json.loads(json.dumps(cache.to_json(found)))) == found
    place = str(tmp_path / "cache")
    assert cache.Cache(place, write=False).get("a") is None
    assert not (tmp_path / "cache").exists()
    writer = cache.Cache(place, write=True)
    writer.put(cache.key("00", "gfx1010"), found)
    reader = cache.Cache(place, write=False)
    assert reader.get(cache.key("00", "gfx1010")) == found
    assert reader.get(cache.key("00", "gfx1012")) is None
    writer.close()
    reader.close()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(4096)])
def test_a_broken_cache_is_an_empty_cache(tmp_path, content: bytes) -> None:
    (tmp_path / "judgements.sqlite").write_bytes(content)
    found = judge(made("gfx1030", PREFETCH + S_ENDPGM), "gfx1010")
    for write in (False, True):
        kept = cache.Cache(str(tmp_path), write=write)
        kept.put("a", found)
        assert kept.get("a") in (None, found)
        kept.close()


def test_code_without_a_function_symbol_is_judged() -> None:
    """Hand-written assembly labels kernels without saying that they are functions."""
    data = bytearray(made("gfx1030", NOP * 4 + S_ENDPGM, PREFETCH + NOP * 3 + S_ENDPGM).data)
    source = Bytes(bytes(data))
    assert judge(source, "gfx1010").rules == {"inst-prefetch": Count(1, 0)}
    read = code_object.read(source)
    blind = replace(read, functions=read.functions[:1])
    (_, code, unknown), *rest = stretches(source, blind, "gfx1010")
    assert (rest, unknown) == ([], 0)
    assert CHECKS["inst-prefetch"](code).certain.tolist() == [5]


def test_a_symbol_within_a_function_hides_nothing() -> None:
    source = made("gfx1030", NOP * 4 + PREFETCH * 3 + S_ENDPGM)
    read = code_object.read(source)
    (whole,) = read.functions
    inner = Function("inner", whole.address + 4, 4, whole.offset + 4, False)
    nested = replace(read, functions=(whole, inner))
    found = [len(CHECKS["inst-prefetch"](code).certain) for _, code, _ in stretches(source, nested, "gfx1010")]
    assert found == [3]


def test_each_kernel_has_its_own_wave() -> None:
    """In wave64 v_cmp writes two registers, in wave32 one: a neighbour's wave must not decide."""
    load = struct.pack("<2I", 0xF4000200, 0x0A000000)  # s_load_dword s8, s[0:1], s5
    compare = struct.pack("<2I", 0xD4C20004, 0x00020300)  # v_cmp_eq_u32 s4, v0, v1
    wide = struct.pack("<I", 0xBEFE04C1) * 3  # s_mov_b64 exec, -1
    narrow = struct.pack("<I", 0xBEFE03C1)  # s_mov_b32 exec_lo, -1
    data = wide + S_ENDPGM + narrow + load + compare + S_ENDPGM
    for told, hits in ((0, 0), (32, 0), (64, 1)):
        code, _ = prepare(data, 0, [(0, 16, 0), (16, len(data) - 16, told)], "d", "a")
        assert len(CHECKS["smem-to-vector-write"](code).certain) == hits
