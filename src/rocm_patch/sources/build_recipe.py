"""How a component is built, as data: `recipes.toml`, one row for each generation of its build system."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from rocm_patch import codec
from rocm_patch.errors import FormatError, KnowledgeError, UsageError
from rocm_patch.knowledge.conditions import valid_range
from rocm_patch.sources.patch import Component

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
MANAGERS: Final = ("apt", "dnf", "pacman", "zypper")


@dataclass(frozen=True)
class Tool:
    """A program that the build runs. `commands`: the first that is found is taken, and `{name}` in commands is its path."""

    name: str
    commands: tuple[str, ...]
    packages: Mapping[str, str]
    """Package manager -> packages, parted by blanks."""
    least: str = ""
    """Oldest version that does, by the first number in what `--version` says."""


@dataclass(frozen=True)
class Library:
    """What must be there to compile and link: a pkg-config name, or any of some files."""

    what: str
    packages: Mapping[str, str]
    pkg_config: str = ""
    files: tuple[str, ...] = ()
    """Patterns of absolute paths, with the placeholders of commands."""
    name: str = ""
    """`{name}` in commands is the folder of the file that was found, `{name_file}` the file."""
    versions: str = ""
    """Only these versions of the component need it; empty: all."""


@dataclass(frozen=True)
class Fix:
    """A replacement without which a release does not compile with a newer tool. Not a patch: it changes nothing that runs on the card."""

    what: str
    files: tuple[str, ...]
    find: str
    replace: str
    count: int
    tool: str = ""
    """Only with this tool ..."""
    versions: str = ""
    """... of these versions."""


@dataclass(frozen=True)
class Archive:
    """A release as one file."""

    version: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Proof:
    """What the staged folder must hold for the build to count as done."""

    file: str
    """A pattern of a path in it."""
    soname: str = ""
    symbols: tuple[str, ...] = ()
    device_code: bool = False
    """Code for the wanted GPU must be found in it by our own scan."""
    loads: bool = False
    """A child must be able to open it as a library."""


@dataclass(frozen=True)
class Recipe:
    """One way to build a component. Commands are lists of words with `{placeholders}`; no shell sees them."""

    component: Component
    name: str
    versions: str
    """Of ROCm, for the component kernel of Linux."""
    source: str
    """Where the way was read: an https address."""
    date: str
    proof: tuple[Proof, ...]
    build: tuple[tuple[str, ...], ...]
    install: tuple[tuple[str, ...], ...]
    configure: tuple[tuple[str, ...], ...] = ()
    marker: tuple[str, ...] = ("CMakeLists.txt",)
    """Paths that tell where in the source tree the build begins: the folder of the first that is there."""
    tool: tuple[Tool, ...] = ()
    library: tuple[Library, ...] = ()
    fix: tuple[Fix, ...] = ()
    archive: tuple[Archive, ...] = ()
    apt: str = ""
    """Debian's source package."""
    git: str = ""
    """Address of the repository, and with `tag` the name of a release in it."""
    tag: str = ""
    installed: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """Package manager -> the package whose version tells what is installed."""
    environment: Mapping[str, str] = field(default_factory=lambda: _NONE)
    disk: int = 1024
    """MiB that sources, objects and the result take."""
    memory: int = 1024
    """MiB that one job may take."""
    minutes: int = 0
    """On two cores, measured or estimated; 0: not known."""
    silence: int = 60
    """Minutes without a word after which a build counts as hung."""

    def fits(self, version: str) -> bool:
        """True if a version is in range; an unknown one (empty) fits the newest recipe only, which the caller takes care of."""
        return within(version, self.versions)


@functools.cache
def load() -> tuple[Recipe, ...]:
    """All recipes, newest first within a component. Raises KnowledgeError."""
    text = (importlib.resources.files(__package__) / "recipes.toml").read_text("utf-8")
    return parse(text, "recipes.toml")


def parse(text: str, where: str) -> tuple[Recipe, ...]:
    """Recipes out of TOML. Raises KnowledgeError, naming row and key."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        raw: list[dict[str, Any]] = tomllib.loads(text).get("recipe", [])
        recipes: tuple[Recipe, ...] = codec.decode(tuple[Recipe, ...], raw, where)
    except (tomllib.TOMLDecodeError, FormatError) as error:
        raise KnowledgeError(f"{where}: {error}") from error
    for recipe in recipes:
        if complaint := next(iter(_complaints(recipe)), ""):
            raise KnowledgeError(f"{where}, {recipe.component} {recipe.name!r}: {complaint}")
    return recipes


def within(version: str, versions: str) -> bool:
    """True if a version lies in a range; what is no version does not."""
    try:
        return Version(version) in SpecifierSet(versions, prereleases=True)
    except InvalidVersion:
        return False


def choose(component: str, version: str, recipes: tuple[Recipe, ...]) -> Recipe:
    """The recipe for a version; for an unknown version the first. Raises UsageError with the ranges that there are."""
    known = [recipe for recipe in recipes if recipe.component == component]
    if not known:
        raise UsageError(f"there is no recipe for {component!r}", f"known: {', '.join(sorted({recipe.component for recipe in recipes}))}")
    for recipe in known:
        if not version or recipe.fits(version):
            return recipe
    ranges = "; ".join(recipe.versions for recipe in known)
    raise UsageError(f"no recipe builds {component} {version}", f"there are recipes for {ranges}: --version, or a row in recipes.toml")


def _complaints(recipe: Recipe) -> list[str]:
    found = []
    if not valid_range(recipe.versions):
        found.append(f"{recipe.versions!r} is no version range")
    if not recipe.source.startswith("https://"):
        found.append(f"{recipe.source!r} is no https address")
    if not recipe.proof or not recipe.build or not recipe.install:
        found.append("build, install and proof are what makes a recipe")
    needs = [(tool.name, tool.packages) for tool in recipe.tool] + [(library.what, library.packages) for library in recipe.library]
    for what, packages in needs:
        if missing := sorted(set(MANAGERS) - set(packages)):
            found.append(f"{what}: no packages for {', '.join(missing)}; '' says that there are none")
    found += [
        f"{library.what}: {library.versions!r} is no version range"
        for library in recipe.library
        if library.versions and not valid_range(library.versions)
    ]
    for fix in recipe.fix:
        # It is made once, in a tree that comes into being by one rename; a replacement that holds what it replaces cannot be counted again.
        if fix.count < 1 or not fix.find or fix.find in fix.replace:
            found.append(f"fix {fix.what!r}: a count, something to find, and a replacement without it")
    for archive in recipe.archive:
        if len(archive.sha256) != 64:
            found.append(f"{archive.url}: no SHA-256")
    return found
