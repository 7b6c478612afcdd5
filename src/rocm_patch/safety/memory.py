"""What a scan found, noted by file, so that `doctor` can say it without reading gigabytes again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rocm_patch.isa.cache import Cache, version
from rocm_patch.model import Image, Safety
from rocm_patch.safety.outlook import Chip

__all__ = ["recall", "remember", "state"]


def state(path: str) -> tuple[int, ...]:
    """What changes when a file does, without reading it; empty where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def remember(images: Iterable[Image], chip: Chip, cache_folder: str, before: Mapping[str, tuple[int, ...]]) -> None:
    """Note by file what was found, so that `recall` has it without reading the file again.

    `before`: the state of the files before they were read. One that was changed or replaced meanwhile is not noted.
    """
    cache = Cache(cache_folder, write=True)
    for path, rows in _by_path(images).items():
        known = before.get(path, ())
        if not known or known != state(path) or any(row.unread for row in rows) or not any(chip.gfx in row.safety for row in rows):
            continue
        cache.put_file(_key(path, known, chip), [[row.inside, row.store, _values(row.safety[chip.gfx])] for row in rows if chip.gfx in row.safety])
    cache.close()


def recall(images: Iterable[Image], chip: Chip, cache_folder: str) -> tuple[Image, ...]:
    """The images with what an earlier scan of the same files found. Writes nothing."""
    cache = Cache(cache_folder, write=False)
    made = []
    known: dict[str, dict[tuple[str, str], Safety]] = {}
    for image in images:
        if image.path not in known:
            now = state(image.path)
            known[image.path] = _noted(cache.get_file(_key(image.path, now, chip))) if now else {}
        safety = known[image.path].get((image.inside, image.store))
        made.append(replace(image, safety={**image.safety, chip.gfx: safety}) if safety else image)
    cache.close()
    return tuple(made)


def _values(safety: Safety) -> dict[str, Any]:
    return {**vars(safety), "rules": dict(safety.rules), "certain_rules": dict(safety.certain_rules)}


def _noted(values: Any) -> dict[tuple[str, str], Safety]:
    """What stands in a cache, if it is what we put there."""
    try:
        return {
            (str(inside), str(store)): Safety(
                int(each["certain"]),
                int(each["possible"]),
                {str(rule): int(count) for rule, count in each["rules"].items()},
                str(each["code"]),
                int(each["functions"]),
                int(each["unsafe"]),
                {str(rule): int(count) for rule, count in each["certain_rules"].items()},
            )
            for inside, store, each in values or ()
        }
    except (TypeError, ValueError, KeyError, AttributeError):
        return {}


def _key(path: str, known: tuple[int, ...], chip: Chip) -> str:
    parts = (os.path.realpath(path), *known, chip.gfx, chip.override, version())
    # A name may hold bytes that are no text; a key is one.
    return hashlib.sha256("\0".join(str(part) for part in parts).encode("utf-8", "surrogateescape")).hexdigest()


def _by_path(images: Iterable[Image]) -> dict[str, list[Image]]:
    groups: dict[str, list[Image]] = {}
    for image in images:
        groups.setdefault(image.path, []).append(image)
    return groups
