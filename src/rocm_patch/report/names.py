"""Kernel names for people: demangled by the machine's own c++filt or llvm-cxxfilt, with template arguments folded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

from rocm_patch import run
from rocm_patch.errors import RocmPatchError

__all__ = ["demangled", "folded"]

_FILTERS: Final = ("c++filt", "llvm-cxxfilt")
_BATCH: Final = 2000
"""Names for one child: a pipe's output is limited, and a name can have some thousand letters."""


def demangled(names: Sequence[str], path: str | None = None) -> Mapping[str, str]:
    """Readable names where they can be had; a name that cannot be read, or no filter on this machine: the name itself.

    The filter is a program that reads bytes of unknown origin: it runs as a child, with a limit on time.
    """
    program = next((found for name in _FILTERS if (found := shutil.which(name, path=path))), None)
    result = {name: name for name in names}
    mangled = [name for name in result if name.startswith("_Z") and "\n" not in name]
    if program is None:
        return result
    for start in range(0, len(mangled), _BATCH):
        batch = mangled[start : start + _BATCH]
        try:
            ended = run.run([os.path.abspath(program)], stdin="\n".join(batch).encode(), timeout=20, output_limit=64 << 20)
        except RocmPatchError:
            return result
        lines = ended.out.decode("utf-8", "replace").splitlines()
        if ended.code == 0 and len(lines) == len(batch):
            result.update(zip(batch, lines, strict=True))
    return result


def folded(name: str) -> str:
    """A demangled name without template arguments, parameters and return type: 'void f<int, 2>(float*)' -> 'f<...>'."""
    made: list[str] = []
    depth = 0
    for letter in name.replace("operator<<", "operator\x01\x01").replace("operator<", "operator\x01").replace("->", "\x02"):
        if letter == "(" and depth == 0 and made and not "".join(made).endswith(("operator", "::", " ", "(")):
            break
        if letter == "<":
            if depth == 0:
                made.append("<...>")
            depth += 1
        elif letter == ">":
            depth = max(depth - 1, 0)
        elif depth == 0:
            made.append(letter)
    text = "".join(made).replace("\x01", "<").replace("\x02", "->").strip()
    return text.removeprefix("void ").strip() or name
