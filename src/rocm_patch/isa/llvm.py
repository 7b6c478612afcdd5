"""A real LLVM, loaded through its C interface: the oracle that our own decoder is held against, and the words for a listing.

What was measured before it became the oracle and not the engine: a loop over `LLVMDisasmInstruction` reads 0.3 to 0.7 MB of
code a second, twenty times less than a table and numpy (docs/override-safety.md).
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch.errors import RocmPatchError

__all__ = ["GOOD", "Disassembler", "Library", "find", "open_library"]

VARIABLE: Final = "ROCM_PATCH_LLVM"
TRIPLE: Final = b"amdgcn-amd-amdhsa"
GOOD: Final = 23
"""Since 23 compilers fill an unused third operand with 128 instead of 0. An older LLVM takes that for no instruction, goes on in the
middle of it and invents others: `verify.blind_spots` asks for that and for its counterpart.
"""

_PLACES: Final = (
    "/opt/rocm*/lib/llvm/lib/libLLVM.so*",
    "/opt/rocm*/llvm/lib/libLLVM*.so*",
    "/usr/lib/llvm-*/lib/libLLVM*.so*",
    "/usr/lib/*-linux-gnu/libLLVM*.so*",
    "/usr/lib64/libLLVM*.so*",
    "/usr/lib/libLLVM*.so*",
)
_NUMBER: Final = re.compile(r"libLLVM(?:-|\.so\.)(\d+)")


@dataclass(frozen=True)
class Library:
    """An LLVM found: `version` is its major number, 0 where it does not say."""

    path: str
    version: int

    @property
    def trusted(self) -> bool:
        """Whether it decodes what today's compilers write."""
        return self.version >= GOOD


def find() -> tuple[Library, ...]:
    """Every LLVM on this machine by its file name, newest first; the one named in ROCM_PATCH_LLVM before all."""
    named = os.environ.get(VARIABLE, "")
    found = {os.path.realpath(path) for pattern in _PLACES for path in glob.glob(pattern)}
    libraries = sorted((Library(path, _by_name(path)) for path in found), key=lambda each: (-each.version, each.path))
    return (Library(named, _by_name(named)), *libraries) if named else tuple(libraries)


def open_library(path: str) -> tuple[Any, Library]:
    """Load it into this process and ask for its version. Raises RocmPatchError if it is none or lacks AMDGPU."""
    try:
        loaded = ctypes.CDLL(path)
        for start in ("LLVMInitializeAMDGPUTargetInfo", "LLVMInitializeAMDGPUTargetMC", "LLVMInitializeAMDGPUDisassembler"):
            getattr(loaded, start)()
    except (OSError, AttributeError) as error:
        raise RocmPatchError(f"{path} cannot serve as disassembler: {error}") from error
    loaded.LLVMCreateDisasmCPUFeatures.restype = ctypes.c_void_p
    loaded.LLVMDisasmInstruction.restype = ctypes.c_size_t
    loaded.LLVMDisasmInstruction.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]
    return loaded, Library(path, _version(loaded) or _by_name(path))


class Disassembler:
    """One chip's decoder. `one(data)` gives the length in bytes and the text; a length of 0: not an instruction there."""

    def __init__(self, loaded: Any, chip: str, features: str = "") -> None:
        handle = loaded.LLVMCreateDisasmCPUFeatures(TRIPLE, chip.encode(), features.encode(), None, 0, None, None)
        if not handle:
            raise RocmPatchError(f"this LLVM knows no {chip}")
        self._handle = ctypes.c_void_p(handle)
        self._decode = loaded.LLVMDisasmInstruction
        self._text = ctypes.create_string_buffer(512)

    def one(self, data: bytes, address: int = 0) -> tuple[int, str]:
        """Decode the first instruction of `data`."""
        length = int(self._decode(self._handle, data, len(data), address, self._text, 512))
        return length, self._text.value.decode("ascii", "replace").strip() if length else ""


def _by_name(path: str) -> int:
    found = _NUMBER.search(os.path.basename(path)) or re.search(r"llvm-(\d+)", path)
    return int(found.group(1)) if found else 0


def _version(loaded: Any) -> int:
    try:
        ask = loaded.LLVMGetVersion
    except AttributeError:  # since LLVM 16
        return 0
    numbers = [ctypes.c_uint() for _ in range(3)]
    ask.restype = None
    ask(*(ctypes.byref(number) for number in numbers))
    return int(numbers[0].value)
