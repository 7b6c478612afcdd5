"""From how a child ended and what it told to one word and a sentence. Pure: everything here is a function of its arguments."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from rocm_patch.model import Trial, Verdict
from rocm_patch.probe.parent import Ending
from rocm_patch.probe.table import Probe

GPU_FAULT: Final = re.compile(
    r"illegal memory access|hipErrorIllegalAddress|cudaErrorIllegalAddress|hipErrorLaunchFailure|unspecified launch failure"
    r"|illegal instruction|misaligned address|device-side assert|launch timed out|hipErrorLaunchTimeOut|invalid program counter"
    r"|Memory access fault by GPU|HW Exception by GPU|HSA_STATUS_ERROR_(?:MEMORY|ILLEGAL|INVALID_ISA|INCOMPATIBLE|EXCEPTION)[A-Z_]*"
    r"|Queue error|GPU Hang|GPU reset|hardware (?:exception|stack error)|uncorrectable ECC|ECC error",
    re.IGNORECASE,
)
"""Words by which a runtime says that the GPU faulted, however the process then ended."""
DETAIL: Final = 600
LARGEST: Final = 1e300
_SHELL_SIGNALS: Final = {128 + int(number): number for number in (signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)}
_NOISE: Final = ("File ", "Thread ", "Current thread", "Fatal Python error", "Extension modules:", "Stack (most", "Binary file ", "<", "[...")
_SHAPES: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "begin": {"stage": (str,)},
    "done": {"stage": (str,), "seconds": (int, float)},
    "value": {"stage": (str,), "name": (str,), "error": (int, float), "bound": (int, float), "broken": (int,), "elements": (int,)},
    "facts": {"facts": (dict,)},
    "error": {"stage": (str,), "type": (str,), "text": (str,)},
    "after": {"text": (str,)},
    "end": {},
}


@dataclass(frozen=True)
class Told:
    """What the child wrote on its descriptor."""

    stage: str = "start"
    values: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    error: Mapping[str, Any] | None = None
    after: str = ""
    """What the device said once an exception had been told."""
    ends: int = 0
    broken: str = ""


def listen(raw: bytes, cut: bool = False) -> Told:
    """Read the lines; the first that makes no sense ends the reading and is told as `broken`."""
    stage, values, facts, error, after, ends = "start", list[Mapping[str, Any]](), dict[str, Any](), None, "", 0
    broken = "more than a megabyte of results" if cut else ""
    lines = raw.split(b"\n")
    if lines.pop() and not cut:
        broken = "a result line without an end"
    for line in lines:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        shape = _SHAPES.get(str(told.get("event"))) if isinstance(told, dict) else None
        if shape is None or any(not isinstance(told.get(key), kinds) for key, kinds in shape.items()):
            broken = f"a result line that makes no sense: {line[:80].decode('utf-8', 'replace')!r}"
            break
        match told["event"]:
            case "begin":
                stage = told["stage"]
            case "value":
                values.append(told)
            case "facts":
                facts.update(told["facts"])
            case "error":
                error = told
            case "after":
                after = told["text"]
            case "end":
                ends += 1
    return Told(stage, tuple(values), MappingProxyType(facts), error, after, ends, broken)


def judge(probe: Probe, configuration: str, dtype: str, ending: Ending, deadline: float) -> Trial:
    """Name what happened."""
    told = listen(ending.results, ending.results_cut)
    errors, bounds = dict[str, float](), dict[str, float]()
    for value in told.values:
        name = value["name"]
        errors[name] = max(errors.get(name, 0.0), _finite(value["error"]))
        bounds[name] = _finite(value["bound"])
    verdict, detail = _decide(probe, ending, told, deadline)
    if ending.leftovers and not ending.ended_by_us:
        detail = "; ".join(filter(None, (detail, f"it left {ending.leftovers} processes behind, which were killed")))
    seconds = round(ending.seconds, 3)
    return Trial(probe.id, configuration, dtype, verdict, seconds, detail[:DETAIL], MappingProxyType(errors), MappingProxyType(bounds))


def _decide(probe: Probe, ending: Ending, told: Told, deadline: float) -> tuple[Verdict, str]:
    fault = _fault_line(ending.output)
    where = f"in stage {told.stage}"
    if ending.stuck:
        return "stuck", _join(f"the kernel does not let it go after SIGKILL (state {ending.state or '?'}), {where}", fault)
    if ending.ended_by_us == "memory":
        return "error", f"it took more memory than allowed, {where}"
    if ending.ended_by_us == "deadline":
        stopped = ", stopped by a signal" if ending.state in ("T", "t") else ""
        return "hang", _join(f"no end after {deadline:g} s, {where}{stopped}, {ending.cpu_seconds:.1f} s of CPU time used", fault)
    if ending.code is not None and (ending.code < 0 or ending.code in _SHELL_SIGNALS):
        return "crash", _join(f"{_signal_words(ending.code)} {where}", fault or _last_line(ending.output))
    if told.error is not None:
        text = " ".join(f"{told.error['type']}: {told.error['text']}".split())
        words = next((words for words in (text, " ".join(told.after.split()), fault) if GPU_FAULT.search(words)), "")
        if words:
            return "crash", _join(f"GPU fault in stage {told.error['stage']}", words)
        return "error", _join(f"in stage {told.error['stage']}", text)
    if ending.code != 0:
        if fault:
            return "crash", _join(f"GPU fault {where}, exit code {ending.code}", fault)
        return "error", _join(f"exit code {ending.code} {where}", _last_line(ending.output))
    if told.broken:
        return "error", f"it wrote {told.broken}"
    if told.ends != 1:
        return "error", "it ended without a result" if not told.ends else f"it wrote {told.ends} results"
    if not told.values and probe.workload != "device":
        return "error", "it ended without telling a value"
    wrong = _wrong(told)
    return ("wrong", wrong) if wrong else ("passed", "")


def _wrong(told: Told) -> str:
    words = dict[str, str]()
    seen = dict[str, float]()
    for value in told.values:
        name = value["name"]
        if value["broken"]:
            words[name] = f"{name}: {value['broken']} of {value['elements']} values are not finite"
        elif not value["error"] <= value["bound"]:  # NaN is wrong
            words.setdefault(name, f"{name}: relative error {value['error']:.2g} where rounding explains {value['bound']:.2g} at most")
        if seen.setdefault(name, value["error"]) != value["error"] and name in words and "differs" not in words[name]:
            words[name] += ", and it differs when repeated"
    return "; ".join(words.values())


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else LARGEST


def _signal_words(code: int) -> str:
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if code > 0:
        return f"{name} (told as exit code {code})"
    return f"{name}, sent from outside (the kernel short of memory?)," if number == signal.SIGKILL else name


def _text(output: bytes) -> list[str]:
    """The lines of the output, without what a terminal would act on."""
    lines = output.decode("utf-8", "replace").splitlines()
    plain = (" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in lines)
    return [line for line in plain if line]


def _fault_line(output: bytes) -> str:
    return next((line[:300] for line in _text(output) if GPU_FAULT.search(line)), "")


def _last_line(output: bytes) -> str:
    """The last line that is not part of faulthandler's stack."""
    return next((line[:300] for line in reversed(_text(output)) if not line.startswith(_NOISE)), "")


def _join(what: str, words: str) -> str:
    return f"{what}: {words}" if words else what
