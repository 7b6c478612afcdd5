"""Where the sources come from: what `--source` means, settled into kind, place, and the digest or commit where one is known."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Final, Literal

from rocm_patch.errors import UsageError
from rocm_patch.sources.build_recipe import Recipe

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REF: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,120}")
_TARS: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Origin:
    """`place` is a path, an address or a package; `mark` a SHA-256, a git reference or a package version, empty where none is known."""

    kind: Literal["folder", "archive", "address", "git", "apt"]
    place: str
    mark: str = ""

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.kind} {self.place}" + (f" ({self.mark})" if self.mark else "")


def origin(asked: str, recipe: Recipe, version: str, manager: str) -> Origin:
    """Settle what `--source` means; without it: the release of known digest, else the source package, else the repository's tag.

    Raises:
        UsageError: it is none of these, or an address without a digest.
    """
    place, _, mark = asked.partition("#")
    if asked == "apt" or (not asked and manager == "apt" and recipe.apt and not _release(recipe, version)):
        if manager != "apt" or not recipe.apt:
            raise UsageError("--source apt: there is no source package here", "--source DIR, or the address of a repository")
        return Origin("apt", recipe.apt, version)
    if not asked:
        if known := _release(recipe, version):
            return known
        if recipe.git and recipe.tag and version:
            return Origin("git", recipe.git, recipe.tag.replace("{version}", version))
        raise UsageError(f"which source of {recipe.component}?", "--version V, or --source DIR|apt|URL")
    if os.path.isdir(asked):
        return Origin("folder", os.path.realpath(asked))
    if os.path.isfile(place):
        return Origin("archive", os.path.realpath(place), _sha256(mark))
    if place.startswith(("https://", "http://", "file://")) and place.endswith(_TARS):
        if not mark:
            raise UsageError(f"{place}: an address goes with its digest", f"--source '{place}#sha256=...'")
        return Origin("address", _address(place), _sha256(mark))
    if place.startswith("git+") or (place.startswith("https://") and "://" in place):
        reference = mark or (recipe.tag.replace("{version}", version) if version else "")
        if reference and not _REF.fullmatch(reference):
            raise UsageError(f"{reference!r} is no name of a commit, tag or branch")
        if place.removeprefix("git+").startswith("-"):  # git would take it for an option, and one of them runs commands
            raise UsageError(f"{place}: no repository has such an address")
        return Origin("git", place.removeprefix("git+"), reference)
    raise UsageError(f"--source {asked}: there is no such folder, file or address", "DIR, FILE.tar.gz, 'URL.tar.gz#sha256=...', 'URL#tag', or apt")


def _address(place: str) -> str:
    try:
        parts = urllib.parse.urlsplit(place)
        good = parts.scheme == "file" or (bool(parts.hostname) and parts.port != 0 and re.fullmatch("[!-~]+", place) is not None)
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{place!r} is no address that can be fetched", "blanks and letters beyond ASCII are written as %20 and the like")
    return place


def _release(recipe: Recipe, version: str) -> Origin | None:
    return next((Origin("address", row.url, row.sha256) for row in recipe.archive if row.version == version), None)


def _sha256(mark: str) -> str:
    value = mark.removeprefix("sha256=").lower()
    if mark and not _SHA256.fullmatch(value):
        raise UsageError(f"{mark!r} is no SHA-256", "#sha256= and 64 hexadecimal digits")
    return value
