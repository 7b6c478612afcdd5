"""Verbs that change something and take it back: plan, apply, confirm, status, rollback, recover."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rocm_patch.cli.common import JsonOption, MachineOption, PythonOption, RootOption, YesOption, case_of, diagnosis_of, read_input, root_of, verb
from rocm_patch.errors import EXIT_FINE, EXIT_NEEDS_RESTART, EXIT_PROBLEMS, EXIT_REFUSED, RefusedError, RocmPatchError, UsageError
from rocm_patch.model import SCHEMA, Diagnosis, Plan, Receipt, Scope, Step

if TYPE_CHECKING:
    from rocm_patch.changes import Locations
    from rocm_patch.changes.engine import Outlook
    from rocm_patch.changes.kind import Held
    from rocm_patch.diagnose.case import Case

RemedyOption = Annotated[
    list[str], typer.Option("--remedy", help="Plan this remedy instead of what the diagnosis asks for; may be given again.", metavar="ID")
]
UntestedOption = Annotated[bool, typer.Option("--untested", help="Plan a named remedy although nobody has seen it work on a card like this.")]
SetOption = Annotated[list[str], typer.Option("--set", help="A value for a named remedy; may be given again.", metavar="KEY=VALUE")]
IndexOption = Annotated[str, typer.Option("--index-url", help="Take wheels from this index, or from this folder of wheels.", metavar="URL|DIR")]
VenvPythonOption = Annotated[str, typer.Option("--venv-python", help="Make the environment with this interpreter.", metavar="PATH")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    for function in (plan, apply, confirm, status, rollback, recover):
        app.command()(function)


# ------------------------------------------------------------------ what several verbs share


def locations_of(root: str) -> Locations:
    """Where the two scopes lie: this user's home on the running system, the recorded user's in a tree."""
    from rocm_patch.changes import Locations
    from rocm_patch.machine import recorded, user

    place = root_of(root)
    if place.live:
        return Locations.here()
    return Locations.here(place.path, user.find(place, recorded.read(place)).home)


def steps_of(
    case: Case, diagnosis: Diagnosis, root: str, *, remedies: list[str], values: list[str], index: str, python: str, untested: bool = False
) -> tuple[Step, ...]:  # fmt: skip
    """The steps that the diagnosis or the user asks for."""
    from rocm_patch import changes, planner
    from rocm_patch.machine import pythons
    from rocm_patch.root import Root

    pairs: dict[str, str] = {}
    sets: list[str] = []
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: KEY=VALUE is the form")
        if key == "set":
            sets.append(value)
        elif key in pairs:
            raise UsageError(f"--set {key} is given twice", "for remedies that want different values make a plan for each")
        pairs[key] = value
    found = pythons.find(Root(root), case.machine)
    if python:
        found = ((os.path.abspath(python), _version_of(python, found)),)
    if index and os.path.isdir(index):
        index = os.path.abspath(index)
    if pairs.get("venv"):
        pairs["venv"] = os.path.abspath(pairs["venv"])
    if "/" in pairs.get("torch", ""):
        pairs["torch"] = os.path.abspath(pairs["torch"])
    user, group = _who(root)
    choices = planner.Choices(tuple(remedies), pairs, index, found, sets=tuple(sets), user=user, group=group, untested=untested)
    made = planner.steps(case, diagnosis, choices)
    if values:
        try:
            changes.validate(made)
        except RefusedError as error:  # a wrong value is the call's fault, and not the machine's
            raise UsageError(error.what, error.hint) from error
    for key, value in pairs.items():
        takers = sorted({step.remedy for step in made if step.parameters.get(key) == (value,)})
        if len(takers) > 1:
            sys.stderr.write(f"--set {key}={value} counts for each of {', '.join(takers)}; for different values make a plan for each\n")
    return made


def _who(root: str) -> tuple[str, str]:
    """The user who works on this machine, and the group that its device nodes go by."""
    from rocm_patch.changes.permissions import GROUPS
    from rocm_patch.machine import recorded, user
    from rocm_patch.model import Known

    place = root_of(root)
    answer = place.text("etc/group")
    names = {line.partition(":")[0] for line in (answer.value or "").splitlines()} if isinstance(answer, Known) else set()
    name = user.find(place, recorded.read(place)).name
    return "" if name == "root" else name, next((group for group in GROUPS if group in names), GROUPS[0])


def _version_of(python: str, found: tuple[tuple[str, str], ...]) -> str:
    from rocm_patch.run import run

    known = dict(found).get(os.path.abspath(python))
    if known:
        return known
    ended = run([os.path.abspath(python), "-I", "-S", "-B", "-c", "import platform; print(platform.python_version())"], timeout=10)
    if ended.code:
        raise UsageError(f"--venv-python {python}: it does not run: {ended.text}")
    return ended.out.decode("ascii", "replace").strip()


def split(steps: tuple[Step, ...], root: str) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What can be done under this root, and what only the machine itself can do: an environment is there to be run."""
    from rocm_patch import knowledge

    remedies = knowledge.load().remedies
    elsewhere = tuple(step for step in steps if os.path.abspath(root) != "/" and remedies[step.remedy].kind in ("venv", "autoload"))
    return tuple(step for step in steps if step not in elsewhere), elsewhere


