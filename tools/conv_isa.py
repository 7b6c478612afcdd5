"""Compile the convolution engine's kernels for gfx10 chips with a real AMDGPU compiler, and look at what comes out.

    python tools/conv_isa.py                         the kernels that the layer suites take first, float32, all targets: a summary
    python tools/conv_isa.py --all --json FILE       every variant that could be asked for; all figures
    python tools/conv_isa.py --doc                   write the tables of docs/convolution-kernels.md

Which kernels there are is not listed here: every algorithm is asked to prepare every layer of conv/suites.py, and what it asks the
runtime to compile is written down. That needs a torch (a CPU build will do): this interpreter's, or `--torch PYTHON`, or the one
that ROCM_PATCH_TEST_TORCH names. Compiling needs clang 16 or newer with AMDGPU and its lld; no GPU.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conv_loops import Loop, find_mca, loop_of

ROOT = Path(__file__).resolve().parent.parent
CONV = ROOT / "src" / "rocm_patch" / "conv"
DOC = ROOT / "docs" / "convolution-kernels.md"
TARGETS = ("gfx1010", "gfx1011", "gfx1012", "gfx1030", "gfx1036")
DTYPES = ("float32", "float16", "bfloat16", "float64")
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast")
"""As conv/runtime.py hands them to hipRTC."""

PROLOGUE = r"""
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define BOUNDS_1(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#define BOUNDS_2(threads, waves) __attribute__((amdgpu_flat_work_group_size(1, threads), amdgpu_waves_per_eu(waves)))
#define BOUNDS(first, second, which, ...) which
#define __launch_bounds__(...) BOUNDS(__VA_ARGS__, BOUNDS_2, BOUNDS_1)(__VA_ARGS__)
#define NUMBER(name, expression) struct name { __device__ operator unsigned int() const { return expression; } }
NUMBER(ThreadX, __builtin_amdgcn_workitem_id_x());
NUMBER(BlockX, __builtin_amdgcn_workgroup_id_x());
NUMBER(BlockY, __builtin_amdgcn_workgroup_id_y());
NUMBER(BlockZ, __builtin_amdgcn_workgroup_id_z());
NUMBER(GridX, __builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x());
NUMBER(GridY, __builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y());
NUMBER(GridZ, __builtin_amdgcn_grid_size_z() / __builtin_amdgcn_workgroup_size_z());
struct ThreadIndex { ThreadX x; };
struct BlockIndex { BlockX x; BlockY y; BlockZ z; };
struct GridSize { GridX x; GridY y; GridZ z; };
extern const __device__ ThreadIndex threadIdx;
extern const __device__ BlockIndex blockIdx;
extern const __device__ GridSize gridDim;
__device__ __forceinline__ void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
__device__ __forceinline__ unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned int)((unsigned long long)a * b >> 32); }
"""
"""What hipRTC's built-in header supplies of the HIP language, as far as our kernels use it; launch bounds mean what they mean there."""


@dataclass(frozen=True)
class Unit:
    """One kernel as the engine would compile it."""

    name: str
    defines: tuple[tuple[str, int], ...]
    source: str

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.defines)])


@dataclass(frozen=True)
class Report:
    """What the compiler and our own scanner say of one kernel on one target; sizes in bytes, registers each."""

    unit: str
    target: str
    wave: int
    vgprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    scratch: int
    lds: int
    waves: int
    code: int
    instructions: int
    undecoded: int
    hazards: dict[str, int] = field(default_factory=dict)
    opcodes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not (self.vgpr_spills or self.sgpr_spills or self.scratch or self.undecoded or self.hazards)


# ------------------------------------------------------------------ which kernels there are


