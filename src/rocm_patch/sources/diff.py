"""A unified diff in bytes, as git writes it: full blob names, so that `git apply --3way` can find its base."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator

_NO_END = b"\\ No newline at end of file\n"


def unified(path: str, before: bytes, after: bytes) -> bytes:
    """The difference of a file; empty if there is none. CRLF ends stay within their lines."""
    if before == after:
        return b""
    name = os.fsencode(path)
    head = b"diff --git a/%b b/%b\nindex %b..%b 100644\n" % (name, name, _blob(before), _blob(after))
    lines = difflib.diff_bytes(difflib.unified_diff, list(_lines(before)), list(_lines(after)), b"a/" + name, b"b/" + name, lineterm=b"\n")
    return head + b"".join(line if line.endswith(b"\n") else line + b"\n" + _NO_END for line in lines)


def _lines(data: bytes) -> Iterator[bytes]:
    # Not splitlines: that parts at a lone carriage return as well.
    at = 0
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        yield data[at:end]
        at = end


def _blob(data: bytes) -> bytes:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest().encode()