def plan_of(steps: tuple[Step, ...], where: Locations, context: int = 3) -> tuple[Plan, Shown]:
    """The plan, with the digests of what is there now, and its changes."""
    from rocm_patch import changes

    seen = changes.outlook(steps, where)
    return Plan(SCHEMA, steps, seen.facts), shown_of(steps, seen, context)


@dataclass(frozen=True)
class Shown:
    """What is shown of a plan before anybody says yes."""

    diffs: tuple[tuple[str, str], ...]
    """Path and unified diff."""
    also: tuple[str, ...]
    """What is written besides, in words."""
    same: bool = False
    """All that the steps manage is as they would have it."""


def shown_of(steps: tuple[Step, ...], seen: Outlook, context: int = 3) -> Shown:
    """The diffs of what steps come to, and what they write that no diff can show yet."""
    from rocm_patch.report import diffs

    found = tuple((path, diffs.unified(path, old, new, context)) for path, old, new in seen.changes)
    return Shown(found, seen.also, bool(steps) and all(old == new for _, old, new in seen.changes))


def _show(shown: Shown) -> None:
    from rocm_patch.report import words

    out = words.console()
    for _, text in shown.diffs:
        words.diff(text, out)
    for line in shown.also:
        out.print(f"also: {line}", soft_wrap=True)
    if shown.same:
        out.print("already as planned, nothing to change")


def _document(shown: Shown) -> dict[str, Any]:
    return {"changes": [{"path": path, "diff": text} for path, text in shown.diffs], "also": list(shown.also)}


def show_plan(steps: tuple[Step, ...], elsewhere: tuple[Step, ...], shown: Shown) -> None:
    """Words: the steps, then the exact differences."""
    from rocm_patch import knowledge
    from rocm_patch.report import diffs, words

    out, remedies = words.console(), knowledge.load().remedies
    if not steps and not elsewhere:
        out.print("Nothing to change. A remedy that the doctor names without a problem is planned by its id: rocm-patch plan --remedy ID")
        return
    for step in steps:
        out.print(f"{step.scope} scope: {diffs.step(step, remedies[step.remedy])}", soft_wrap=True)
    for step in elsewhere:
        out.print(f"left out: {diffs.step(step, remedies[step.remedy])}", soft_wrap=True)
        out.print(f"  cannot be done under --root: run on that machine: rocm-patch plan --remedy {step.remedy}", soft_wrap=True)
    out.print()
    _show(shown)


