"""A virtual environment of ours with the wheels that a card needs. User scope, never through sudo.

The folder is born with a marker that names the transaction; nothing is ever installed into one that is not ours. What is
in it is judged from outside, by the names of dist-info folders: the public index holds empty placeholders under the very
names of the device packages.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rocm_patch.changes import executable_stack, grown
from rocm_patch.changes.kind import Change, Kind, Look, Tables, Work
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.run import CLEAN, run

PLACEHOLDER: Final = "0.0.1.dev0"
VENV_TIMEOUT: Final = 600.0
INSTALL_TIMEOUT: Final = 6 * 3600.0
_PARAMETERS: Final = ("gfx", "packages", "index", "python", "name", "expect")
_EXTRA: Final = "extra"
"""A second index, where a line of wheels has one."""
_GFX: Final = re.compile(r"gfx[0-9a-f]{3,5}")
_INDEX: Final = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?/[A-Za-z0-9._~/+-]*")
_FOLDER: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REQUIREMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[(?P<extras>[a-z0-9,_-]+)\])?(==(?P<version>[A-Za-z0-9.+]+))?")
_DIST_INFO: Final = re.compile(r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[^-]+)\.dist-info")
_KEPT_VARIABLES: Final = (
    "HOME", "TMPDIR", "XDG_CACHE_HOME",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "PIP_PROXY",
)  # fmt: skip


# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check a step against the wheels table: only packages, pins and indices that stand there, or a folder as the index.

    Raises:
        RefusedError: which parameter is not allowed.
    """
    if step.scope != "user":
        raise RefusedError("a virtual environment belongs to a user; it is never made in system scope")
    for key in step.parameters:
        if key not in (*_PARAMETERS, _EXTRA):
            raise RefusedError(f"remedy {step.remedy}: a venv step has no parameter {key!r}")
    for key in _PARAMETERS:
        values = step.parameters.get(key, ())
        if not values or (key in ("index", "python", "name") and len(values) != 1):
            raise RefusedError(f"remedy {step.remedy}: the parameter {key!r} is missing or given more than once")
    gfx = step.parameters["gfx"]
    if any(not _GFX.fullmatch(item) for item in gfx):
        raise RefusedError(f"remedy {step.remedy}: {', '.join(gfx)} is no list of GPU targets")
    if not _FOLDER.fullmatch(step.parameters["name"][0]):
        raise RefusedError(f"{step.parameters['name'][0]!r} cannot be the name of an environment", "use letters, digits, '.', '_' and '-'")
    _plain_path(step.parameters["python"][0], "the Python interpreter")
    rows = [row for row in _wheels(tables) if set(gfx) <= set(row.gfx) and getattr(row, "remedy", "") in ("", step.remedy)]
    if any(getattr(row, "remedy", "") for row in rows):
        rows = [row for row in rows if row.remedy]  # wheels that are for this remedy alone
    allowed = [_allowed(row, gfx) for row in rows]
    if not allowed:
        raise RefusedError(f"our tables know no wheels for {', '.join(gfx)}")
    index = step.parameters["index"][0]
    if not index.startswith("/"):
        # A mirror is the user's own choice, shown in the plan; what is taken from it stays pinned by our tables.
        if not _INDEX.fullmatch(index) or index.startswith("https://pypi.org/"):
            raise RefusedError(
                f"{index!r} cannot be the index of these wheels",
                "name AMD's, a mirror of it by its https address, or a folder of wheels; the public index holds empty placeholders under these names",
            )
    else:
        _plain_path(index, "the folder of wheels")
    if step.parameters.get(_EXTRA, ()) not in ((), *((row.extra_index,) for row in rows if getattr(row, "extra_index", ""))):
        raise RefusedError(f"remedy {step.remedy}: {', '.join(step.parameters[_EXTRA])} is no second index of these wheels")
    if not any(_fits(step, row) for row in allowed):
        raise RefusedError(f"remedy {step.remedy}: the packages are not those of any line of wheels that our tables know")


def _plain_path(path: str, what: str) -> None:
    if not path.startswith("/") or os.path.normpath(path) != path or not path.isprintable():
        raise RefusedError(f"{what} is named by a plain absolute path, not {path!r}")


