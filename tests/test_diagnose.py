"""Rules, one contrast at a time: the same machine with one fact changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from recorded_machines import MACHINES
from rocm_patch import knowledge, machine
from rocm_patch.diagnose import diagnose
from rocm_patch.diagnose.case import own_version
from rocm_patch.diagnose.stack import same_instructions
from rocm_patch.images import installed
from rocm_patch.model import Gpu, Image, Images, Known, Package, Safety, Setting, TargetCode, TorchInstall, Trial, Trials
from rocm_patch.root import Root

TABLES = knowledge.load()


def load(name):
    root = Root(str(MACHINES / name))
    found = machine.collect(root, TABLES)
    return found, installed.scan(root, found, TABLES)


def chip(found, gfx):
    """The same machine with another chip in it."""
    gpu: Gpu = found.gpus[0]
    return replace(found, gpus=(replace(gpu, gfx=Known(gfx, "test")),))


def with_override(found, value):
    kept = tuple(item for item in found.settings if item.name != "HSA_OVERRIDE_GFX_VERSION")
    if value is None:
        return replace(found, settings=kept)
    return replace(
        found, settings=(*kept, Setting("HSA_OVERRIDE_GFX_VERSION", value, "environment", "profile", "/etc/profile.d/x.sh", 1, "login", True))
    )


def holding(found, *targets):
    """Libraries that were read and hold these targets."""
    path = f"{found.torches[0].site}/torch/lib/libtorch_hip.so"
    return Images((Image(path, ".hip_fatbin", "fatbin", dict.fromkeys(targets, TargetCode(1, 1)), ()),))


def causes(found, code, trials=None, severity=None):
    result = diagnose(found, code, TABLES, trials)
    return [item.cause for item in result.findings if severity is None or item.severity == severity]


@pytest.fixture
def stack():
    return load("rx6700xt-pytorch-org")[0]


@pytest.mark.parametrize(
    ("gfx", "targets", "override", "problem"),
    [
        # RDNA1: 10.3.0 is never right, whatever the wheel holds
        ("gfx1010", ["gfx1030"], "10.3.0", "override_unsafe"),
        ("gfx1010", ["gfx1030"], None, "missing_code_object"),
        ("gfx1010", ["gfx1010"], None, None),
        ("gfx1010", ["gfx1010"], "10.3.0", "override_wrong"),
        ("gfx1010", ["gfx1010"], "10.1.0", None),
        ("gfx1010", ["gfx1010", "gfx1030"], "10.3.0", "override_wrong"),
        ("gfx1010", ["gfx10-1-generic"], None, None),
        ("gfx1010", ["gfx1100"], "11.0.0", "override_unsafe"),
        ("gfx1010", ["gfx1011"], "10.1.1", "override_unsafe"),
        # 10.1.0 on its siblings is sound where only gfx1010 code is there
        ("gfx1012", ["gfx1010"], "10.1.0", None),
        ("gfx1012", ["gfx1010"], None, "missing_code_object"),
        ("gfx1012", ["gfx1012", "gfx1010"], "10.1.0", None),
        ("gfx1012", ["gfx1012"], "10.1.0", "override_wrong"),
        ("gfx1012", ["gfx1030"], "10.3.0", "override_unsafe"),
        # RDNA2
        ("gfx1030", ["gfx1030"], None, None),
        ("gfx1030", ["gfx1030"], "10.3.0", None),
        ("gfx1031", ["gfx1030"], "10.3.0", None),
        ("gfx1031", ["gfx1030"], None, "missing_code_object"),
        ("gfx1032", ["gfx1032"], "10.3.0", "override_wrong"),
        ("gfx1032", ["gfx1032", "gfx1030"], "10.3.0", None),
        ("gfx1036", ["gfx10-3-generic"], None, None),
        ("gfx1031", ["gfx1100"], "11.0.0", "override_unsafe"),
        ("gfx1031", ["gfx1030"], "10.1.0", "override_unsafe"),
        ("gfx1031", ["gfx1030"], "navi", "override_wrong"),
    ],
)
def test_override_and_code_together_decide(stack, gfx, targets, override, problem):
    found = with_override(chip(stack, gfx), override)
    problems = causes(found, holding(found, *targets), severity="problem")
    assert problems[:1] == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("rocm", "severity"), [("5.2", "warning"), ("5.1.1", "warning"), ("5.3", "problem"), ("6.2", "problem"), ("10.1.0", "problem")]
)
def test_the_unsafe_override_is_a_warning_only_with_the_old_wheels(stack, rocm, severity):
    torch: TorchInstall = stack.torches[0]
    found = replace(with_override(chip(stack, "gfx1010"), "10.3.0"), torches=(replace(torch, toolkit=Known(rocm, "test")),))
    result = diagnose(found, holding(found, "gfx1030"), TABLES)
    assert [item.severity for item in result.findings if item.cause == "override_unsafe"] == [severity]


def test_a_native_rdna1_stack_is_healthy_and_always_warned():
    found, code = load("rx5700xt-native")
    result = diagnose(found, code, TABLES)
    assert result.healthy
    assert [(item.cause, item.severity) for item in result.findings] == [("miopen_compile_or_find", "warning")]
    assert "usable, with this" in result.findings[0].why[0]
    assert {advice.id for advice in result.findings[0].remedies} == {"miopen-off", "miopen-find-fast"}


def test_libraries_that_were_read_beat_names():
    found, code = load("rx5600xt-ubuntu2404-mission")
    found = with_override(found, None)
    assert "missing_code_object" in causes(found, code)
    assert "missing_code_object" not in causes(found, holding(found, "gfx1010"))


def test_half_a_device_package_pair_is_no_native_wheel():
    found, _ = load("rx5700xt-native")
    torch = found.torches[0]
    packages = tuple(package for package in torch.packages if package.name != "rocm-sdk-device-gfx1010")
    found = replace(found, torches=(replace(torch, packages=packages),))
    code = installed.scan(Root(str(MACHINES / "rx5700xt-native")), found, TABLES)
    assert "missing_code_object" in causes(found, code)
    assert "only one half" in code.files[0].unread[0]


def test_names_are_less_certain_than_bytes_and_as_severe():
    found, code = load("rx5700xt-old-kernel")
    named = diagnose(found, code, TABLES).findings[0]
    read = diagnose(found, holding(found, "gfx1030"), TABLES).findings[0]
    assert named.severity == read.severity == "problem"
    assert named.certainty < read.certainty


def test_a_cuda_wheel_beside_an_nvidia_card_is_nobodys_fault():
    found, code = load("rx6600-cpu-wheel")
    found = replace(found, other_gpus=("NVIDIA 10de:2504 at 0000:0b:00.0",), torches=found.torches[1:])
    assert "wrong_torch_wheel" not in causes(found, code)


def test_a_second_torch_that_works_turns_the_wrong_one_into_information():
    found, code = load("rx6600-cpu-wheel")
    good = replace(found.torches[0], build=Known("rocm", "x"), toolkit=Known("6.4", "x"), site="/s", version=Known("2.9.1+rocm6.4", "x"))
    found = replace(found, torches=(*found.torches, good))
    assert set(causes(found, code, severity="problem")) <= {"missing_code_object"}
    assert "wrong_torch_wheel" in causes(found, code, severity="info")


def test_faults_in_the_log_support_the_unsafe_override_and_do_not_compete_with_it():
    found, code = load("rx5600xt-ubuntu2404-mission")
    result = diagnose(found, code, TABLES)
    assert result.findings[0].cause == "override_unsafe"
    assert any("page fault" in line for line in result.findings[0].why)
    assert "gpu_page_fault" not in [item.cause for item in result.findings]
    assert "gpu_page_fault" in causes(with_override(found, None), code)


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("HSA_XNACK", "1", "warning"),
        ("HIP_FORCE_COARSE_GRAIN", "1", "warning"),
        ("MIOPEN_DEVICE_ARCH", "gfx1030", "problem"),
        ("MIOPEN_FIND_ENFORCE", "3", "problem"),
        ("MIOPEN_FIND_ENFORCE", "NONE", None),
        ("MIOPEN_DEBUG_CONV_IMPLICIT_GEMM", "1", "warning"),
        ("MIOPEN_FIND_MODE", "FAST", None),
        ("MIOPEN_FIND_MODE", "2", None),
        ("AMD_SERIALIZE_KERNEL", "3", "info"),
        ("LD_PRELOAD", "/opt/rocm-patch/libhip_rdna_fix.so", "warning"),
        ("LD_PRELOAD", "/usr/lib/libgamemode.so", None),
    ],
)
def test_each_recipe_setting_is_judged_by_name_and_value(name, value, severity):
    found, code = load("rx5700xt-native")
    setting = Setting(name, value, "environment", "profile", "/etc/profile.d/x.sh", 3, "login", True)
    result = diagnose(replace(found, settings=(setting,)), code, TABLES)
    assert [item.severity for item in result.findings if item.cause == "folklore_setting"] == ([severity] if severity else [])
    if severity:
        assert "/etc/profile.d/x.sh line 3" in next(item for item in result.findings if item.cause == "folklore_setting").why[0]


@pytest.mark.parametrize(
    ("gfx", "kernel", "word"),
    [
        ("gfx1010", "6.8.0-45-generic", "default up to kernel 6.12"),
        ("gfx1010", "7.3.4", "turns upstream's correction back"),
        ("gfx1010", "6.14.0", "not known here"),
        ("gfx1031", "6.8.0", "hang instead of an error"),
    ],
)
def test_noretry_means_something_else_on_each_kernel_and_card(gfx, kernel, word):
    found, code = load("rx5700xt-native")
    setting = Setting("amdgpu.noretry", "0", "module", "modprobe", "/etc/modprobe.d/x.conf", 1, "boot", True)
    found = replace(chip(found, gfx), settings=(setting,), platform=replace(found.platform, kernel=Known(kernel, "test")))
    finding = next(item for item in diagnose(found, code, TABLES).findings if item.cause == "folklore_setting")
    assert word in finding.why[0]


def test_a_masked_igpu_is_silent():
    found, code = load("rx6800xt-raphael-igpu")
    assert "igpu_selected" in causes(found, code)
    mask = Setting("ROCR_VISIBLE_DEVICES", "0", "environment", "profile", "/etc/profile.d/x.sh", 1, "login", True)
    assert "igpu_selected" not in causes(replace(found, settings=(*found.settings, mask)), code)


def test_numpy_2_beside_an_old_torch():
    found, code = load("rx5700-legacy-rocm52")
    torch = found.torches[0]
    packages = tuple(package for package in torch.packages if package.name != "numpy")
    assert "numpy_abi" not in causes(found, code)
    assert "numpy_abi" in causes(replace(found, torches=(replace(torch, packages=(*packages, Package("numpy", "2.1.0"))),)), code)


def trial(probe, configuration, verdict, dtype="float32"):
    return Trial(probe, configuration, dtype, verdict, 1.0, "signal 6" if verdict == "crash" else "", {}, {})


def test_probes_that_fail_only_with_miopen_name_miopen():
    found, code = load("rx5700xt-native")
    ran = Trials(
        "hip", "x", "x", (trial("conv-64", "miopen", "crash"), trial("conv-64", "miopen-off", "passed"), trial("batchnorm", "miopen", "passed"))
    )
    result = diagnose(found, code, TABLES, ran)
    assert result.findings[0].cause == "miopen_solver_fault"
    assert [advice.id for advice in result.findings[0].remedies] == ["miopen-off"]
    assert not result.healthy


def test_probes_on_a_cpu_say_nothing_about_the_card():
    found, code = load("rx5700xt-native")
    ran = Trials("cpu", "x", "x", (trial("conv-64", "miopen", "crash"), trial("conv-64", "miopen-off", "passed")))
    assert diagnose(found, code, TABLES, ran).healthy


def test_measured_fp16_beats_what_is_known():
    found, code = load("rx5700xt-native")
    ran = Trials("hip", "x", "x", (trial("conv-64", "miopen", "wrong", "float16"), trial("conv-64", "miopen-off", "wrong", "float16")))
    assert diagnose(found, code, TABLES, ran).features["fp16"].answer == "no"


def test_every_advice_of_every_recording_has_a_success_as_evidence(machine_name):
    found, code = load(machine_name)
    for finding in diagnose(found, code, TABLES).findings:
        for advice in finding.remedies:
            assert advice.evidence, (finding.cause, advice.id)
            assert all(source.startswith("https://") for source in advice.evidence)
            assert "{" not in advice.text.replace("${", ""), advice.text
        assert finding.cause in TABLES.causes
        assert all(advice.remedy in TABLES.remedy_classes for advice in finding.remedies)
        assert finding.cause != "healthy"


def test_old_tables_are_said_to_be_old():
    found, code = load("rx5700xt-native")
    assert not diagnose(found, code, TABLES, today=date(2026, 11, 22)).notes
    assert any("last checked" in note for note in diagnose(found, code, TABLES, today=date(2027, 6, 1)).notes)


def test_soundness_of_overrides_is_directional():
    assert same_instructions("gfx1012", "gfx1010")
    assert not same_instructions("gfx1010", "gfx1012")
    assert same_instructions("gfx1036", "gfx1030")
    assert not same_instructions("gfx1010", "gfx1030")
    assert not same_instructions("gfx1030", "gfx1010")
    assert own_version("gfx1012") == "10.1.2"
    assert own_version("gfx90a") == "9.0.10"


def test_two_cards_of_different_kinds_get_two_answers():
    found, _ = load("rx6700xt-pytorch-org")
    second = replace(found.gpus[0], pci="0000:0b:00.0", name="Radeon RX 5600 XT", gfx=Known("gfx1010", "test"), kfd_node=Known(2, "test"))
    first = replace(found.gpus[0], gfx=Known("gfx1030", "test"))
    both = with_override(replace(found, gpus=(first, second)), "10.3.0")
    assert causes(replace(both, gpus=(first,)), holding(both, "gfx1030"), severity="problem") == []
    problems = causes(both, holding(both, "gfx1030"), severity="problem")
    assert problems[0] == "override_unsafe"
    node = Setting("HSA_OVERRIDE_GFX_VERSION_1", "10.3.0", "environment", "profile", "/etc/profile.d/x.sh", 1, "login", True)
    own = replace(with_override(both, None), settings=(node,))
    assert causes(own, holding(both, "gfx1030", "gfx1010"), severity="problem") == []


def test_the_form_for_one_node_beats_the_general_one():
    found, _ = load("rx5600xt-ubuntu2404-mission")
    node = Setting("HSA_OVERRIDE_GFX_VERSION_1", "10.3.0", "environment", "profile", "/etc/profile.d/x.sh", 1, "login", True)
    found = replace(with_override(found, "10.1.0"), settings=(*with_override(found, "10.1.0").settings, node))
    finding = diagnose(found, holding(found, "gfx1030"), TABLES).findings[0]
    assert finding.cause == "override_unsafe"
    assert finding.why[0].startswith("HSA_OVERRIDE_GFX_VERSION_1=10.3.0")


def test_a_word_on_the_kernel_command_line_is_not_sought_in_modprobe_d():
    found, code = load("rx5700xt-native")
    setting = Setting("amdgpu.mtype_local", "1", "module", "cmdline", "/proc/cmdline", 1, "kernel", True)
    finding = next(item for item in diagnose(replace(found, settings=(setting,)), code, TABLES).findings if item.cause == "folklore_setting")
    assert [advice.id for advice in finding.remedies] == ["drop-kernel-word-by-hand"]
    assert "grub" in finding.remedies[0].text


def test_one_torch_that_needs_the_override_and_one_that_breaks_with_it():
    found, code = load("rx6700xt-pytorch-org")
    native = replace(
        found.torches[0],
        site="/n",
        packages=(Package("amd-torch-device-gfx1031", "1"), Package("rocm-sdk-device-gfx1031", "1")),
        toolkit=Known("10.1.0", "x"),
    )
    both = replace(found, torches=(*found.torches, native))
    result = diagnose(both, installed.scan(Root(str(MACHINES / "rx6700xt-pytorch-org")), both, TABLES), TABLES)
    assert [item.cause for item in result.findings if item.severity == "problem"] == ["override_wrong"]
    assert "needs it" in result.findings[0].why[0]


def test_a_word_from_a_hostile_file_never_stands_in_a_command():
    found, code = load("rx5700xt-native")
    setting = Setting("amdgpu.mtype_local", "1", "module", "modprobe", "/etc/modprobe.d/x;touch PWN;.conf", 1, "boot", True)
    finding = next(item for item in diagnose(replace(found, settings=(setting,)), code, TABLES).findings if item.cause == "folklore_setting")
    assert "$ " not in finding.remedies[0].text


def test_a_card_out_of_scope_is_named_and_not_judged():
    found, code = load("rx5700xt-native")
    result = diagnose(chip(found, "gfx1100"), code, TABLES)
    assert [(item.cause, item.severity) for item in result.findings] == [("unsupported_hw", "info")]


def test_what_a_scan_found_of_forced_code_is_said(stack):
    machine_ = with_override(chip(stack, "gfx1010"), "10.3.0")
    held = holding(machine_, "gfx1030")
    judged = replace(held.files[0], safety={"gfx1010": Safety(7, 0, {"inst-prefetch": 7}, "gfx1030", 40, 5)})

    def words(found):
        return [line for item in diagnose(machine_, found, TABLES).findings if item.cause == "override_unsafe" for line in item.why]

    assert any("5 of 40 functions for gfx1030 are unsafe on a gfx1010" in line for line in words(Images((judged,))))
    assert words(held)
    assert not any("functions" in line for line in words(held))