def confirmed(question: str, yes: bool) -> bool:
    """Ask; no is the default, and without a terminal the answer has to be --yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise RefusedError("nobody is there to ask", "say --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def finish(receipts: tuple[Receipt, ...], where: Locations, as_json: bool) -> int:
    """Show what was done; the exit code that says so."""
    from rocm_patch.apply import how_to_remove
    from rocm_patch.report import documents, words

    if as_json:
        documents.show(documents.receipts(receipts))
    else:
        out = words.console()
        words.receipts(receipts, out, where.root)
        for command in (line for item in receipts for line in how_to_remove(item, where.root)):
            out.print(f"  to remove it all the same: {command}", soft_wrap=True)
    if any(item.left or item.unfinished for item in receipts):
        return EXIT_REFUSED
    # Under another root nobody is logged in and nothing runs: there is nothing to restart.
    return EXIT_NEEDS_RESTART if where.live and any(item.needs for item in receipts) else EXIT_FINE


# ------------------------------------------------------------------ the verbs


@verb
def plan(
    root: RootOption = "/",
    machine: MachineOption = "",
    python: PythonOption = [],  # noqa: B006
    remedy: RemedyOption = [],  # noqa: B006
    values: SetOption = [],  # noqa: B006
    index_url: IndexOption = "",
    venv_python: VenvPythonOption = "",
    untested: UntestedOption = False,
    listed: Annotated[bool, typer.Option("--list", help="Name every remedy with its kind and its status here; plan nothing.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="Write the plan to this file, for `apply`.", metavar="FILE")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what would be changed, as a diff. Writes nothing but the file that you name."""
    if listed:
        _list(case_of(root, machine, python), as_json)
        return
    earlier = _check_output(output)
    try:
        _plan(root, machine, python, remedy, values, index_url, venv_python, untested, output, as_json)
    except RocmPatchError:
        if earlier:
            sys.stderr.write(f"{output} still holds an earlier plan ({earlier})\n")
        raise


def _plan(
    root: str, machine: str, python: list[str], remedy: list[str], values: list[str], index_url: str, venv_python: str, untested: bool,
    output: str, as_json: bool,
) -> None:  # fmt: skip
    from rocm_patch import codec, planner
    from rocm_patch.report import documents, words

    case = case_of(root, machine, python)
    diagnosis = diagnosis_of(case)
    wanted = steps_of(case, diagnosis, root, remedies=remedy, values=values, index=index_url, python=venv_python, untested=untested)
    steps, elsewhere = split(wanted, root)
    made, shown = plan_of(steps, locations_of(root), context=0 if as_json else 3)
    by_hand = _by_hand(case, diagnosis)
    notes = planner.notes(case, wanted)
    for note in notes:
        words.note(note)
    if as_json:
        documents.show(
            {
                "schema": SCHEMA,
                "plan": codec.encode(made),
                **_document(shown),
                "elsewhere": codec.encode(elsewhere),
                "by_hand": by_hand,
                "notes": [asdict(note) for note in notes],
            }
        )
    else:
        show_plan(steps, elsewhere, shown)
        out = words.console()
        for item in by_hand:
            out.print(f"by hand: {item}", soft_wrap=True)
    if output:
        if not steps:
            held = _check_output(output)
            sys.stderr.write(f"no plan, so {output} is not written{f'; it still holds an earlier plan ({held})' if held else ''}\n")
            return
        with open(output, "w", encoding="utf-8") as stream:
            stream.write(codec.dumps(made))
        sys.stderr.write(f"written: {output}; carry it out with: rocm-patch apply{' --root ' + root if root != '/' else ''} {output}\n")


def _list(case: Case, as_json: bool) -> None:
    from rocm_patch import planner
    from rocm_patch.report import documents, words

    rows = planner.listing(case)
    if as_json:
        documents.show({"schema": SCHEMA, "remedies": [asdict(row) for row in rows]})
        return
    out, width = words.console(), max(len(row.id) for row in rows)
    for row in rows:
        out.print(f"{row.id:{width}}  {row.kind:11}  {row.status:9}  {row.title}", soft_wrap=True)


