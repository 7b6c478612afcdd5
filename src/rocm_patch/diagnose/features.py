"""Which features can be used on this card with this stack."""

from __future__ import annotations

from collections.abc import Mapping

from rocm_patch.diagnose.case import Case
from rocm_patch.model import Feature, Trial

NAMES = ("fp16", "sdpa", "compile", "int8")


def judge(case: Case) -> Mapping[str, Feature]:
    """An answer and a reason for each feature; what ran beats what is known."""
    if not case.card:
        return {name: Feature("unknown", "no AMD GPU that this tool is for") for name in NAMES}
    natives = [torch for torch in case.rocm_torches if case.coverage(torch).native(case.gfx, case.generic)]
    override = case.override()
    valid = bool(override and override.target and any(override.target in (case.coverage(torch).targets or ()) for torch in case.rocm_torches))
    from rocm_patch.diagnose.stack import same_instructions

    sound = valid and override is not None and same_instructions(case.gfx, override.target or "")
    unknown = any(case.coverage(torch).targets is None for torch in case.rocm_torches)
    if not natives and not sound and not unknown:
        return {name: Feature("no", f"no torch here has code that {case.gfx} executes rightly") for name in NAMES}
    rdna1 = case.gfx.startswith("gfx101")
    half = (
        "native code; no faster than fp32 in convolutions on gfx1010, and a probe decides"
        if rdna1
        else "in hardware; MIOpen's fp16 convolutions crashed on some RX 6000 cards: probe, or MIOpen off"
    )
    compiled = (
        Feature("no", "Triton's buffer operations write nothing on gfx1010 unless AMDGCN_USE_BUFFER_OPS=0, and tl.dot is broken there")
        if rdna1
        else Feature("unknown", "Triton has gfx103x code; not measured here")
    )
    return {
        "fp16": _measured(case) or Feature("unknown" if unknown else "yes", half),
        "sdpa": Feature("yes", "by the math path only: no flash or memory-efficient kernels exist for gfx10"),
        "compile": compiled,
        "int8": Feature("no", "torch._int_mm needs hipBLASLt, which has no gfx10 kernels"),
    }


def _measured(case: Case) -> Feature | None:
    if case.trials is None or case.trials.device == "cpu":
        return None
    half: list[Trial] = [trial for trial in case.trials.trials if trial.dtype == "float16" and trial.verdict != "skipped"]
    if not half:
        return None
    passed = [trial for trial in half if trial.verdict == "passed"]
    if len(passed) == len(half):
        return Feature("yes", f"{len(half)} fp16 probes passed here")
    if any(trial.configuration.endswith("-off") for trial in passed):
        return Feature("yes", f"{len(passed)} of {len(half)} fp16 probes passed here, with MIOpen off")
    return Feature("no", f"{len(half) - len(passed)} of {len(half)} fp16 probes failed here")
