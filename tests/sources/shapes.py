"""Small source trees of our own writing that have the syntax around each place, one for each generation that differs.

Nothing here is upstream's text: only the names that a patch looks for are theirs.
"""

from __future__ import annotations


def _solver(guard):
    return f"""namespace batchnorm {{
int Solver::Build(const Context& context) const
{{
    const auto& handle = context.Stream();
    const Parameters chosen{{
        {{"SIZE", size}},
        {guard},
        {{"OTHER", (StartsWith(handle.GetDeviceName(), "gfx110") ? "1" : "0")}},
    }};
    return chosen.Total();
}}
}} // namespace batchnorm
"""


_OLD = '{"GFX1030", ((handle.GetDeviceName() == "gfx1030") ? "1" : "0")}'
_CALL = '{"GFX103X", (StartsWith(handle.GetDeviceName(), "gfx103") ? "1" : "0")}'
_CAST = '{"GFX103X", static_cast<int>(StartsWith(handle.GetDeviceName(), "gfx103"))}'
_QUALIFIED = '{"GFX103X", (miopen::StartsWith(handle.GetDeviceName(), "gfx103") ? "1" : "0")}'
_MERGED = [
    "forward_spatial",
    "backward_spatial",
    "forward_inference",
    *(f"{way}_per_activation{end}" for way in ("forward", "backward") for end in ("", "_fused")),
]
_SEVEN = [f"src/solver/batchnorm/solver_{number}.cpp" for number in range(7)]
_FUSION = """std::string Fused::Options(Handle& handle)
{{
    std::string words = " -DA=1";
    words += " -DB=" + {guard};
    return words;
}}
std::string Other::Options(Handle& handle)
{{
    return " -DB=" + {guard};
}}
"""
_OLD_WORD, _CALL_WORD = _OLD.partition(", ")[2][:-1], _CALL.partition(", ")[2][:-1]


def _batchnorm(seven, more):
    files = {path: _solver(seven) for path in _SEVEN}
    # Two files of upstream have these ends in every release.
    files[_SEVEN[3]] = files[_SEVEN[3]].replace("\n", "\r\n")
    return {**files, **more}


def _winograd(chips, name="Solver"):
    tests = " || ".join(f'StartsWith(name, "{chip}")' for chip in chips)
    return f"""bool {name}::IsApplicable(const Problem& problem) const
{{
    const auto name = problem.Device();
    if(!({tests}))
        return false;
    if(problem.IsHalf() && !(StartsWith(name, "gfx906") || StartsWith(name, "gfx1011")))
        return false;
    return true;
}}
void {name}::Build(Kernel& kernel)
{{
    const auto is_gfx10 = StartsWith(name, "gfx10");
    kernel.name += is_gfx10 ? "_gfx10" : "_gfx9";
}}
"""


def _graph(chips):
    listed = ", ".join(f'"{chip}"' for chip in chips)
    return f"""void Graph::Init()
{{
    add("gfx9", {{"gfx900", "gfx906"}}, 1);
    add("gfx10", {{{listed}}}, 1);
    add("gfx10", {{{listed}}}, 2);
}}
"""


_FUSED_LIST = """bool Fused::IsApplicable(const Problem& problem) const
{
    const std::string name = problem.Device();
    if(name == "gfx906" || name == "gfx1011" || name == "gfx1012" || name == "gfx1030")
    {
        return problem.Small();
    }
    return false;
}
"""


def _modes(head, value):
    return f"""enum class Enforce {{ First_ = 1, None = First_, Default_ = None }};
{head} FindMode
{{
public:
    enum class Values {{ Begin_ = 1, Normal = Begin_, Fast, DynamicHybrid, End_, Default_ = {value}, }};
}};
"""


def _find(signature, loop):
    return f"""#include <miopen/handle.hpp>
#include <miopen/config.h>

{signature}
{{
    auto best = std::numeric_limits<float>::max();
    for({loop})
    {{
        if(!solution.Fits())
            continue;
        best = std::min(best, Measure(handle, solution));
    }}
}}
void Others(const std::vector<Solution>& solutions)
{{
    for(const auto& solution : solutions)
        Show(solution);
}}
"""