def _check_output(path: str) -> str:
    """Before anything is looked at: the search takes a while, and its answer would be lost. The remedies of a plan that is there.

    Raises UsageError for what cannot be written, and for a file of somebody's that is no plan.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if path and not os.path.isdir(folder):
        raise UsageError(f"-o {path}: there is no folder {folder}", f"make it first: mkdir -p {shlex.quote(folder)}")
    if path and os.path.isdir(path):
        raise UsageError(f"-o {path}: that is a folder", "name a file")
    if not path or not os.path.isfile(path) or not os.path.getsize(path):
        return ""
    try:
        held = json.loads(read_input(path, 1 << 20, "name another file"))
        remedies = [step["remedy"] for step in held["steps"] if held["facts"] is not None]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"-o {path}: there is a file of that name that is no plan; it stays as it is", "name another file") from None
    return ", ".join(map(str, remedies))


def _by_hand(case: Case, diagnosis: Diagnosis) -> list[str]:
    manual = [item for finding in diagnosis.findings for item in finding.remedies if finding.severity != "info"]
    return list(dict.fromkeys(item.text.partition("\n")[0] for item in manual if case.knowledge.remedies[item.id].kind == "manual"))


@verb
def apply(
    file: Annotated[str, typer.Argument(metavar="PLAN", help="A file written by `rocm-patch plan -o`; - reads standard input.")],
    root: RootOption = "/",
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out a plan: journalled, verified, undone by `rollback` to the byte."""
    from rocm_patch import apply as door
    from rocm_patch import changes, codec
    from rocm_patch.report import documents

    made = codec.loads(Plan, _read(file), file)
    where = locations_of(root)
    if dry_run or not as_json:
        shown = shown_of(made.steps, changes.outlook(made.steps, where), context=0 if as_json else 3)
        if as_json:
            documents.show({"schema": SCHEMA, **_document(shown)})
        else:
            _show(shown)
    if dry_run:
        return
    if not confirmed("Change this?", yes):
        sys.stderr.write("nothing was changed\n")
        raise SystemExit(EXIT_REFUSED)
    try:
        receipts = door.apply(made, where)
    except (PermissionError, RefusedError) as error:
        cause = error if isinstance(error, PermissionError) else error.__cause__
        if where.live or not isinstance(cause, PermissionError):
            raise
        place = os.path.abspath(root)  # the name in the error is relative to some folder below it
        raise RefusedError(
            f"no right to write below {place}", f"run: sudo rocm-patch apply --root {shlex.quote(place)} {shlex.quote(file)}"
        ) from error
    raise SystemExit(finish(receipts, where, as_json))


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read(1 << 20) if file == "-" else read_input(file, 1 << 20, "make one with: rocm-patch plan -o plan.json")


