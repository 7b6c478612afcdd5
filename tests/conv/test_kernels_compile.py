"""Every kernel that the layer suites need, compiled for gfx10 by a real AMDGPU compiler and looked into; no GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import conv_isa
import conv_loops

CLANG = conv_isa.find_clang()
TORCH = conv_isa.torch_python()
if "ROCM_PATCH_EXHAUSTIVE" not in os.environ:
    pytest.skip("some hundred compilations, three minutes and more: ROCM_PATCH_EXHAUSTIVE=1 runs them", allow_module_level=True)
needs_clang = pytest.mark.skipif(CLANG is None, reason="no clang from 16 on with AMDGPU and lld here: apt install clang-19 lld-19")
needs_torch = pytest.mark.skipif(TORCH is None, reason="no torch here and none named in ROCM_PATCH_TEST_TORCH: nobody says which kernels there are")

LOOP = """
kernel:
  s_mov_b32 s0, 4 ; before
.LBB0_1:
  s_cbranch_scc1 .LBB0_3
  ds_read_b128 v[0:3], v9
  v_fmac_f32_e32 v4, v0, v1
.LBB0_2:
  v_fmac_f32_e32 v4, v0, v1
  v_fmac_f32_e32 v5, v0, v1
  s_cbranch_vccnz .LBB0_2
  v_add_f32_e32 v4, v5, v4
  s_branch .LBB0_1
.LBB0_3:
  s_endpgm
"""


def kinds(units: list[conv_isa.Unit]) -> list[conv_isa.Unit]:
    """One of each line of the document: each kernel, each tile; and each way to read."""
    return list({conv_isa.kind(unit): unit for unit in units}.values())


@pytest.fixture(scope="module")
def units() -> list[conv_isa.Unit]:
    assert TORCH is not None
    return conv_isa.recorded(TORCH, False, ["float32"])


@needs_torch
def test_the_suites_need_every_kernel_that_there_is(units: list[conv_isa.Unit]) -> None:
    files = {path.stem for path in (conv_isa.CONV / "kernels").glob("*.cu")}
    assert {unit.name for unit in units} == files


@needs_clang
@needs_torch
def test_every_kernel_compiles_for_every_target_and_nothing_spills(units: list[conv_isa.Unit]) -> None:
    some = kinds(units)
    # All for the first chip, each kernel once for the others: they differ little, and CI has two cores. The tool does all of them.
    first, *others = conv_isa.TARGETS
    tasks = [(unit, first, CLANG) for unit in some]
    tasks += [(unit, target, CLANG) for target in others for unit in {unit.name: unit for unit in some}.values()]
    reports = conv_isa.each(conv_isa.inspect, tasks)
    assert {report.target for report in reports} == set(conv_isa.TARGETS)
    assert [report for report in reports if not report.clean] == []
    for report in reports:
        assert report.instructions > 20
        assert report.wave == 32
        assert 0 < report.vgprs <= 256
        assert report.lds <= 64 << 10
        assert report.waves >= 4
        assert "s_endpgm" in report.opcodes
        assert not [name for name in report.opcodes if name.startswith(("v_dot", "v_wmma", "v_mfma"))]
    # The matrix products multiply by fused instructions.
    assert all({"v_fmac_f32", "v_fma_f32"} & set(report.opcodes) for report in reports if report.unit.startswith(("gather", "weight")))


@needs_clang
@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_and_waves_of_64_lanes_compile(dtype: str) -> None:
    assert TORCH is not None
    first = {unit.name: unit for unit in conv_isa.recorded(TORCH, False, [dtype])}
    reports = conv_isa.each(conv_isa.inspect, ((unit, "gfx1010", CLANG, wave) for unit in first.values() for wave in (32, 64)))
    assert {report.wave for report in reports} == {32, 64}
    assert [(report.unit, report.undecoded, report.hazards) for report in reports if report.undecoded or report.hazards] == []
    assert [report for report in reports if report.wave == 32 and not report.clean] == []


@needs_clang
def test_what_spills_is_seen_and_what_is_wrong_does_not_compile() -> None:
    assert CLANG is not None
    many = "".join(f"float a{n} = p[{n} + threadIdx.x]; " for n in range(300))
    sums = "".join(f"p[{n} + threadIdx.x] = a{n} * a{(n * 7 + 1) % 300}; " for n in range(300))
    body = (
        'extern "C" __global__ void __launch_bounds__(64) many(float *p) {' + many + '__syncthreads(); asm volatile("" ::: "memory"); ' + sums + "}"
    )
    report = conv_isa.inspect(conv_isa.Unit("many", (), body), "gfx1010", CLANG)
    assert report.vgpr_spills > 0
    assert report.scratch > 0
    assert not report.clean
    with pytest.raises(RuntimeError, match="error"):
        conv_isa.inspect(conv_isa.Unit("many", (), body.replace("threadIdx", "nobody")), "gfx1010", CLANG)


@needs_clang
def test_launch_bounds_mean_what_hip_means(tmp_path: Path) -> None:
    assert CLANG is not None
    body = 'extern "C" __global__ void __launch_bounds__(BLOCK, 8) k(float *p) { p[blockIdx.y * gridDim.x + threadIdx.x] = 1; }'
    assembly, _ = conv_isa.compiled(conv_isa.Unit("k", (("BLOCK", 96),), body), "gfx1030", CLANG, ["-S"])
    assert b".max_flat_workgroup_size: 96" in assembly


def test_the_innermost_loop_is_found() -> None:
    blocks, follow = conv_loops.blocks_of(LOOP)
    hot = next(number for number, block in enumerate(blocks) if sum(line.startswith("v_fmac") for line in block) == 2)
    assert conv_loops.innermost(follow, hot) == {hot}
    outer = conv_loops.innermost(follow, hot - 1)
    assert hot in outer
    assert "v_add_f32_e32 v4, v5, v4" in [line for number in outer for line in blocks[number]]
    assert conv_loops.innermost(follow, 0) == set()


@pytest.mark.skipif(conv_loops.find_mca() is None, reason="no llvm-mca that survives gfx10 code: apt install llvm-16")
def test_a_loop_is_counted() -> None:
    mca = conv_loops.find_mca()
    assert mca is not None
    loop = conv_loops.loop_of("kernel", LOOP, mca)
    assert loop is not None
    assert (loop.fmas, loop.vector, loop.local, loop.block_fmas) == (2, 2, 0, 2)
    assert loop.vector_share == 1
    assert 0 < loop.alone <= 1
    assert conv_loops.loop_of("none", "s_mov_b32 s0, 1\ns_endpgm", mca) is None


def test_the_document_has_its_tables() -> None:
    text = conv_isa.DOC.read_text()
    assert text.count("| gather ") >= 20
    assert ": 0 with spills" in text
    assert os.path.basename(conv_isa.__file__) in text
