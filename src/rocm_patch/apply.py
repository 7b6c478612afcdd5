"""Apply a plan, take it back, finish what was interrupted, say what is in force: the doors to `changes`.

User scope is done in this process. System scope is done here where the caller may write there, and otherwise by root's own
copy of this code (`changes.privileged`), which gets ids and parameters and derives everything else again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NoReturn

from rocm_patch import codec, knowledge
from rocm_patch.changes import KINDS, Kind, Locations, Tables, confirming, elevate, engine, facts, preview, privileged
from rocm_patch.changes.engine import ManagedFile, ScopeStatus
from rocm_patch.changes.journal import Journal, is_transaction
from rocm_patch.changes.places import as_owner
from rocm_patch.errors import EXIT_PROBLEMS, FormatError, RefusedError, RocmPatchError, UsageError
from rocm_patch.model import SCHEMA, Plan, Receipt, Scope
from rocm_patch.run import CLEAN

NOTHING: Final = Receipt("", "nothing to undo", (), (), "", (), "")
PLAN_LIMIT: Final = 1 << 20


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


# ------------------------------------------------------------------ apply


def apply(
    plan: Plan,
    locations: Locations,
    *,
    tables: Tables | None = None,
    kinds: Sequence[Kind] = KINDS,
    say: engine.Say = _say,
    zipapp: str = privileged.INSTALLED,
) -> tuple[Receipt, ...]:
    """Apply a plan: one transaction a scope, user scope first; if a later one fails the earlier is taken back.

    Raises:
        RefusedError: changed facts, a foreign edit, a step that the tables do not allow, missing rights.
        RocmPatchError: it failed; everything is as before unless the text says otherwise.
    """
    privileged.refuse_sudo()
    tables = tables or knowledge.load()
    _check_plan(plan, locations, tables, kinds)
    by_root = _by_root(plan, locations, tables, kinds)
    if by_root == "change":
        privileged.check(locations.cache_home, zipapp)  # before anything is done
    transaction = engine.new_transaction()
    receipts = list[Receipt]()
    try:
        for scope in locations.scopes():
            steps = tuple(step for step in plan.steps if step.scope == scope)
            if not steps:
                continue
            if scope == "system" and by_root == "satisfied":
                receipts.append(Receipt("", "already there", (), (), "", (), ""))
            elif scope == "system" and by_root == "change":
                mine = Plan(plan.schema, steps, {label: mark for label, mark in plan.facts.items() if label.startswith("system:")})
                receipts.append(
                    elevate.ask_root(Receipt, locations, zipapp, "apply", "--transaction", transaction, document=codec.dumps(mine))
                )  # fmt: skip
            else:
                ground = locations.ground(scope)
                with _readable(), as_owner(ground):
                    receipts.append(
                        engine.apply_scope(steps, plan.facts, ground, tables=tables, kinds=kinds, transaction=transaction, say=say)
                    )  # fmt: skip
    except BaseException:
        if any(receipt.outcome == "applied" for receipt in receipts):
            ground = locations.ground("user")
            with as_owner(ground):
                engine.rollback_scope(ground, kinds, tables, [transaction])
        raise
    return tuple(receipts)


def _check_plan(plan: Plan, locations: Locations, tables: Tables, kinds: Sequence[Kind]) -> None:
    if plan.schema != SCHEMA:
        raise FormatError(f"the plan has the schema {plan.schema}, and this version reads {SCHEMA}")
    if not plan.steps:
        raise RefusedError("the plan has no steps")
    for label in plan.facts:
        if not label.startswith(("user:", "system:")):
            raise FormatError(f"the plan's facts name {label!r}, which is no path of a scope")
    for step in plan.steps:
        if step.scope not in locations.scopes():
            raise RefusedError(f"remedy {step.remedy} is for {step.scope} scope, and no home folder is known", "name one with --home")
    engine.validate(plan.steps, tables, kinds)


def _by_root(plan: Plan, locations: Locations, tables: Tables, kinds: Sequence[Kind]) -> Literal["", "satisfied", "change"]:
    """Whether the system steps lie beyond this process's rights, and if so whether there is anything left to do."""
    steps = [step for step in plan.steps if step.scope == "system"]
    ground = locations.ground("system")
    if not steps or elevate.may_write(ground, []):
        return ""
    found = engine.preview_scope(steps, ground, tables, kinds)
    return "change" if any(before != after for _, before, after in found) else "satisfied"


