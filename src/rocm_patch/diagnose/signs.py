"""What follows from the facts, in the words that conditions use (`knowledge.conditions.SIGNS`)."""

from __future__ import annotations

import re
from typing import Final

from rocm_patch.diagnose import mood
from rocm_patch.diagnose.case import MASKS, Case, gfx_of
from rocm_patch.diagnose.stack import same_instructions
from rocm_patch.model import Known

_KIN: Final = {("gfx1101", "gfx1100"), ("gfx1102", "gfx1100"), ("gfx90c", "gfx900"), ("gfx902", "gfx900")}
"""Overrides outside our own family that are known to work."""
_BUNDLED: Final = re.compile(r"(?i)ollama|lm.?studio|kobold|gpt4all|llama|lemonade|localai|\bjan\b|msty|amuse")
_CUDA_ENGINE: Final = re.compile(r"(?i)whisper(?!.?cpp)|ctranslate|xformers|deepspeed|\bapex\b|paddle|detectron|mmcv")
_TARGET: Final = re.compile(r"\bgfx[0-9a-f]{3,4}\b")
_LIBRARY: Final = re.compile(r"\b(lib(?:LLVM|amdhip64|hsa-runtime64|amd_comgr|rocblas|MIOpen|hipblaslt))\.so\.(\d+)")
_PRINTED: Final = (
    # a word that each match contains, and an expression over the line in lower case; the cheap and frequent ones first
    ("", re.compile(r"[^\w\s,.:'!?()%/>+-]")),
    (":", re.compile(r":\S")),
    ("__", re.compile("__")),
    (": ", re.compile(r"^\S+: |\w(?:error|warning|exception|info|failed): ")),
    ("warn", re.compile(r"\bwarn")),
    (".", re.compile(r"\.(?:cpp|py|cc|so|dll)\b")),
    ("0x", re.compile(r"0x[0-9a-f]")),
    ("total", re.compile(r"\btotal\b")),
)
"""What stands in lines that programs print, and hardly in what people write; brackets and quotes among them."""
_MOODS: Final[dict[mood.Mood, tuple[str, ...]]] = {"failure": ("failure-told",), "calm": ("calm",), "": ()}
_WORDS: Final = 4
_LINES: Final = 200
"""Lines of a log that are looked through for names."""


def derive(case: Case) -> frozenset[str]:
    """The signs of a machine; what is not known gives none."""
    facts: frozenset[str] | None = case.kept.get("signs")
    if facts is None:
        facts = case.kept["signs"] = frozenset((*_cards(case), *_masks(case), *_override(case), *_torch(case), *_place(case)))
    return facts.union(_lines(case))


def _cards(case: Case) -> list[str]:
    gpus = case.machine.gpus
    signs = ["card-known"] if case.subject_gfx else []
    dedicated = [gpu for gpu in gpus if not gpu.integrated]
    if len(gpus) > 1:
        signs.append("several")
    if gpus and not dedicated:
        signs.append("integrated")
    if dedicated and len(dedicated) < len(gpus):
        signs.append("integrated-beside")
    if len({gfx_of(gpu) for gpu in dedicated}) > 1:
        signs.append("mixed")
    return signs


def _masks(case: Case) -> list[str]:
    return ["masked"] if any(name in case.environment for name in MASKS) else []


def _override(case: Case) -> list[str]:
    found, gfx = case.override(), case.subject_gfx
    if found is None:
        return []
    if found.target is None:
        return ["override-set", "override-malformed"]
    if not gfx:
        return ["override-set"]
    others = {name for gpu in case.machine.gpus if (name := gfx_of(gpu))} - {found.target}
    hit = ["override-hits-other"] if any(not same_instructions(other, found.target) for other in others - {gfx}) else []
    if found.target == gfx:
        return ["override-set", "override-own", *hit]
    if same_instructions(gfx, found.target) or (gfx, found.target) in _KIN:
        return ["override-set", "override-sound", *hit]
    # 'gfx1030' on 'gfx1012': the generation is all but the last two characters.
    near = gfx[:-2] == found.target[:-2] and gfx[:-2] != "gfx9"
    return ["override-set", "override-foreign", *(["override-near"] if near else [])]


def _torch(case: Case) -> list[str]:
    if not case.machine.torches:
        return []
    torch, gfx = case.machine.torches[0], case.subject_gfx
    build = torch.build.value if isinstance(torch.build, Known) else ""
    signs = [f"torch-{build}"] if build else []
    told = case.log.told.get("torch", "") if case.log else ""
    if any(word in told.lower() for word in ("self-built", "source", "own build", "custom")):
        signs.append("torch-made-here")
    coverage = case.coverage(torch)
    if gfx and coverage.targets is not None:
        row = case.knowledge.gpus.get(gfx)
        signs.append("code-native" if coverage.native(gfx, row.generic if row else "") else "code-missing")
    return signs


def _place(case: Case) -> list[str]:
    platform = case.machine.platform
    signs = ["compute-told"] if case.log and {"torch", "rocm", "app"} & set(case.log.told) else []
    app = case.log.app if case.log else ""
    signs += [sign for sign, regex in (("app-bundled", _BUNDLED), ("app-cuda-engine", _CUDA_ENGINE)) if regex.search(app)]
    if isinstance(platform.container, Known) and platform.container.value:
        signs.append("containered")
    if isinstance(platform.groups, Known) and platform.groups.value and not {"render", "video", "root"} & set(platform.groups.value):
        signs.append("no-group")
    if isinstance(platform.distribution, Known) and platform.distribution.value:
        signs.append(f"on-{platform.distribution.value.lower()}")
    return signs


def _lines(case: Case) -> list[str]:
    """What lines name: a GPU that is not the card, a library twice; and who speaks in them."""
    if not case.log:
        return []
    lines, signs = case.log.lines[:_LINES], list[str]()
    kernel = case.machine.platform.kernel
    if isinstance(kernel, Known) and (series := re.match(r"\d+\.\d+", kernel.value)):
        close = [line for line in lines if series.group() in line]
        if close and any(re.search(rf"(?<![\d.]){re.escape(series.group())}(?!\d)", line) for line in close):
            signs.append("kernel-named")
    told = {gfx_of(gpu) for gpu in case.machine.gpus}
    if told and not any(gpu.integrated for gpu in case.machine.gpus):
        named = {target for line in lines if "gfx" in line for target in _TARGET.findall(line)} - told
        if any((row := case.knowledge.gpus.get(target)) and row.integrated for target in named):
            signs.append("integrated-named")
    libraries = {(name, int(version)) for line in lines if ".so." in line for name, version in _LIBRARY.findall(line)}
    if len(libraries) > len({name for name, _ in libraries}):
        signs.append("two-versions")
    if len(lines) <= _WORDS and not any(_printed(line.lower()) for line in lines):
        signs += ("prose", *_MOODS[mood.of(lines)])
    return signs


def _printed(low: str) -> bool:
    for word, regex in _PRINTED:  # noqa: SIM110  # a generator costs more than most of the questions
        if word in low and regex.search(low):
            return True
    return False
