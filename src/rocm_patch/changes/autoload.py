"""Our convolution engine, or torch's switch that keeps MIOpen out, in a virtual environment of the user's.

What is put into its site-packages, in this order, and taken away in the reverse one:

    rocm_patch_conv/               the engine, a copy of our package `conv` (remedy conv-engine only)
    rocm_patch_autoload/           its hook, a copy of `rocm_patch/autoload.py`
    rocm_patch_autoload.pth        only where torch is older than 2.5 or does not say what it is
    rocm_patch_autoload-V.dist-info/   so that pip lists and can uninstall it; its entry point is written last

The order matters: an entry point whose module is not there makes `import torch` fail, a hook without an engine does not.
The folders are grown ones, since Python writes caches into them and a rollback shall leave nothing.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from rocm_patch.changes import grown
from rocm_patch.changes.autoload_parts import BY_HAND, ENGINE, HOOK, Files, Place, find, is_rocm, order, pieces
from rocm_patch.changes.kind import Change, Kind, Look, Tables, Work
from rocm_patch.changes.record import digest
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import State, join, parent_of
from rocm_patch.run import CLEAN, run

DOORS: Final = ("engine", "miopen_off")
"""What the hook does: the functions of `rocm_patch/autoload.py` that a step may name."""
TIMEOUT: Final = 300.0
"""Seconds for one `import torch` from a cold disk."""
_PARAMETERS: Final = ("venv", "door")
_KEPT_VARIABLES: Final = ("HOME", "TMPDIR", "LD_LIBRARY_PATH", "ROCM_PATH")

# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check the form of a step; whether the environment will do is `render`'s question.

    Raises:
        RefusedError: which parameter is not allowed.
    """
    del tables
    if step.scope != "user":
        raise RefusedError("a virtual environment belongs to a user; it is never changed in system scope")
    for key in step.parameters:
        if key not in _PARAMETERS:
            raise RefusedError(f"remedy {step.remedy}: an autoload step has no parameter {key!r}")
    for key in _PARAMETERS:
        if len(step.parameters.get(key, ())) != 1:
            raise RefusedError(f"remedy {step.remedy}: the parameter {key!r} is missing or given more than once")
    if step.parameters["door"][0] not in DOORS:
        raise RefusedError(f"remedy {step.remedy}: the hook has no door {step.parameters['door'][0]!r}")
    venv = step.parameters["venv"][0]
    if not venv.startswith("/") or os.path.normpath(venv) != venv or not venv.isprintable():
        raise RefusedError(f"the environment is named by a plain absolute path, not {venv!r}")


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """The folders and files of each step.

    Raises:
        RefusedError: no environment that we would change, or something is there that is not what the step wants.
    """
    venvs = [step.parameters["venv"][0] for step in steps]
    if len(set(venvs)) != len(venvs):
        raise RefusedError("an environment gets one of these remedies: the engine keeps MIOpen out by itself", "name one of them")
    return tuple(change for step in steps for change in _render(step, look))


def _render(step: Step, look: Look) -> tuple[Change, ...]:
    if not look.ground.live:
        raise RefusedError("an environment can be changed on the running system only, not in another root")
    place = find(step.parameters["venv"][0])
    try:
        look.ground.at(place.site)
    except RefusedError as error:
        raise RefusedError(f"{place.site} does not lie in {look.ground.base}", BY_HAND) from error
    if step.parameters["door"][0] == "miopen_off" and not is_rocm(place):
        raise RefusedError(f"the torch in {place.venv} is no ROCm build; there is no MIOpen to keep out")
    files, folders = pieces(step.parameters["door"][0], place)
    wanted = {**folders, **files}
    there = {f"{place.site}/{name}" for name in os.listdir(place.site) if name.startswith((ENGINE, HOOK))}
    if there:
        _check_ours(step, look, there, folders, files)
    changes = []
    for path in sorted(wanted, key=order):
        if path in there:
            changes.append(Change(path, look.now(path)))
        elif path in folders:
            changes.append(Change(path, grown.folder_state(0o755), grown=True))
        else:
            changes.append(Change(path, _file(files[path])))
    return tuple(changes)


