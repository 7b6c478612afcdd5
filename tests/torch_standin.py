"""Environments with a tiny stand-in for torch: what the hook sees of the real one, and nothing that needs 200 MB."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from rocm_patch.changes import autoload_parts

OLD = "2.4.1+rocm6.1"
NEW = "2.14.0+rocm7.2"
_VERSION = "__version__ = {version!r}\nhip: str | None = {hip!r}\ncuda: str | None = None\n"
_BODY = "from torch import backends, version\n__version__ = version.__version__\n"
_AUTOLOAD = """
import os
def _import_device_backends():
    from importlib.metadata import entry_points
    for item in entry_points(group="torch.backends"):
        try:
            item.load()()
        except Exception as error:
            raise RuntimeError(f"Failed to load the backend extension: {item.name}") from error
if os.getenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1":
    _import_device_backends()
"""
ENGINE = {
    "__init__.py": b"_on = []\ndef enable(devices):\n    _on.append(devices)\ndef disable():\n    _on.clear()\n"
    b"def status():\n    return {'enabled': bool(_on), 'times': len(_on), 'devices': _on[-1] if _on else ()}\n",
    "kernels/one.cu": b"// a kernel\n",
}
"""An engine of the agreed interface that only counts."""


def torch_files(version=NEW, hip="7.2.0", body=""):
    """The stand-in's files by path in site-packages; torch calls entry points from 2.5 on."""
    new = tuple(map(int, version.split("+")[0].split(".")[:2])) >= (2, 5)
    return {
        "torch/__init__.py": _BODY + body + (_AUTOLOAD if new else ""),
        "torch/version.py": _VERSION.format(version=version, hip=hip),
        "torch/backends/__init__.py": "class cudnn:\n    enabled = True\n",
        f"torch-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
    }


def environment(folder, version=NEW, **more):
    """A virtual environment without pip, with the stand-in; returns its site-packages."""
    venv.create(folder, symlinks=True)
    (site,) = Path(folder).glob("lib/python3*/site-packages")
    write(site, torch_files(version, **more) if version else {})
    return site


def write(site, files):
    """Write texts or bytes by path."""
    for name, data in files.items():
        path = Path(site) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def put_hook(site, door="engine", engine=ENGINE):
    """Put the hook as the remedies do, with the stand-in engine instead of ours."""
    files, folders = autoload_parts.pieces(door, autoload_parts.find(str(Path(site).parents[2])))
    for path, content in folders.items():
        if not path.endswith(f"/{autoload_parts.ENGINE}"):
            write(path, content)
    write("/", {path[1:]: data for path, data in files.items()})
    if door == "engine":
        write(Path(site) / autoload_parts.ENGINE, engine)


def python(site, code, *options, **variables):
    """Run code in the environment; the child's result with stdout and stderr as text."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    argv = [str(Path(site).parents[2] / "bin" / "python"), *options, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env={**kept, **variables}, cwd=Path(site).parents[2])


HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
