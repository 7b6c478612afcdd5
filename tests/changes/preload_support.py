"""Libraries good and bad, and a root with programs of this machine in it, where a bad one can do no harm."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts
from rocm_patch.changes import Locations, preflight
from rocm_patch.model import SCHEMA, Plan, Step

ENTRY = "etc/ld.so.preload"
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for chroot")

TABLE = ", ".join(["&first"] * 20000)
SOURCES = {
    "good": "int rocm_patch_test_answer(void) { return 42; }",
    "cut off": "int first; int *table[] = {" + TABLE + "};",
    "needs a symbol": "extern int nobody_has_this; int *wanted = &nobody_has_this;",
    "calls a symbol": "extern char *nobody_has_this(void); char *setlocale(int what, const char *how) { return nobody_has_this(); }",
    "dies": "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { abort(); }",
}
FATAL = ("cut off", "needs a symbol", "calls a symbol", "dies")
BAD = ("empty", "for another CPU", *FATAL)


def library(name, folder):
    """Make one of these libraries and return its path."""
    path = Path(folder) / "libtest.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "empty":
        path.write_bytes(b"")
        return path
    source = path.with_suffix(".c")
    source.write_text(SOURCES.get(name, SOURCES["good"]))
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-w", "-Wl,-z,lazy", "-o", str(path), str(source)], check=True)
    source.unlink()
    data = bytearray(path.read_bytes())
    if name == "cut off":
        del data[len(data) // 4 :]
    elif name == "for another CPU":
        data[18:20] = b"\xb7\0" if data[18] != 0xB7 else b"\x3e\0"
    path.write_bytes(data)
    return path


def step(path, data=None):
    """The step that names a library by its path in the root."""
    return Step("preload-library", "system", {"library": (str(path),), "sha256": (hashlib.sha256(data).hexdigest(),)})


def target(step):
    return f"/usr/local/lib/rocm-patch/{step.parameters['sha256'][0]}/{step.parameters['library'][0].rpartition('/')[2]}"


def do(root, step, observe=None):
    """Plan and apply by the real tables and kinds."""
    locations = Locations(str(root), observe=observe)
    return apply(Plan(SCHEMA, (step,), facts((step,), locations)), locations, tables=knowledge.load(), say=lambda _: None)


LEFT_OUT = ("python3", "perl", "zsh", "udevadm", "libc.so.6")
"""They need more than themselves."""


def build_root(root):
    """A root with about thirty programs of this machine and what they load. Its folders are this user's alone."""
    root = Path(root)
    ground = Locations("/").ground("system")
    chosen = [program for program in preflight.programs(ground) if os.path.basename(program.path) not in LEFT_OUT][:36]
    needed = set()
    for program in chosen:
        needed.add(program.path)
        if program.loader:
            listed = subprocess.run([program.loader, "--list", program.path], capture_output=True, text=True, check=True).stdout
            needed |= {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
            needed.add(program.loader)
    for folder in ("etc", "usr/local/lib", "var/lib", "dev", "lib", "bin"):
        (root / folder).mkdir(parents=True, exist_ok=True, mode=0o755)
    for path in needed:
        there = root / path[1:]
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.realpath(path), there)
    shutil.copy2("/etc/passwd", root / "etc/passwd")
    (root / "dev/null").touch()
    for at, folders, _ in os.walk(root):
        for name in (*folders, "."):
            if not os.path.islink(f"{at}/{name}"):
                os.chmod(f"{at}/{name}", 0o755)
    return root
