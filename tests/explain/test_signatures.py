"""Each known error line, alone with a typical machine, is answered rightly: the table of the 52 lines that users arrive with."""

# ruff: noqa: E501  # one row a line, so that the table can be read
from __future__ import annotations

import pytest

from rocm_patch import knowledge
from rocm_patch.explain import explain
from rocm_patch.logs import picture

TABLES = knowledge.load()
PYTORCH_ORG = "2.5.1+rocm6.2"
RDNA1 = {"gfx": "gfx1010", "gpu": "RX 5700 XT", "torch": PYTORCH_ORG, "os": "linux"}
FORCED = {**RDNA1, "env.HSA_OVERRIDE_GFX_VERSION": "10.3.0"}
NATIVE = {**RDNA1, "torch": "2.14.0+rocm10.1.0"}
RDNA2 = {"gfx": "gfx1031", "gpu": "RX 6700 XT", "torch": PYTORCH_ORG, "os": "linux", "env.HSA_OVERRIDE_GFX_VERSION": "10.3.0"}
NAVI21 = {"gfx": "gfx1030", "gpu": "RX 6800 XT", "torch": PYTORCH_ORG, "os": "linux"}
STRIX = {"gfx": "gfx1151", "gpu": "Radeon 8060S", "os": "linux"}

