"""Every torch in reach, read from outside: folder names and `torch/version.py`, never an import.

A torch that crashes at import, or that lives in another machine's recorded tree, is read like any other.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rocm_patch.errors import RocmPatchError
from rocm_patch.model import Fact, Known, Package, TorchInstall, Unknown
from rocm_patch.root import Root

PLACEHOLDER = "0.0.1.dev0"
"""PyPI holds empty distributions of this version under AMD's names; they contain no code."""

_DEVICE_PACKAGES = re.compile(
    r"(amd[-_]torch(vision)?[-_]device|rocm[-_]sdk|rocm|torch|torchvision|torchaudio|triton|pytorch[-_]triton[-_]rocm|nvidia|numpy)([-_].*)?",
    re.IGNORECASE,
)
_BUILD = Literal["rocm", "cuda", "cpu"]
_ENVIRONMENT_NAMES = ("venv", ".venv", "env", ".env")
_CONDA_HOMES = ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", "conda")
_FOLDER_LIMIT = 400


@dataclass(frozen=True)
class Prefix:
    """One Python installation or environment."""

    label: str
    path: str
    interpreter: str


def collect(root: Root, home: str, interpreters: Iterable[str] = ()) -> tuple[tuple[TorchInstall, ...], list[Unknown]]:
    """All torches found, those that the user named first, each site folder once."""
    found: dict[str, TorchInstall] = {}
    unread: list[Unknown] = []
    for prefix in _prefixes(root, home, interpreters):
        for site in _sites(root, prefix):
            answer = root.names(site)
            if isinstance(answer, Unknown):
                unread.append(answer)
                continue
            key = os.path.realpath(root.host(site))  # lib64 is a link to lib in every venv of a 64-bit Python
            if (key not in found and "torch" in (answer.value or ())) or any(name.startswith("torch-") for name in answer.value or ()):
                found.setdefault(key, read(root, prefix, site, answer.value or ()))
    return tuple(found.values()), unread


def read(root: Root, prefix: Prefix, site: str, names: tuple[str, ...]) -> TorchInstall:
    """One torch, from the names in its site folder and the literals of its version file."""
    packages = [package for name in names if (package := _package(name)) and _DEVICE_PACKAGES.fullmatch(package.name)]
    said = _version_file(root, f"{site}/torch/version.py")
    by_name = next((package for package in packages if package.name == "torch"), None)
    version: Fact[str] = Unknown("neither a dist-info folder nor a version file", site)
    if by_name:
        version = Known(by_name.version, f"{site}/torch-{by_name.version}.dist-info")
    elif isinstance(said.get("__version__"), str):
        version = Known(str(said["__version__"]), f"{site}/torch/version.py")
    build, toolkit = _build(site, version, said, packages)
    real = [package for package in packages if package.version != PLACEHOLDER and not package.name.startswith("nvidia")]
    return TorchInstall(
        label=prefix.label,
        interpreter=prefix.interpreter,
        site=site,
        version=version,
        build=build,
        toolkit=toolkit,
        python=_python_version(root, prefix, site),
        packages=tuple(package for package in real if package.name != "torch"),
        placeholders=tuple(package.name for package in packages if package.version == PLACEHOLDER),
    )


def _build(site: str, version: Fact[str], said: dict[str, str | None], packages: list[Package]) -> tuple[Fact[_BUILD], Fact[str | None]]:
    file = f"{site}/torch/version.py"
    if said.get("hip"):
        return Known("rocm", file), Known(said.get("rocm") or _tag(version, "rocm") or said["hip"], file)
    if said.get("cuda"):
        return Known("cuda", file), Known(said["cuda"], file)
    if "hip" in said or "cuda" in said:
        return Known("cpu", file), Known(None, file)
    if isinstance(version, Unknown):
        return version, version
    local = version.value.partition("+")[2]
    if local.startswith("rocm"):
        return Known("rocm", version.source), Known(_tag(version, "rocm"), version.source)
    if local.startswith("cu") and local[2:3].isdigit():
        return Known("cuda", version.source), Known(f"{local[2:-1]}.{local[-1]}", version.source)
    if local.startswith("cpu"):
        return Known("cpu", version.source), Known(None, version.source)
    if any(package.name.startswith("nvidia") for package in packages):
        return Known("cuda", "NVIDIA packages beside it"), Unknown("the version carries no tag", version.source)
    return Unknown("no version file, no tag in the version", site), Unknown("the version carries no tag", site)