def _wheels(tables: Tables) -> Sequence[Any]:
    return getattr(tables, "wheels", ())


def _allowed(row: Any, gfx: Sequence[str]) -> dict[str, str]:
    """Names that a line of wheels offers for these targets, and the version where it pins one."""
    found: dict[str, str] = {}
    for template in row.packages:
        for target in gfx:
            match = _REQUIREMENT.fullmatch(template.replace("{gfx}", target))
            if match is not None:
                found[_normal(match["name"])] = match["version"] or ""
    return found


def _fits(step: Step, allowed: Mapping[str, str]) -> bool:
    extras = {f"device-{gfx}" for gfx in step.parameters["gfx"]}
    for text in step.parameters["packages"]:
        match = _REQUIREMENT.fullmatch(text)
        if match is None or _normal(match["name"]) not in allowed:
            return False
        pin = allowed[_normal(match["name"])]
        if pin and match["version"] != pin:
            return False
        if match["extras"] and not set(match["extras"].split(",")) <= extras:
            return False
    return all(_normal(name) in allowed for name in step.parameters["expect"])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """One folder for each step.

    Raises:
        RefusedError: not the running system, or the folder is there and is not what the step wants.
    """
    return tuple(_render(step, look) for step in steps)


def _render(step: Step, look: Look) -> Change:
    if not look.ground.live:
        raise RefusedError("a virtual environment can be made on the running system only, not in another root")
    _check_library(step, look.tables)
    path = path_of(step, look.ground.data)
    now = look.now(path)
    if now.kind == "absent":
        return Change(path, grown.folder_state(0o700), grown=True)
    maker = grown.marker_of(look.tree, look.ground.at(path))
    record = next((record for record in look.active if record.transaction == maker), None)
    if record is None:
        raise RefusedError(f"{path} is there and is not ours; nothing is installed into it", "choose another name for the environment")
    if not any(_same(step, old) for old in record.steps):
        raise RefusedError(f"{path} was made with other packages", f"take it back first: rocm-patch rollback {maker}")
    wrong = faults(step, look.ground.host(path))
    if wrong:
        raise RefusedError(f"{path} is ours, but {'; '.join(wrong)}", f"take it back, then apply again: rocm-patch rollback {maker}")
    return Change(path, now)


def _check_library(step: Step, tables: Tables) -> None:
    """Before hundreds of megabytes are fetched: does this system's C library load them at all?"""
    row = next((row for row in _wheels(tables) if getattr(row, "remedy", "") == step.remedy), None)
    limit = row.glibc_below if row is not None else ""
    have = executable_stack.c_library()
    if limit and have and not executable_stack.older(have, limit):
        raise RefusedError(
            f"glibc {have} refuses the libraries of these wheels: they ask for an executable stack, which it does not give from {limit} on",
            "native-wheel needs none of this: rocm-patch plan --remedy native-wheel",
        )


def _same(one: Step, other: Step) -> bool:
    return one.remedy == other.remedy and dict(one.parameters) == dict(other.parameters)


def path_of(step: Step, data: str) -> str:
    """Where the environment lies."""
    return f"{data}/venvs/{step.parameters['name'][0]}"


# ------------------------------------------------------------------ activate