_ALLOCATOR = """void* default_allocator(void*, size_t sz)
{
    void* ptr;
    const auto status = hipMalloc(&ptr, sz);
    if(status == hipSuccess)
        return ptr;
    const auto second = hipHostMalloc(&ptr, sz);
    return second == hipSuccess ? ptr : Complain(status);
}
void Handle::Use() { void* room; const auto status = hipMalloc(&room, 8); }
"""
_ALLOCATOR_OLD = """void* default_allocator(void*, size_t sz)
{
    void* result;
    auto status = hipMalloc(&result, sz);
    if(status != hipSuccess)
    {
        status = hipHostMalloc(&result, sz);
    }
    return result;
}
"""


def _hip(extra):
    return f"""hipError_t ihipMalloc(void** ptr, size_t bytes, unsigned int flags)
{{
  return Allocate(ptr, bytes, flags);
}}
{extra}
hipError_t hipMalloc(void** ptr, size_t sizeBytes) {{
  HIP_INIT_API(hipMalloc, ptr, sizeBytes);
  HIP_RETURN(ihipMalloc(ptr, sizeBytes, 0), *ptr);
}}
"""


# Two branches of an #if open one brace each: for a parser that does not preprocess, all that follows lies within this function.
_BRACES = """void Open(int deep)
{
#if DEEP
  if (deep) {
#else
  if (!deep) {
#endif
    Work();
  }
}
"""


def _agent(override):
    chosen = """
  if (node_props.OverrideEngineId.Value != 0) {
    base = Find(node_props.OverrideEngineId);
  } else {
    base = Find(node_props.EngineId);
  }
  if (node_props.OverrideEngineId.Value != 0) {
    isa_ = Get(node_props.OverrideEngineId);
  }"""
    return f"""GpuAgent::GpuAgent(int node, const HsaNodeProperties& node_props)
    : Agent(node), properties_(node_props) {{{chosen if override else ""}
  Start();
}}
core::Blit* GpuAgent::CreateBlitSdma(bool use_xgmi) {{
  size_t size = 0;
  switch (isa_->GetMajorVersion()) {{
    case 9:
      size = isa_->GetMinorVersion() < 1 ? sizes[0] : sizes[1];
      break;
    case 10:
      sdma = new Engine();
      size = isa_->GetMinorVersion() < 3 ? sizes[0] :
                                           sizes[1];
      break;
    default:
      return nullptr;
  }}
  return sdma;
}}
bool GpuAgent::Old() {{ return isa_->GetMinorVersion() < 3; }}
"""


def _thunk(member, label, condition):
    return f"""static HSAKMT_STATUS topology_sysfs_get_node_props(uint32_t node_id, HsaNodeProperties *props)
{{
	if (hsa_gfxip || gfxv) {{
		if ({condition}) {{
			/* major.minor.stepping */
			if (sscanf(envvar, "%u.%u.%u%c", &major, &minor, &step, &dummy) != 3) {{
				ret = HSAKMT_STATUS_ERROR;
				goto {label};
			}}
			props->{member}.ui32.Major = major & 0x3f;
			props->{member}.ui32.Minor = minor & 0xff;
		}} else {{
			props->EngineId.ui32.Major = gfxv_major & 0x3f;
		}}
	}}
{label}:
	return ret;
}}
"""


def _region(left):
    return f"""MemoryRegion::MemoryRegion(bool fine_grain, bool extended) : size_(0) {{
  mem_flag_.Value = 0;
  mem_flag_.ui32.CoarseGrain = ({left}) ? 0 : 1;
}}
hsa_access_t MemoryRegion::GetAccessInfo(const Agent& agent) const {{
  if (hops < 1) {{
    return HSA_AMD_MEMORY_POOL_ACCESS_NEVER_ALLOWED;
  }}
  if (IsLocalMemory()) {{
    if (fine_grain() == false) {{
      return HSA_AMD_MEMORY_POOL_ACCESS_DISALLOWED_BY_DEFAULT;
    }}
    return HSA_AMD_MEMORY_POOL_ACCESS_NEVER_ALLOWED;
  }}
  return HSA_AMD_MEMORY_POOL_ACCESS_NEVER_ALLOWED;
}}
"""


