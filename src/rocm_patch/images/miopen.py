"""MIOpen's kernels on disk: its kernel databases, and the one-file-a-kernel cache of builds without them.

`gfx1030.kdb`, `gfx1030_36.kdb` (installed) and `gfx1010_20.ukdb` (a user's, below ~/.cache/miopen) are SQLite files with
a table kern_db: kernel_name, kernel_args, kernel_blob, kernel_hash, uncompressed_size; the blob is bzip2, or plain where
that size is 0. Without SQLite a kernel is ~/.cache/miopen/VERSION/HASH/NAME.o. Sources:
https://github.com/ROCm/MIOpen/blob/develop/src/include/miopen/kern_db.hpp and .../src/binary_cache.cpp.

Find and performance databases (*.fdb.txt, *.ufdb.txt, gfx1030_36.db, *.udb.txt) and models hold parameters by name,
no code: they are not ours, and a target in such a name proves nothing. libMIOpenCKGroupedConv_gfx*.so is a library like
any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rocm_patch.errors import FormatError
from rocm_patch.images import inflate, sqlite
from rocm_patch.images.source import Code, Item, Source, Unread
from rocm_patch.images.unwrap import device_code, few, is_code

NAME: Final = "miopen"
TABLE: Final = "kern_db"
SAMPLE: Final = 8 << 20
"""Bytes unpacked to learn a database's target. bzip2 gives some 30 MB/s, and an installed database is 340 MB packed, all
for one target; if the sample agrees on one the rest is taken to be the same, and is opened by whoever reads it."""
COUNTED: Final = 2 << 20
"""Bytes of a database of which every kernel file is opened to count the kernels; in larger ones they stay uncounted (-1)."""
_DATABASE: Final = re.compile(r"gfx[0-9a-z_+:-]+\.u?kdb")
_NAME_LIMIT: Final = 256
_POINTER: Final = b"version https://git-lfs"
_COLUMNS: Final = ("kernel_name", "kernel_blob", "uncompressed_size")


def recognise(path: str, head: bytes) -> bool:
    """A kernel database by its name, whatever is in it; a code object in a folder of MIOpen's by its bytes."""
    *folders, name = path.split("/")
    return bool(_DATABASE.fullmatch(name)) or ("miopen" in folders and is_code(head))


def read(source: Source, path: str) -> Iterator[Item]:
    """One Code for each kernel file in the database, `inside` its name and row."""
    if not _DATABASE.fullmatch(path.rpartition("/")[2]):
        yield from device_code(NAME, "", source)
        return
    yield from few(NAME, _kernels(source))


def _kernels(source: Source) -> Iterator[Item]:
    left = SAMPLE
    kernels = None if source.size <= COUNTED else -1
    targets: set[str] = set()
    closed = 0
    try:
        if source.size >= len(_POINTER) and source.read(0, len(_POINTER)) == _POINTER:
            raise FormatError("a Git LFS pointer, not the database")
        for row, (name, blob, size) in sqlite.rows(source, TABLE, _COLUMNS):
            inside = f"{name[:_NAME_LIMIT] if isinstance(name, str) else 'kernel'}[{row}]"
            if blob is None or isinstance(blob, (int, str)) or not isinstance(size, int) or size < 0:
                yield Unread(NAME, inside, "no code in the row")
                continue
            data = inflate.Inflated(blob, inflate.bzip2, size) if size else blob
            cost = max(blob.size, size)
            if cost <= left:
                left -= cost
                for item in device_code(NAME, inside, data):
                    if isinstance(item, Code):
                        targets.add(item.target)
                        yield Code(NAME, item.inside, item.target, item.data, kernels)
                    else:
                        yield item
            elif len(targets) == 1:
                yield Code(NAME, inside, next(iter(targets)), data, kernels)
            else:
                closed += 1
    except FormatError as error:
        yield Unread(NAME, "", error.what)
    if closed:
        yield Unread(NAME, "", f"{closed} more kernels, not opened: the first {SAMPLE >> 20} MiB are for {len(targets)} targets")
