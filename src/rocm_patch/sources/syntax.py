"""Places in C and C++ by syntax: a tree-sitter query, within a function, within a scope. In bytes from end to end.

tree-sitter reads what does not compile as well: without preprocessing, with unknown macros, with half the file in conflict
markers. What it cannot read becomes an ERROR node, and a query finds nothing there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.sources.patch import Language, Place

if TYPE_CHECKING:
    import tree_sitter

LIMIT: Final = 1 << 20
"""Bytes of a source file. The largest that a patch names has a fifth of that."""
DEEPEST: Final = 1000
"""Open brackets within each other. Queries take time that grows with the square of it: a hundred thousand took minutes."""
_BRACKETS: Final = re.compile(rb"[(\[{]+|[)\]}]+")
_SPACE: Final = re.compile(rb"\s+")
_ASCII: Final = bytes(range(128)) + b"_" * 128
"""The parser's predicates decode what they look at. Comments in Latin-1 are common enough, and what we look for is ASCII."""


@dataclass(frozen=True)
class Found:
    """A place in a text: start and end in bytes, and the text of each capture."""

    start: int
    end: int
    captures: Mapping[str, bytes]
    among: bool
    """True if it begins a statement or a line of its own, so that others can go before it: not if it is all that an `if` controls."""


class Text:
    """A source file, parsed once for each language that is asked for."""

    def __init__(self, data: bytes, name: str) -> None:
        """`name` is for complaints. Raises FormatError for what is no source text."""
        self.data = data
        if len(data) > LIMIT:
            raise FormatError(f"{name}: {len(data)} bytes are too many for a source file; at most {LIMIT} are read")
        if b"\0" in data:
            raise FormatError(f"{name}: this is no source text: it holds zero bytes")
        if _depth(data) > DEEPEST:
            raise FormatError(f"{name}: more than {DEEPEST} brackets are open within each other: this is no source text")
        self._roots: dict[Language, tree_sitter.Node] = {}
        self._dead = tuple(_dead(data)) if b"if" in data else ()

    def root(self, language: Language) -> tree_sitter.Node:
        """The syntax tree."""
        if language not in self._roots:
            import tree_sitter

            self._roots[language] = tree_sitter.Parser(_language(language)).parse(self.data.translate(_ASCII)).root_node
        return self._roots[language]

    def find(self, place: Place) -> tuple[Found, ...]:
        """All places, in the order of the text."""
        nodes = [self.root(place.language)]
        if place.function:
            wanted = _SPACE.sub(b"", place.function.encode())
            nodes = [node for node in _functions(nodes[0], place.language) if _SPACE.sub(b"", _name(node)) == wanted]
        if place.scope:
            nodes = [inner for node in nodes for captures in _matches(place.scope, place.language, node) for inner in captures["scope"]]
        found: dict[tuple[int, int], Found] = {}
        for node in nodes:
            for captures in _matches(place.query, place.language, node):
                site = captures["site"][0]
                if any(site.start_byte in span for span in self._dead):
                    continue
                texts = {name: self.data[inner[0].start_byte : inner[0].end_byte] for name, inner in captures.items()}
                found.setdefault((site.start_byte, site.end_byte), Found(site.start_byte, site.end_byte, texts, _among(site)))
        return tuple(found[span] for span in sorted(found))

    def has_function(self, place: Place) -> bool:
        """True if the function of a place is there."""
        wanted = _SPACE.sub(b"", place.function.encode())
        return any(_SPACE.sub(b"", _name(node)) == wanted for node in _functions(self.root(place.language), place.language))

    def unread(self, language: Language) -> int:
        """How many places the parser could not read."""
        root = self.root(language)
        return len(_matches("(ERROR) @site", language, root)) + len(_matches("(MISSING) @site", language, root))

    def whole_lines(self, found: Found) -> tuple[int, int]:
        """The lines of a statement. Raises RefusedError if anything else stands on them.

        A comment above is not counted in: nobody can tell whether it was there for what follows.
        """
        start = self.data.rfind(b"\n", 0, found.start) + 1
        end = self.data.find(b"\n", found.end)
        end = len(self.data) if end < 0 else end + 1
        if self.data[start : found.start].strip() or self.data[found.end : end].strip():
            raise RefusedError("something else stands on the lines of the statement")
        return start, end