# number, line, machine, cause (with '-' before it: told, and no problem), a remedy among the first three ('': none asked for)
LINES = [
    (1, "RuntimeError: HIP error: invalid device function", RDNA1, "missing_code_object", "use_arch_specific_build"),
    (2, 'hipErrorNoBinaryForGpu: "Unable to find code object for all current devices!"', RDNA1, "missing_code_object", "use_arch_specific_build"),
    (3, "hip_fatbin.cpp: COMGR API could not find the CO for this GPU device/ISA: amdgcn--gfx1010", RDNA1, "missing_code_object", "use_arch_specific_build"),
    (4, "HSA_STATUS_ERROR_MEMORY_APERTURE_VIOLATION: beyond the largest legal address. code: 0x29", FORCED, "override_unsafe", "unset_or_change_override"),
    (5, "100 % GPU, no progress, no error", FORCED, "override_unsafe", "use_arch_specific_build"),
    (6, "rocBLAS error: Cannot read library/TensileLibrary.dat: Illegal seek for GPU arch : gfx1010", RDNA1, "rocblas_tensile_missing", "upgrade_rocm"),
    (7, "rocBLAS error: Cannot read TensileLibrary.dat: No such file or directory for GPU arch : gfx1031", RDNA2, "rocblas_tensile_missing", "set_override"),
    (8, "rocblaslt error: Cannot read TensileLibrary_lazy_gfx1010.dat: No such file or directory", NATIVE, "hipblaslt_arch", "set_env_other"),
    (9, "UserWarning: Attempting to use hipBLASLt on an unsupported architecture!", RDNA1, "-harmless_warning", ""),
    (10, "Memory access fault by GPU node-1 on address 0x7f. Reason: Page not present or supervisor privilege.", NAVI21, "gpu_page_fault", "app_flag"),
    (11, "Memory access fault by GPU node-1 on address (nil). Reason: Unknown.", RDNA2, "override_wrong", "unset_or_change_override"),
    (12, "RuntimeError: HIP error: an illegal memory access was encountered", NAVI21, "gpu_page_fault", "app_flag"),
    (13, "amdgpu 0000:0a:00.0: amdgpu: [gfxhub] page fault (src_id:0 ring:24 vmid:8 pasid:32780)", NAVI21, "gpu_page_fault", ""),
    (14, "HSA_STATUS_ERROR_ILLEGAL_INSTRUCTION: illegal shader instruction. code: 0x2a", FORCED, "override_unsafe", "unset_or_change_override"),
    (15, "Queue aborting with error : HSA_STATUS_ERROR_INVALID_ISA. code: 0x100f", {**RDNA2, "env.HSA_OVERRIDE_GFX_VERSION": "11.0.0"}, "override_wrong", "unset_or_change_override"),
    (16, "HW Exception by GPU node-1 (Agent handle: 0x5) reason :GPU Hang", FORCED, "override_unsafe", "use_arch_specific_build"),
    (17, "amdgpu: ring gfx_0.0.0 timeout, signaled seq=1, emitted seq=3", NAVI21, "ring_timeout_reset", ""),
    (18, "amdgpu: ring sdma0 timeout, signaled seq=1, emitted seq=3", NAVI21, "ring_timeout_reset", "set_env_other"),
    (19, "amdgpu: Failed to evict process queues", NATIVE, "ring_timeout_reset", ""),
    (20, "amdgpu: cp queue preemption failed; MODE1 reset", NAVI21, "ring_timeout_reset", "kernel_param"),
    (21, "kfd kfd: amdgpu: skipped device 1002:7340, PCI rejects atomics 138<145", {**RDNA1, "gfx": "gfx1012"}, "pcie_atomics", "firmware_update"),
    (22, "Pcie atomics not enabled, hostcall not supported", RDNA1, "-harmless_warning", ""),
    (23, "RuntimeError: miopenStatusUnknownError", NAVI21, "miopen_compile_or_find", "app_flag"),
    (24, "MIOpen(HIP): Error [EvaluateInvokers] Invalid elapsed time detected in EvaluateInvokers", STRIX, "runtime_regression", "app_flag"),
    (25, "MIOpen Error: stoul", NAVI21, "miopen_compile_or_find", "upgrade_torch_rocm"),
    (26, "RuntimeError: No suitable algorithm was found to execute the required convolution", NAVI21, "miopen_compile_or_find", "app_flag"),
    (27, "RuntimeError: Unable to find a suitable algorithm", {"gfx": "gfx803", "os": "linux"}, "miopen_compile_or_find", "app_flag"),
    (28, "MIOpen(HIP): Warning [SQLiteBase] Missing system database file: gfx1030_18.kdb Performance may degrade.", FORCED, "-harmless_warning", ""),
    (29, "MIOpen(HIP): Warning [ParseAndLoadDb] File is unreadable: gfx1010_20.HIP.fdb.txt", NATIVE, "-harmless_warning", ""),
    (30, "MIOpen(HIP): Warning [IsEnoughWorkspace] Solver <GemmFwdRest>, workspace required: 9, provided ptr: 0 size: 0", NAVI21, "-harmless_warning", ""),
    (31, "MIOpen(HIP): Error MIOPEN_DEVICE_ARCH used, escaping launching kernel", RDNA1, "folklore_setting", "remove_setting"),
    (32, "MIOpen(HIP): Warning [GenericSearch] Failed rc=1; Empty code object path", NAVI21, "miopen_compile_or_find", "set_miopen_env"),
    (33, "error: use of undeclared identifier 'CK_BUFFER_RESOURCE_3RD_DWORD'", RDNA1, "build_toolchain", "build_from_source_for_arch"),
    (34, "ck_tile/core/arch.hpp: error in get_compiler_target for gfx1010", RDNA1, "build_toolchain", "build_from_source_for_arch"),
    (35, "RuntimeError: HIP error: shared object initialization failed", {**RDNA2, "gpu": "RX 6700 XT; Raphael iGPU", "gfx": "gfx1031,gfx1036"}, "igpu_selected", "set_visible_devices"),
    (36, "RuntimeError: No HIP GPUs are available", {**NAVI21, "groups": "me adm cdrom sudo"}, "kfd_permission", "fix_permissions_groups"),
    (37, "hipErrorInvalidDevice, Error 101", {**NAVI21, "env.HIP_VISIBLE_DEVICES": "3"}, "igpu_selected", "set_visible_devices"),
    (38, "Unable to open /dev/kfd read-write: Permission denied", NAVI21, "kfd_permission", "fix_permissions_groups"),
    (39, "Unable to open /dev/kfd read-write: Invalid argument", NAVI21, "kernel_driver_mismatch", "upgrade_kernel"),
    (40, "Call returned HSA_STATUS_ERROR_OUT_OF_RESOURCES (4104)", {**NAVI21, "groups": "me"}, "kfd_permission", "fix_permissions_groups"),
    (41, "ROCR: unsupported GPU", {"gfx": "gfx1030", "os": "wsl"}, "wsl", "use_supported_platform"),
    (42, "torch.cuda.is_available() False", {**NAVI21, "torch": "2.5.1+cpu"}, "wrong_torch_wheel", "use_arch_specific_build|install_matching_torch_wheel"),
    (43, "ImportError: libamdhip64.so: cannot enable executable stack as shared object requires", {**RDNA1, "torch": "1.13.1+rocm5.2"}, "import_segfault", "replace_library|use_arch_specific_build"),
    (44, "ERROR: No matching distribution found for torch==1.13.1+rocm5.2", {"python": "3.12", "os": "linux"}, "python_version", "change_python"),
    (45, "RuntimeWarning: invalid value encountered in cast; the image is black, all NaN", RDNA2, "numerical", "app_flag"),
    (46, "Triton kernels return zeros with hipSuccess", NATIVE, "numerical", "set_env_other"),
    (47, "RuntimeError: No available kernel. Aborting execution. (scaled_dot_product_attention)", NAVI21, "flash_attention", "app_flag"),
    (48, "Fatal Python error: Segmentation fault in conv2d, fp16", NAVI21, "miopen_solver_fault", "app_flag"),
    (49, "segfault in libamd_comgr.so.3", NAVI21, "runtime_regression", "upgrade_torch_rocm"),
    (50, "exit code -1073741819 (0xC0000005)", {"gfx": "gfx1030", "os": "windows"}, "runtime_regression", "downgrade_rocm"),
    (51, "warning: xnack 'Off' was requested for a processor that does not support it!", NATIVE, "-harmless_warning", ""),
    (52, "/opt/amdgpu/share/libdrm/amdgpu.ids: No such file or directory", NAVI21, "-harmless_warning", ""),
]


