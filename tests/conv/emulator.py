"""Our GPU kernels on this machine's CPU: compiled by the C++ compiler, threads as coroutines (emulator.h)."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HEADER = Path(__file__).with_name("emulator.h")
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


class Emulated:
    def __init__(self, function):
        self.function = function
        self.launches = 0

    def launch(self, grid, block, arguments):
        self.launches += 1
        assert max(grid[1:]) <= 65535, "a GPU refuses such a grid"
        code = self.function(*grid, block, 1, 1, arguments)
        assert code == 0, "threads of one block reached different barriers"


class Emulator:
    """A Runtime of conv.runtime."""

    target = "emulated"

    def __init__(self, folder):
        self.folder = Path(folder)
        self.kernels = {}

    def kernel(self, source, name, defines):
        text = "\n".join(
            [
                *[f"#define {key} {value}" for key, value in defines],
                f'#include "{HEADER}"',
                source,
                f"EMULATE({name}, {name.title().replace('_', '')})",
            ]
        )
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        if key not in self.kernels:
            library = self.folder / f"{key}.so"
            if not library.exists():
                at = self.folder / f"{key}.{os.getpid()}.cpp"
                at.write_text(text)
                made = subprocess.run(
                    [COMPILER, "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off", "-o", f"{at}.so", str(at)],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert made.returncode == 0, made.stderr[:6000]
                os.replace(f"{at}.so", library)
            function = getattr(ctypes.CDLL(str(library)), f"emulate_{name}")
            self.kernels[key] = Emulated(function)
        return self.kernels[key]


def folder():
    return tempfile.mkdtemp(prefix="rocm-patch-emulated-")
