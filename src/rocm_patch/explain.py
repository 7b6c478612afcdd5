"""From what a user shows to the same diagnosis that `doctor` makes: bytes -> lines -> facts -> Machine, Images -> Diagnosis."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rocm_patch.diagnose import diagnose
from rocm_patch.errors import FormatError, RocmPatchError
from rocm_patch.knowledge import Knowledge
from rocm_patch.logs import facts, picture, text, trials
from rocm_patch.logs.facts import Told
from rocm_patch.machine import redact
from rocm_patch.model import Diagnosis, Finding, Images, Log, Machine, Recording

LONGEST_LINE: Final = 32 << 20
"""Bytes of one line of a batch."""

_PLAIN: Final = re.compile(r"(?!.{0,60}(?:\.\d{1,3}){3})[A-Za-z0-9 +.,;()_]{0,60}")
"""Values that can hold no address, path, serial or mail: it spares them the redaction."""
_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,3}[\w.+-]{0,60}")
_VERSIONS: Final = frozenset(("kernel", "rocm", "torch", "python", "hip", "cuda"))


@dataclass(frozen=True)
class Explained:
    """The answer, and what it rests on."""

    told: Told
    machine: Machine
    images: Images
    log: Log
    diagnosis: Diagnosis


def explain(shown: str, given: Told, knowledge: Knowledge, base: Recording | None = None) -> Explained:
    """Explain a text. What is given beats what the text says, and that beats a recording of the machine."""
    rest, ran = trials.read(shown)
    lines, numbers = text.lines(rest)
    told, machine, images = _pictured(given.over(facts.read(lines, knowledge)), knowledge, base)
    system = told.values.get("os", "")
    log = Log(lines, numbers, told.values.get("app", ""), system if system in ("linux", "windows", "wsl") else "", told.values)
    return Explained(told, machine, images, log, diagnose(machine, images, knowledge, ran, log=log))


def _pictured(raw: Told, knowledge: Knowledge, base: Recording | None) -> tuple[Told, Machine, Images]:
    """The facts, redacted, and the machine that they describe; of many logs some tell the same, and most of a batch's tell little."""
    if base:
        told = _redacted(raw)
        return told, *picture.picture(told, knowledge, base.machine, base.images)
    key = ("picture", *raw.values.items(), *raw.environment.items())
    found = knowledge.recent.get(key)
    if found is None:
        told = _redacted(raw)
        found = knowledge.keep(key, (told, *picture.picture(told, knowledge)))
    return found


def batch(asked: Iterable[bytes], knowledge: Knowledge) -> Iterator[dict[str, Any]]:
    """An answer for each line of JSON; a broken line gets an error object, and the rest goes on."""
    for number, line in enumerate(asked, 1):
        if not line.strip():
            continue
        id_: Any = None
        try:
            question = _question(line)
            id_ = question["id"]
            log, given = _or(question.get("log"), ""), _or(question.get("given"), {})
            if not isinstance(log, str) or not isinstance(given, dict):
                raise FormatError("`log` is a string and `given` an object of strings")
            answer = explain(log, picture.given(_known(given)), knowledge)
            yield {"id": id_, "findings": [_plain(item) for item in answer.diagnosis.findings], "healthy": answer.diagnosis.healthy}
        except RocmPatchError as error:
            yield {"id": id_, "line": number, "error": {"what": error.what, "hint": error.hint}}
        except Exception as error:  # one odd question must not cost the others their answers
            yield {"id": id_, "line": number, "error": {"what": f"a defect of rocm-patch: {type(error).__name__}", "hint": "please report this line"}}


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _plain(finding: Finding) -> dict[str, Any]:
    """As `codec.encode` would, without asking each value what it is: a batch writes a great many."""
    return {
        "cause": finding.cause,
        "severity": finding.severity,
        "certainty": finding.certainty,
        "why": list(finding.why),
        "remedies": [{"remedy": item.remedy, "id": item.id, "text": item.text, "evidence": list(item.evidence)} for item in finding.remedies],
    }


def _question(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise FormatError(f"a line of more than {LONGEST_LINE >> 20} MB")
    try:
        question = json.loads(text.decode(line))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", 'one object a line: {"id": ..., "log": "...", "given": {...}}') from error
    if not isinstance(question, dict) or "id" not in question:
        raise FormatError("an object with an id was expected", 'one object a line: {"id": ..., "log": "...", "given": {...}}')
    return question


def _known(given: Mapping[Any, Any]) -> dict[str, str]:
    """Facts with a value. A variable's value may come as a number; an empty fact is none."""
    return {str(name): str(value) for name, value in given.items() if value is not None and value != ""}


def _plain_value(name: str, value: str) -> bool:
    # A kernel of four numbers looks like an address.
    return bool(_PLAIN.fullmatch(value) or (name in _VERSIONS and _VERSION.fullmatch(value)))


def _redacted(told: Told) -> Told:
    def clean(values: Mapping[str, str]) -> dict[str, str]:
        return {name: value if _plain_value(name, value) else redact.text(value[:400]) for name, value in values.items()}

    return Told(clean(told.values), clean(told.environment))


def without(names: Iterable[str], explained: Explained) -> Explained:
    """The same answer without these names (the user's, the host's)."""
    words = redact.words(names)
    kept = tuple(replace(item, why=tuple(redact.text(line, words) for line in item.why)) for item in explained.diagnosis.findings)
    return replace(explained, diagnosis=replace(explained.diagnosis, findings=kept))