_MTYPE_RETURN = """static uint64_t gmc_v10_0_map_mtype(struct amdgpu_device *adev, uint32_t flags)
{
	switch (flags) {
	case AMDGPU_VM_MTYPE_NC:
		return PTE(MTYPE_NC);
	case AMDGPU_VM_MTYPE_CC:
		return PTE(MTYPE_CC);
	default:
		return PTE(MTYPE_NC);
	}
}
"""
_MTYPE_STORE = """static void gmc_v10_0_get_vm_pte(struct amdgpu_device *adev, uint64_t *flags)
{
	switch (*flags & MASK) {
	default:
		*flags = PTE(*flags, MTYPE_NC);
		break;
	case AMDGPU_VM_MTYPE_CC:
		*flags = PTE(*flags, MTYPE_CC);
		break;
	}
}
"""
_FRAGMENT = """static int gmc_v10_0_sw_init(void *handle)
{
	switch (version) {
	case IP_VERSION(10, 1, 10):
		amdgpu_vm_adjust_size(adev, 256 * 1024, 9, 3, 48);
		break;
	}
	return 0;
}
"""


def _noretry(minor):
    return f"""void amdgpu_gmc_noretry_set(struct amdgpu_device *adev)
{{
	bool noretry_default = (gc_ver == IP_VERSION(9, 0, 1) ||
				gc_ver >= IP_VERSION(10, {minor}, 0));

	gmc->noretry = (amdgpu_noretry == -1) ? noretry_default : amdgpu_noretry;
}}
"""


def crat(added=""):
    """`added` stands where people put their own look at the device."""
    return f"""static int kfd_parse_subtype_mem(struct crat_subtype_memory *mem, struct list_head *device_list)
{{
	list_for_each_entry(dev, device_list, list) {{
		if (mem->proximity_domain == dev->proximity_domain) {{
			if (mem->flags & CRAT_MEM_FLAGS_NON_VOLATILE)
				flags |= HSA_MEM_FLAGS_NON_VOLATILE;
{added}
			size_in_bytes =
				((uint64_t)mem->length_high << 32) +
							mem->length_low;
			width = mem->width;
		}}
	}}
	return 0;
}}
"""


_CORE = "core/runtime/amd_gpu_agent.cpp"
_REGION = "core/runtime/amd_memory_region.cpp"
_AMD = "drivers/gpu/drm/amd"
_FINDERS = "static void EvaluateInvokers(Handle& handle, const std::vector<Solution>& solutions)"
_FINDERS_NEW = "static std::vector<Answer> EvaluateInvokers(Handle& handle, const std::vector<Solution>& solutions, bool& best_of_all)"
_LOOP = "const auto& solution : solutions"
_TEN, _ELEVEN = ("gfx9", "gfx10"), ("gfx9", "gfx10", "gfx11")

