"""Changes to the system: a journal, a transaction, and one small module for each kind of change.

`KINDS` is the list that everything runs over: planning, applying, the crash sweeps. The order is the order of applying,
mild first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rocm_patch.changes import autoload, cmdline, engine, environment, modprobe, neutralise, permissions, prefix, preload, venv
from rocm_patch.changes.kind import Kind, Tables
from rocm_patch.changes.places import Locations
from rocm_patch.model import Step
from rocm_patch.root import State

KINDS: Final[tuple[Kind, ...]] = (
    environment.KIND, permissions.KIND, venv.KIND, autoload.KIND, prefix.KIND, neutralise.KIND, preload.KIND, modprobe.KIND, cmdline.KIND,
)  # fmt: skip


def preview(
    steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS
) -> list[tuple[str, State, State]]:  # fmt: skip
    """Every path that the steps manage, as it is and as it would be. Looks only, and needs no rights.

    Raises:
        RefusedError, FormatError: a step that would not be applied either, with the reason.
    """
    found = list[tuple[str, State, State]]()
    for scope in locations.scopes():
        mine = [step for step in steps if step.scope == scope]
        if mine:
            found += engine.preview_scope(mine, locations.ground(scope), tables or _tables(), kinds)
    return found


def also(steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> list[str]:
    """What the steps write besides the paths of `preview`: what the system's own tools make, and what only root may read. In words."""
    asked = [(scope, [step for step in steps if step.scope == scope]) for scope in locations.scopes()]
    return [line for scope, mine in asked if mine for line in engine.also_scope(mine, locations.ground(scope), tables or _tables(), kinds)]


def facts(steps: Sequence[Step], locations: Locations, tables: Tables | None = None, kinds: Sequence[Kind] = KINDS) -> dict[str, str]:
    """The digests for `Plan.facts`: what is now at each path that the steps manage.

    Raises:
        RefusedError, FormatError: as `preview`.
    """
    found = dict[str, str]()
    for scope in locations.scopes():
        mine = [step for step in steps if step.scope == scope]
        if mine:
            ground = locations.ground(scope)
            for path, before, _ in engine.preview_scope(mine, ground, tables or _tables(), kinds):
                found[ground.label(path)] = before.digest()
    return found


def _tables() -> Tables:
    from rocm_patch import knowledge

    return knowledge.load()


__all__ = ["KINDS", "Kind", "Locations", "Tables", "also", "facts", "preview"]
