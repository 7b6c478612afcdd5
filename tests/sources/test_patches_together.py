"""Patches at one place, patches of another version, and what stands around a place: each tree is as it should be or is refused."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from shapes import TREES, crat, plant, taken

from rocm_patch import sources
from rocm_patch.errors import RefusedError
from rocm_patch.sources import Sources, marks

WARNING, REFUSAL = "rocr-override-warning", "rocr-override-refusal"
CRAT = "drivers/gpu/drm/amd/amdkfd/kfd_crat.c"
GMC = "drivers/gpu/drm/amd/amdgpu/amdgpu_gmc.c"


def state(name, tree):
    return sources.examine(sources.find(name), Sources(str(tree))).state


def pairs():
    """One tree for each two patches of a component, and one for each generation of a file that both change."""
    for one, other in itertools.combinations(TREES, 2):
        if sources.find(one).component == sources.find(other).component:
            for number, (files, more) in enumerate(itertools.product(TREES[one].values(), TREES[other].values())):
                same = files.keys() & more.keys()
                if (same or number == 0) and all(files[path] == more[path] for path in same):
                    yield one, other, {**files, **more}


def test_any_two_patches_know_themselves_and_come_out_the_same_whichever_was_first(tmp_path):
    tried = set()
    for number, (one, other, files) in enumerate(pairs()):
        tree = plant(tmp_path / str(number), files)
        before = taken(tree)
        if {state(one, tree), state(other, tree)} != {"ready"}:
            continue  # generations that no release has together
        tried.add((one, other))
        results = []
        for first, second in ((one, other), (other, one)):
            for name in (first, second):
                sources.apply(sources.find(name), Sources(str(tree)))
            assert (state(first, tree), state(second, tree)) == ("applied", "applied"), (first, second)
            results.append(taken(tree))
            for name in (first, second):
                sources.revert(sources.find(name), Sources(str(tree)))
            assert taken(tree) == before
        assert results[0] == results[1], (one, other)
    assert len(tried) > 20
    assert (WARNING, REFUSAL) in tried


@pytest.mark.parametrize("names", list(itertools.permutations(("hip-a", "hip-b", "hip-c"))))
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blocks_at_one_place_are_in_the_order_of_their_names(names, end):
    before = b"{" + end + b"\tsite();" + end + b"}" + end
    data = before
    for name in names:
        start = marks.above(data, name, data.index(b"site"))
        data = data[:start] + marks.block(name, "x = 1;", data, start) + data[start:]
    assert [line.split()[2] for line in data.splitlines() if b" begin " in line] == [b"hip-a", b"hip-b", b"hip-c"]
    for name in names:
        data, counted = marks.strip(data, name)
        assert counted == 1
    assert data == before


def foreign(text):
    return {CRAT: crat(f"\t\t\t{text}")}


LOOK = "if (dev->gpu && dev->gpu->device == 0x731F)\n\t\t\t\tflags |= HSA_MEM_FLAGS_HOT_PLUGGABLE;"


@pytest.mark.parametrize(
    "text",
    [
        "if (dev->gpu && mem->x)\n\t\t\t\tflags |= B;",
        f"if (heap_type == 2)\n\t\t\t\t{LOOK}",
        f"{LOOK}\n\t\t\telse\n\t\t\t\tflags |= C;",
        f"if (mem->y)\n\t\t\t\tflags |= A;\n\t\t\telse {LOOK}",
    ],
    ids=["of upstream", "below another if", "with an else", "after an else"],
)
def test_what_hangs_together_with_other_code_is_not_taken_for_an_edit_of_other_make(tmp_path, text):
    tree = plant(tmp_path, foreign(text))
    before, patch = taken(tree), sources.find("kernel-kfd-properties")
    assert state(patch.id, tree) == "ready"
    sources.revert(patch, Sources(str(tree)))
    assert taken(tree) == before


@pytest.mark.parametrize("text", [f"flags |= 1; {LOOK}", f"{LOOK} width = mem->width;", f"{LOOK} /* theirs */"])
def test_an_edit_of_other_make_that_shares_its_lines_is_left_to_a_person(tmp_path, text):
    tree = plant(tmp_path, foreign(text))
    before, patch = taken(tree), sources.find("kernel-kfd-properties")
    for verb in (sources.apply, sources.revert):
        with pytest.raises(RefusedError, match="something else stands on the lines"):
            verb(patch, Sources(str(tree)))
    assert taken(tree) == before


def test_a_comment_above_an_edit_of_other_make_stays(tmp_path):
    tree = plant(tmp_path, foreign(f"/* What follows is upstream's. */\n\t\t\t{LOOK}"))
    sources.revert(sources.find("kernel-kfd-properties"), Sources(str(tree)))
    assert taken(tree) == {CRAT: crat("\t\t\t/* What follows is upstream's. */").encode()}


def noretry(lines):
    return {GMC: f"void amdgpu_gmc_noretry_set(struct amdgpu_device *adev)\n{{\n{lines}\n\tuse(d);\n}}\n"}


OLD, NEW = (f"\tbool d = (gc_ver >= IP_VERSION(10, {minor}, 0));" for minor in (3, 1))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (f"#if 0\n{NEW}\n#else\n{OLD}\n#endif", "ready"),
        (f"#if 1\n{OLD}\n#else\n{NEW}\n#endif", "ready"),
        (f"#if ( 0 )\n{OLD}\n#else\n{NEW}\n#endif", "upstream"),
        (f"#if 0\n{OLD}\n#endif", "refused"),
        (f"#if 1\n#else\n{OLD}\n#endif", "refused"),
        (f"#ifdef X\n#if 0\n{OLD}\n#endif\n#endif", "refused"),
        (f"#if X\n#elif 0\n{NEW}\n#else\n{OLD}\n#endif", "ready"),
        (f"#if X\n{OLD}\n#endif", "ready"),
        (f"#ifndef X\n{OLD}\n#else\n#endif", "ready"),
        ("\tbool d = (a ||\n#if 0 /* was */\n\t\tgc_ver >= IP_VERSION(10, 3, 0) ||\n#endif\n\t\tb);", "refused"),
        (f'/* see\n#if 0\n*/\n{OLD}\n\tf("/*", \'"\');', "ready"),
        (f"#if 0\n#if X\n#else\n{NEW}\n#endif\n{NEW}\n#endif\n{OLD}\n#endif", "ready"),
    ],
)
def test_what_no_compiler_sees_is_neither_patched_nor_taken_for_a_patch(tmp_path, lines, found):
    tree = plant(tmp_path, noretry(lines))
    assert state("kernel-noretry-gfx101x", tree) == found
    if found == "ready":
        sources.apply(sources.find("kernel-noretry-gfx101x"), Sources(str(tree)))
        before, after = noretry(lines)[GMC].splitlines(), (tree / GMC).read_text().splitlines()
        assert [old for old, new in zip(before, after, strict=True) if old != new] == [OLD]


def sized(lines):
    return {CRAT: f"int kfd_parse_subtype_mem(struct x *mem)\n{{\n{lines}\n\treturn 0;\n}}\n"}


@pytest.mark.parametrize(
    "lines",
    ["\tif (a)\n\t\tSITE", "\tif (a)\n\t\tf();\n\telse\n\t\tSITE", "\tfor (; a;)\n\t\tSITE", "\twhile (a)\n\t\tSITE", "\tif (a)\nout:\n\t\tSITE"],
    ids=["if", "else", "for", "while", "label"],
)
def test_lines_are_not_added_where_an_if_or_a_loop_would_control_them_instead(tmp_path, lines):
    tree = plant(tmp_path, sized(lines.replace("SITE", "size_in_bytes = mem->length;")))
    before = taken(tree)
    with pytest.raises(RefusedError, match="without braces"):
        sources.apply(sources.find("kernel-kfd-properties"), Sources(str(tree)))
    assert taken(tree) == before


def test_lines_are_added_among_statements_also_of_a_case_and_below_an_if_of_the_preprocessor(tmp_path):
    for number, lines in enumerate(
        ("\tif (a) {\n\t\tSITE\n\t}", "\tswitch (a) {\n\tcase 1:\n\t\tSITE\n\t}", "#ifdef X\n\tSITE\n#else\n\tf();\n#endif")
    ):
        tree = plant(tmp_path / str(number), sized(lines.replace("SITE", "size_in_bytes = mem->length;")))
        sources.apply(sources.find("kernel-kfd-properties"), Sources(str(tree)))
        assert state("kernel-kfd-properties", tree) == "applied"
