"""Apply a plan, take it back, finish what was interrupted, say what is in force: the doors to `changes`.

User scope is done in this process. System scope is done here where the caller may write there, and otherwise by root's own
copy of this code (`changes.privileged`), which gets ids and parameters and derives everything else again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rocm_patch import knowledge
from rocm_patch.changes import KINDS, Kind, Locations, Tables, engine, facts, preview
from rocm_patch.changes.engine import ManagedFile, ScopeStatus
from rocm_patch.changes.journal import Journal
from rocm_patch.changes.transaction import recover as recover_journal
from rocm_patch.model import SCHEMA, FormatError, Plan, Receipt, RefusedError, RocmPatchError, Scope


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def apply(
    plan: Plan, locations: Locations, *, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS, say: engine.Say = _say
) -> tuple[Receipt, ...]:
    """Apply a plan: one transaction a scope, user scope first; if a later one fails the earlier is taken back.

    Raises:
        RefusedError: changed facts, a foreign edit, a step that the tables do not allow, missing rights.
        RocmPatchError: it failed; everything is as before unless the text says otherwise.
    """
    tables = tables or knowledge.load()
    _check_plan(plan, locations, tables, kinds)
    transaction = engine.new_transaction()
    receipts = list[Receipt]()
    try:
        for scope in locations.scopes():
            steps = [step for step in plan.steps if step.scope == scope]
            if steps:
                receipts.append(_apply_scope(plan, scope, locations, tables=tables, kinds=kinds, transaction=transaction, say=say))
    except BaseException:
        if any(receipt.outcome == "applied" for receipt in receipts):
            engine.rollback_scope(locations.ground("user"), kinds, tables, [transaction])
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


def _apply_scope(
    plan: Plan, scope: Scope, locations: Locations, *, tables: Tables, kinds: Sequence[Kind], transaction: str, say: engine.Say
) -> Receipt:  # fmt: skip
    steps = [step for step in plan.steps if step.scope == scope]
    try:
        return engine.apply_scope(steps, plan.facts, locations.ground(scope), tables=tables, kinds=kinds, transaction=transaction, say=say)
    except OSError as error:
        raise _readable(error) from error


def rollback(
    locations: Locations,
    transaction: str = "",
    *,
    everything: bool = False,
    tables: Tables | None = None,
    kinds: Sequence[Kind] = KINDS,
) -> tuple[Receipt, ...]:
    """Take back the newest transaction, the one that is named, or everything; one receipt for each scope that had it.

    Raises:
        RefusedError: no such transaction, one that others stand on, another run at work.
        RocmPatchError: it failed; everything is as before the rollback.
    """
    tables = tables or knowledge.load()
    scopes = [(scope, _names(locations, scope)) for scope in reversed(locations.scopes())]
    known = {name for _, names in scopes for name in names}
    if transaction and transaction not in known:
        raise RefusedError(f"there is no transaction {transaction} in force", "see 'rocm-patch status'")
    newest = max((names[-1] for _, names in scopes if names), default="")
    wanted = known if everything else {transaction or newest}
    receipts = list[Receipt]()
    for scope, names in scopes:
        mine = [name for name in names if name in wanted]
        if mine:
            try:
                receipts.append(engine.rollback_scope(locations.ground(scope), kinds, tables, mine))
            except OSError as error:
                raise _readable(error) from error
    return tuple(receipts) or (Receipt("", "nothing to undo", (), (), "", (), ""),)


def _names(locations: Locations, scope: Scope) -> list[str]:
    """Transactions in force, once what was left open is taken back."""
    recover_scope(locations, scope)
    return [record.transaction for record in engine.status_scope(locations.ground(scope)).transactions]


def recover(locations: Locations) -> tuple[Receipt, ...]:
    """Take back what a kill or a power cut left open. No receipts: there was nothing, and nothing was written.

    Raises:
        RefusedError: another run is at work.
        RocmPatchError: it failed and can be repeated.
    """
    found = [recover_scope(locations, scope) for scope in locations.scopes()]
    return tuple(receipt for receipt in found if receipt is not None)


def recover_scope(locations: Locations, scope: Scope) -> Receipt | None:
    """The same for one scope."""
    try:
        with Journal(locations.ground(scope)).opened() as journal:
            return recover_journal(journal)
    except OSError as error:
        raise _readable(error) from error


def status(locations: Locations) -> tuple[ScopeStatus, ...]:
    """What is in force, and whether its files are as we left them. Looks only."""
    return tuple(engine.status_scope(locations.ground(scope)) for scope in locations.scopes())


def _readable(error: OSError) -> RocmPatchError:
    if isinstance(error, PermissionError):
        return RefusedError(f"no right to write: {error.filename or error.strerror}")
    place = f" ({error.filename})" if error.filename else ""
    return RocmPatchError(f"the change failed and was taken back: {error.strerror or error}{place}")


__all__ = ["Locations", "ManagedFile", "ScopeStatus", "apply", "facts", "preview", "recover", "rollback", "status"]
