"""Our reader of .kpack archives against AMD's own: binaries, targets and every byte of each code object.

    python benchmarks/kpack_against_rocm.py --library LIBROCM_KPACK ARCHIVE.kpack...

The library is ROCm's `librocm_kpack.so` (7.12 or newer; some wheels on PyPI that bundle HIP have it). Its C interface:
https://github.com/ROCm/rocm-systems/blob/develop/shared/kpack/docs/runtime_api.md. It joins the translation units of a
binary ('NAME#0', 'NAME#1', ...) when asked for the binary, so each is asked for by its own key. A row an archive; ends with
1 if anything differs.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import sys
from pathlib import Path

from rocm_patch.images import walk
from rocm_patch.images.source import Code

Found = dict[tuple[str, str], str]
"""(binary, target) -> sha256 of the code object."""


class Rocm:
    """AMD's library."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def read(self, path: str) -> Found:
        """Everything in an archive. Raises OSError with the library's number where it refuses."""
        archive = ctypes.c_void_p()
        self._call("kpack_open", path.encode(), ctypes.byref(archive))
        try:
            found: Found = {}
            for binary in self._names(archive, "binary"):
                for target in self._names(archive, "architecture"):
                    code = self._code(archive, binary, target)
                    if code is not None:
                        found[binary.decode(), target.decode()] = hashlib.sha256(code).hexdigest()
            return found
        finally:
            self.library.kpack_close(archive)

    def _call(self, function: str, *arguments: object) -> None:
        if number := getattr(self.library, function)(*arguments):
            raise OSError(f"{function} says {number}")

    def _names(self, archive: ctypes.c_void_p, kind: str) -> list[bytes]:
        count, name = ctypes.c_size_t(), ctypes.c_char_p()
        self._call(f"kpack_get_{kind}_count", archive, ctypes.byref(count))
        names = []
        for number in range(count.value):
            self._call(f"kpack_get_{kind}", archive, ctypes.c_size_t(number), ctypes.byref(name))
            names.append(name.value or b"")
        return names

    def _code(self, archive: ctypes.c_void_p, binary: bytes, target: bytes) -> bytes | None:
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        if self.library.kpack_get_kernel(archive, binary, target, ctypes.byref(data), ctypes.byref(size)):
            return None
        code = ctypes.string_at(data.value or 0, size.value)
        self.library.kpack_free_kernel(data)
        return code


def ours(path: str) -> tuple[Found, list[str]]:
    """Everything that we find, and what we could not read."""
    found: Found = {}
    unread = []
    for _, item in walk.items(path):
        if isinstance(item, Code):
            found[item.inside, item.target] = hashlib.sha256(item.data.read(0, item.data.size)).hexdigest()
        else:
            unread.append(item.why)
    return found, unread


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True)
    parser.add_argument("archives", nargs="+")
    arguments = parser.parse_args()
    rocm = Rocm(str(Path(arguments.library).resolve()))
    wrong = 0
    print(f"{'codes':>6} {'targets':>7}  archive: verdict")
    for archive in arguments.archives:
        mine, unread = ours(archive)
        theirs = rocm.read(archive)
        alone = {key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)}
        verdict = f"{len(alone)} differ: {sorted(alone)[:3]}" if alone else "equal"
        wrong += bool(alone or unread)
        print(f"{len(theirs):6} {len({target for _, target in theirs}):7}  {archive}: {verdict}{f'; unread: {unread[0]}' if unread else ''}")
    print(f"{len(arguments.archives)} archives: {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
