"""What outlives a rollback on purpose: caches and probe results, ours by name, which only `rollback --full` removes."""

from __future__ import annotations

import contextlib
import os

from rocm_patch.changes.places import NAME, Locations
from rocm_patch.errors import RefusedError
from rocm_patch.root import Tree, join


def found(locations: Locations) -> list[str]:
    """Their folders, as they lie here. Only folders: a link of that name is somebody else's."""
    return [f"{tree.anchor.rstrip('/')}/{path}" for tree, path in _folders(locations)]


def remove(locations: Locations) -> list[str]:
    """Remove them; returns what was removed.

    Raises:
        OSError: one could not be.
    """
    gone = []
    for tree, path in _folders(locations):
        tree.remove_tree(path)
        gone.append(f"{tree.anchor.rstrip('/')}/{path}")
    return gone


def _folders(locations: Locations) -> list[tuple[Tree, str]]:
    """Those that are there: a tree, and the path in it.

    On the running system the links above them are the user's own business. In another root none is followed: a `.cache` that was
    a link, and a home of `/../other` in passwd, led root to folders outside of it.
    """
    if not locations.home:
        return []
    if locations.live:
        cache, state = locations.cache_home or f"{locations.home}/.cache", locations.state_home or f"{locations.home}/.local/state"
        places = [(Tree(os.path.realpath(folder)), name) for folder, name in ((cache, NAME), (state, f"{NAME}-probes"))]
    else:
        tree, home = Tree(locations.root), os.path.normpath(f"/{locations.home}")
        places = [(tree, join(home, f".cache/{NAME}")), (tree, join(home, f".local/state/{NAME}-probes"))]
    there = []
    for tree, path in places:
        with contextlib.suppress(RefusedError, PermissionError):
            if tree.state_kind(path) == "folder":
                there.append((tree, path))
    return there
