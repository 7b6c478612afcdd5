"""The kernel's own list decides: names, types, and the values that its sentences describe."""

from __future__ import annotations

import os
import random
import shutil
import subprocess

import pytest
from kernel_support import AMDGPU, TEXTS_61, TEXTS_63, TEXTS_612, kernel, modinfo, module, pack, put

from rocm_patch.changes import kernel_parameters
from rocm_patch.changes.kernel_parameters import Parameter, check, described, fits, kernels, meaning, modinfo_section, read
from rocm_patch.errors import EXIT_REFUSED, FormatError, RefusedError
from rocm_patch.root import Root


def refused(action, *words):
    with pytest.raises(RefusedError) as caught:
        action()
    assert caught.value.exit_code == EXIT_REFUSED
    text = f"{caught.value.what} {caught.value.hint}"
    for word in words:
        assert word in text, text


# ------------------------------------------------------------------ where it is read


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz", ".ko.zst"])
def test_a_module_is_read_however_it_is_packed(tmp_path, suffix):
    if suffix == ".ko.zst" and not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    version = kernel(tmp_path, suffix=suffix)
    found = read(Root(str(tmp_path)), version)
    assert found.path == f"/lib/modules/{version}/{AMDGPU}{suffix}"
    assert not found.builtin
    assert {name: (item.type, item.text) for name, item in found.parameters.items()} == TEXTS_612


def test_the_copy_of_dkms_comes_first(tmp_path):
    """AMD's packages put theirs into updates/dkms; its list differs from the kernel's own."""
    version = kernel(tmp_path, texts=TEXTS_61)
    put(tmp_path, f"lib/modules/{version}/updates/dkms/amdgpu.ko", module(TEXTS_612))
    os.unlink(tmp_path / f"lib/modules/{version}/modules.dep")
    assert "mtype_local" in read(Root(str(tmp_path)), version).parameters
    put(tmp_path, f"lib/modules/{version}/modules.dep", f"{AMDGPU}.ko.xz:\nupdates/dkms/amdgpu.ko:\n")
    assert "mtype_local" not in read(Root(str(tmp_path)), version).parameters  # depmod decided otherwise, and modprobe goes by it


def test_a_driver_that_is_built_in(tmp_path):
    put(tmp_path, "lib/modules/6.12.1/modules.builtin.modinfo", b"drm.parm=debug:x\0" + modinfo(TEXTS_612, b"amdgpu."))
    found = read(Root(str(tmp_path)), "6.12.1")
    assert found.builtin
    assert found.parameters["noretry"].type == "int"
    assert "debug" not in found.parameters


def test_a_usr_merged_root_by_links(tmp_path):
    version = kernel(tmp_path / "usr")
    os.symlink("/usr/lib", tmp_path / "lib")
    assert len(read(Root(str(tmp_path)), version).parameters) == len(TEXTS_612)


def test_the_newest_kernel_that_boots(tmp_path):
    kernel(tmp_path, "6.9.7-amd64")
    kernel(tmp_path, "6.12.3-amd64")
    kernel(tmp_path, "6.13.0-removed", bootable=False)
    put(tmp_path, "lib/modules/6.14.0-gone/updates/dkms/amdgpu.ko", b"")
    assert [(item.version, item.why) for item in kernels(Root(str(tmp_path)))] == [("6.12.3-amd64", "newest")]


def test_nothing_there_is_refused_by_name(tmp_path):
    root = Root(str(tmp_path))
    refused(lambda: kernels(root), f"{tmp_path}/lib/modules", "there is no such folder")
    (tmp_path / "lib/modules").mkdir(parents=True)
    refused(lambda: kernels(root), f"{tmp_path}/lib/modules", "no kernel lies there")
    put(tmp_path, "lib/modules/6.1.0/modules.dep", "kernel/drivers/gpu/drm/drm.ko:\n")
    refused(lambda: read(root, "6.1.0"), "linux 6.1.0 has no module amdgpu", "updates/dkms/amdgpu.ko", "modules.builtin.modinfo")
    put(tmp_path, "lib/modules/6.1.0/modules.dep", f"{AMDGPU}.ko.xz:\n")
    refused(lambda: read(root, "6.1.0"), f"{tmp_path}/lib/modules/6.1.0/{AMDGPU}.ko.xz", "not there")


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    version, root = kernel(tmp_path), Root(str(tmp_path))
    path = f"lib/modules/{version}/{AMDGPU}.ko.xz"
    whole = (tmp_path / path).read_bytes()
    for data in (whole[:200], whole[:20], b"\x7fELF\x01\x01" + bytes(80), b"", pack(module(TEXTS_612, b".modinf0"), ".ko.xz")):
        put(tmp_path, path, data)
        refused(lambda: read(root, version), f"{tmp_path}/{path}")
    (tmp_path / path).unlink()
    (tmp_path / path).mkdir()
    refused(lambda: read(root, version), f"{tmp_path}/{path}", "not a regular file")


