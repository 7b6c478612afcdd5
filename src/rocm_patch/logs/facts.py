"""Lines -> facts: what rocminfo, dmesg, torch's collect_env, pip, tracebacks and shells say of a machine, complete or cut.

The facts bear the names that `--given` takes, so that what a user says and what a text says are one kind of thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from rocm_patch.knowledge import Knowledge, plain_name

NAMES: Final = ("os", "gpu", "gfx", "distro", "kernel", "rocm", "torch", "python", "container", "app", "groups")
_ENVIRONMENT: Final = re.compile(
    r"""(?:^|[\s"'`;(])(?:export |set |\$env:|-e |--env[ =]|Environment=)?"""
    r"""((?:HSA|HIP|ROCR|AMD|MIOPEN|PYTORCH|TORCH|ROCM|HCC|GPU|CUDA|TRITON|FLASH|AMDGCN)_[A-Z0-9_]{2,60}) ?= ?["']?([^\s"'`;,)]{1,120})"""
)
_ENVIRONMENT_WORDS: Final = ("HSA_", "HIP_", "ROCR_", "AMD_", "MIOPEN_", "TORCH_", "GPU_", "CUDA_", "AMDGCN_", "HCC_")
_VERSION: Final = r"(\d+\.\d+\.\d+[\w.+-]{0,60})"


def _find(name: str, word: str, pattern: str) -> tuple[str, str, re.Pattern[str]]:
    return name, word, re.compile(pattern, re.IGNORECASE)


_SINGLE: Final = (
    # name, a word that each match contains (in lower case), expression whose group is the value
    _find("torch", "torch", r"\bPyTorch version: ?(\d[\w.+-]{2,60})"),
    _find("torch", "torch", r"\btorch(?:==|-| version ?[=:]? ?| ?[:=] ?| )v?(\d+\.\d+\.\d+[\w.]{0,20}(?:\+[\w.]{2,40})?)"),
    _find("hip", "rocm used to build", r"\bROCM used to build PyTorch: (\d+(?:\.\d+){1,2})"),
    _find("cuda", "cuda used to build", r"\bCUDA used to build PyTorch: (\d+(?:\.\d+){1,2})"),
    _find("rocm", "rocm", r"(?:/opt/rocm-|\bROCm[ _-]?(?:version|release)?[ :=]{1,3}v?)(\d{1,2}\.\d{1,2}(?:\.\d{1,2})?)\b"),
    _find("kernel", "linux", rf"\b(?:Linux version |Linux [\w.-]{{1,64}} ){_VERSION}"),
    _find("kernel", "kernel", rf"\bKernel(?: version| release)?[: ]{{1,2}}(?:Linux )?{_VERSION}"),
    _find("kernel", "platform: linux-", r"\bPython platform: Linux-(\d+\.\d+\.\d+[\w.+]{0,20}(?:-\d[\w.]{0,20})?(?:-generic|-amd64|-lowlatency)?)"),
    _find("python", "python", r"\bPython(?: version)?[: ]{1,2}(3\.\d{1,2}(?:\.\d{1,2})?)\b"),
    _find("distro", "os: ", r"(?:^|\s)OS: ([A-Z][\w.() /-]{2,48}?)(?= GCC version|$)"),
    _find("distro", "pretty_name", r"\bPRETTY_NAME=\"([\w.() /-]{2,48})\""),
    _find("distro", "description:", r"^Description:\s{1,8}([A-Z][\w.() /-]{2,48})$"),
    _find("groups", "groups", r"\bgroups[=:] ?([a-z0-9][\w(),. -]{1,400})"),
)
_AGENT: Final = re.compile(r"\bName:\s{1,40}(gfx[0-9a-f]{3,4})\b")
_TARGET: Final = re.compile(r"\b(gfx(?:[789][0-9a-f]{2}|1[0-2][0-9a-f]{2}))\b(?!_|\.dat|-all|x)")
_PCI: Final = re.compile(r"\[?1002:([0-9a-f]{4})\b", re.IGNORECASE)
_MODEL: Final = re.compile(
    r"\b((?:RX|R9|R7|Pro|Instinct|WX|MI|Vega|VII|Radeon)(?:[ -]?(?:RX|Pro|Vega|Instinct|WX|VII))?[ -]?"
    r"[A-Z]{0,3}\d{2,4}[A-Z]{0,2}(?: ?(?:XTX|XT|GRE|XL|Ti))?|Radeon VII)\b",
    re.IGNORECASE,
)
_MODEL_WORDS: Final = ("rx", "r9", "r7", "pro", "instinct", "wx", "mi", "vega", "vii", "radeon")
_SYSTEMS: Final = (
    ("wsl", ("wsl", "dxg"), re.compile(r"microsoft-standard-WSL|\bWSL ?2?\b|/dev/dxg|\bdxgkrnl\b|librocdxg", re.IGNORECASE)),
    (
        "windows",
        ("windows", ":\\", "amdhip64", "-1073741819", "0xc0000005"),
        re.compile(
            r"\bWindows (?:1[01]|fatal exception)|\b[A-Z]:\\\\?(?:Users|Program)|\bamdhip64(?:_\d)?\.dll|-1073741819|0xc0000005",
            re.IGNORECASE,
        ),
    ),
)
_LINES: Final = 4000


@dataclass(frozen=True)
class Told:
    """Facts by name, and variables. Names are those of NAMES, and `hip` and `cuda`: what torch was built with."""

    values: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def over(self, other: Told) -> Told:
        """These facts, and those of another where this one is silent. A card is told as a whole."""
        rest = dict(other.values)
        if "gpu" in self.values or "gfx" in self.values:
            rest.pop("gpu", None)
            rest.pop("gfx", None)
        return Told({**rest, **self.values}, {**other.environment, **self.environment})


def read(lines: Iterable[str], knowledge: Knowledge) -> Told:
    """All facts that the lines hold; the first of a kind speaks, the last of a variable."""
    values: dict[str, str] = {}
    environment: dict[str, str] = {}
    agents: list[str] = []
    named: list[tuple[str, str]] = []
    targets: list[str] = []
    for number, line in enumerate(lines):
        if number == _LINES:
            break
        low = line.lower()
        for name, word, regex in _SINGLE:
            if name not in values and word in low and (match := regex.search(line)):
                values[name] = match.group(1).strip(" .")
        if "=" in line and any(word in line for word in _ENVIRONMENT_WORDS):
            environment.update((match.group(1), match.group(2)) for match in _ENVIRONMENT.finditer(line))
        if "gfx" in low:
            agents.extend(_AGENT.findall(line))
            targets.extend(_TARGET.findall(low))
        if "1002:" in line:
            rows = [knowledge.devices.get(id_.lower()) for id_ in _PCI.findall(line)]
            named.extend((row[1].names[0], row[0].gfx) for row in rows if row)
        if "os" not in values:
            for system, words, regex in _SYSTEMS:
                if any(word in low for word in words) and regex.search(line):
                    values["os"] = system
                    break
        if any(word in low for word in _MODEL_WORDS):
            named.extend((model, gfx) for model in _MODEL.findall(line) if (gfx := chip_of_name(knowledge, model)))
    cards = list(dict.fromkeys(named))
    if agents:
        values["gfx"] = ",".join(agents)
        if cards:
            values["gpu"] = "; ".join(dict.fromkeys(name for name, _ in cards))
    elif cards:
        chips = dict.fromkeys(gfx for _, gfx in cards)
        values["gfx"], values["gpu"] = ",".join(chips), "; ".join(dict.fromkeys(name for name, _ in cards))
    elif len(set(targets)) == 1:
        values["gfx"] = targets[0]
    return Told(values, environment)


def chip_of_name(knowledge: Knowledge, text: str) -> str:
    """The target of a card by its marketing name, e.g. 'Radeon RX 6700 XT' -> gfx1031; empty if no table has it."""
    return knowledge.chips_by_name.get(plain_name(text), "")