def _tag(version: Fact[str], word: str) -> str | None:
    if isinstance(version, Unknown):
        return None
    match = re.search(rf"\+(?:.*\.)?{word}(\d+(?:\.\d+)*(?:a\d+|rc\d+)?)", version.value)
    return match.group(1) if match else None


def _package(name: str) -> Package | None:
    for ending in (".dist-info", ".egg-info"):
        if name.endswith(ending):
            distribution, _, version = name.removesuffix(ending).partition("-")
            return Package(re.sub(r"[-_.]+", "-", distribution).lower(), version.partition("-py")[0])
    return None


def _version_file(root: Root, path: str) -> dict[str, str | None]:
    """String and None literals that the file assigns; nothing of it is run."""
    answer = root.text(path, 1 << 16)
    if isinstance(answer, Unknown) or answer.value is None:
        return {}
    try:
        tree = ast.parse(answer.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, str | None] = {}
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] if isinstance(statement, ast.AnnAssign) else []
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, str)):
            values.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return values


def _python_version(root: Root, prefix: Prefix, site: str) -> Fact[str]:
    config = _pyvenv(root, prefix.path)
    if config.get("version") or config.get("version_info"):
        return Known(config.get("version") or config["version_info"], f"{prefix.path}/pyvenv.cfg")
    match = re.search(r"python(\d+\.\d+)", site)
    if match:
        return Known(match.group(1), site)
    # Debian's dist-packages carry no version in their path; the interpreter's own link does.
    name = root.link(f"{prefix.path}/bin/python3") or ""
    match = re.search(r"python(\d+\.\d+)", name)
    return Known(match.group(1), f"{prefix.path}/bin/python3") if match else Unknown("no version in the path", site)