def test_a_damaged_file_is_a_format_error_and_nothing_else():
    data, dice = module(TEXTS_612), random.Random(7)
    seen = 0
    for _ in range(4000):
        mutant = bytearray(data)
        for _ in range(dice.randrange(1, 4)):
            mutant[dice.choice([dice.randrange(64), dice.randrange(len(mutant) - 192, len(mutant))])] = dice.randrange(256)
        try:
            modinfo_section(bytes(mutant[: dice.randrange(len(mutant) + 1)] if dice.random() < 0.2 else mutant))
        except FormatError:
            seen += 1
    assert seen > 1000


# ------------------------------------------------------------------ what is taken


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("noretry", ("0", "1", "-1"), ("2", "-2", "", "01", "0x1", "1 ", "1\n", "yes", "+1", "1,1", "\u0661")),
        ("mtype_local", ("0", "1", "2"), ("3", "-1", "MTYPE_NC")),
        ("vm_fragment_size", ("4", "7", "9"), ("3", "10", "-1")),
        ("gpu_recovery", ("0", "1", "-1"), ("2",)),
        ("cwsr_enable", ("0", "1"), ("2", "Y")),
        ("lockup_timeout", ("20000", "1000,2000,3000,-1"), ("", "1 2", "a" * 256, "$(id)", "1;2", "ä")),
        ("dcdebugmask", ("0", "4294967295"), ("-1", "4294967296")),
        ("ignore_min_pcap", ("0", "1", "Y", "n"), ("2", "yes", "")),
        ("queue_preemption_timeout_ms", ("1", "9000"), ("2147483648",)),
    ],
)
def test_values(tmp_path, name, good, bad):
    version = kernel(tmp_path)
    found = read(Root(str(tmp_path)), version)
    for value in good:
        check(found, name, value)
    for value in bad:
        refused(lambda value=value: check(found, name, value), f"amdgpu.{name}", "keeps it from being loaded")


def test_a_parameter_that_this_kernel_does_not_have(tmp_path):
    version = kernel(tmp_path, "6.1.0-56-amd64", TEXTS_61)
    refused(lambda: check(read(Root(str(tmp_path)), version), "mtype_local", "1"), "linux 6.1.0-56-amd64", "no parameter amdgpu.mtype_local")


def test_meanings_come_from_the_kernel_and_so_follow_its_numbering():
    new, old = (Parameter("mtype_local", *texts["mtype_local"]) for texts in (TEXTS_612, TEXTS_63))
    assert [meaning(new, value) for value in "012"] == ["MTYPE_RW", "MTYPE_NC", "MTYPE_CC"]
    assert [meaning(old, value) for value in "012"] == ["MTYPE_CC", "MTYPE_NC", "MTYPE_RW"]
    retry = Parameter("noretry", *TEXTS_612["noretry"])
    assert [meaning(retry, value) for value in ("0", "1", "-1", "7")] == ["retry enabled", "retry disabled", "auto", ""]
    assert meaning(Parameter("x", "int", "evil (1 = a\\\nrm -rf\x00\x1b[2J $(id) `x` " + "y" * 300 + ")"), "1").isprintable()


def test_what_is_described():
    rows = {name: described(Parameter(name, *row)) for name, row in TEXTS_612.items()}
    assert rows["vm_fragment_size"] == (4, 5, 6, 7, 8, 9)
    assert rows["noretry"] == (-1, 0, 1)
    assert rows["lockup_timeout"] == rows["dcdebugmask"] == rows["ignore_min_pcap"] == ()


def test_types_that_are_not_known_take_nothing():
    assert not fits(Parameter("x", "array of int", ""), "1")
    assert not fits(Parameter("x", "", ""), "1")


# ------------------------------------------------------------------ against the real thing


def test_the_same_as_modinfo_says_of_an_installed_module():
    """kmod's own reader as the oracle, on whatever modules this machine has."""
    if not shutil.which("modinfo"):
        pytest.skip("modinfo is not installed")
    files = [os.path.join(at, name) for at, _, names in os.walk("/lib/modules") for name in names if name.startswith(("amdgpu.ko", "nvme-core.ko"))]
    if not files:
        pytest.skip("no kernel's modules are installed here")
    for path in files[:4]:
        with open(path, "rb") as file:
            found = kernel_parameters._of_bytes(file.read())
        said = subprocess.run(["modinfo", "-p", path], capture_output=True, text=True, check=True).stdout
        assert sorted(found) == sorted({line.partition(":")[0] for line in said.splitlines() if ":" in line and not line.startswith((" ", "\t"))})


def test_a_number_too_long_to_be_one_is_passed_over():
    """Python refuses to read 5,000 digits, with an error that was none of ours."""
    assert kernel_parameters.described(kernel_parameters.Parameter("x", "int", f"x ({'1' * 5000} = a, 2 = b, 3 = c)")) == (2, 3)


@pytest.mark.parametrize("value", ["Y", "n", "1"])
def test_truth_given_as_a_letter_where_the_kernel_describes_numbers(value):
    module = kernel_parameters.Module("amdgpu", "6.12", "/x", False, {"x": kernel_parameters.Parameter("x", "bint", "(0 = off, 1 = on)")})
    kernel_parameters.check(module, "x", value)
    with pytest.raises(RefusedError):
        kernel_parameters.check(module, "x", "2")
