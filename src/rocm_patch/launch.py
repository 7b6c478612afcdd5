"""The environment in which one command runs best on this card with this stack; nothing on the system is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rocm_patch.changes import prefix_means, prefix_reach, prefix_users
from rocm_patch.diagnose.case import MASKS, OVERRIDE, Case
from rocm_patch.diagnose.folklore import effect_of, to_drop
from rocm_patch.diagnose.stack import integrated, legitimate_value, override
from rocm_patch.errors import UsageError
from rocm_patch.model import Setting
from rocm_patch.root import Root


@dataclass(frozen=True)
class Launch:
    """The whole environment for the command, and what was changed in it, in words."""

    environment: Mapping[str, str]
    changes: tuple[str, ...]
    warnings: tuple[str, ...]


def prepare(case: Case, environment: Mapping[str, str], keep: tuple[str, ...] = ()) -> Launch:
    """Leave out what harms, set what is known to help, touch nothing that the user says to keep."""
    values, changes, warnings = dict(environment), list[str](), list[str]()
    if not case.card:
        return Launch(values, (), ("no card that this tool is for: the command runs as it is",))
    case = _of_process(case, environment)
    for name in sorted(environment):
        if name in keep or name not in case.knowledge.settings:
            continue
        if name == case.override_name:
            harm = [finding for finding in override(case) if finding.severity == "problem"]
            if harm:
                del values[name]
                changes.append(f"without {name}={environment[name]}: {harm[0].why[0]}")
            continue
        effect = effect_of(case, name, environment[name])
        if effect and to_drop(effect):
            del values[name]
            changes.append(f"without {name}={environment[name]}: {effect.text}")
    for name, value, why in _helpful(case, values):
        if name not in values and name not in keep:
            values[name] = value
            changes.append(f"{name}={value}: {why}")
    for torch in case.rocm_torches:
        coverage = case.coverage(torch)
        if coverage.targets is not None and not coverage.native(case.gfx, case.generic) and OVERRIDE not in values:
            warnings.append(f"the torch in {torch.site} has no code for {case.gfx}; `rocm-patch fix` installs one that has")
    return Launch(values, tuple(changes), tuple(warnings))


def with_prefix(launch: Launch, folder: str, sites: Sequence[str] = (), others: Sequence[str] = (), keep: Sequence[str] = ()) -> Launch:
    """The same, with the libraries of a folder before all others, by the means that the torches in these site folders need.

    `others`: what the command may be for, where no torch is known to be its own. The libraries must fit one of them; none of
    their files is loaded. A program of the system was once given a wheel's HIP by LD_PRELOAD, for MIOpen's sake, without a word.

    Raises:
        UsageError: there are no libraries in it, LD_LIBRARY_PATH cannot name it, or is to be kept.
        RefusedError: they fit none of these torches.
    """
    folder = os.path.abspath(folder)
    if "LD_LIBRARY_PATH" in keep:
        raise UsageError("--keep LD_LIBRARY_PATH and --prefix: it is by LD_LIBRARY_PATH that a prefix is found", "give one of the two")
    if cut := [mark for mark in prefix_means.CUTTING if mark in folder]:
        raise UsageError(
            f"--prefix {folder}: LD_LIBRARY_PATH cannot name a path with {' or '.join(cut)}", "reach it through a link: ln -s FOLDER LINK"
        )
    found = [path for path in (f"{folder}/lib", f"{folder}/lib64") if os.path.isdir(path) and not os.path.islink(path)]
    if not found:
        raise UsageError(f"--prefix {folder}: there is no folder lib in it", "the one that a plan made is called current")
    given = prefix_reach.libraries(folder)
    mine, theirs = ([there for site in group if (there := prefix_reach.place(Root("/"), site)) is not None] for group in (sites, others))
    warnings = [*launch.warnings, *prefix_means.check(given, [*mine, *theirs])]
    ways = [prefix_means.means(given, there, folder) for there in mine]
    warnings += [way.lacks for way in ways if way.lacks]
    for there in theirs:
        way = prefix_means.means(given, there, folder)
        if way.lacks or way.preload or way.folders:
            warnings.append(way.lacks or f"{there.words} does not take it so: it is not known to be this command's; --python PATH names it")
    preloads = {way.preload for way in ways if way.preload}
    if len(preloads) > 1:
        warnings.append("several torches keep libraries of their own, and this reaches none of them: name the one that is meant with --python")
    values, said = dict(launch.environment), list(launch.changes)
    _before(values, "LD_LIBRARY_PATH", found, ":")
    more = [way for means in ways for way in means.folders if way not in values["LD_LIBRARY_PATH"].split(":")]
    values["LD_LIBRARY_PATH"] = ":".join([values["LD_LIBRARY_PATH"], *dict.fromkeys(more)])
    said.append(f"LD_LIBRARY_PATH={values['LD_LIBRARY_PATH']}: the libraries of {folder} before all others")
    if len(preloads) == 1 and "LD_PRELOAD" in keep:
        warnings.append("LD_PRELOAD stays, as --keep says: this torch keeps its own libraries otherwise, whatever LD_LIBRARY_PATH says")
    elif len(preloads) == 1:
        _before(values, "LD_PRELOAD", next(iter(preloads)), " ")
        said.append(f"LD_PRELOAD={values['LD_PRELOAD']}: this torch keeps its own libraries otherwise, whatever LD_LIBRARY_PATH says")
    if any(library.soname.startswith("libMIOpen.") for library in given):
        private = prefix_users.databases(_cache_home(values), folder)
        if values.get("MIOPEN_SYSTEM_DB_PATH"):
            warnings.append(f"MIOPEN_SYSTEM_DB_PATH={values['MIOPEN_SYSTEM_DB_PATH']} stays: kernels that lie there are taken instead of this one's")
        for name, inner in (("MIOPEN_USER_DB_PATH", "db"), ("MIOPEN_CUSTOM_CACHE_DIR", "kernels")):
            if values.get(name) or name in keep:
                warnings.append(f"{name}={values.get(name, '')} stays: what another MIOpen left there may hide what this one does")
                continue
            values[name] = f"{private}/{inner}"
            said.append(f"{name}={values[name]}: of its own, as results of another MIOpen would hide what this one does")
    return Launch(values, tuple(said), tuple(warnings))


def _before(values: dict[str, str], name: str, words: Sequence[str], mark: str) -> None:
    values[name] = mark.join([*words, *filter(None, [values.get(name, "")])])


def _cache_home(values: Mapping[str, str]) -> str:
    folder = values.get("XDG_CACHE_HOME", "")
    return folder if folder.startswith("/") else os.path.join(values.get("HOME") or os.path.expanduser("~"), ".cache")


def _helpful(case: Case, values: Mapping[str, str]) -> list[tuple[str, str, str]]:
    helpful = []
    if OVERRIDE not in values:
        needed = [
            legitimate_value(case.gfx, case.coverage(torch)) for torch in case.rocm_torches if not case.coverage(torch).native(case.gfx, case.generic)
        ]
        if needed and needed[0]:
            helpful.append((OVERRIDE, needed[0], f"this torch has no {case.gfx} code, and {case.gfx} executes the code that it has"))
    if not any(name in values for name in MASKS):
        for item in integrated(case):
            for advice in item.remedies:
                value = next((str(index) for index in range(8) if f"ROCR_VISIBLE_DEVICES={index}" in advice.text), "")
                if value:
                    helpful.append(("ROCR_VISIBLE_DEVICES", value, "hides the integrated GPU"))
    helpful.append(("MIOPEN_FIND_MODE", "FAST", "no benchmarking at the first convolution of each shape"))
    helpful.append(("TORCH_BLAS_PREFER_HIPBLASLT", "0", "hipBLASLt has no kernels for this card"))
    if case.gfx.startswith("gfx101"):
        helpful.append(("AMDGCN_USE_BUFFER_OPS", "0", "Triton's buffer operations write nothing on this chip"))
    return helpful


def _of_process(case: Case, environment: Mapping[str, str]) -> Case:
    """The same case, with this environment in force and nothing else."""
    settings = tuple(
        Setting(name, value, case.knowledge.settings[name].kind, "process", "environment", 0, "process", True)
        for name, value in sorted(environment.items())
        if name in case.knowledge.settings
    )
    return Case(replace(case.machine, settings=settings), case.images, case.trials, case.knowledge)
