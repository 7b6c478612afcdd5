"""Take out of a recording what says who and where somebody is: user and host names, homes, serials, MACs, addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rocm_patch import codec
from rocm_patch.model import Known, Recording

_GROUPS = {"render", "video", "root", "wheel", "sudo", "docker", "adm", "users", "input", "kvm"}
_WORDS = re.compile(r"^(amdgpu|radeon|iommu|amd_iommu|intel_iommu|pci|pcie_|nomodeset|quiet|splash|ro|rw|mitigations|drm|video|processor|idle|panic)")
_HOME = re.compile(r"[/\\]+(?:home|Users|users)[/\\]+[^/\\\s:\"']+")
_IDS = re.compile(r"\b(uid|gid|groups)=(\d+)\([^)]*\)")
_PATTERNS = (
    # what each match contains (in lower case) and how often at least, expression, what is put
    ("-", 4, re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE), "<uuid>"),
    (":", 5, re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE), "<mac>"),
    ("-", 5, re.compile(r"\b(?:[0-9a-f]{2}-){5}[0-9a-f]{2}\b", re.IGNORECASE), "<mac>"),
    (":", 3, re.compile(r"(?<![\w:.])(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}|(?:[0-9a-f]{1,4}:){1,6}(?::[0-9a-f]{1,4}){2,6})(?![\w:])"), "<address>"),
    (".", 3, re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]|-[a-z])"), "<address>"),
    ("@", 1, re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b"), "<mail>"),
    ("@", 1, re.compile(r"\b[a-z_][\w.-]*@[\w-]+(?=:[~/]|:? ?[$#~])"), "<user>@<host>"),
    ("serial", 1, re.compile(r"\b(serial[ _-]?(?:number|no)?)(\W+)(?!serial>)\w+", re.IGNORECASE), r"\1\2<serial>"),
    ("unique_id", 1, re.compile(r"\b(unique_id)(\W+)(?!serial>)\w+", re.IGNORECASE), r"\1\2<serial>"),
    ("gpu-", 1, re.compile(r"\bGPU-[0-9a-f]{12,}\b"), "GPU-<serial>"),
    ("home", 1, _HOME, "/home/user"),
    ("users", 1, _HOME, "/home/user"),
    ("/media/", 1, re.compile(r"/media/[^/\s:\"']+"), "/media/user"),
    (" member of", 1, re.compile(r"(?<!\S)\S+( is (?:not )?(?:a )?member of)"), r"<user>\1"),
    ("id=", 1, _IDS, r"\1=\2(<name>)"),
    ("groups=", 1, _IDS, r"\1=\2(<name>)"),
    ("linux ", 1, re.compile(r"\bLinux (?!version)[\w.-]+ (?=\d+\.\d+\.\d)"), "Linux <host> "),
)


def recording(value: Recording, names: Iterable[str]) -> Recording:
    """The same recording with `names` (the user's, the host's) and everything of the patterns replaced."""
    platform = value.machine.platform
    if isinstance(platform.groups, Known):
        platform = replace(platform, groups=Known(tuple(group for group in platform.groups.value if group in _GROUPS), platform.groups.source))
    if isinstance(platform.command_line, Known):
        kept = tuple(word for word in platform.command_line.value if _WORDS.match(word))
        platform = replace(platform, command_line=Known(kept, platform.command_line.source))
    value = replace(value, machine=replace(value.machine, root="/", platform=platform))
    plain = _walk(codec.encode(value), words(names))
    return codec.decode(Recording, plain, "recording")  # type: ignore[no-any-return]


def words(names: Iterable[str]) -> list[re.Pattern[str]]:
    """Expressions for names as whole words; too short ones and those that everybody has are left out."""
    return [re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in names if len(name) > 2 and name not in ("root", "user")]


def text(line: str, words: Iterable[re.Pattern[str]] = ()) -> str:
    """One string, redacted."""
    low = line.lower()
    for hint, least, pattern, put in _PATTERNS:
        if hint in low and (least == 1 or low.count(hint) >= least):
            line = pattern.sub(put, line)
    for word in words:
        line = word.sub("<name>", line)
    return line


def _walk(value: Any, words: list[re.Pattern[str]]) -> Any:
    if isinstance(value, dict):
        return {key: _walk(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, words) for item in value]
    return text(value, words) if isinstance(value, str) else value