TREES = {
    "miopen-batchnorm-gfx101x": {
        "compared by name": _batchnorm(_OLD, {"src/ocl/fusionopbiasbnactivocl.cpp": _FUSION.format(guard=_OLD_WORD)}),
        "fused in a file of their own": _batchnorm(_CALL, {"src/ocl/fusionopbiasbnactivocl.cpp": _FUSION.format(guard=_CALL_WORD)}),
        "fused as solvers": _batchnorm(
            _CALL, {"src/solver/batchnorm/fused_a.cpp": _solver(_CAST), "src/solver/batchnorm/fused_b.cpp": _solver(_QUALIFIED)}
        ),
        "spatial ones merged": {f"src/solver/batchnorm/{name}.cpp": _solver(_CAST if name.endswith("fused") else _CALL) for name in _MERGED},
        "in a repository of many": {
            f"projects/miopen/{path}": text
            for path, text in _batchnorm(
                _CAST, {"src/solver/batchnorm/fused_a.cpp": _solver(_CAST), "src/solver/batchnorm/fused_b.cpp": _solver(_CALL)}
            ).items()
        },
    },
    "miopen-winograd-gfx101x": {
        "a solver for each size": {
            "src/solver/conv_winoRxS_f2x3.cpp": _winograd(_TEN),
            "src/solver/conv_winoRxS_f3x2.cpp": _winograd(_TEN),
            "src/md_graph.cpp": _graph(("gfx1011", "gfx1012", "gfx1030")),
        },
        "one solver and a graph": {
            "src/solver/conv_winoRxS.cpp": _winograd(_TEN),
            "src/md_graph.cpp": _graph(("gfx1011", "gfx1012", "gfx1030", "gfx1031")),
        },
        "one solver and a list": {"src/solver/conv_winoRxS.cpp": _winograd(_TEN), "src/solver/conv_winoRxS_fused.cpp": _FUSED_LIST},
        "both alike": {"src/solver/conv/conv_winoRxS.cpp": _winograd(_ELEVEN), "src/solver/conv_winoRxS_fused.cpp": _winograd(_ELEVEN, "Fused")},
    },
    "miopen-find-mode-default": {
        "a name": {"src/include/miopen/find_controls.hpp": _modes("class", "DynamicHybrid")},
        "a definition": {"src/include/miopen/find_controls.hpp": _modes("class", "MIOPEN_DEFAULT_FIND_MODE")},
        "an exported class": {"src/include/miopen/find_controls.hpp": _modes("class MIOPEN_INTERNALS_EXPORT", "MIOPEN_DEFAULT_FIND_MODE")},
    },
    "miopen-find-time-bound": {
        "among the convolutions": {"src/ocl/convolutionocl.cpp": _find(_FINDERS, _LOOP)},
        "in a file of its own": {"src/conv/solver_finders.cpp": _find(_FINDERS, _LOOP)},
        "with answers": {"src/conv/solver_finders.cpp": _find(_FINDERS_NEW, _LOOP)},
    },
    "miopen-allocator-mission": {"result": {"src/hip/handlehip.cpp": _ALLOCATOR_OLD}, "pointer": {"src/hip/handlehip.cpp": _ALLOCATOR}},
    "miopen-allocator-fallback": {"result": {"src/hip/handlehip.cpp": _ALLOCATOR_OLD}, "pointer": {"src/hip/handlehip.cpp": _ALLOCATOR}},
    "hip-allocator-policy": {"plain": {"hipamd/src/hip_memory.cpp": _hip("")}, "unbalanced": {"hipamd/src/hip_memory.cpp": _hip(_BRACES)}},
    "rocr-sdma-copy-size": {
        "the override replaces the version": {f"src/{_CORE}": _agent(False)},
        "the version is kept": {f"runtime/hsa-runtime/{_CORE}": _agent(True)},
    },
    **{
        f"rocr-override-{kind}": {
            "one variable": {"src/topology.c": _thunk("EngineId", "err", 'envvar = getenv("HSA_OVERRIDE_GFX_VERSION")')},
            "one for each device": {
                "libhsakmt/src/topology.c": _thunk("OverrideEngineId", "out", "(envvar = getenv(own)) || (envvar = getenv(name))")
            },
        }
        for kind in ("warning", "refusal")
    },
    "rocr-memory-region-policy": {
        "fine": {f"src/{_REGION}": _region("fine_grain")},
        "extended": {f"src/{_REGION}": _region("fine_grain || extended")},
    },
    "kernel-gmc-memory-type": {
        "a function of its own": {f"{_AMD}/amdgpu/gmc_v10_0.c": _MTYPE_RETURN},
        "within another": {f"{_AMD}/amdgpu/gmc_v10_0.c": _MTYPE_STORE},
    },
    "kernel-gmc-fragment-size": {"one call": {f"{_AMD}/amdgpu/gmc_v10_0.c": _FRAGMENT}},
    "kernel-noretry-gfx101x": {"10.3": {f"{_AMD}/amdgpu/amdgpu_gmc.c": _noretry(3)}},
    "kernel-kfd-properties": {"one bank": {f"{_AMD}/amdkfd/kfd_crat.c": crat()}},
}
UPSTREAM = {f"{_AMD}/amdgpu/amdgpu_gmc.c": _noretry(1)}
CASES = [(patch, generation) for patch, generations in TREES.items() for generation in generations]


def plant(folder, files):
    """Write a tree."""
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def taken(folder):
    """All bytes below a folder, by path; what a link says for a link."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
