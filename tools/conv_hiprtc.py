"""Compile the convolution engine's kernels by a real hipRTC, as conv/runtime.py does, where no AMD GPU is.

    python tools/conv_isa.py --record > kernels.json
    python tools/conv_hiprtc.py LIBRARY kernels.json FOLDER [TARGET ...]
    python tools/conv_isa.py --objects FOLDER kernels.json

LIBRARY is a libhiprtc.so or, of ROCm 5.2 and older, a libamdhip64.so; it needs its libhiprtc-builtins.so and libamd_comgr.so beside it.
Standard library only, so that the Python of any container serves. Code objects go to FOLDER as NUMBER-TARGET.o, NUMBER being the kernel's
place in kernels.json; what does not compile is printed.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

TARGETS = ("gfx1010", "gfx1011", "gfx1012", "gfx1030", "gfx1036")
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast")


def compiled(library: ctypes.CDLL, source: str, options: list[str]) -> tuple[bytes, str]:
    """The code object, empty where it does not compile, and the log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    status = library.hiprtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    if status:
        return b"", f"hiprtcCreateProgram answered {status}"
    try:
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = library.hiprtcCompileProgram(program, len(options), array)
        library.hiprtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value + 1)
        library.hiprtcGetProgramLog(program, log)
        if failed:
            return b"", f"hiprtcCompileProgram answered {failed}: {log.value.decode(errors='replace')}"
        library.hiprtcGetCodeSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.hiprtcGetCode(program, code)
        return code.raw, log.value.decode(errors="replace")
    finally:
        library.hiprtcDestroyProgram(ctypes.byref(program))


def main() -> int:
    path, units, folder, *targets = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    library = ctypes.CDLL(path)
    failed = count = 0
    begin = time.monotonic()
    for number, (name, defines, source) in enumerate(json.loads(Path(units).read_text())):
        macros = [f"-D{key}={value}" for key, value in defines]
        for target in targets or TARGETS:
            code, log = compiled(library, source, [f"--offload-arch={target}", *OPTIONS, *macros])
            count += 1
            if code[:4] != b"\x7fELF":
                failed += 1
                print(f"{name} {' '.join(macros)} for {target}: {log or 'no ELF file came out'}", flush=True)
            else:
                Path(folder, f"{number}-{target}.o").write_bytes(code)
    print(f"{count} compiled in {time.monotonic() - begin:.0f} s, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
