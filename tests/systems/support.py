"""What the tests of whole systems share."""

from __future__ import annotations

from typing import Final

MANAGED: Final = ("/boot", "/etc", "/usr/local", "/var/lib/initramfs-tools", "/var/lib/dpkg")
"""What a rollback brings back to the byte: all that our changes, and the programs that they start, write to."""


def changed(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> list[str]:
    """The paths that differ between two digests."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
