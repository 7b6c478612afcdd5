"""From a trial that was passed to what stays: the kinds say what the permanent steps are, and these are applied as any others."""

from __future__ import annotations

from collections.abc import Sequence

from rocm_patch.changes import engine
from rocm_patch.changes.kind import Kind, Tables
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError
from rocm_patch.model import Receipt, Step


def confirm_scope(ground: Ground, kinds: Sequence[Kind], tables: Tables, *, transaction: str, say: engine.Say) -> Receipt:
    """Make permanent what is on trial in one scope, as a transaction of its own that stands on the trial's.

    Raises:
        RefusedError: nothing is on trial, it was not passed, or as `engine.apply_scope`.
        RocmPatchError, OSError: it failed and everything is as before.
    """
    look = engine.peek(ground, tables)
    if not look.journal_read:
        raise RefusedError("the journal is closed to this user")
    steps = list[Step]()
    for kind in kinds:
        if kind.confirm is not None:
            known = [step for record in look.active for step in record.steps if step.remedy in tables.remedies]
            mine = tuple(step for step in known if tables.remedies[step.remedy].kind == kind.name)
            steps += kind.confirm(mine, look) if mine else ()
    if not steps:
        raise RefusedError("nothing is on trial here", "see 'rocm-patch status'")
    facts = {ground.label(path): before.digest() for path, before, _ in engine.preview_scope(steps, ground, tables, kinds)}
    return engine.apply_scope(steps, facts, ground, tables=tables, kinds=kinds, transaction=transaction, say=say)