def confirm(
    locations: Locations,
    *,
    tables: Tables | None = None,
    kinds: Sequence[Kind] = KINDS,
    say: engine.Say = _say,
    zipapp: str = privileged.INSTALLED,
) -> tuple[Receipt, ...]:
    """Make permanent what is on trial and came up well. Only what starts a machine can be on trial: system scope.

    Raises:
        RefusedError: nothing is on trial, the trial was not passed, or this is not the machine itself.
        RocmPatchError: it failed; everything is as before.
    """
    privileged.refuse_sudo()
    tables = tables or knowledge.load()
    ground = locations.ground("system")
    if not elevate.may_write(ground, []):
        return (elevate.ask_root(Receipt, locations, zipapp, "confirm"),)
    with _readable():
        return (confirming.confirm_scope(ground, kinds, tables, transaction=engine.new_transaction(), say=say),)


# ------------------------------------------------------------------ rollback, recover, status


def rollback(
    locations: Locations,
    transaction: str = "",
    *,
    everything: bool = False,
    forget: bool = False,
    scope: Scope | None = None,
    tables: Tables | None = None,
    kinds: Sequence[Kind] = KINDS,
    zipapp: str = privileged.INSTALLED,
) -> tuple[Receipt, ...]:
    """Take back the newest transaction, the one that is named, or everything; one receipt for each scope that had it.

    Raises:
        RefusedError: no such transaction, one that others stand on, another run at work, missing rights.
        RocmPatchError: it failed; everything is as before the rollback.
    """
    privileged.refuse_sudo()
    tables = tables or knowledge.load()
    scopes = [(item, _names(locations, item, zipapp, tables, kinds)) for item in reversed(locations.scopes()) if scope in (None, item)]
    known = {name for _, names in scopes for name in names}
    if transaction and transaction not in known:
        raise RefusedError(f"there is no transaction {transaction} in force", "see 'rocm-patch status'")
    newest = max((names[-1] for _, names in scopes if names), default="")
    wanted = known if everything else {transaction or newest}
    receipts = list[Receipt]()
    for item, names in scopes:
        mine = [name for name in names if name in wanted]
        if not mine:
            continue
        ground = locations.ground(item)
        if item == "system" and not elevate.may_write(ground, []):
            receipts.append(
                elevate.ask_root(
                    Receipt, locations, zipapp, "rollback", *(f"--transaction={name}" for name in mine), *(["--forget"] if forget else [])
                )
            )
        else:
            with _readable(), as_owner(ground):
                receipts.append(engine.rollback_scope(ground, kinds, tables, mine, forget=forget, say=_say))
    return tuple(receipts) or (NOTHING,)


def _names(locations: Locations, scope: Scope, zipapp: str, tables: Tables, kinds: Sequence[Kind]) -> list[str]:
    """Transactions in force, oldest first, once what was left open is taken back."""
    ground = locations.ground(scope)
    if scope == "system" and not elevate.may_write(ground, []):
        if not elevate.has_journal(ground):
            return []
        found = elevate.ask_root(ScopeStatus, locations, zipapp, "status")
        if found.open:
            elevate.ask_root(Receipt, locations, zipapp, "recover")
            found = elevate.ask_root(ScopeStatus, locations, zipapp, "status")
        return [record.transaction for record in found.transactions]
    _recover_here(locations, scope, tables, kinds)
    here = engine.status_scope(ground)
    if not here.readable:  # not to be taken for one that is empty
        raise RefusedError(f"the journal {ground.host(ground.on_machine(ground.state))} cannot be read, so nothing was taken back")
    return [record.transaction for record in here.transactions]


def recover(
    locations: Locations, *, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS, zipapp: str = privileged.INSTALLED
) -> tuple[Receipt, ...]:  # fmt: skip
    """Take back what a kill or a power cut left open. No receipts: there was nothing, and nothing was written.

    Raises:
        RefusedError: another run is at work, or missing rights.
        RocmPatchError: it failed and can be repeated.
    """
    privileged.refuse_sudo()
    found = list[Receipt | None]()
    for scope in locations.scopes():
        ground = locations.ground(scope)
        if scope == "system" and not elevate.may_write(ground, []):
            if elevate.has_journal(ground):
                found.append(elevate.ask_root(Receipt, locations, zipapp, "recover"))
        else:
            found.append(_recover_here(locations, scope, tables, kinds))
    return tuple(receipt for receipt in found if receipt is not None and receipt != NOTHING)


