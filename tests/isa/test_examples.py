"""Every rule against code of a few lines that it must find and that it must not: examples.toml."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from images.build import elf_object
from rocm_patch.images.source import Bytes
from rocm_patch.isa import Count, judge, rules

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

EXAMPLES = tomllib.loads((Path(__file__).parent / "examples.toml").read_text(encoding="utf-8"))["example"]
ASSEMBLERS = [path for name in ("llvm-mc", *(f"llvm-mc-{version}" for version in range(14, 30))) if (path := shutil.which(name))]


def code(example: dict[str, str]) -> bytes:
    """The instructions: hexadecimal words, 'word*n' for n of them."""
    words = (part.partition("*") for part in example["code"].split())
    return b"".join(struct.pack("<I", int(word, 16)) * int(times or 1) for word, _, times in words)


def title(example: dict[str, str]) -> str:
    return f"{example['rule']}-{example['note']}".replace(" ", "_")


@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_the_rule_says_what_the_example_is(example):
    judgement = judge(Bytes(elf_object(example.get("target", "gfx1030"), ["k"], code(example))), example.get("chip", "gfx1010"))
    count = judgement.rules.get(example["rule"], Count())
    said = "certain" if count.certain else "possible" if count.possible else "none"
    assert (said, judgement.undecoded) == (example["verdict"], 0), (example["text"], count)
    assert judgement.kernels.get("k", {}).get(example["rule"], Count()) == count


def test_every_rule_has_both_kinds():
    for rule in rules():
        verdicts = {example["verdict"] for example in EXAMPLES if example["rule"] == rule.id}
        assert "none" in verdicts, rule.id
        assert verdicts & {"certain", "possible"}, rule.id
    assert {example["rule"] for example in EXAMPLES} == {rule.id for rule in rules()}


@pytest.mark.skipif(not ASSEMBLERS, reason="no llvm-mc here")
@pytest.mark.parametrize("assembler", sorted({os.path.realpath(path) for path in ASSEMBLERS}))
@pytest.mark.parametrize("target", sorted({example.get("target", "gfx1030") for example in EXAMPLES}))
def test_the_words_are_what_an_assembler_makes(assembler, target):
    examples = [example for example in EXAMPLES if example.get("target", "gfx1030") == target]
    # One file, one section an example; numbers keep their labels apart.
    parts = []
    for number, example in enumerate(examples):
        text = re.sub(r"\b(end|next|other|join|loop|skip|back|last)(?=:|$)", rf"\g<1>{number}", example["text"], flags=re.MULTILINE)
        parts.append(f'.section .text.{number},"ax"\n{text}\ns_endpgm\n')
    made = subprocess.run(
        [assembler, "-triple=amdgcn-amd-amdhsa", f"-mcpu={target}", "-filetype=obj", "-o", "-"],
        input="".join(parts).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    sections = ELFFile(io.BytesIO(made.stdout))
    for number, example in enumerate(examples):
        assert sections.get_section_by_name(f".text.{number}").data() == code(example), example["text"]
