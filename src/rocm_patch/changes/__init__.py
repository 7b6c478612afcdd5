"""Changes to the system: a journal, a transaction, and one small module for each kind of change.

`KINDS` is the list that everything runs over: planning, applying, the crash sweeps. The order is the order of applying,
mild first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rocm_patch.changes import autoload, cmdline, engine, environment, modprobe, neutralise, permissions, prefix, preload, venv
from rocm_patch.changes.kind import Kind, Tables
from rocm_patch.changes.places import Ground, Locations
from rocm_patch.model import Step
from rocm_patch.root import State

KINDS: Final[tuple[Kind, ...]] = (
    environment.KIND, permissions.KIND, venv.KIND, autoload.KIND, prefix.KIND, neutralise.KIND, preload.KIND, modprobe.KIND, cmdline.KIND,
)  # fmt: skip


def validate(steps: Sequence[Step], tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> None:
    """Check what the steps themselves say, whatever the machine.

    Raises:
        RefusedError, FormatError: the first that is not allowed.
    """
    engine.validate(steps, tables or _tables(), kinds)


def outlook(steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> engine.Outlook:
    """What the steps come to in all scopes, from one look: some kinds read kernels and images for it. Looks only, and needs no rights.

    Raises:
        RefusedError, FormatError: a step that would not be applied either, with the reason.
    """
    found = [engine.outlook_scope(mine, ground, tables or _tables(), kinds) for ground, mine in _by_scope(steps, locations)]
    return engine.Outlook(
        {label: mark for one in found for label, mark in one.facts.items()},
        tuple(change for one in found for change in one.changes),
        tuple(line for one in found for line in one.also),
    )


def preview(
    steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS
) -> list[tuple[str, State, State]]:  # fmt: skip
    """Every path that the steps manage, as it is and as it would be; raises as `outlook`."""
    return [change for ground, mine in _by_scope(steps, locations) for change in engine.preview_scope(mine, ground, tables or _tables(), kinds)]


def facts(steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> dict[str, str]:
    """The digests for `Plan.facts`: what is now at each path that the steps manage; raises as `outlook`."""
    return {
        ground.label(path): before.digest()
        for ground, mine in _by_scope(steps, locations)
        for path, before, _ in engine.preview_scope(mine, ground, tables or _tables(), kinds)
    }


def _by_scope(steps: Sequence[Step], locations: Locations) -> Iterator[tuple[Ground, list[Step]]]:
    for scope in locations.scopes():
        mine = [step for step in steps if step.scope == scope]
        if mine:
            yield locations.ground(scope), mine


def _tables() -> Tables:
    from rocm_patch import knowledge

    return knowledge.load()


__all__ = ["KINDS", "Kind", "Locations", "Tables", "facts", "outlook", "preview", "validate"]
