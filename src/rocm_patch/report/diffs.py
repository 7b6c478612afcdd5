"""What a step does, in one line, and what a path becomes, as a unified diff."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence

from rocm_patch.changes import modprobe
from rocm_patch.model import RemedyRow, Step
from rocm_patch.root import State


def unified(path: str, before: State, after: State, context: int = 3) -> str:
    """The difference of two states of a path: content, and mode or kind where they change.

    `context` lines around each change are shown; 0 for what is kept or sent: lines beside one of somebody's may hold a password.
    """
    old, new = _lines(before), _lines(after)
    text = "".join(difflib.unified_diff(old, new, _name("a", path, before), _name("b", path, after), n=context))
    notes = []
    if before.kind != after.kind:
        notes.append(f"# {path}: {before.kind} -> {after.kind}" + (f" (mode {after.mode:04o})" if after.kind != "absent" else ""))
    elif before.mode != after.mode:
        notes.append(f"# {path}: mode {before.mode:04o} -> {after.mode:04o}")
    return "".join(f"{note}\n" for note in notes) + text


def step(item: Step, row: RemedyRow) -> str:
    """A step in words, with what it sets, takes away or installs."""
    if row.kind == "venv":
        packages, index = " ".join(item.parameters.get("packages", ())), " ".join(item.parameters.get("index", ()))
        return f"{item.remedy}: a new environment {' '.join(item.parameters.get('name', ()))} with {packages} from {index}"
    if row.kind == "autoload":
        what = "our convolution engine" if item.parameters.get("door") == ("engine",) else "MIOpen switched off"
        return f"{item.remedy}: {what} whenever torch is imported in {' '.join(item.parameters.get('venv', ()))}"
    if row.kind == "modprobe":
        name, default = modprobe.REMEDIES[item.remedy]
        given = item.parameters.get("value")
        return f"{item.remedy}: {row.title}: {modprobe.MODULE}.{name}={given[0] if given else f'{default} (value {default}, the default)'}"
    if row.kind in ("preload", "prefix") and item.parameters.get("sha256"):
        source = (item.parameters.get("library") or item.parameters.get("source") or ("what is there already",))[0]
        reader = "root" if item.scope == "system" else "your own user"
        what = "it" if row.kind == "preload" else "its manifest"
        words = f"read by {reader} from {source}, taken only if {what} has sha256 {item.parameters['sha256'][0]}"
        return f"{item.remedy}: {row.title}; {words} ({_words(item, tuple(item.parameters))})"
    keys = ("set", "unset", "place", "when") if row.kind == "environment" else tuple(item.parameters)
    words = _words(item, keys)
    if row.kind == "cmdline" and "stage" not in item.parameters:
        words = "; ".join(filter(None, (words, "stage trial, or direct under --root: the default")))
    if row.kind == "environment" or "{" in row.title:  # its title speaks of a finding, and there is none in a step
        return f"{item.remedy}: {words}" if words else item.remedy
    return f"{item.remedy}: {row.title}{f' ({words})' if words else ''}"


def _words(item: Step, keys: Sequence[str]) -> str:
    return "; ".join(f"{key} {', '.join(item.parameters[key])}" for key in keys if item.parameters.get(key))


def redacted(text: str) -> str:
    """A difference as it may be kept or sent: where and how much, and not what others wrote into a file of theirs."""
    head, mark, rest = text.partition("\n@@ ")
    lines = list[str]()
    for line in f"@@ {rest}".split("\n") if mark else ():
        # After the first @@ a line of a file has a sign before it, whatever it begins with itself.
        if line.startswith(("@@ ", "\\ ")):
            lines.append(f"{line}\n")
        elif line.startswith(("+", "-")):
            lines.append(f"{line[0]}[{len(line.rstrip()) - 1} characters]\n")
    return f"{head}\n{''.join(lines)}" if mark else text


def _lines(state: State) -> list[str]:
    if state.kind == "link":
        return [f"-> {state.target}\n"]
    text = state.data.decode("utf-8", "replace")
    if b"\0" in state.data[:8192]:
        return [f"(binary, {len(state.data)} bytes, sha256 {hashlib.sha256(state.data).hexdigest()})\n"]
    return [line if line.endswith("\n") else line + "\n" for line in text.splitlines(keepends=True)]


def _name(side: str, path: str, state: State) -> str:
    return "/dev/null" if state.kind == "absent" else f"{side}{path if path.startswith('/') else '/' + path}"
