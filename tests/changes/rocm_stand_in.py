"""Small libraries with the names, needs and run paths of ROCm's, and torches of each kind that use them. Built by the C compiler.

`which()` of the torch says who answered: MIOpen, HIP and ROCr as torch reaches them, and HIP as MIOpen reaches it. Each library answers
with the word that it was built with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SONAMES = {"miopen": "libMIOpen.so.1", "hip": "libamdhip64.so.6", "rocr": "libhsa-runtime64.so.1"}
NEEDS = {"miopen": ("hip",), "hip": ("rocr",), "rocr": ()}
RPATH, RUNPATH = ("-Wl,--disable-new-dtags",), ("-Wl,--enable-new-dtags",)

_TORCH = """
const char *miopen_which(void); const char *miopen_hip(void); const char *hip_which(void); const char *hip_rocr(void);
const char *torch_miopen(void) { return miopen_which(); }
const char *torch_hip(void) { return hip_which(); }
const char *torch_rocr(void) { return hip_rocr(); }
const char *torch_miopen_hip(void) { return miopen_hip(); }
"""
_INIT = """
import ctypes, os
try:
    from . import _rocm_init
except ImportError:
    pass
else:
    _rocm_init.initialize()
_library = ctypes.CDLL(os.path.join(os.path.dirname(__file__), "lib", "libtorch_hip.so"))

def which():
    names = ("miopen", "hip", "rocr", "miopen_hip")
    for name in names:
        getattr(_library, "torch_" + name).restype = ctypes.c_char_p
    return {name: getattr(_library, "torch_" + name)().decode() for name in names}
"""
_SDK = """
import ctypes, glob, os
_SITE = os.path.dirname(os.path.dirname(__file__))

def initialize_process(preload_shortnames):
    for name in preload_shortnames:
        path, = glob.glob(f"{_SITE}/_rocm_sdk_*/lib/lib{ {'miopen': 'MIOpen'}.get(name, name) }.so*")
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
"""


def compiled(out: Path, source: str, *words: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    argv = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-Wl,--no-as-needed", "-x", "c", "-", "-x", "none", "-o", str(out), *words]
    subprocess.run(argv, input=source, text=True, check=True)


def library(out: Path, component: str, word: str, *words: str, soname: str = "") -> None:
    """One library. `words` name the files that it is linked with: their own names become what it needs."""
    inner = {"miopen": "hip", "hip": "rocr"}.get(component)
    source = f'const char *{component}_which(void) {{ return "{word}"; }}\n'
    if inner:
        source += f"const char *{inner}_which(void);\nconst char *{component}_{inner}(void) {{ return {inner}_which(); }}\n"
    compiled(out, source, f"-Wl,-soname,{soname or SONAMES[component]}", *words)


def stubs(folder: Path, numbered: bool, mark: str = "", **other: str) -> dict[str, str]:
    """Files to link with, by component: with the number in their names, or as a wheel's packer rewrites them, without."""
    found = {}
    for component, given in {**SONAMES, **other}.items():
        name = given if numbered else given.partition(".so")[0] + f"{mark}.so"
        path = folder / name
        if not path.exists():
            library(path, component, "stub", "-Wl,--unresolved-symbols=ignore-all", soname=name)
        found[component] = str(path)
    return found


def plain(folder: Path, word: str, links: dict[str, str], *words: str, names: dict[str, str] | None = None) -> None:
    """The three libraries in one folder, by their own names or by those given."""
    for component, soname in SONAMES.items():
        needs = [links[inner] for inner in NEEDS[component]]
        library(folder / (names or SONAMES)[component], component, word, *needs, *words)
        assert soname


def torch(site: Path, links: dict[str, str], *words: str) -> None:
    """The package torch, whose library needs MIOpen and HIP."""
    compiled(site / "torch/lib/libtorch_hip.so", _TORCH, links["miopen"], links["hip"], *words)
    (site / "torch/__init__.py").write_text(_INIT)
    (site / "torch/version.py").write_text("__version__ = '2.9.1+rocm6.4'\nhip = '6.4.43484'\ncuda = None\n")
    (site / "torch-2.9.1+rocm6.4.dist-info").mkdir()


