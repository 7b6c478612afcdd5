"""The child that judges code of unknown origin: one JSON line in for a file, a line out for each code object in it.

Started by `images.pool`, with the limits of `images.worker`. What was judged before is taken from the cache, which it only reads.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any, Final

from rocm_patch.errors import FormatError
from rocm_patch.images import walk, worker
from rocm_patch.images.coverage import base
from rocm_patch.images.source import Code, Source
from rocm_patch.isa import judge
from rocm_patch.isa.cache import Cache, key, to_json

RATE: Final = 2 << 20
"""Bytes of code a second at which a judge counts as stuck; 14 MB/s are usual."""
_PIECE: Final = 1 << 20


def seconds(size: int) -> float:
    """Computing time for a file with `size` bytes of code to judge."""
    return worker.SECONDS + size / RATE


def main() -> None:
    """Answer lines until there are no more."""
    worker.serve(sys.stdin, _answer)


def _answer(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cache = Cache(task["cache"], write=False)
    part, parts = task["part"], task["parts"]
    number = -1
    for member, item in walk.items(task["path"]):
        if not isinstance(item, Code) or base(item.target) not in task["members"].get(member[: worker.NAME_LIMIT], ()):
            continue
        number += 1
        if number % parts != part:
            continue
        where = {"member": member[: worker.NAME_LIMIT], "store": item.store, "inside": item.inside[: worker.NAME_LIMIT], "target": item.target}
        try:
            wanted = key(_digest(item.data), task["chip"])
            known = cache.get(wanted)
            found = known or judge(item.data, task["chip"])
            yield {**where, "bytes": item.data.size, "key": "" if known else wanted, "judgement": to_json(found)}
        except FormatError as error:
            yield {**where, "bytes": 0, "why": error.what}
    cache.close()


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for offset in range(0, source.size, _PIECE):
        digest.update(source.read(offset, min(_PIECE, source.size - offset)))
    return digest.hexdigest()
