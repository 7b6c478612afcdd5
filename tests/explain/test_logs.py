"""Bytes become lines, lines become facts, facts become the machine that the rules judge."""

from __future__ import annotations

import pytest

from rocm_patch import knowledge
from rocm_patch.errors import UsageError
from rocm_patch.images import installed
from rocm_patch.knowledge.matching import LINE
from rocm_patch.logs import facts, picture, text
from rocm_patch.logs.facts import Told
from rocm_patch.model import Known, Unknown

TABLES = knowledge.load()


def told(shown):
    return facts.read(text.lines(shown)[0], TABLES)


@pytest.mark.parametrize(
    "data",
    [
        "HIP error: invalid device function".encode("utf-16"),
        "HIP error: invalid device function".encode("utf-16-le"),
        b"\xef\xbb\xbfHIP error: invalid device function",
        b"\x1b[31mHIP error:\x1b[0m invalid device function\x00",
        b"\xff\xfa broken \xe4\nHIP error: invalid device function\r\n",
    ],
    ids=["utf-16", "utf-16 without mark", "utf-8 with mark", "colours", "mixed"],
)
def test_any_encoding_gives_the_line(data):
    lines, _ = text.lines(text.decode(data))
    assert any("HIP error: invalid device function" in " ".join(line.split()) for line in lines)


def test_lines_keep_their_numbers_and_empty_ones_go():
    assert text.lines("one\n\n  \nfour\rfive\r\nsix") == (("one", "four", "five", "six"), (1, 4, 5, 6))


def test_junk_says_nothing():
    assert text.lines("\ufffd\ufffd nan \ufffd\ufffd\n" * 3) == ((), ())


def test_ten_thousand_lines_of_one_kind_are_one():
    shown = "\n".join(f"[{number}.1] ring gfx_0.0.0 timeout, signaled seq={number}" for number in range(10_000))
    assert len(text.lines(shown)[0]) == 1


def test_a_large_journal_keeps_what_may_be_about_the_card():
    letters = "bcdjnqvz"
    others = ["".join(letters[number // 8**place % 8] for place in range(5)) + " started by timer" for number in range(9_000)]
    lines, numbers = text.lines("\n".join([*others, "kfd kfd: skipped device", *others[:100]]))
    assert lines == ("kfd kfd: skipped device",)
    assert numbers == (9_001,)


def test_chips_that_differ_in_digits_only_are_not_one_kind():
    shown = "\n".join(["  Name:                    gfx1100", *["Cache: 3"] * 300, "  Name:                    gfx1036"])
    assert told(shown).values["gfx"] == "gfx1100,gfx1036"


def test_a_line_of_megabytes_is_read_in_pieces_and_ends():
    lines, numbers = text.lines("a" * 5_000_000 + " gfx1031")
    assert len(lines) < 20
    assert set(numbers) == {1}
    assert all(len(line) <= LINE for line in lines)
    assert lines[-1].endswith("gfx1031")


# Minimised by hand from the shape of the real things.
ROCMINFO = """
*******
Agent 2
*******
  Name:                    gfx1032
  Uuid:                    GPU-0123456789abcdef
  Marketing Name:          AMD Radeon RX 6600 XT
    ISA 1
      Name:                    amdgcn-amd-amdhsa--gfx1032
"""
COLLECT_ENV = """PyTorch version: 2.1.2+rocm5.6
CUDA used to build PyTorch: N/A
ROCM used to build PyTorch: 5.6.31061-8c743ae5d

OS: Ubuntu 22.04.4 LTS (x86_64)
Python version: 3.10.13 (main, Aug 25 2023, 13:20:03) (64-bit runtime)
Python platform: Linux-6.5.0-28-generic-x86_64-with-glibc2.35
GPU models and configuration: AMD Radeon RX 6650 XT
"""


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (ROCMINFO, {"gfx": "gfx1032", "gpu": "Radeon RX 6600 XT"}),
        (ROCMINFO[: ROCMINFO.index("Marketing")], {"gfx": "gfx1032"}),
        (
            COLLECT_ENV,
            {
                "torch": "2.1.2+rocm5.6",
                "hip": "5.6.31061",
                "distro": "Ubuntu 22.04.4 LTS (x86_64)",
                "python": "3.10.13",
                "kernel": "6.5.0-28-generic",
                "gfx": "gfx1032",
                "gpu": "Radeon RX 6650 XT",
            },
        ),
        (" ".join(COLLECT_ENV.split("\n")[4:7]), {"python": "3.10.13", "kernel": "6.5.0-28-generic"}),
        ("kfd kfd: amdgpu: added device 1002:73df", {"gfx": "gfx1031"}),
        ("[    0.0] Linux version 6.8.0-45-generic (build@x)", {"kernel": "6.8.0-45-generic"}),
        ("Linux box 5.15.167.4-microsoft-standard-WSL2 #1 SMP", {"kernel": "5.15.167.4-microsoft-standard-WSL2", "os": "wsl"}),
        ("Downloading torch-2.7.1+rocm6.3-cp310-cp310-manylinux_2_28_x86_64.whl", {"torch": "2.7.1+rocm6.3"}),
        ("uid=1000(me) gid=1000(me) groups=1000(me),27(sudo)", {"groups": "1000(me),27(sudo)"}),
        ("Windows fatal exception: access violation", {"os": "windows"}),
        ("nothing of the kind", {}),
    ],
)
def test_facts_are_read_out_of_what_programs_print_whole_or_cut(shown, expected):
    found = told(shown).values
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("export HSA_OVERRIDE_GFX_VERSION=10.3.0", "HSA_OVERRIDE_GFX_VERSION", "10.3.0"),
        ('HSA_OVERRIDE_GFX_VERSION="10.3.0" python main.py', "HSA_OVERRIDE_GFX_VERSION", "10.3.0"),
        ("docker run -e HIP_VISIBLE_DEVICES=0 image", "HIP_VISIBLE_DEVICES", "0"),
        ("$env:MIOPEN_FIND_MODE=2", "MIOPEN_FIND_MODE", "2"),
        ('Environment="HSA_OVERRIDE_GFX_VERSION=11.0.0"', "HSA_OVERRIDE_GFX_VERSION", "11.0.0"),
    ],
)
def test_variables_are_read_wherever_they_are_set(line, name, value):
    assert told(line).environment[name] == value