def _recover_here(locations: Locations, scope: Scope, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> Receipt | None:
    ground = locations.ground(scope)
    if tables is None and scope == "user" and not locations.live:
        tables = knowledge.load()  # while we may still read our own files
    with _readable(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(as_owner(ground))
        except RefusedError:
            if elevate.has_journal(ground):
                raise
            return None  # nothing of ours in a home out of reach: no reason to refuse the system's part
        journal = stack.enter_context(Journal(ground).opened())
        return engine.recover_open(journal, tables, kinds, _say)


def status(locations: Locations) -> tuple[ScopeStatus, ...]:
    """What is in force, and whether its files are as we left them. Looks only, and asks nobody for rights."""
    return tuple(engine.status_scope(locations.ground(scope)) for scope in locations.scopes())


def how_to_remove(receipt: Receipt, root: str = "/") -> tuple[str, ...]:
    """The exact commands by which the user can remove what a rollback left, since others changed it.

    Only what bears our name: a file of others in which a line or word is ours is never to be removed.
    Paths in a receipt are as on that machine: name its root where it is not the running system.
    """
    tops = [path for path in receipt.left if not any(path.startswith(f"{other}/") for other in receipt.left)]
    commands = []
    for path in (os.path.abspath(root).rstrip("/") + top for top in tops if "rocm-patch" in top or "rocm_patch" in top):
        rights = "" if os.access(os.path.dirname(path), os.W_OK, effective_ids=True) else "sudo "
        commands.append(f"{rights}rm -r -- {shlex.quote(path)}")
    return tuple(commands)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of the operating system into one that says what became of the change."""
    try:
        yield
    except PermissionError as error:
        raise RefusedError(f"no right to write: {error.filename or error.strerror}") from error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise RocmPatchError(f"the change failed and was taken back: {error.strerror or error}{place}") from error


# ------------------------------------------------------------------ root's side


def privileged_main() -> int:
    """What root's copy runs: a verb, a plan on stdin, one JSON document on stdout. Trusts nothing that it is given."""
    try:
        _cut_off()
        document = codec.dumps(_serve(sys.argv[1:]))
        document.encode()  # a name on disk may be no text
    except RocmPatchError as error:
        sys.stdout.write(json.dumps({"error": error.what, "hint": error.hint}) + "\n")
        return error.exit_code
    except Exception as error:  # a traceback is no answer: the caller reads JSON
        what = f"a defect of rocm-patch on root's side: {type(error).__name__}: {error}"
        sys.stdout.write(json.dumps({"error": what, "hint": "run 'rocm-patch status', and report this with the plan"}) + "\n")
        return EXIT_PROBLEMS
    sys.stdout.write(document)
    return 0


def _cut_off() -> None:
    """Keep nothing of the caller's: environment, umask, open files, current folder."""
    os.environ.clear()
    os.environ.update(CLEAN)
    os.umask(0o077)
    os.chdir("/")
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if os.geteuid() == 0:
        weak = privileged.own_weak_point()
        if weak is not None:
            raise RefusedError(f"root does not run code that a user can change: {weak[0]} {weak[1]}")


def _serve(argv: list[str]) -> Receipt | ScopeStatus:
    words = _Words(prog=privileged.NAME, add_help=False, allow_abbrev=False)
    words.add_argument("verb", choices=("apply", "confirm", "rollback", "recover", "status"))
    words.add_argument("--root", required=True)
    words.add_argument("--transaction", action="append", default=[])
    words.add_argument("--forget", action="store_true")
    given = words.parse_args(argv)
    if not given.root.startswith("/"):
        raise UsageError("--root is an absolute path")
    for name in given.transaction:
        if not is_transaction(name):
            raise UsageError(f"{name!r} is no transaction")
    locations = Locations(given.root)
    ground, tables = locations.ground("system"), knowledge.load()
    with _readable():
        if given.verb == "apply":
            text = sys.stdin.buffer.read(PLAN_LIMIT + 1)
            if len(text) > PLAN_LIMIT:
                raise FormatError("the plan is too long")
            plan = codec.loads(Plan, text, "the plan")
            if any(step.scope != "system" for step in plan.steps) or any(not label.startswith("system:") for label in plan.facts):
                raise RefusedError("root applies steps of system scope only")
            _check_plan(plan, locations, tables, KINDS)
            name = given.transaction[0] if given.transaction else engine.new_transaction()
            return engine.apply_scope(plan.steps, plan.facts, ground, tables=tables, kinds=KINDS, transaction=name, say=_say)
        if given.verb == "confirm":
            return confirming.confirm_scope(ground, KINDS, tables, transaction=engine.new_transaction(), say=_say)
        if given.verb == "rollback":
            return engine.rollback_scope(ground, KINDS, tables, given.transaction, forget=given.forget, say=_say)
        if given.verb == "recover":
            return _recover_here(locations, "system") or NOTHING
        return engine.status_scope(ground)


class _Words(argparse.ArgumentParser):
    """argparse without its habit of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


__all__ = ["Locations", "ManagedFile", "ScopeStatus", "apply", "confirm", "facts", "how_to_remove", "preview", "recover", "rollback", "status"]