def wheel(site: Path, stub: Path, tags: tuple[str, ...] = RPATH, mark: str = "") -> None:
    """As download.pytorch.org's: beside torch's own libraries, asked for without a number, the number still inside the files.

    `mark`: what some packers put into the names, a part of a digest.
    """
    links = stubs(stub, numbered=False, mark=mark)
    names = {component: Path(path).name for component, path in links.items()}
    plain(site / "torch/lib", "wheel", links, "-Wl,-rpath,$ORIGIN", *tags, names=names)
    torch(site, links, "-Wl,-rpath,$ORIGIN", *tags)


def sdk(site: Path, stub: Path) -> None:
    """As AMD's: two packages of libraries, which Python opens by their paths before torch's library."""
    links = stubs(stub, numbered=True)
    core, libraries = site / "_rocm_sdk_core/lib", site / "_rocm_sdk_libraries_gfx101X_dgpu/lib"
    for component in ("hip", "rocr"):
        needs = [links[inner] for inner in NEEDS[component]]
        library(core / SONAMES[component], component, "wheel", *needs, "-Wl,-rpath,$ORIGIN", *RPATH)
    library(libraries / SONAMES["miopen"], "miopen", "wheel", links["hip"], "-Wl,-rpath,$ORIGIN:$ORIGIN/../../_rocm_sdk_core/lib", *RPATH)
    (site / "rocm_sdk").mkdir()
    (site / "rocm_sdk/__init__.py").write_text(_SDK)
    torch(site, links)
    words = "def initialize():\n    import rocm_sdk\n    rocm_sdk.initialize_process(preload_shortnames=['amdhip64', 'miopen'])\n"
    (site / "torch/_rocm_init.py").write_text(words)


def patched(folder: Path, stub: Path, component: str, **other: str) -> None:
    """A version as `build` stages it: the library, and the links to it."""
    links = stubs(stub, numbered=True, **other)
    soname = {**SONAMES, **other}[component]
    file = folder / "lib" / f"{soname}.0"
    library(file, component, "patched", *(links[inner] for inner in NEEDS[component]), "-Wl,-rpath,$ORIGIN", *RUNPATH, soname=soname)
    (folder / "lib" / soname).symlink_to(file.name)
    (folder / "lib" / (soname.partition(".so")[0] + ".so")).symlink_to(soname)


@dataclass(frozen=True)
class Seen:
    """What one run showed. `loaded`: the files that LD_DEBUG=libs says were initialised, links not resolved."""

    answers: dict[str, str]
    loaded: tuple[str, ...]
    words: str
    code: int

    def files(self, component: str) -> list[str]:
        stem = SONAMES[component].partition(".so")[0]
        return [path for path in self.loaded if Path(path).name.startswith((f"{stem}.so", f"{stem}-"))]


def run(site: Path, environment: dict[str, str], log: Path, *before: str) -> Seen:
    """Import the stand-in torch in a Python of its own. `before`: words of a command that starts it."""
    log.mkdir(parents=True)
    program = f"import sys, json; sys.path.insert(0, {str(site)!r}); import torch; print(json.dumps(torch.which()))"
    settings = [f"{name}={value}" for name, value in {**environment, "LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": str(log / "d")}.items()]
    argv = [*before, "env", *settings, sys.executable, "-I", "-S", "-B", "-c", program]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = [line for path in log.iterdir() for line in path.read_text(errors="replace").splitlines()]
    loaded = dict.fromkeys(line.partition("calling init: ")[2] for line in lines if "calling init: " in line)
    return Seen(json.loads(ended.stdout or "{}"), tuple(loaded), ended.stderr, ended.returncode)
