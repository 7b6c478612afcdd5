"""What the running system shows of our settings, asked of each kind. Reads only, as any user."""

from __future__ import annotations

from collections.abc import Sequence

from rocm_patch.changes.journal import Journal
from rocm_patch.changes.kind import Held, Kind, Look, Tables
from rocm_patch.changes.places import Ground
from rocm_patch.errors import RefusedError, RocmPatchError


def seen(ground: Ground, tables: Tables, kinds: Sequence[Kind]) -> tuple[Held, ...]:
    """One line for each value of ours in one scope; a kind that cannot look says so in a line of its own."""
    journal = Journal(ground)
    try:
        active, read = tuple(journal.active()), True
    except (PermissionError, RefusedError):
        active, read = (), False
    look = Look(ground, journal.tree, tables, active, journal_read=read)
    found = list[Held]()
    for kind in kinds:
        rows = tables.remedies
        steps = tuple(step for record in active for step in record.steps if step.remedy in rows and rows[step.remedy].kind == kind.name)
        if kind.in_force is None or ground.scope not in kind.scopes or (read and not steps):
            continue
        try:
            found += kind.in_force(steps, look)
        except (OSError, RocmPatchError) as error:
            found.append(Held(kind.name, None, None, "", None, f"could not be looked at: {error}"))
    return tuple(dict.fromkeys(found))