def record(everything: bool, dtypes: Sequence[str], conv: Path = CONV) -> list[Unit]:
    """What the algorithms ask for, for every layer of the suites in every direction; needs torch."""
    # Alone and under another name, as it is copied into other environments: this torch's interpreter may lack all our dependencies.
    spec = importlib.util.spec_from_file_location("recorded_conv", conv / "__init__.py", submodule_search_locations=[str(conv)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)
    algorithms, problem, runtime, suites = (
        importlib.import_module(f"recorded_conv.{name}") for name in ("algorithms", "problem", "runtime", "suites")
    )
    import torch

    found: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}

    class Recorder:
        target = "recorded"

        def kernel(self, source: str, name: str, defines: tuple[tuple[str, int], ...]) -> Recorder:
            found.setdefault((name, defines), source)
            return self

    device = torch.device("cpu")
    runtime.EXTRA[device.type] = Recorder()
    limit = 256 << 20
    for dtype in dtypes:
        for layer in sorted(set(suites.SUITES), key=repr):
            image, map_ = (layer.output_shape, layer.input_shape) if layer.transposed else (layer.input_shape, layer.output_shape)
            sizes = (image[2:], map_[2:], layer.kernel, layer.stride, layer.padding, layer.dilation)
            for operation in problem.OPERATIONS:
                one = problem.Problem(
                    operation, device, getattr(torch, dtype), layer.batch, image[1], map_[1], layer.groups, *sizes, layer.bias
                )  # fmt: skip
                for algorithm in algorithms.ALGORITHMS:
                    if algorithm.kernels and not algorithm.guard(one):
                        for variant in algorithm.variants(one, limit)[: None if everything else 1]:
                            algorithm.prepare(one, variant, limit)
    return [Unit(name, defines, source) for (name, defines), source in sorted(found.items())]


