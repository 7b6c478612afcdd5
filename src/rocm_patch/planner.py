"""Diagnosis -> Steps: which remedies shall be applied, and with which parameters. Pure; nothing is touched.

The mildest that works comes first: a wheel in a virtual environment of its own, then settings. By default a plan holds
what the problems ask for and takes settings out that do nothing; whatever else has an id is added by naming it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import environment_places
from rocm_patch.changes.prefix_reach import SYSTEM
from rocm_patch.diagnose.case import OVERRIDE, SOUND, Case, own_version
from rocm_patch.diagnose.folklore import effect_of, to_drop
from rocm_patch.diagnose.stack import DROP_IN, legitimate_value
from rocm_patch.errors import RefusedError, UsageError
from rocm_patch.knowledge.conditions import in_range, in_scope, parse_version, recommended, status
from rocm_patch.model import Diagnosis, RemedyRow, Scope, Setting, Step, TorchInstall, WheelRow

CHANGING: Final = ("venv", "environment", "autoload", "permissions")
"""Kinds of remedies that a plan holds because the diagnosis asks for them."""
NAMED: Final = ("modprobe", "cmdline", "preload", "prefix", "permissions", "neutralise")
"""Kinds whose step is the remedy's id and the values that the user gives; the kind itself fills in what is not given."""
_DOORS: Final = {"conv-engine": "engine", "miopen-off": "miopen_off"}
_PLACED: Final = ("place", "when", "command")
_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "drop-override": ("place",), "drop-setting": ("place",), "environment-profile": ("profile", "set", *_PLACED),
    "set-override": ("value", *_PLACED), "mask-igpu": ("value", *_PLACED), "miopen-find-fast": _PLACED, **dict.fromkeys(_DOORS, ("venv",)),
}  # fmt: skip
"""What can be given to remedies whose kinds make their parameters themselves."""
_WORDS: Final = {"none": "no effect", "harmful": "harmful", "slows": "slows", "diagnostic": "for searching, not for keeps", "legitimate": "fine"}
_PLAIN: Final = {"path": "the file", "needed": "the version needed"}
_SITE: Final = re.compile(r"(?P<venv>/.+)/lib/python3\.\d+t?/site-packages")
_NO_VENV: Final = ("conda", "pyenv", "user site", "system Python")
"""Labels of torches that do not lie in a virtual environment."""


@dataclass(frozen=True)
class Choices:
    """What the user decided: remedies by name with their values, where wheels come from, which Python."""

    remedies: tuple[str, ...] = ()
    values: Mapping[str, str] | None = None
    index: str = ""
    pythons: tuple[tuple[str, str], ...] = ()
    """Interpreters to build an environment with, as (path, version), best first."""
    name: str = ""
    sets: tuple[str, ...] = ()
    """NAME=VALUE of environment settings, as they were given."""
    user: str = ""
    """Who shall be allowed to open the card."""
    group: str = ""
    """The group of the machine that may open it."""
    untested: bool = False
    """Named remedies may be planned that nobody has seen work on such a card; refuted ones stay refused."""


def steps(case: Case, diagnosis: Diagnosis, choices: Choices) -> tuple[Step, ...]:
    """The steps of a plan, mildest first; empty if there is nothing to do.

    Raises UsageError for an unknown id or a missing value, RefusedError for a remedy that has no success in scope.
    """
    ids = choices.remedies or _wanted(case, diagnosis)
    _check_values(case, ids, choices)
    made: list[Step] = []
    for id_ in dict.fromkeys(ids):
        row = case.knowledge.remedies.get(id_)
        if row is None:
            close = ", ".join(difflib.get_close_matches(id_, case.knowledge.remedies))
            raise UsageError(f"there is no remedy {id_!r}", f"{f'close to it: {close}; ' if close else ''}all: rocm-patch plan --list")
        if choices.remedies:
            evidence = in_scope(case.knowledge.evidence, id_, case.context())
            known = status(evidence)
            if not recommended(evidence) and not (row.by_name or (choices.untested and known == "untested")):
                notes = [f"{item.note.rstrip('.')}." for item in evidence[:2]]
                notes += ["To try it all the same: --untested"] * (known == "untested" and row.kind != "manual")
                raise RefusedError(f"{id_}: {known} on {case.gfx or 'this machine'}", " ".join(notes))
        if row.kind == "manual":
            if choices.remedies:
                raise UsageError(f"{id_} is done by hand: {row.title}", row.text)
            continue
        if row.kind == "venv":
            made.append(_venv(case, row, choices))
        elif row.kind == "environment":
            made.extend(_environment(case, id_, choices))
        elif row.kind == "autoload":
            made.extend(_autoload(case, id_, (choices.values or {}).get("venv", ""), bool(choices.remedies)))
        elif row.kind == "permissions":
            made.extend(_permissions(row, choices))
        elif row.kind in NAMED:
            given: dict[str, tuple[str, ...]] = {key: (value,) for key, value in (choices.values or {}).items() if key in row.parameters}
            if row.kind == "prefix":
                given["torch"] = _users(case, (choices.values or {}).get("torch", ""))
            made.append(Step(id_, row.scope, given))
    return tuple(sorted(_merged(made), key=lambda step: (step.scope == "system", step.remedy)))