def _file(data: bytes) -> State:
    return State("file", 0o644, os.geteuid(), os.getegid(), data)


def _check_ours(step: Step, look: Look, there: set[str], folders: Mapping[str, Files], files: Files) -> None:
    """What is there must be just what the step wants, and put there by us.

    Raises:
        RefusedError: what to do first.
    """
    hook = next(path for path in folders if path.endswith(f"/{HOOK}"))
    maker = grown.marker_of(look.tree, look.ground.at(hook))
    record = next((record for record in look.active if record.transaction == maker), None)
    if record is None:
        what = ", ".join(sorted(there))
        raise RefusedError(f"{what}: there already, and not ours to change", f"if it is a leftover: rm -r -- {shlex.join(sorted(there))}")
    same = there == {*folders, *files}
    same = same and all(look.now(path).data == data for path, data in files.items())
    if not same or any(_differs(look, path, content) for path, content in folders.items()):
        raise RefusedError(
            f"{step.parameters['venv'][0]} has our hook, for another remedy, another version of us, or changed since",
            f"take it back, then apply again: rocm-patch rollback {maker}",
        )


def _differs(look: Look, folder: str, content: Files) -> bool:
    now = json.loads(grown.manifest(look.tree, look.ground.at(folder)))
    now.pop(grown.MARKER, None)
    return bool(now != {name: f"file {digest(data)}" for name, data in content.items()})


# ------------------------------------------------------------------ activate


def activate(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """Fill the folders, in their order."""
    grow = [change.path for change in changes if change.grown]
    for step in steps:
        _, folders = pieces(step.parameters["door"][0], find(step.parameters["venv"][0]))
        for path in sorted(folders, key=order):
            if path in grow:
                _fill(path, folders[path], work)
    return ()


def _fill(folder: str, content: Files, work: Work) -> None:
    at = work.ground.at(folder)
    for name, data in content.items():
        path = join(at, name)
        work.tree.ensure_folder(parent_of(path))
        work.tree.put(path, _file(data))


# ------------------------------------------------------------------ verify

_CHILD: Final = """
import json, sys
said = {"torch": "", "on": False}
try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
else:
    said["torch"] = str(torch.__version__)
    if sys.argv[1] == "engine":
        import rocm_patch_conv
        said["on"] = bool(rocm_patch_conv.status()["enabled"])
    else:
        said["on"] = torch.backends.cudnn.enabled is False
sys.stdout.write("\\n" + json.dumps(said) + "\\n")
"""


def verify(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Import torch in a child of each environment, and ask whether the hook did its work.

    Raises:
        RocmPatchError: torch cannot be imported, or the hook did not do it; nothing is kept.
    """
    del changes
    return tuple(_verify(step, find(step.parameters["venv"][0]), work) for step in steps)


def _verify(step: Step, place: Place, work: Work) -> str:
    door = step.parameters["door"][0]
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    work.say(f"importing torch in {place.venv}")
    ended = run([place.python, "-I", "-B", "-c", _CHILD, door], timeout=TIMEOUT, environment={**CLEAN, **kept}, keep=[work.lock])
    last = ended.err.decode("utf-8", "replace").strip().rpartition("\n")[2][:500]
    if ended.timed_out:
        raise RocmPatchError(f"`import torch` in {place.venv} took more than {TIMEOUT:.0f} seconds; nothing is kept")
    try:
        said = json.loads(ended.out.decode("utf-8", "replace").strip().rpartition("\n")[2])
    except ValueError:
        said = {}
    if ended.code != 0 or "torch" not in said:
        raise RocmPatchError(
            f"`import torch` fails in {place.venv} ({last or ended.code}); nothing is kept", "repair that torch first: rocm-patch doctor"
        )
    if not said["torch"]:
        return f"{place.venv}: no torch can be imported there yet; the hook waits for one"
    if not said["on"]:
        raise RocmPatchError(f"torch {said['torch']} is imported in {place.venv}, but the hook did nothing ({last or 'silently'}); nothing is kept")
    return f"{place.venv}: torch {said['torch']} is imported, {'the engine is on' if door == 'engine' else 'MIOpen is off'}"


KIND: Final = Kind("autoload", ("user",), "", validate, render, activate, verify)
