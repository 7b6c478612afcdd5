"""How much memory new processes may take: of the machine, of the control groups that we are in, and of limits on each process.

A container with 4 GiB on a machine of 64 shows all 64 in /proc/meminfo; the compiler is killed nevertheless.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator


def memory_free(root: str = "/") -> int:
    """MiB that all new processes together may take. `root`: where proc and sys are looked for."""
    rows = _rows(os.path.join(root, "proc/meminfo"))
    free = (rows.get("MemAvailable", 0) + rows.get("SwapFree", 0)) // 1024
    for folder, limit, used, cache in _groups(root):
        top, now = _number(os.path.join(folder, limit)), _number(os.path.join(folder, used))
        if top is not None and now is not None:
            # What was read and unpacked lies in the group's cache, which goes when memory is wanted: no second build would begin.
            stat = _rows(os.path.join(folder, "memory.stat"))
            kept = now - sum(stat.get(name, 0) for name in cache)
            free = min(free, (top - max(0, kept)) >> 20)
    return max(0, free)


def process_limit() -> int:
    """MiB that one process may take (`ulimit -v`, `ulimit -d`); negative: no limit."""
    limits = [resource.getrlimit(what)[0] for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit >> 20 for limit in limits if limit != resource.RLIM_INFINITY), default=-1)


def _groups(root: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Folders of our control groups and those above, with the names of their files: the second version's, and the first's."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", ("active_file", "inactive_file"))
        elif "memory" in controllers.split(","):
            base, names = "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
        else:
            continue
        parts = path.strip("/").split("/")
        # In a container the path may be the host's; its own group is then at the base.
        for count in range(len(parts), -1, -1):
            yield os.path.join(root, base, *parts[:count]), *names


def _number(path: str) -> int | None:
    """What a file holds; None for the word max, or if it is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _rows(path: str) -> dict[str, int]:
    """Names and numbers, as in `MemTotal: 123 kB` and `active_file 123`."""
    rows = {}
    try:
        with open(path, encoding="ascii") as file:
            for words in (line.split() for line in file):
                if len(words) > 1 and words[1].isdigit():
                    rows[words[0].rstrip(":")] = int(words[1])
    except OSError:
        pass
    return rows