def test_what_is_given_beats_what_is_read_and_a_card_is_told_as_a_whole():
    merged = picture.given({"gfx": "gfx1010", "env.A": "1"}).over(Told({"gpu": "RX 6600", "gfx": "gfx1032", "torch": "2.0"}, {"A": "0", "B": "2"}))
    assert merged.values == {"gfx": "gfx1010", "torch": "2.0"}
    assert merged.environment == {"A": "1", "B": "2"}


def test_an_unknown_fact_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        picture.given({"colour": "red"})
    assert "env.NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "chips"),
    [
        ({"gpu": "AMD Radeon RX 6700 XT (12 GB)"}, ["gfx1031"]),
        ({"gpu": "4x Radeon RX 6900 XT", "gfx": "gfx1030"}, ["gfx1030"] * 4),
        ({"gpu": "Radeon RX 7900 XTX + Raphael iGPU", "gfx": "gfx1100,gfx1036"}, ["gfx1100", "gfx1036"]),
        ({"gpu": "Radeon RX 6800; RX 6600"}, ["gfx1030", "gfx1032"]),
        ({"gpu": "a card of another maker"}, [None]),
        ({"gfx": "gfx1010:xnack-"}, ["gfx1010"]),
    ],
)
def test_cards_are_found_by_target_or_by_name(given, chips):
    machine, _ = picture.picture(picture.given(given), TABLES)
    assert [gpu.gfx.value if isinstance(gpu.gfx, Known) else None for gpu in machine.gpus] == chips


@pytest.mark.parametrize(
    ("said", "build", "toolkit"),
    [
        ("2.5.1+rocm6.2", "rocm", "6.2"),
        ("1.9.0 (rocm4.2)", "rocm", "4.2"),
        ("2.0.x+rocm5.4.2", "rocm", "5.4.2"),
        ("2.4.1+cu121", "cuda", "12.1"),
        ("2.4.1+cpu", "cpu", None),
        ("2.11.0+rocm7.15.0a20260728", "rocm", "7.15.0a20260728"),
        ("built by myself", None, None),
    ],
)
def test_a_torch_is_read_from_its_words(said, build, toolkit):
    torch = picture.picture(picture.given({"torch": said}), TABLES)[0].torches[0]
    assert (torch.build.value if isinstance(torch.build, Known) else None) == build
    assert (torch.toolkit.value if isinstance(torch.toolkit, Known) else None) == toolkit


def test_a_nightly_or_a_split_wheel_says_nothing_of_its_code_and_an_old_one_does():
    for said, known in (("2.11.0+rocm7.15.0a20260728", False), ("2.14.0+rocm10.1.0", False), ("2.5.1+rocm6.2", True)):
        machine, code = picture.picture(picture.given({"torch": said}), TABLES)
        assert bool(code.files) is known
        assert list(installed.names(machine.torches[0], TABLES))[:1] or not known


def test_what_nobody_told_is_unknown():
    machine, code = picture.picture(Told(), TABLES)
    assert not machine.gpus
    assert not machine.torches
    assert not code.files
    assert isinstance(machine.platform.kfd_present, Unknown)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ('File "/home/alice/venv/lib/python3.10/site-packages/torch/__init__.py"', "alice"),
        (r"File C:\Users\alice\venv\torch", "alice"),
        ("Nov 12 10:00:01 alicebox kernel: amdgpu: ring gfx timeout", "alicebox"),
        ("2026-11-12T10:00:01+00:00 alicebox kernel: amdgpu: ring gfx timeout", "alicebox"),
        ("alice@alicebox:~$ rocminfo", "alice"),
        ("alice is member of video group", "alice"),
        ("uid=1000(alice) gid=1000(alice)", "alice"),
        ("Linux alicebox 6.8.0-45-generic #45 SMP", "alicebox"),
        ("Serial Number: 0x1234ABCD", "1234ABCD"),
        ("Uuid: GPU-0123456789abcdef", "0123456789abcdef"),
        ("link/ether 00:11:22:33:44:55 brd", "33:44"),
        ("connect to 192.168.178.20 port 11434", "192.168.178.20"),
        ("inet6 fe80::1c2d:3e4f:5a6b:7c8d/64", "1c2d:3e4f"),
        ("mail to alice@example.org", "alice"),
        ("/run/media/alice/disk/models", "alice"),
        ("path=/var/home/alice/x", "alice"),
    ],
)
def test_a_quoted_line_names_nobody(line, secret):
    assert secret not in text.quoted(line)


def test_a_kernel_of_four_numbers_and_a_pci_address_are_no_addresses_of_a_person():
    assert "5.15.167.4-microsoft" in text.quoted("kernel 5.15.167.4-microsoft-standard")
    assert "0000:0a:00.0" in text.quoted("amdgpu 0000:0a:00.0: amdgpu: GPU reset begin!")