def _users(case: Case, named: str) -> tuple[str, ...]:
    """Whom libraries are for: the torch that is named by its Python, environment or site folder; else every one, and the system."""
    if not named:
        return (*(torch.site for torch in case.rocm_torches), SYSTEM)
    sites = [torch.site for torch in case.machine.torches if torch.interpreter == named or f"{torch.site}/".startswith(f"{named}/")]
    if named != SYSTEM and not sites:
        raise UsageError(f"--set torch={named}: no torch is known there", "its Python, its environment's folder, or `system`; --python adds one")
    return tuple(sites) or (SYSTEM,)


def _check_values(case: Case, ids: Iterable[str], choices: Choices) -> None:
    """A misspelled value would be dropped without a word, and the step made without it: `user` for `usr` is another user."""
    rows = [case.knowledge.remedies[id_] for id_ in ids if id_ in case.knowledge.remedies]
    taken = dict.fromkeys(key for row in rows for key in (row.parameters if row.kind in NAMED else _VALUES.get(row.id, ())))
    for key in choices.values or {}:
        if len(rows) == len(tuple(ids)) and key not in taken:
            of = ", ".join(row.id for row in rows) or "a plan without a step"
            raise UsageError(f"--set {key}: no such value is taken by {of}", "known: " + ", ".join(taken) if taken else "it takes no values")
    for pair in choices.sets:
        name, equals, _ = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--set set={pair}: set=NAME=VALUE is the form", "e.g. --set set=HSA_ENABLE_SDMA=0")


def _wanted(case: Case, diagnosis: Diagnosis) -> tuple[str, ...]:
    ids: list[str] = []
    for finding in diagnosis.findings:
        drops = finding.cause == "folklore_setting" and finding.severity != "info"
        missing = finding.cause == "wrong_torch_wheel" and not case.machine.torches
        if finding.severity != "problem" and not drops and not missing:
            continue
        rows = [case.knowledge.remedies[advice.id] for advice in finding.remedies]
        changes = [row.id for row in rows if row.kind in CHANGING and not row.by_name]
        # The first that changes something; the removal of what harms comes with it, alternatives do not.
        ids += changes[:1] + [id_ for id_ in changes[1:] if id_.startswith("drop-")]
    if "native-wheel" in ids and "rocm-wheel" in ids:
        ids = [id_ for id_ in ids if id_ != "rocm-wheel"]
    if {"native-wheel", "rocm-wheel"} & set(ids):  # the torch that a hook would go into is about to be replaced
        ids = [id_ for id_ in ids if case.knowledge.remedies[id_].kind != "autoload"]
    return tuple(dict.fromkeys(ids))


# ------------------------------------------------------------------ environments


def _environment(case: Case, id_: str, choices: Choices) -> Iterable[Step]:
    values = choices.values or {}
    if id_ in ("drop-override", "drop-setting") and values.get("place"):
        return [_of_service(case, id_, values["place"])]
    if id_ == "drop-override":
        return _drops(case, id_, [setting for setting in _in_files(case) if setting.name.startswith(OVERRIDE)])
    if id_ == "drop-setting":
        return _drops(case, id_, [setting for setting in _in_files(case) if not setting.name.startswith(OVERRIDE) and _to_drop(case, setting)])
    if id_ == "set-override":
        value = values.get("value") or next((found for torch in case.rocm_torches if (found := legitimate_value(case.gfx, case.coverage(torch)))), "")
        if not value:
            raise RefusedError(f"no override is sound for {case.gfx or 'this card'} with the torch that is installed")
        return [_placed(case, id_, (f"{OVERRIDE}={value}",), values, "user")]
    if id_ == "miopen-find-fast":
        return [_placed(case, id_, ("MIOPEN_FIND_MODE=FAST",), values, "user")]
    if id_ == "mask-igpu":
        value = values.get("value", "0")
        return [_placed(case, id_, (f"ROCR_VISIBLE_DEVICES={value}",), values, "user")]
    if id_ == "environment-profile":
        return [_placed(case, id_, _profile(case, values.get("profile", ""), choices.sets), values, "system")]
    raise UsageError(f"{id_} cannot be planned by this version")


