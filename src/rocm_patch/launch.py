"""The environment in which one command runs best on this card with this stack; nothing on the system is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rocm_patch.diagnose.case import MASKS, OVERRIDE, Case
from rocm_patch.diagnose.folklore import effect_of, to_drop
from rocm_patch.diagnose.stack import integrated, legitimate_value, override
from rocm_patch.errors import UsageError
from rocm_patch.model import Setting


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


def with_prefix(launch: Launch, folder: str) -> Launch:
    """The same, with the libraries of a folder before all others that are not named by DT_RPATH.

    Raises:
        UsageError: there are no libraries in it.
    """
    folder = os.path.abspath(folder)
    found = [path for path in (f"{folder}/lib", f"{folder}/lib64") if os.path.isdir(path) and not os.path.islink(path)]
    if not found:
        raise UsageError(f"--prefix {folder}: there is no folder lib in it", "the one that a plan made is called current")
    value = ":".join([*found, *filter(None, [launch.environment.get("LD_LIBRARY_PATH", "")])])
    said = (*launch.changes, f"LD_LIBRARY_PATH={value}: the libraries of {folder} before all others")
    return Launch({**launch.environment, "LD_LIBRARY_PATH": value}, said, launch.warnings)


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