@verb
def confirm(root: RootOption = "/", yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Make permanent what is on trial since the last restart, if the machine came up well with it."""
    from rocm_patch import apply as door

    where = locations_of(root)
    if not confirmed("Make permanent what is on trial?", yes):
        sys.stderr.write("nothing was changed\n")
        raise SystemExit(EXIT_REFUSED)
    raise SystemExit(finish(door.confirm(where), where, as_json))


@verb
def status(root: RootOption = "/", as_json: JsonOption = False) -> None:
    """What is ours, what of it the running system shows, and what somebody else set and whether that does anything. Reads only."""
    from rocm_patch import apply as door
    from rocm_patch.changes import KINDS, in_force
    from rocm_patch.diagnose import standing
    from rocm_patch.report import documents, words

    where = locations_of(root)
    found = door.status(where)
    case = _bare_case(root)
    held: dict[str, tuple[Held, ...]] = {scope: in_force.seen(where.ground(scope), case.knowledge, KINDS) for scope in where.scopes()}
    others = tuple(standing.others(case))
    if as_json:
        scopes = [{**_scope(item), "in_force": [asdict(line) for line in held[item.scope]]} for item in found]
        documents.show({"schema": SCHEMA, "scopes": scopes, "others": [asdict(line) for line in others]})
    else:
        words.status(found, held, others, words.console())
    if any(item.open for item in found):
        raise SystemExit(EXIT_PROBLEMS)


def _bare_case(root: str) -> Case:
    """The machine without a look into its libraries: enough to say what a setting does on its card."""
    from rocm_patch import knowledge
    from rocm_patch.diagnose.case import Case
    from rocm_patch.machine import collect
    from rocm_patch.model import Images

    place, tables = root_of(root), knowledge.load()
    return Case(collect(place, tables, environment=dict(os.environ) if place.live else None), Images(), None, tables)


def _scope(item: Any) -> dict[str, Any]:
    transactions = [{"transaction": record.transaction, "remedies": [step.remedy for step in record.steps]} for record in item.transactions]
    files = [{"path": file.path, "state": file.state} for file in item.files]
    return {"scope": item.scope, "readable": item.readable, "open": item.open, "transactions": transactions, "files": files}


@verb
def rollback(
    transaction: Annotated[str, typer.Argument(help="Take back this one; without it the newest.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Take back all that is in force.")] = False,
    scope: Annotated[str, typer.Option(help="user or system: leave the other one alone.", metavar="SCOPE")] = "",
    full: Annotated[
        bool, typer.Option("--full", help="All, and what a rollback keeps: our caches, probe results, records of files that others changed.")
    ] = False,
    root: RootOption = "/",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take back what was applied, exactly; what somebody changed since is shown and left."""
    from rocm_patch import apply as door

    where = locations_of(root)
    if scope not in ("", "user", "system"):
        raise UsageError(f"--scope {scope}: user or system")
    if full and transaction:
        raise UsageError("--full takes back everything; it goes without the name of a transaction")
    chosen: Scope | None = "user" if scope == "user" else "system" if scope == "system" else None
    what = (
        "everything of ours, our caches and our records"
        if full
        else "everything of ours"
        if everything
        else f"transaction {transaction}"
        if transaction
        else "the newest transaction"
    )
    if not confirmed(f"Take back {what}?", yes):
        sys.stderr.write("nothing was changed\n")
        raise SystemExit(EXIT_REFUSED)
    receipts = door.rollback(where, transaction, everything=everything or full, forget=full, scope=chosen)
    if any(item.left for item in receipts) and not (everything or full):
        _name_older(where, {item.transaction for item in receipts}, root)
    if full and chosen != "system":
        from rocm_patch.changes import leftovers

        for folder in leftovers.remove(where):
            sys.stderr.write(f"removed: {folder}\n")
    if full and chosen != "user" and where.live:
        from rocm_patch.changes.privileged import INSTALLED

        if os.path.exists(INSTALLED):
            sys.stderr.write(f"root's own copy is still there; to remove it: sudo rm {INSTALLED}\n")
    raise SystemExit(finish(receipts, where, as_json))


def _name_older(where: Locations, tried: set[str], root: str) -> None:
    """What was left stays on record as the newest, and another plain rollback would try that again: name the others."""
    from rocm_patch import apply as door

    others = sorted({record.transaction for item in door.status(where) for record in item.transactions} - tried, reverse=True)
    if others:
        command = f"rocm-patch rollback{'' if root == '/' else f' --root {shlex.quote(root)}'}"
        sys.stderr.write(f"also in force: {', '.join(others)}; to take one back: {command} {others[0]}; all: {command} --all\n")


@verb
def recover(root: RootOption = "/", as_json: JsonOption = False) -> None:
    """Take back what a kill or a power cut left half done. Does nothing where all is well."""
    from rocm_patch import apply as door

    where = locations_of(root)
    receipts = door.recover(where)
    if not receipts and not as_json:
        sys.stdout.write("Nothing was left half done.\n")
        return
    raise SystemExit(finish(receipts, where, as_json))
