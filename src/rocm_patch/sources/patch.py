"""A source patch as a value: what it changes, why, what is known of it, and where its places are by syntax.

A patch is a folder under `patches/` with a `patch.toml`. It holds tree-sitter queries and text of our own; of upstream's text
it holds the names that a query needs and nothing more.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from rocm_patch import codec
from rocm_patch.errors import FormatError, KnowledgeError, UsageError
from rocm_patch.knowledge.conditions import Status, status, valid_range
from rocm_patch.model import Evidence

Component = Literal["miopen", "hip", "rocr", "kernel"]
Language = Literal["c", "cpp"]

NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
_RESERVED: Final = (b"rocm-patch", b"/* }")


@dataclass(frozen=True)
class Place:
    """Where something is, by syntax. `query` is a tree-sitter query with a capture @site; several patterns are alternatives."""

    what: str
    files: tuple[str, ...]
    """Ends of paths, each part a file name pattern: 'solver/batchnorm/*.cpp'."""
    query: str
    count: int
    """Places in the whole tree; any other number refuses the patch."""
    language: Language = "cpp"
    function: str = ""
    """Only within functions whose declared name is this, to the letter."""
    scope: str = ""
    """A query with a capture @scope: only within these nodes."""
    per_file: int = 0
    """Places in each file that has any; 0: as many as there are."""


@dataclass(frozen=True)
class Edit(Place):
    """A place and what happens there: exactly one of the three, or none for a place that must be there as it is.

    `$name` stands for the text of the capture @name.
    """

    replace: str = ""
    wrap: tuple[str, ...] = ()
    """What goes before the site and what goes after it, on its line."""
    before: str = ""
    """Lines that go before the line on which the site starts, with its indentation."""

    @property
    def changes(self) -> bool:
        """False for a place that is only looked for."""
        return bool(self.replace or self.wrap or self.before)


@dataclass(frozen=True)
class Form:
    """The edits for one generation of the source: all of them fit, or none is made."""

    name: str
    edit: tuple[Edit, ...]


@dataclass(frozen=True)
class Upstream:
    """What upstream says of it; `seen` finds trees that have it already."""

    state: str
    source: str
    date: str
    seen: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Patch:
    """A patch. Its status follows from its evidence and is never written down."""

    id: str
    component: Component
    title: str
    what: str
    why: str
    gpus: tuple[str, ...]
    versions: str
    """Where it has the effect that it promises, as a PEP 440 range: of ROCm, for the component kernel of Linux."""
    upstream: Upstream
    evidence: tuple[Evidence, ...]
    form: tuple[Form, ...]
    """The first is the one that most trees have; the others are for older and newer ones."""
    foreign: tuple[Place, ...] = ()
    """The same change as others made it by hand: whole statements, none that something else hangs on."""

    @property
    def status(self) -> Status:
        """works, partial, no effect, harmful, untested."""
        return status(self.evidence)

    @property
    def sites(self) -> int:
        """Edited places in the generation of the source that the first form is for."""
        return sum(edit.count for edit in self.form[0].edit if edit.changes)

    @property
    def files(self) -> tuple[str, ...]:
        """All ends of paths that any of its places names."""
        places = [*(edit for form in self.form for edit in form.edit), *self.upstream.seen, *self.foreign]
        return tuple(dict.fromkeys(pattern for place in places for pattern in place.files))


@functools.cache
def load() -> Mapping[str, Patch]:
    """All patches by id, in the order of component and id. Raises KnowledgeError, naming the folder and the key."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    order = ("miopen", "hip", "rocr", "kernel")
    patches = []
    for folder in (importlib.resources.files(__package__) / "patches").iterdir():
        if not folder.is_dir() or folder.name.startswith(("_", ".")):
            continue
        try:
            patches.append(build(tomllib.loads((folder / "patch.toml").read_text("utf-8")), folder.name))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise KnowledgeError(f"patches/{folder.name}/patch.toml: {error}") from error
    return MappingProxyType({patch.id: patch for patch in sorted(patches, key=lambda patch: (order.index(patch.component), patch.id))})


def find(name: str) -> Patch:
    """The patch of this id. Raises UsageError."""
    patches = load()
    if name not in patches:
        raise UsageError(f"there is no patch {name!r}", "rocm-patch patches list")
    return patches[name]


def build(raw: dict[str, Any], name: str) -> Patch:
    """A patch out of its header, checked. Raises KnowledgeError."""
    where = f"patches/{name}/patch.toml"
    rows = [{"remedy": name, "when": {}, **row} for row in raw.get("evidence", [])]
    try:
        patch: Patch = codec.decode(Patch, {**raw, "id": name, "evidence": rows}, where)
    except FormatError as error:
        raise KnowledgeError(error.what) from error
    if complaint := next(iter(_complaints(patch)), ""):
        raise KnowledgeError(f"{where}: {complaint}")
    return patch


def _complaints(patch: Patch) -> list[str]:
    found = []
    if not NAME.fullmatch(patch.id) or not patch.id.startswith(f"{patch.component}-"):
        found.append("the folder is named component-what, in small letters")
    if not valid_range(patch.versions):
        found.append(f"{patch.versions!r} is no version range")
    if not patch.evidence:
        found.append("no evidence: an inference is the least")
    sources = [row.source for row in patch.evidence] + [patch.upstream.source]
    found += [f"{source!r} is no https address" for source in sources if not source.startswith("https://")]
    if not patch.form or not all(any(edit.changes for edit in form.edit) for form in patch.form):
        found.append("a form without an edit")
    for form in patch.form:
        for edit in form.edit:
            where = f"form {form.name!r}, {edit.what!r}"
            if sum(map(bool, (edit.replace, edit.wrap, edit.before))) > 1:
                found.append(f"{where}: replace, wrap and before exclude each other")
            if edit.wrap and len(edit.wrap) != 2:
                found.append(f"{where}: wrap is what goes before and what goes after")
            text = "".join((edit.replace, *edit.wrap, edit.before)).encode()
            if any(word in text for word in _RESERVED):
                found.append(f"{where}: the text holds a word of our marks")
            if edit.count < (1 if edit.changes else 0):
                found.append(f"{where}: a count below one")
    return found


def check(patch: Patch) -> list[str]:
    """What is wrong with the queries of a patch. Not part of `load`: to compile them all takes longer than to use one."""
    from rocm_patch.sources.syntax import complaint_of

    found = []
    for place in (*(edit for form in patch.form for edit in form.edit), *patch.upstream.seen, *patch.foreign):
        for query, capture in ((place.query, "site"), (place.scope, "scope")):
            if query and (complaint := complaint_of(query, place.language, capture)):
                found.append(f"{patch.id}, {place.what!r}: {complaint}")
    return found
