"""What probes proved: convolution and batch norm with and without MIOpen."""

from __future__ import annotations

from collections.abc import Iterator

from rocm_patch.diagnose.case import Case, finding
from rocm_patch.model import Finding, Trial, Trials

BAD = ("wrong", "crash", "hang", "stuck", "reset")


def probes(case: Case) -> Iterator[Finding]:
    """Findings from trials on a GPU; a CPU run says nothing about the card."""
    if case.trials is None or case.trials.device == "cpu":
        return
    trials = case.trials.trials
    for word, cause in (("conv", "miopen_solver_fault"), ("batch", "miopen_compile_or_find")):
        failed = [trial for trial in trials if word in trial.probe and trial.configuration == "miopen" and _bad(trial)]
        passed = [trial for trial in trials if word in trial.probe and trial.configuration == "miopen-off" and trial.verdict == "passed"]
        if failed and passed:
            why = [f"{len(failed)} probes failed with MIOpen: {_words(failed[0])}.", f"{len(passed)} of the same kind passed with MIOpen off."]
            yield finding(cause, "warning" if word == "batch" else "problem", 0.97, why, case.advise("miopen-off"))
    basic = [trial for trial in trials if trial.probe.startswith(("elementwise", "gemm")) and _bad(trial)]
    if basic:
        why = [f"Not even the simplest work runs right on this GPU: {_words(basic[0])}."]
        yield finding("gpu_page_fault" if basic[0].verdict == "crash" else "ring_timeout_reset", "problem", 0.8, why)
    off = [trial for trial in trials if trial.configuration == "miopen-off" and trial.dtype == "float16" and trial.verdict == "wrong"]
    if off:
        yield finding("numerical", "warning", 0.9, [f"fp16 gives wrong values on this card: {_words(off[0])}. Use fp32."])


def failed(ran: Trials | None) -> bool:
    """True if something that ran on a GPU did not do its work."""
    return ran is not None and ran.device != "cpu" and any(trial.verdict in (*BAD, "error") for trial in ran.trials)


def passed(ran: Trials | None) -> bool:
    """True if all that ran on a GPU did, and convolutions among it."""
    if ran is None or ran.device == "cpu" or failed(ran):
        return False
    return any(trial.verdict == "passed" and "conv" in trial.probe for trial in ran.trials)


def _bad(trial: Trial) -> bool:
    return trial.verdict in BAD or (trial.verdict == "error" and "miopen" in trial.detail.lower())


def _words(trial: Trial) -> str:
    return f"{trial.probe} {trial.dtype}: {trial.verdict}{', ' + trial.detail if trial.detail else ''}"[:300]
