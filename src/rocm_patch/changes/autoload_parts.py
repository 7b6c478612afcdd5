"""What an autoload change finds and puts: an environment seen from outside, and the files that go into it. Looks, never writes."""

from __future__ import annotations

import base64
import glob
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch import __version__
from rocm_patch.changes.grown import CACHE, MARKER
from rocm_patch.errors import RefusedError

ENGINE: Final = "rocm_patch_conv"
HOOK: Final = "rocm_patch_autoload"
_LIBRARY: Final = re.compile(r"python3\.(\d+)t?")
_TORCH: Final = re.compile(r"torch-(\d+)\.(\d+)[^-]*\.dist-info")
_HIP: Final = re.compile(r"^hip\b[^=\n]*=\s*(?P<value>.*?)\s*$", re.MULTILINE)
BY_HAND: Final = "there, `pip install rocm-patch` and set ROCM_PATCH_CONV=1, or `import rocm_patch.conv; rocm_patch.conv.enable()`"

Files = Mapping[str, bytes]
"""Contents by path below a folder, in the order of writing."""


# ------------------------------------------------------------------ the environment


@dataclass(frozen=True)
class Place:
    """A virtual environment as we found it."""

    venv: str
    python: str
    site: str
    autoloads: bool
    """Its torch calls entry points: 2.5 or later."""


def find(venv: str) -> Place:
    """Look at an environment from outside; nothing of it is run.

    Raises:
        RefusedError: it is none, it is not for us, or it has no torch.
    """
    venv = os.path.realpath(venv)  # links above it are the user's own business; below, none is followed when writing
    if not os.path.isfile(f"{venv}/pyvenv.cfg"):
        what = "a conda environment" if os.path.isdir(f"{venv}/conda-meta") else "no virtual environment"
        raise RefusedError(f"{venv} is {what}; packaged Pythons are left to their package manager", BY_HAND)
    sites = [path for path in glob.glob(f"{glob.escape(venv)}/lib/python3.*/site-packages") if _LIBRARY.fullmatch(path.split("/")[-2])]
    python = f"{venv}/bin/python"
    if len(sites) != 1 or os.path.realpath(sites[0]) != sites[0] or not os.access(python, os.X_OK):
        raise RefusedError(f"{venv} does not look like `python -m venv` makes it: one lib/python3.N/site-packages and bin/python")
    site = sites[0]
    minor = _LIBRARY.fullmatch(site.split("/")[-2])
    if minor is None or int(minor[1]) < 10:
        raise RefusedError(f"{venv} has {site.split('/')[-2]}, and the engine needs Python 3.10 or later")
    if not os.path.isdir(f"{site}/torch"):
        raise RefusedError(f"{venv} has no torch of its own", "install one there first: rocm-patch fix, or pip")
    for path in glob.glob(f"{glob.escape(site)}/rocm_patch-*.dist-info/entry_points.txt"):
        with open(path, encoding="utf-8", errors="replace") as file:
            if "[torch.backends]" in file.read():
                raise RefusedError(f"rocm-patch is installed in {venv} and brings the hook itself", "set ROCM_PATCH_CONV=1 where torch runs")
    releases = [match for name in os.listdir(site) if (match := _TORCH.fullmatch(name))]
    # The first two numbers are whole ones in every release of torch; `packaging` is not there where root runs this module.
    autoloads = len(releases) == 1 and (int(releases[0][1]), int(releases[0][2])) >= (2, 5)
    return Place(venv, python, site, autoloads)


def is_rocm(place: Place) -> bool:
    """False only where torch's version file says that it knows no HIP."""
    try:
        with open(f"{place.site}/torch/version.py", encoding="utf-8", errors="replace") as file:
            match = _HIP.search(file.read(1 << 16))
    except OSError:
        return True
    return match is None or match["value"] != "None"


# ------------------------------------------------------------------ what is put there


def pieces(door: str, place: Place) -> tuple[Files, Mapping[str, Files]]:
    """Plain files by path, and folders by path with their files."""
    import importlib.resources

    ours = importlib.resources.files("rocm_patch")
    folders: dict[str, Files] = {}
    if door == "engine":
        folders[f"{place.site}/{ENGINE}"] = _files_in(ours.joinpath("conv"))
    folders[f"{place.site}/{HOOK}"] = {"__init__.py": ours.joinpath("autoload.py").read_bytes()}
    # A statement of one line that cannot fail, whatever part of us is gone: site prints a trace for one that does.
    line = f'import sys; exec("try: __import__({HOOK!r}).watch({door!r})\\nexcept Exception: pass")\n'
    files = {} if place.autoloads else {f"{place.site}/{HOOK}.pth": line.encode()}
    information = f"{HOOK}-{__version__}.dist-info"
    folders[f"{place.site}/{information}"] = _information(door, information, _by_name(files, folders, place.site))
    return files, folders


def _files_in(folder: Any, above: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir() and item.name != CACHE:
            found |= _files_in(item, f"{above}{item.name}/")
        elif item.is_file() and not item.name.startswith("."):
            found[f"{above}{item.name}"] = item.read_bytes()
    return found


def _by_name(files: Files, folders: Mapping[str, Files], site: str) -> dict[str, bytes]:
    """All contents by their path below site-packages."""
    inside = {f"{path}/{name}": data for path, content in folders.items() for name, data in content.items()}
    return {os.path.relpath(path, site): data for path, data in {**inside, **files}.items()}


def _information(door: str, name: str, installed: Files) -> dict[str, bytes]:
    """The dist-info folder; the entry point comes last."""
    what = "the convolution engine of rocm-patch" if door == "engine" else "torch without MIOpen"
    lines = ["Metadata-Version: 2.1", f"Name: {HOOK.replace('_', '-')}", f"Version: {__version__}", f"Summary: Switches on: {what}", "License: MIT"]
    content = {
        "INSTALLER": b"rocm-patch\n",
        "METADATA": "\n".join([*lines, "", "Put here by rocm-patch, which takes it back: rocm-patch rollback", ""]).encode(),
        "entry_points.txt": f"[torch.backends]\n{HOOK} = {HOOK}:{door}\n".encode(),
    }
    everything = {**installed, **{f"{name}/{inner}": data for inner, data in content.items()}}
    rows = [f"{path},sha256={_record_hash(data)},{len(data)}" for path, data in everything.items()]
    # The markers of our folders and the list itself have no hash; pip removes what is listed.
    tops = sorted({path.partition("/")[0] for path in everything if "/" in path})
    rows += [*(f"{top}/{MARKER},," for top in tops), f"{name}/RECORD,,"]
    return {"RECORD": ("\n".join(rows) + "\n").encode(), **content}


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def order(path: str) -> tuple[int, str]:
    """The key by which pieces are put, and in reverse taken away."""
    endings = (f"/{ENGINE}", f"/{HOOK}", ".pth", ".dist-info")
    return next(number for number, ending in enumerate(endings) if path.endswith(ending)), path
