"""A request and everything that can be said about it before anything is fetched: recipe, version, origin, patches, what is missing."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rocm_patch.errors import RefusedError, UsageError
from rocm_patch.root import Root
from rocm_patch.sources import build_distribution, fetch
from rocm_patch.sources import patch as patching
from rocm_patch.sources.build_checks import Checks, Miss, check, unfit
from rocm_patch.sources.build_recipe import Recipe, choose, within
from rocm_patch.sources.build_work import Work, digest, state_folder
from rocm_patch.sources.patch import Patch

PREFIX: Final = "/opt/rocm-patched/current"
"""Where the `prefix` change puts it; a result is moved freely, the path is only what it calls its home."""
_GFX: Final = re.compile(r"gfx[0-9a-f]{3,5}")
_RELEASE: Final = re.compile(r"(?<![\d.])(\d+(?:\.\d+)+)(?![\d])")
_VERSION: Final = re.compile(r"\d+(\.\d+){0,3}[A-Za-z0-9.+~-]{0,40}")


@dataclass(frozen=True)
class Request:
    """What the user asked for; empty words are for us to settle."""

    component: str
    version: str = ""
    source: str = ""
    gpu: str = "gfx1010"
    prefix: str = PREFIX
    jobs: int = 0
    patches: tuple[str, ...] = ()
    allow_root: bool = False


@dataclass(frozen=True)
class Plan:
    """A request with everything settled, and what stands against it."""

    request: Request
    recipe: Recipe
    version: str
    installed: str
    origin: fetch.Origin
    patches: tuple[Patch, ...]
    checks: Checks
    work: Work


def plan(request: Request, recipes: tuple[Recipe, ...], root: Root, environment: Mapping[str, str]) -> Plan:
    """Settle recipe, version, origin and patches, and look whether the machine can do it.

    Raises:
        UsageError: there is no such recipe, source, GPU or patch.
    """
    if not _GFX.fullmatch(request.gpu):
        raise UsageError(f"--gpu {request.gpu}: a target is meant, as gfx1010", "rocm-patch doctor names yours")
    if not os.path.isabs(request.prefix) or request.jobs < 0 or (request.version and not _VERSION.fullmatch(request.version)):
        raise UsageError("--prefix is an absolute path, --jobs a number, --version as 6.4.3")
    if odd := unfit(request.prefix):
        raise UsageError(f"--prefix {request.prefix}: make and CMake do not bear {odd} in a path")
    distribution = build_distribution.read(root)
    newest = choose(request.component, "", recipes)
    installed = _kernel() if newest.component == "kernel" else distribution.version_of(newest.installed)
    version = request.version or _told(request.source) or installed
    recipe = choose(request.component, version, recipes)
    origin = fetch.origin(request.source, recipe, version, distribution.manager)
    work = Work(
        os.path.join(
            state_folder(dict(environment)),
            f"{recipe.component}-{version or 'unknown'}-{digest(origin.words, recipe.name, request.gpu, request.prefix)[:12]}",
        )
    )
    checks = check(recipe, distribution, work.folder, version, request.jobs)
    patches = _patches(request)
    if not patches and any("{objects}" in argv for argv in recipe.build):  # make without a target would build all of it
        raise UsageError(
            f"{recipe.component}: only patched objects are built, and no patch was named", "--patch ID, as `rocm-patch patches list` shows them"
        )
    return Plan(request, recipe, version, installed, origin, patches, _with_versions(checks, request, patches, version, installed), work)


def _kernel() -> str:
    """The running kernel's version as its makers count: Debian's release is called 6.1.0-37 whatever it is built from."""
    names = os.uname()
    match = re.search(r"Debian (\d+(?:\.\d+)+)", names.version) or re.match(r"(\d+(?:\.\d+)+)", names.release)
    return match.group(1) if match else ""


def _told(source: str) -> str:
    """The version that a Debian source tree, a kernel, a tag or the name of an archive tells."""
    if not os.path.isdir(source):
        place, _, mark = source.partition("#")
        names = (os.path.basename(place.rstrip("/")), "" if mark.startswith("sha256=") else mark)
        return next((match.group(1) for name in reversed(names) if (match := _RELEASE.search(name))), "")
    for path, pattern in (
        ("debian/changelog", r"\A\S+ \((?:\d+:)?(\d+(?:\.\d+)+)"),
        ("Makefile", r"VERSION = (\d+)\nPATCHLEVEL = (\d+)\nSUBLEVEL = (\d+)"),
    ):
        try:
            with open(os.path.join(source, path), encoding="utf-8", errors="replace") as file:
                if match := re.search(pattern, file.read(4096)):
                    return ".".join(match.groups())
        except OSError:
            continue
    return ""


def _patches(request: Request) -> tuple[Patch, ...]:
    """Those that were named; else those of this component that are known to do good on this GPU."""
    if request.patches == ("none",):
        return ()
    named = tuple(patching.find(name) for name in request.patches)
    for patch in named:
        if patch.component != request.component:
            raise UsageError(f"{patch.id} is for {patch.component}, not for {request.component}")
        if patch.status == "harmful":
            raise RefusedError(f"{patch.id} is harmful, and no build takes it in", f"rocm-patch patches show {patch.id}")
    return named or tuple(
        patch
        for patch in patching.load().values()
        if patch.component == request.component
        and patch.status in ("works", "partial")
        and any(fnmatch.fnmatchcase(request.gpu, pattern) for pattern in patch.gpus)
    )


def _with_versions(checks: Checks, request: Request, patches: tuple[Patch, ...], version: str, installed: str) -> Checks:
    """A library of another release than the installed ones does not fit the programs that are there."""
    misses, notes = list(checks.misses), list(checks.notes)
    for patch in patches:  # upstream made it: better said now than when a gigabyte is unpacked
        if patch.upstream.seen and version and not within(version, patch.versions):
            words = f"{patch.id} is made for {patch.component} {patch.versions}, this is {version}; {patch.upstream.state}"
            misses.append(Miss(words, "leave it out, or name another --version"))
    source = request.source
    if source not in ("", "apt") and not os.path.isdir(source) and not request.version and not _told(source):
        misses.append(Miss(f"--source {source} does not tell which version it is", "name it: --version 6.4.3"))
    if installed and version and version.split(".")[:2] != installed.split(".")[:2]:
        words = f"the source is {version}, installed is {installed}"
        if request.version and request.component == "kernel":
            notes.append(f"{words}: these objects fit no module of the kernel that runs")
        elif request.version:
            notes.append(f"{words}: programs built for {installed} may not load it")
        else:
            misses.append(Miss(f"{words}: programs built for {installed} would not load it", f"--version {version} builds it all the same"))
    if os.geteuid() == 0 and not request.allow_root:
        misses.append(
            Miss("a build runs scripts of its sources, and as root they could do anything", "build as a user; --allow-root in a throw-away container")
        )
    return dataclasses.replace(checks, misses=tuple(misses), notes=tuple(notes))