def _of_service(case: Case, id_: str, place: str) -> Step:
    """Take out of one service what its unit files set; for those who name the place."""
    scope = environment_places.scope_of(place, "system")
    unit = environment_places.find(place, scope).name.removesuffix(".service")
    found = [item for item in case.machine.settings if item.origin == "systemd" and item.reach == f"service {unit}" and item.value and not item.ours]
    wanted = [item for item in found if (item.name.startswith(OVERRIDE) if id_ == "drop-override" else _to_drop(case, item))]
    if not wanted:
        raise RefusedError(f"{id_}: no unit file of {unit} sets anything that this would take out", "see: rocm-patch status")
    return Step(id_, scope, {"unset": tuple(f"{item.name}={item.value}" for item in wanted), "place": (place,)})


def _profile(case: Case, name: str, sets: tuple[str, ...]) -> tuple[str, ...]:
    """The settings of a set that has a name, and single ones; those come after it."""
    profiles = case.knowledge.profiles
    if name and name not in profiles:
        raise UsageError(f"there is no set of settings {name!r}", "known: " + ", ".join(f"{row.id} ({row.about})" for row in profiles.values()))
    if not name and not sets:
        raise UsageError("environment-profile: which settings?", "--set profile=" + "|".join(profiles) + ", or --set set=NAME=VALUE")
    single = {pair.partition("=")[0] for pair in sets}
    return tuple(pair for pair in (profiles[name].set if name else ()) if pair.partition("=")[0] not in single) + sets


def _placed(case: Case, id_: str, pairs: tuple[str, ...], values: Mapping[str, str], scope: Scope) -> Step:
    """A step that sets, in the place that was named or else in the scope's own."""
    place, when = values.get("place", ""), values.get("when", "")
    parameters: dict[str, tuple[str, ...]] = {"set": pairs}
    if place:
        parameters["place"] = (place,)
    if when == "card" and not case.gfx:
        raise RefusedError("no card is known here that the settings could ask for", "name its target: --set when=gfx1010")
    if when:
        parameters["when"] = (case.gfx,) if when == "card" else tuple(when.split(","))
    if values.get("command"):
        parameters["command"] = (values["command"],)
    return Step(id_, environment_places.scope_of(place, scope), parameters)


# ------------------------------------------------------------------ permissions


def _permissions(row: RemedyRow, choices: Choices) -> list[Step]:
    values = dict(choices.values or {})
    if "user" in row.parameters:
        values.setdefault("user", choices.user)
    values.setdefault("group", choices.group)
    if choices.remedies and not values.get("user", "none is needed"):
        raise UsageError(f"{row.id}: which user?", "name one: --set user=NAME")
    given = {key: (value,) for key, value in values.items() if key in row.parameters and value}
    return [Step(row.id, row.scope, given)] if "user" not in row.parameters or "user" in given else []


def _in_files(case: Case) -> list[Setting]:
    return [
        setting
        for setting in case.machine.settings
        if setting.kind == "environment" and setting.in_force and setting.value is not None and setting.origin in DROP_IN and not setting.ours
    ]


def _to_drop(case: Case, setting: Setting) -> bool:
    return to_drop(effect_of(case, setting.name, setting.value or ""))


def _drops(case: Case, id_: str, places: Sequence[Setting]) -> list[Step]:
    made = []
    for scope, origins in (("user", ("environment.d",)), ("system", ("environment-file", "pam-env", "profile"))):
        pairs = tuple(f"{place.name}={place.value}" for place in places if place.origin in origins)
        if pairs:
            own = {"own": (own_version(case.gfx),)} if scope == "user" and case.gfx else {}
            made.append(Step(id_, _scope(scope), {"unset": pairs, **own}))
    return made


def _scope(word: str) -> Scope:
    return "user" if word == "user" else "system"


def _merged(made: Iterable[Step]) -> list[Step]:
    merged: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
    for step in made:
        parameters = merged.setdefault((step.remedy, step.scope), {})
        for key, values in step.parameters.items():
            parameters[key] = tuple(dict.fromkeys(parameters.get(key, ()) + tuple(values)))
    return [Step(remedy, _scope(scope), parameters) for (remedy, scope), parameters in merged.items()]


# ------------------------------------------------------------------ the engine's hook


def _autoload(case: Case, id_: str, venv: str, named: bool) -> list[Step]:
    found = list(dict.fromkeys(path for torch in case.rocm_torches if (path := _venv_of(torch))))
    if not venv and named:
        if not found:
            raise RefusedError("no virtual environment with a ROCm build of torch was found", "name one: --set venv=FOLDER")
        if len(found) > 1:
            raise UsageError(f"{id_}: in which environment?", "name one: --set venv=FOLDER, of " + ", ".join(found))
    venv = venv or next(iter(found), "")  # the first is the one that was probed
    return [Step(id_, "user", {"venv": (venv,), "door": (_DOORS[id_],)})] if venv else []