def activate(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """Fill the folders: `python -m venv`, then pip, its progress on stderr.

    Raises:
        RocmPatchError: either failed.
    """
    for step, change in zip(steps, changes, strict=True):
        if change.grown:
            _fill(step, work.ground.host(change.path), work)
    os.sync()  # what pip wrote must not be younger than the receipt that vouches for it
    return ()


def _fill(step: Step, folder: str, work: Work) -> None:
    python = step.parameters["python"][0]
    work.say(f"making a virtual environment: {folder}")
    made = run([python, "-I", "-m", "venv", folder], timeout=VENV_TIMEOUT, environment=_environment(), keep=[work.lock])
    if made.code != 0:
        said = made.out.decode("utf-8", "replace").strip() or made.text
        hint = "on Debian and Ubuntu: sudo apt install python3-venv" if "ensurepip" in said else ""
        raise RocmPatchError(f"{python} -m venv failed: {said.splitlines()[-1] if said else made.code}", hint)
    argv = install_command(step, folder)
    work.say(shlex.join(argv))
    installed = run(argv, timeout=INSTALL_TIMEOUT, environment=_environment(), show=True, keep=[work.lock])
    if installed.code != 0:
        what = "took more than six hours" if installed.timed_out else f"ended with {installed.code}"
        hint = f"is the index reachable, and has it these wheels: {step.parameters['index'][0]}"
        raise RocmPatchError(f"pip {what}; its own words stand above", hint)


def install_command(step: Step, folder: str) -> list[str]:
    """What pip is asked. One index only: the public one has placeholders under the same names."""
    index = step.parameters["index"][0]
    source = ["--no-index", "--find-links", index] if index.startswith("/") else ["--index-url", index]
    source += [word for extra in step.parameters.get(_EXTRA, ()) for word in ("--extra-index-url", extra)]
    return [f"{folder}/bin/python", "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *source, *step.parameters["packages"]]


def _environment() -> dict[str, str]:
    """From nothing: no PYTHONPATH, no pip settings of the user's; ways to the network stay."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**CLEAN, **kept, "PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1"}


# ------------------------------------------------------------------ verify


def verify(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Look at what is installed, from outside.

    Raises:
        RocmPatchError: a package is missing, another version, or a placeholder.
    """
    said = []
    for step, change in zip(steps, changes, strict=True):
        folder = work.ground.host(change.path)
        wrong = faults(step, folder)
        if wrong:
            raise RocmPatchError(f"pip ended well, but {'; '.join(wrong)}", "nothing is kept; the index may hold placeholders only")
        said += _stacks(change.path, folder, work.tables, step)
        found = installed_in(folder)
        names = [name for name in dict.fromkeys(("torch", *step.parameters["expect"])) if _normal(name) in found]
        said += [f"{change.path}: {name} {found[_normal(name)]}" for name in names]
    return tuple(said)


def _stacks(path: str, folder: str, tables: Tables, step: Step) -> list[str]:
    if not any(getattr(row, "remedy", "") == step.remedy for row in _wheels(tables)):
        return []
    asking = executable_stack.asking(folder)
    have = executable_stack.c_library()
    if not asking:
        return [f"{path}: no library asks for an executable stack"]
    if have and not executable_stack.older(have, executable_stack.REFUSED_FROM):
        raise RocmPatchError(f"{asking[0]} asks for an executable stack, which glibc {have} does not give: it cannot be loaded")
    limit = executable_stack.REFUSED_FROM
    return [f"{path}: {len(asking)} libraries ask for an executable stack; glibc {have or 'of unknown version'} gives it, from {limit} on none does"]


def faults(step: Step, folder: str) -> list[str]:
    """What is not as the step wants it; empty: all is well."""
    found, wrong = installed_in(folder), []
    pins = {_normal(match["name"]): match["version"] or "" for text in step.parameters["packages"] if (match := _REQUIREMENT.fullmatch(text))}
    for name in dict.fromkeys([*pins, *map(_normal, step.parameters["expect"])]):
        version, pin = found.get(name), pins.get(name, "")
        if version is None:
            wrong.append(f"{name} is not installed")
        elif version == PLACEHOLDER:
            wrong.append(f"{name} is the empty placeholder {PLACEHOLDER}")
        elif pin and version.lower() != pin.lower():
            wrong.append(f"{name} is {version} and not {pin}")
    return wrong


def installed_in(folder: str) -> dict[str, str]:
    """Distributions of a venv by the names of their dist-info folders."""
    found = {}
    for path in glob.glob(f"{glob.escape(folder)}/lib/python*/site-packages/*.dist-info"):
        match = _DIST_INFO.fullmatch(os.path.basename(path))
        if match is not None:
            found[_normal(match["name"])] = match["version"]
    return found


def default_python() -> str:
    """The interpreter that runs us, outside of its venv."""
    return os.path.realpath(sys.executable)


KIND: Final = Kind("venv", ("user",), "", validate, render, activate, verify)