def recorded(python: str, everything: bool, dtypes: Sequence[str]) -> list[Unit]:
    """`record` in a child of an interpreter that has torch."""
    command = [python, __file__, "--record", "--dtypes", ",".join(dtypes), *(["--all"] if everything else [])]
    return read_units(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def torch_python() -> str | None:
    """An interpreter that has torch."""
    if importlib.util.find_spec("torch") is not None:
        return sys.executable
    return os.environ.get("ROCM_PATCH_TEST_TORCH") or None


# ------------------------------------------------------------------ compiling and inspecting


def find_clang() -> str | None:
    """The newest clang that has AMDGPU and a lld beside it."""
    named = os.environ.get("ROCM_PATCH_CLANG")
    by_age = sorted(glob.glob("/usr/lib/llvm-*/bin/clang"), key=lambda path: int(re.findall(r"llvm-(\d+)", path)[0]), reverse=True)
    for clang in [*([named] if named else []), *by_age, *filter(None, [shutil.which("clang")])]:
        version = subprocess.run([clang, "--version"], capture_output=True, text=True, check=False).stdout
        number = re.search(r"clang version (\d+)", version)
        targets = subprocess.run([clang, "--print-targets"], capture_output=True, text=True, check=False).stdout
        if number and int(number[1]) >= 16 and "amdgcn" in targets and (Path(clang).resolve().parent / "ld.lld").exists():
            return clang
    return None


def version_of(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(line.strip() for line in said.splitlines() if "version" in line)


def compiled(unit: Unit, target: str, clang: str, extra: Sequence[str] = ()) -> tuple[bytes, str]:
    """The code object (or, with -S, the assembly) and the compiler's remarks.

    Raises:
        RuntimeError: it does not compile, or not without a warning.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "kernel.hip"), Path(folder, "kernel.o")
        source.write_text("\n".join([*(f"#define {key} {value}" for key, value in unit.defines), PROLOGUE, unit.source]))
        command = [
            clang, "-x", "hip", f"--offload-arch={target}", "--offload-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc", "-Wall",
            "-Wno-unused-variable", "-Wno-unused-const-variable", "-Wno-unused-function", "-Wno-pass-failed", *OPTIONS,
            "-Rpass-analysis=kernel-resource-usage", *extra, "-o", str(result), str(source),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or re.search(r"\b(warning|error):", done.stderr):
            raise RuntimeError(f"{unit.label} for {target}: {done.stderr[:4000]}")
        return result.read_bytes(), done.stderr


_METADATA = {
    "wave": ".wavefront_size", "vgprs": ".vgpr_count", "sgprs": ".sgpr_count", "vgpr_spills": ".vgpr_spill_count",
    "sgpr_spills": ".sgpr_spill_count", "scratch": ".private_segment_fixed_size", "lds": ".group_segment_fixed_size",
}  # fmt: skip
"""https://llvm.org/docs/AMDGPUUsage.html#amdgpu-amdhsa-code-object-kernel-metadata-map-table-v3"""


def inspect(unit: Unit, target: str, clang: str, wave: int = 32) -> Report:
    """Compile for waves of 32 or 64 lanes and read what came out; the compiler says how many waves fit."""
    data, said = compiled(unit, target, clang, ["-mwavefrontsize64"] if wave == 64 else [])
    found = re.search(r"Occupancy \[waves/SIMD\]: (\d+)", said)
    assert found is not None, said[:1000]
    return report(unit, target, data, int(found[1]))


def report(unit: Unit, target: str, data: bytes, waves: int = 0) -> Report:
    """Read a code object: the kernel's metadata, then our own decoder and its rules.

    Raises:
        RuntimeError: it is for another target, or the kernel is not in it.
    """
    import msgpack
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import NoteSection

    from rocm_patch.images import code_object
    from rocm_patch.images.source import Bytes
    from rocm_patch.isa import judge, stretches, table

    source = Bytes(data)
    read = code_object.read(source)
    if read.target.partition(":")[0] != target or unit.name not in read.kernel_names:
        raise RuntimeError(f"{unit.label}: {read.kernel_names} for {read.target} came out, not for {target}")
    sections = (section for section in ELFFile(io.BytesIO(data)).iter_sections() if isinstance(section, NoteSection))
    notes = [msgpack.unpackb(note["n_descdata"]) for section in sections for note in section.iter_notes() if note["n_name"] == "AMDGPU"]
    kernel = next(kernel for note in notes for kernel in note["amdhsa.kernels"] if kernel[".name"] == unit.name)
    judgement = judge(source, target)
    opcodes = table.load()
    names = {
        opcodes.name(opcode, stretch.made_for)
        for _, stretch, _ in stretches(source, read, target) for opcode in set(stretch.instructions.opcode.tolist())
    }  # fmt: skip
    return Report(
        unit.label, target, **{key: kernel[name] for key, name in _METADATA.items()}, waves=waves,
        code=sum(function.size for function in read.functions),
        instructions=judgement.instructions, undecoded=judgement.undecoded,
        hazards={rule: count.certain + count.possible for rule, count in judgement.rules.items()}, opcodes=tuple(sorted(filter(None, names))),
    )  # fmt: skip


def each(work: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], workers: int | None = None) -> list[Any]:
    """In threads: the compiler is a child process."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda task: work(*task), tasks))


# ------------------------------------------------------------------ words

GROUPS = {
    "gather": ("BM", "BN", "BK"), "weight": ("BM", "BN", "BK"), "direct": ("BACK", "STAGED"), "direct_weight": ("FILTERS",),
}  # fmt: skip
"""Macros that make a line of the tables; other kernels have one line."""


def group(unit: Unit) -> str:
    values = dict(unit.defines)
    shown = GROUPS.get(unit.name, ())
    if shown == ("BM", "BN", "BK"):
        return f"{unit.name} {values['BM']}x{values['BN']}x{values['BK']}"
    return ", ".join([unit.name, *(f"{key.lower()} {values[key]}" for key in shown)])


def kind(unit: Unit) -> tuple[str, int]:
    """Finer than a line: what it compiles from the source differs much between `UNIFORM` 0, 1 and 2."""
    return group(unit), dict(unit.defines).get("UNIFORM", 0)


def span(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}"


def table(units: Sequence[Unit], reports: Sequence[Report], targets: Sequence[str]) -> list[str]:
    """Registers and the rest by group of kernels, for two targets side by side."""
    groups = {unit.label: group(unit) for unit in units}
    lines = [
        f"| kernel | variants | {' | '.join(f'VGPRs {target} | waves' for target in targets)} | SGPRs | LDS, KiB | code, KiB |",
        "|---|" + "---|" * (2 * len(targets) + 4),
    ]
    for name in dict.fromkeys(groups.values()):
        rows = [row for row in reports if groups[row.unit] == name]
        cells = []
        for target in targets:
            own = [row for row in rows if row.target == target]
            cells += [span(row.vgprs for row in own), span(row.waves for row in own)]
        local, code = (f"{max(getattr(row, key) for row in rows) / 1024:.1f}" for key in ("lds", "code"))
        variants = len({row.unit for row in rows})
        lines.append(f"| {name} | {variants} | {' | '.join(cells)} | {span(row.sgprs for row in rows)} | {local} | {code} |")
    return lines


def loop_table(units: Sequence[Unit], loops: Sequence[Loop]) -> list[str]:
    """Inner loops of the matrix products: one line a tile; what depends on how it reads is given for uniform 0, 1 and 2."""
    known = {unit.label: kind(unit) for unit in units}
    lines = [
        "| kernel | FMAs | vector instructions, uniform 0 / 1 / 2 | FMA / vector | LDS feeds | one wave alone |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(known[loop.unit][0] for loop in loops):
        by_uniform = {known[loop.unit][1]: loop for loop in loops if known[loop.unit][0] == name}
        best = by_uniform[max(by_uniform)]

        def cells(show: Callable[[Loop], str], found: dict[int, Loop] = by_uniform) -> str:
            return " / ".join(show(found[uniform]) if uniform in found else "-" for uniform in (0, 1, 2))

        vector, share = cells(lambda loop: str(loop.vector)), cells(lambda loop: f"{loop.vector_share:.0%}")
        lines.append(f"| {name} | {best.fmas} | {vector} | {share} | {best.local_share:.0%} | {cells(lambda loop: f'{loop.alone:.0%}')} |")
    return lines


def summary(reports: Sequence[Report]) -> str:
    bad = [row for row in reports if not row.clean]
    instructions = sum(row.instructions for row in reports)
    return (
        f"{len(reports)} kernels for {', '.join(dict.fromkeys(row.target for row in reports))}: {len(bad)} with spills, scratch, undecoded "
        f"instructions or hazards; {instructions} instructions decoded"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=torch_python(), help="interpreter with a torch")
    parser.add_argument("--clang", default=find_clang())
    parser.add_argument("--all", action="store_true", help="every variant, not only the one that is tried first")
    parser.add_argument("--dtypes", default="float32", help=f"of {','.join(DTYPES)}")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--wave", type=int, default=32, choices=(32, 64))
    parser.add_argument("--only", default="", help="kernels whose name begins so")
    parser.add_argument("--json", type=Path, help="all figures")
    parser.add_argument("--doc", action="store_true", help=f"write the tables of {DOC.relative_to(ROOT)}")
    parser.add_argument("--record", action="store_true", help="print which kernels there are, with their source, as JSON")
    parser.add_argument("--objects", nargs=2, metavar=("FOLDER", "KERNELS"), help="inspect what tools/conv_hiprtc.py compiled")
    options = parser.parse_args()
    dtypes, targets = options.dtypes.split(","), options.targets.split(",")
    if options.record:
        json.dump([[unit.name, unit.defines, unit.source] for unit in record(options.all, dtypes)], sys.stdout)
        return 0
    if options.objects:
        folder, recorded_file = options.objects
        units = read_units(Path(recorded_file).read_text())
        found = sorted(Path(folder).glob("*-*.o"))
        reports = [report(units[int(at.stem.partition("-")[0])], at.stem.partition("-")[2], at.read_bytes()) for at in found]
    else:
        if not options.torch or not options.clang:
            parser.error("a torch and a clang with AMDGPU are needed")
        units = [unit for unit in recorded(options.torch, options.all, dtypes) if unit.name.startswith(options.only)]
        reports = each(inspect, ((unit, target, options.clang, options.wave) for unit in units for target in targets))
    print(summary(reports))
    for row in reports:
        if not row.clean:
            spills = f"{row.vgpr_spills}+{row.sgpr_spills} spills, {row.scratch} bytes of scratch"
            print(f"{row.target} {row.unit}: {spills}, {row.undecoded} undecoded, hazards {row.hazards}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in reports], indent=1))
    if options.doc:
        write_doc(units, reports, targets, options.clang)
    return int(any(not row.clean for row in reports))


def write_doc(units: Sequence[Unit], reports: Sequence[Report], targets: Sequence[str], clang: str) -> None:
    """Between the marks of the document; what stands around them stays."""
    mca = find_mca()
    if mca is None:
        raise SystemExit("no llvm-mca that works")
    tiles = {kind(unit): unit for unit in reversed(units) if unit.name in ("gather", "weight")}

    def loop(unit: Unit) -> Loop | None:
        return loop_of(unit.label, compiled(unit, "gfx1010", clang, ["-S"])[0].decode(), mca)

    loops = [found for found in each(loop, ((unit,) for unit in reversed(tiles.values()))) if found is not None]
    parts = {
        "registers": [f"{version_of(clang)}, `{' '.join(OPTIONS)}`; {summary(reports)}.", "", *table(units, reports, [targets[0], "gfx1030"])],
        "loops": [f"{version_of(clang)}; llvm-mca of {version_of(mca)}, gfx1010.", "", *loop_table(units, loops)],
    }
    text = DOC.read_text()
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        text = head + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    DOC.write_text(text)


def read_units(text: str) -> list[Unit]:
    return [Unit(name, tuple((key, value) for key, value in defines), source) for name, defines, source in json.loads(text)]


if __name__ == "__main__":
    sys.exit(main())
