"""What outlives a rollback on purpose: caches and probe results, ours by name, which only `rollback --full` removes."""

from __future__ import annotations

import os

from rocm_patch.changes.places import NAME, Locations
from rocm_patch.root import Tree


def found(locations: Locations) -> list[str]:
    """Their folders, as they lie here. Only folders: a link of that name is somebody else's."""
    if not locations.home:
        return []
    home = os.path.abspath(locations.root).rstrip("/") + locations.home
    cache = locations.cache_home if locations.live and locations.cache_home else f"{home}/.cache"
    state = locations.state_home if locations.live and locations.state_home else f"{home}/.local/state"
    folders = (f"{cache}/{NAME}", f"{state}/{NAME}-probes")
    return [folder for folder in folders if os.path.isdir(folder) and not os.path.islink(folder)]


def remove(locations: Locations) -> list[str]:
    """Remove them; returns what was removed.

    Raises:
        OSError: one could not be.
    """
    gone = []
    for folder in found(locations):
        parent, _, name = folder.rpartition("/")
        Tree(os.path.realpath(parent)).remove_tree(name)
        gone.append(folder)
    return gone