def _venv_of(torch: TorchInstall) -> str:
    match = _SITE.fullmatch(torch.site)
    if match is None or torch.label.startswith(_NO_VENV) or match["venv"] in ("/usr", "/usr/local"):
        return ""
    return match["venv"]


# ------------------------------------------------------------------ wheels


def _venv(case: Case, remedy: RemedyRow, choices: Choices) -> Step:
    row: WheelRow | None = next((row for row in case.knowledge.wheels if row.remedy == remedy.id and case.gfx in row.gfx), None) or case.wheel
    if row is None or (remedy.by_name and row.remedy != remedy.id):
        raise RefusedError(f"no index offers wheels of {remedy.id} for {case.gfx or 'this card'}", "see `rocm-patch doctor` for what else there is")
    python = next((path for path, version in choices.pythons if in_range(row.python, version)), "")
    if not python:
        have = ", ".join(f"{path} ({version})" for path, version in choices.pythons) or "none was found"
        raise UsageError(f"no interpreter fits: these wheels need Python {row.python}", f"name one with --venv-python; {have}")
    gfx = case.gfx
    parameters: dict[str, tuple[str, ...]] = {
        "gfx": (gfx,),
        "packages": tuple(package.format(gfx=gfx) for package in row.packages),
        "expect": tuple(package.format(gfx=gfx) for package in row.expect),
        "index": (choices.index or row.index,),
        "python": (python,),
        "name": (choices.name or f"torch-{parse_version(row.torch)}-{gfx}",),
    }
    if row.extra_index and not choices.index:
        parameters["extra"] = (row.extra_index,)
    return Step(remedy.id, "user", parameters)


# ------------------------------------------------------------------ what a named remedy is worth


@dataclass(frozen=True)
class Note:
    """What is known of a remedy that somebody named although it is recommended to nobody."""

    remedy: str
    status: str
    """By the evidence for this card: works, partial, no effect, harmful, untested."""
    card: str
    said: tuple[str, ...]
    """What was seen of it, each with its source."""
    instead: tuple[str, ...]
    """What to use in its place, as id: title."""


def notes(case: Case, made: Iterable[Step]) -> tuple[Note, ...]:
    """One note for each remedy of a plan that is there for those who name it; for settings, what each value does here."""
    found = list[Note]()
    for step in made:
        row = case.knowledge.remedies[step.remedy]
        if not row.by_name or any(note.remedy == row.id for note in found):
            continue
        evidence = in_scope(case.knowledge.evidence, row.id, case.context())
        said = [f"{item.outcome}: {item.note} ({item.source})" for item in evidence]
        for pair in step.parameters.get("set", ()):
            name, _, value = pair.partition("=")
            effect = effect_of(case, name, value)
            if name.startswith(OVERRIDE):
                sound = legitimate_for(case, value)
                said.append(f"{pair}: {'runs code that this chip executes' if sound else 'harmful: runs code of another chip'}")
            elif effect is not None:
                said.append(f"{pair}: {_WORDS[effect.effect]}: {effect.text}")
        titles = [f"{id_}: {_title(case, id_)}" for id_ in row.instead if recommended(in_scope(case.knowledge.evidence, id_, case.context()))]
        found.append(Note(row.id, status(evidence), case.gfx or "this machine", tuple(said), tuple(titles)))
    return tuple(found)


def legitimate_for(case: Case, value: str) -> bool:
    """Whether an override names code that the card executes: its own, or its nearest kin's."""
    return bool(case.gfx) and value in (own_version(case.gfx), SOUND.get(case.gfx, ""))


def _title(case: Case, id_: str) -> str:
    """A remedy's title without a finding: what only a finding knows stands there in plain words."""
    known = {**_PLAIN, **case.fields}
    text = case.knowledge.remedies[id_].title.replace("{name}={value}", OVERRIDE if id_.startswith("drop-override") else "the setting")
    return re.sub(r"\{(\w+)\}", lambda match: known.get(match.group(1), match.group(1).upper()), text)


# ------------------------------------------------------------------ all that there is


@dataclass(frozen=True)
class Listed:
    """One remedy, as `plan --list` tells of it."""

    id: str
    kind: str
    status: str
    """By the evidence for this card: works, partial, no effect, harmful, untested."""
    title: str


def listing(case: Case) -> tuple[Listed, ...]:
    """Every remedy, with its status on this machine; what is done by hand comes last."""
    rows = sorted(case.knowledge.remedies.values(), key=lambda row: (row.kind == "manual", row.kind, row.id))
    found = [(row, status(in_scope(case.knowledge.evidence, row.id, case.context()))) for row in rows]
    return tuple(Listed(row.id, "by hand" if row.kind == "manual" else row.kind, known, _title(case, row.id)) for row, known in found)