@pytest.mark.parametrize(("number", "line", "given", "cause", "remedy"), LINES, ids=[f"F{row[0]}" for row in LINES])
def test_each_known_line_is_answered_rightly_from_itself_and_a_machine(number, line, given, cause, remedy):
    findings = explain(line, picture.given(given), TABLES).diagnosis.findings
    problems = [item for item in findings if item.severity == "problem"]
    if cause.startswith("-"):
        assert not problems
        assert cause[1:] in [item.cause for item in findings]
        return
    assert problems[0].cause == cause
    first = [advice.remedy for item in problems for advice in item.remedies][:3]
    assert not remedy or set(remedy.split("|")) & set(first), first
    assert any(line[:40] in text for text in problems[0].why), "the line that says so is quoted"


def test_all_52_are_there():
    assert [row[0] for row in LINES] == list(range(1, 53))


# The same line, on another card or beside another line, means something else.
CONTRASTS = [
    ("HIP error: invalid device function", {"gfx": "gfx1010"}, "set_override", False),
    ("HIP error: invalid device function", {"gfx": "gfx1032"}, "set_override", True),
    ("HIP error: invalid device function", {"gfx": "gfx1032", "env.HSA_OVERRIDE_GFX_VERSION": "10.3.2"}, "unset_or_change_override", True),
    ("Memory access fault by GPU node-1", {"gfx": "gfx1010", "env.HSA_OVERRIDE_GFX_VERSION": "10.3.0"}, "unset_or_change_override", True),
    ("Memory access fault by GPU node-1", {"gfx": "gfx1030"}, "use_arch_specific_build", False),
    ("amdgpu is not supported", {"gfx": "gfx1032", "os": "linux", "app": "ollama"}, "set_override", True),
    ("amdgpu is not supported", {"gfx": "gfx1032", "os": "windows", "app": "ollama"}, "set_override", False),
    ("amdgpu is not supported", {"gfx": "gfx1010", "os": "linux", "app": "ollama"}, "set_override", False),
]


@pytest.mark.parametrize(("line", "given", "remedy", "advised"), CONTRASTS)
def test_a_line_means_what_the_card_makes_of_it(line, given, remedy, advised):
    findings = explain(line, picture.given(given), TABLES).diagnosis.findings
    first = [advice.remedy for item in findings if item.severity == "problem" for advice in item.remedies][:3]
    assert first
    assert (remedy in first) is advised


def test_no_atomics_beside_an_added_device_are_no_fault():
    shown = "amdgpu: PCIE atomic ops is not supported\nkfd kfd: amdgpu: added device 1002:73ff"
    answer = explain(shown, picture.given({"gfx": "gfx1032"}), TABLES).diagnosis
    assert answer.healthy
    skipped = explain(shown.replace("added device 1002:73ff", "skipped device 1002:73ff, PCI rejects atomics"), picture.given({}), TABLES)
    assert skipped.diagnosis.findings[0].cause == "pcie_atomics"


def test_a_database_warning_beside_a_fault_is_not_its_cause():
    shown = "MIOpen(HIP): Warning [SQLiteBase] Missing system database file: gfx1030_18.kdb Performance may degrade.\nHIP out of memory"
    findings = explain(shown, picture.given({"gfx": "gfx1030"}), TABLES).diagnosis.findings
    assert [item.cause for item in findings if item.severity == "problem"] == ["out_of_memory"]