def _pyvenv(root: Root, prefix: str) -> dict[str, str]:
    answer = root.text(f"{prefix}/pyvenv.cfg", 1 << 16)
    if isinstance(answer, Unknown) or answer.value is None:
        return {}
    pairs = (line.partition("=") for line in answer.value.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _sites(root: Root, prefix: Prefix) -> Iterator[str]:
    roots = [prefix.path]
    if _pyvenv(root, prefix.path).get("include-system-site-packages", "").lower() == "true":
        roots.append("usr")
    for base in roots:
        for lib in ("lib", "lib64", "local/lib"):
            for version in root.list(f"{base}/{lib}"):
                if re.fullmatch(r"python3(\.\d+)?t?", version):
                    for name in ("site-packages", "dist-packages"):
                        if root.is_folder(f"{base}/{lib}/{version}/{name}"):
                            yield f"{base}/{lib}/{version}/{name}"


def _prefixes(root: Root, home: str, interpreters: Iterable[str]) -> Iterator[Prefix]:
    for path in interpreters:
        yield from named(root, path)
    if root.live:
        yield Prefix("this interpreter", sys.prefix, sys.executable)
        for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            if os.environ.get(variable):
                yield _prefix(root, os.environ[variable])
        for name in ("python3", "python"):
            found = shutil.which(name)
            if found and not _is_script(found):  # what a start script leads to is among the versions below
                yield from named(root, found)
    for folder in _folders(root, home):
        for name in _ENVIRONMENT_NAMES:
            if root.exists(f"{folder}/{name}/pyvenv.cfg"):
                yield _prefix(root, f"{folder}/{name}")
        if root.exists(f"{folder}/pyvenv.cfg"):
            yield _prefix(root, folder)
    for base in [f"{home}/{name}" for name in _CONDA_HOMES] + ["opt/conda", f"{home}/.conda", f"{home}/.local/share/mamba"]:
        if root.exists(f"{base}/conda-meta"):
            yield Prefix("conda: base", base, f"/{base}/bin/python".replace("//", "/"))
        for name in root.list(f"{base}/envs"):
            yield Prefix(f"conda: {name}", f"{base}/envs/{name}", f"/{base}/envs/{name}/bin/python".replace("//", "/"))
    for name in root.list(f"{home}/.pyenv/versions"):
        yield Prefix(f"pyenv: {name}", f"{home}/.pyenv/versions/{name}", f"{home}/.pyenv/versions/{name}/bin/python")
    yield Prefix("user site", f"{home}/.local", "/usr/bin/python3")
    yield Prefix("system Python", "usr", "/usr/bin/python3")
    yield Prefix("system Python", "usr/local", "/usr/local/bin/python3")


def _prefix(root: Root, path: str) -> Prefix:
    path = "/" + path.strip("/")
    # A folder called venv or .venv is known by the folder that holds it.
    parent, _, name = path.rpartition("/")
    shown = f"{parent.rpartition('/')[2]}/{name}" if name in _ENVIRONMENT_NAMES and parent else name
    kind = "conda" if root.exists(f"{path}/conda-meta") else "venv"
    return Prefix(f"{kind}: {shown}", path, f"{path}/bin/python")


def named(root: Root, interpreter: str) -> Iterator[Prefix]:
    """The prefix of an interpreter that the user named: a path on this machine, or inside the root."""
    inside = interpreter
    if not root.live and os.path.abspath(interpreter).startswith(root.path + "/"):
        inside = os.path.abspath(interpreter)[len(root.path) :]
    elif root.live:
        inside = os.path.abspath(interpreter)
    if root.is_folder(inside):
        yield _prefix(root, inside)
        return
    prefix = inside.rpartition("/")[0].rpartition("/")[0] or "/usr"
    if root.exists(f"{prefix}/pyvenv.cfg") or root.exists(f"{prefix}/conda-meta"):
        found = _prefix(root, prefix)
        yield Prefix(found.label, found.path, inside)
        return
    resolved = _real_prefix(inside) if root.live and _is_script(inside) else None
    if resolved:
        yield Prefix(f"python: {inside}", resolved, inside)
        return
    yield Prefix(f"python: {inside}", prefix, inside)


def _is_script(path: str) -> bool:
    """A start script, as pyenv's, whose place says nothing about the Python behind it."""
    try:
        with open(path, "rb") as stream:
            return stream.read(2) == b"#!"
    except OSError:
        return False


def _real_prefix(interpreter: str) -> str | None:
    """Where a start script really leads: the interpreter is asked, without site and without bytecode."""
    from rocm_patch.run import run

    if not os.access(interpreter, os.X_OK):
        return None
    try:
        ended = run([interpreter, "-I", "-S", "-B", "-c", "import sys; print(sys.prefix)"], timeout=10, environment=dict(os.environ))
    except RocmPatchError:
        return None
    lines = ended.out.decode("utf-8", "replace").split()
    return lines[-1] if ended.code == 0 and lines else None


def _folders(root: Root, home: str) -> Iterator[str]:
    """Folders in which projects with an environment lie: the home, its children and theirs, and /opt; bounded."""
    seen = 0
    bases = [home, *(f"{home}/{name}" for name in root.list(home) if not name.startswith("."))]
    bases += [f"{home}/.local/share/pipx/venvs", f"{home}/.local/share/rocm-patch/venvs", f"{home}/.virtualenvs", "opt"]
    for base in bases:
        if not root.is_folder(base):
            continue
        yield base
        for name in root.list(base):
            seen += 1
            if seen > _FOLDER_LIMIT:
                return
            if not name.startswith(".") and base != home and root.is_folder(f"{base}/{name}"):
                yield f"{base}/{name}"
