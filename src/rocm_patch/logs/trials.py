"""What `rocm-patch probe` printed, found again in a pasted text: its JSON document or its words, whole or cut off, as Trials.

What was read is taken out of the text, for the names of verdicts and stages ("crash", "errors") are no complaints. What a probe that
did not pass told stays, where it stood: a line of it may be known.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, get_args

from rocm_patch import codec
from rocm_patch.errors import FormatError
from rocm_patch.machine import redact
from rocm_patch.model import Trial, Trials, Verdict

_MOST: Final = 2000
_LONGEST: Final = 20_000
"""Characters of one trial in JSON."""
_OBJECT: Final = re.compile(r"\{\s{0,40}\"probe\"\s{0,4}:")
_DEVICE: Final = re.compile(r"\"device\"\s{0,4}:\s{0,4}\"(\w{2,8})(?::\d{1,2})?\"")
_WORDS: Final = re.compile(
    rf"^[ \t]{{0,40}}({'|'.join(get_args(Verdict))}) {{1,8}}([a-z][\w.-]{{1,40}}) {{1,40}}(?:([a-z]{{1,8}}\d{{1,3}}) {{1,12}})?"
    r"([a-z][a-z-]{1,15}) {1,16}(\d{1,6}\.\d) s\b[^\n]{0,80}(?:\n {8,16}(?! )([^\n]{1,700}))?",
    re.MULTILINE,
)
_TABLE: Final = re.compile(r"^.{0,4}[┏┃┡│└].{0,400}$|^note: .{0,600}$", re.MULTILINE)
_CUT: Final = re.compile(rf"^(?:{'|'.join(get_args(Verdict))}) {{1,8}}[a-z][\w.-]{{1,40}} {{2,40}}\S{{0,16}}[^\n]{{0,40}}\Z", re.MULTILINE)
"""The last line of such a list, without its end."""
_FRAME: Final = re.compile(r"\"(?:schema|trials|notes|device)\"\s{0,4}:\s{0,4}")


def read(shown: str) -> tuple[str, Trials | None]:
    """The text without them, with as many lines as before, and the trials; None where there are none."""
    if '"verdict"' in shown and '"probe"' in shown:
        rest, found = _documents(shown)
    elif " float" in shown and _WORDS.search(shown):
        rest, found = _printed(shown)
    else:
        return shown, None
    if not found:
        return shown, None
    told = _DEVICE.search(shown)
    return rest, Trials(told.group(1) if told else _device(found), "", "", tuple(found))


def _documents(shown: str) -> tuple[str, list[Trial]]:
    found, pieces, end, broken = list[Trial](), list[str](), 0, 0
    decoder = json.JSONDecoder()
    for match in _OBJECT.finditer(shown):
        if match.start() < end or len(found) == _MOST or broken > 20:
            continue
        try:
            raw, length = decoder.raw_decode(shown[match.start() : match.start() + _LONGEST])
            one = _trial(raw)
        except (ValueError, RecursionError, FormatError):
            broken += 1
            # Cut off in the middle: what is left of it says nothing, and its keys are no complaints.
            if len(shown) - match.start() < _LONGEST:
                pieces.append(shown[end : match.start()])
                end = len(shown)
            continue
        pieces += (shown[end : match.start()], _left(one, shown[match.start() : match.start() + length]))
        end = match.start() + length
        found.append(one)
    return _FRAME.sub("", "".join((*pieces, shown[end:]))), found


def _printed(shown: str) -> tuple[str, list[Trial]]:
    found = list[Trial]()

    def taken(match: re.Match[str]) -> str:
        verdict, probe, dtype, configuration, seconds, detail = match.groups()
        if len(found) == _MOST:
            return match.group()
        found.append(_trial({
            "probe": probe, "configuration": configuration, "dtype": dtype or "", "verdict": verdict, "seconds": float(seconds),
            "detail": detail or "", "errors": {}, "bounds": {}, "kernel_log": [],
        }))  # fmt: skip
        return _left(found[-1], match.group())

    return _CUT.sub("", _TABLE.sub("", _WORDS.sub(taken, shown))), found


def _trial(raw: Any) -> Trial:
    """A trial, redacted. Raises FormatError where it is none."""
    if isinstance(raw, dict):
        raw = {**raw, "detail": redact.text(str(raw.get("detail", ""))[:700])}
    one: Trial = codec.decode(Trial, raw, "a pasted trial")
    return one


def _left(one: Trial, text: str) -> str:
    """What stays of a trial's text: the words of one that did not pass, and the ends of lines."""
    said = "" if one.verdict in ("passed", "skipped") else " ".join((one.detail, *one.kernel_log)).replace("\n", " ")
    return said + "\n" * text.count("\n")


def _device(found: list[Trial]) -> str:
    """The kind of device by the configurations; without any that tells it, a card that ROCm drives is meant."""
    configurations = {trial.configuration for trial in found} - {"any"}
    if configurations and configurations <= {"cpu"}:
        return "cpu"
    return "cuda" if any(name.startswith("cudnn") for name in configurations) else "hip"
