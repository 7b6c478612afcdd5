"""The child that judges code of unknown origin: one JSON line in for a file, a line out for each code object in it.

Started by `images.pool`, with the limits of `images.worker`. What was judged before is taken from the cache, which it only reads.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterator
from typing import Any, Final

from rocm_patch.errors import FormatError
from rocm_patch.images import code_object, walk, worker
from rocm_patch.images.coverage import base
from rocm_patch.images.source import Code, Source
from rocm_patch.isa import judge
from rocm_patch.isa.cache import Cache, key, pack, to_json

RATE: Final = 2 << 20
"""Bytes of code a second at which a judge counts as stuck; 14 MB/s are usual."""
LETTERS: Final = 8 << 20
"""Of all names of functions that are told of one code object."""
NAME: Final = 4096
"""Letters of one."""
PACKED: Final = 8 << 20
"""Bytes of a judgement that is kept."""
_PIECE: Final = 1 << 20


def seconds(size: int) -> float:
    """Computing time for a file with `size` bytes of code to judge."""
    return worker.SECONDS + size / RATE


def main() -> None:
    """Answer lines until there are no more."""
    worker.serve(sys.stdin, _answer)


def codes(task: dict[str, Any]) -> Iterator[tuple[str, Code]]:
    """The code that a task is about, with the name of its member: of each, what its `members` say."""
    for full, item in walk.items(task["path"]):
        member = full[: worker.NAME_LIMIT]
        if isinstance(item, Code) and base(item.target) in task["members"].get(member, ()):
            yield member, item


def _answer(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cache = Cache(task["cache"], write=False)
    part, parts = task["part"], task["parts"]
    said: dict[str, dict[str, Any]] = {}
    for number, (member, item) in enumerate(codes(task)):
        if number % parts != part:
            continue
        where = {"member": member, "store": item.store, "inside": item.inside[: worker.NAME_LIMIT], "target": item.target}
        try:
            content = _digest(item.data)
            if content not in said:
                said[content] = _told(item, key(content, task["chip"]), cache, task)
            # Entries may lie over each other, thousands of them on one object: it is judged once, and sent once in full.
            yield {**said[content], **where, "bytes": item.data.size}
            said[content] = {name: value for name, value in said[content].items() if name not in ("packed", "kernels")}
        except FormatError as error:
            yield {**where, "bytes": 0, "why": error.what}
    cache.close()


def _told(item: Code, wanted: str, cache: Cache, task: dict[str, Any]) -> dict[str, Any]:
    made_for = base(code_object.target(item.data))
    if made_for != base(item.target):
        raise FormatError(f"its container says {item.target}, the code itself is for {made_for}")
    known = cache.get(wanted)
    found = known or judge(item.data, task["chip"])
    values = to_json(found)
    kernels, letters = {}, 0
    for name, counts in values["kernels"].items() if task["kernels"] else ():
        letters += len(name)
        if letters > LETTERS:
            break
        kernels[name[:NAME]] = counts
    packed = pack(values) if known is None and task["cache"] else b""
    return {
        "key": wanted,
        "known": known is not None,
        "packed": base64.b64encode(packed).decode() if len(packed) <= PACKED else "",
        "rules": values["rules"],
        "functions": found.functions,
        "undecoded": found.undecoded,
        "unsafe": found.unsafe,
        "kernels": kernels,
    }


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for offset in range(0, source.size, _PIECE):
        digest.update(source.read(offset, min(_PIECE, source.size - offset)))
    return digest.hexdigest()
