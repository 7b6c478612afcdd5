"""What a step does, in one line, and what a path becomes, as a unified diff."""

from __future__ import annotations

import difflib

from rocm_patch.model import RemedyRow, Step
from rocm_patch.root import State


def unified(path: str, before: State, after: State) -> str:
    """The difference of two states of a path: content, and mode or kind where they change."""
    old, new = _lines(before), _lines(after)
    text = "".join(difflib.unified_diff(old, new, _name("a", path, before), _name("b", path, after)))
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
    keys = ("set", "unset", "place", "when") if row.kind == "environment" else tuple(item.parameters)
    words = "; ".join(f"{key} {', '.join(item.parameters[key])}" for key in keys if item.parameters.get(key))
    if row.kind == "environment" or "{" in row.title:  # its title speaks of a finding, and there is none in a step
        return f"{item.remedy}: {words}"
    return f"{item.remedy}: {row.title}{f' ({words})' if words else ''}"


def _lines(state: State) -> list[str]:
    if state.kind == "link":
        return [f"-> {state.target}\n"]
    text = state.data.decode("utf-8", "replace")
    return [line if line.endswith("\n") else line + "\n" for line in text.splitlines(keepends=True)]


def _name(side: str, path: str, state: State) -> str:
    return "/dev/null" if state.kind == "absent" else f"{side}{path if path.startswith('/') else '/' + path}"