_BODIES: Final = ("translation_unit", "compound_statement", "case_statement")


def complaint_of(query: str, language: Language, capture: str) -> str:
    """What is wrong with a query; empty if nothing is."""
    import tree_sitter

    try:
        compiled = _query(query, language)
    except (tree_sitter.QueryError, ValueError, SyntaxError) as error:
        return str(error)
    names = {compiled.capture_name(index) for index in range(compiled.capture_count)}
    return "" if capture in names else f"the query has no capture @{capture}"


@functools.cache
def _language(name: Language) -> tree_sitter.Language:
    import tree_sitter

    if name == "c":
        import tree_sitter_c

        return tree_sitter.Language(tree_sitter_c.language())
    import tree_sitter_cpp

    return tree_sitter.Language(tree_sitter_cpp.language())


@functools.cache
def _query(text: str, language: Language) -> tree_sitter.Query:
    import tree_sitter

    query: tree_sitter.Query = tree_sitter.Query(_language(language), text)
    return query


def _matches(text: str, language: Language, node: tree_sitter.Node) -> list[dict[str, list[tree_sitter.Node]]]:
    import tree_sitter

    return [captures for _, captures in tree_sitter.QueryCursor(_query(text, language)).matches(node)]


def _functions(root: tree_sitter.Node, language: Language) -> Iterator[tree_sitter.Node]:
    # Everywhere, also within functions: where two branches of an #if open one brace each, the rest of the file is in that function.
    return (captures["site"][0] for captures in _matches("(function_definition) @site", language, root))


def _dead(data: bytes) -> Iterator[range]:
    """What no compiler sees: below an `#if 0`, or below the `#else` of an `#if 1`.

    By lines, not by the tree: within an expression the parser does not read them as branches.
    """
    branches, at = [(False, False)], 0  # dead, by itself or what it is in; surely taken, or one before it
    for match in _DIRECTIVE.finditer(data):
        if not (word := match["word"]):
            continue
        if branches[-1][0]:
            yield range(at, match.start())
        at = match.end()
        value = _VALUES.get(_SPACE.sub(b"", _COMMENT.sub(b"", match["condition"])).strip(b"()"))
        if word.startswith(b"if"):
            branches.append((branches[-1][0] or (word == b"if" and value is False), word == b"if" and value is True))
        elif len(branches) > 1:
            _, taken = branches.pop()
            if word != b"endif":
                dead = taken or (word == b"elif" and value is False)
                branches.append((branches[-1][0] or dead, taken or (word == b"elif" and value is True)))


_COMMENT: Final = re.compile(rb"//[^\n]*|/\*(?:[\s\S]*?\*/|[\s\S]*)")
"""One that is never closed goes to the end, as an open string goes to its line's: to look on behind each would take the square of the time."""
_DIRECTIVE: Final = re.compile(
    _COMMENT.pattern
    + rb"""|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])'"""
    + rb"|(?m:^)[ \t]*\#[ \t]*(?P<word>if|ifdef|ifndef|elif|elifdef|elifndef|else|endif)\b(?P<condition>(?:\\\r?\n|[^\n])*)"
)
_VALUES: Final = {b"0": False, b"false": False, b"1": True, b"true": True}


def _among(site: tree_sitter.Node) -> bool:
    node = site
    while (parent := node.parent) is not None and parent.type not in _BODIES and (parent.start_byte == site.start_byte or "preproc" in parent.type):
        node = parent
    return parent is not None and parent.type in _BODIES


def _name(function: tree_sitter.Node) -> bytes:
    """`GpuAgent::CreateBlitSdma` of its definition, through pointers and references to it."""
    node = function.child_by_field_name("declarator")
    while node is not None:
        if node.type == "function_declarator":
            inner = node.child_by_field_name("declarator")
            return (inner.text or b"") if inner is not None else b""
        node = node.child_by_field_name("declarator") or next((child for child in node.named_children if "declarator" in child.type), None)
    return b""


def _depth(data: bytes) -> int:
    deepest = depth = 0
    for match in _BRACKETS.finditer(data):
        run = match.group()
        depth = depth + len(run) if run[0] in b"([{" else max(0, depth - len(run))
        deepest = max(deepest, depth)
    return deepest
