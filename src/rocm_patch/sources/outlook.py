"""What a patch would do to a tree, what it has done already, or why it may not: computed anew from the bytes each time.

A file is stripped of the patch's marks; what remains must have every place of one form, as often as stated. The edits made there
again must give the file as it is: then the patch is applied. So there is no record to lose, a killed apply is finished by the
next one, and other patches and the user's own edits around ours do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.sources import marks
from rocm_patch.sources.patch import Edit, Form, Patch, Place
from rocm_patch.sources.syntax import Found, Text
from rocm_patch.sources.tree import Sources

State = Literal["ready", "applied", "partly applied", "upstream", "foreign", "refused"]


@dataclass(frozen=True)
class Site:
    """A place in a tree: `line` counts from 1, in the file without the patch."""

    file: str
    line: int
    what: str


@dataclass(frozen=True)
class Change:
    """A file: as it is, without the patch, and with it."""

    file: str
    current: bytes
    original: bytes
    patched: bytes


@dataclass(frozen=True)
class Outlook:
    """A patch and a tree. `form` names the generation that fits; `reasons` say why none does, or what stands in the way."""

    patch: str
    state: State
    form: str
    sites: tuple[Site, ...]
    reasons: tuple[str, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class _File:
    path: str
    current: bytes
    text: Text
    marks: int


def examine(patch: Patch, sources: Sources) -> Outlook:
    """Look at a tree. A file that cannot be read is a reason to refuse, never an error."""
    files, reasons = [], list[str]()
    for path in sources.find(patch.files):
        try:
            current = sources.read(path)
            original, counted = marks.strip(current, patch.id)
            if patch.id in marks.names(original):
                raise FormatError(f"{path}: an edit of {patch.id} was changed by somebody: its marks are not in pairs")
            files.append(_File(path, current, Text(original, path), counted))
        except FormatError as error:
            reasons.append(error.what)
    if reasons:
        return Outlook(patch.id, "refused", "", (), tuple(reasons), ())
    if not files:
        looked = ", ".join(patch.files)
        return Outlook(patch.id, "refused", "", (), (f"no file {looked}: is this the source of the component {patch.component}?",), ())
    return _judge(patch, files)


def _judge(patch: Patch, files: list[_File]) -> Outlook:
    foreign = [(file, found) for place in patch.foreign for file, found in _where(place, files)]
    if foreign:
        return _foreign(patch, foreign)
    touched = any(file.marks for file in files)
    if not touched and patch.upstream.seen and not any(_why_not(place, files) for place in patch.upstream.seen):
        sites = [
            Site(file.path, _line(file.text.data, found.start), place.what) for place in patch.upstream.seen for file, found in _where(place, files)
        ]
        return Outlook(patch.id, "upstream", "", tuple(sites), (f"this tree has it already: {patch.upstream.state}",), ())
    failures = []
    for form in patch.form:
        against = [why for edit in form.edit if (why := _why_not(edit, files))]
        if not against:
            return _fitting(patch, form, files)
        failures.append((len(against), form, against))
    fewest = min(count for count, _, _ in failures)
    reasons = [why for count, _, against in failures if count == fewest for why in against]
    if others := sorted(set().union(*(marks.names(file.current) for file in files)) - {patch.id}):
        reasons.append(f"applied here: {', '.join(others)}; one of them may hold the place")
    # What bears our marks can be taken back whether or not it fits.
    left = tuple(Change(file.path, file.current, file.text.data, file.current) for file in files if file.marks)
    return Outlook(patch.id, "refused", "", (), tuple(dict.fromkeys(reasons)), left)


def _fitting(patch: Patch, form: Form, files: list[_File]) -> Outlook:
    edits: dict[str, list[tuple[Edit, Found]]] = {}
    for edit in form.edit:
        for file, found in _where(edit, files):
            edits.setdefault(file.path, []).append((edit, found))
    changes, sites, reasons = [], [], []
    for file in files:
        own = [(edit, found) for edit, found in edits.get(file.path, []) if edit.changes]
        if not own:
            if file.marks:
                reasons.append(f"{file.path} holds an edit of {patch.id} at a place that is none")
            continue
        try:
            patched = _render(patch, file, own)
        except RefusedError as error:
            reasons.append(error.what)
            continue
        changes.append(Change(file.path, file.current, file.text.data, patched))
        sites += [Site(file.path, _line(file.text.data, found.start), edit.what) for edit, found in own]
        if file.current not in (file.text.data, patched):
            reasons.append(f"{file.path}: the edits of {patch.id} in it are not those that this version makes; revert the patch first")
    if reasons:
        return Outlook(patch.id, "refused", form.name, tuple(sites), tuple(reasons), tuple(changes))
    done = sum(change.current == change.patched for change in changes)
    state: State = "applied" if done == len(changes) else "partly applied" if done else "ready"
    return Outlook(patch.id, state, form.name, tuple(sites), (), tuple(changes))


def _render(patch: Patch, file: _File, edits: list[tuple[Edit, Found]]) -> bytes:
    """The file with its edits. Raises RefusedError where an edit could not be told from the text again."""
    data, pieces, at = file.text.data, [], 0
    for edit, found in sorted(edits, key=lambda pair: (pair[1].start, pair[1].end)):
        where = f"{file.path}:{_line(data, found.start)}"
        start = marks.above(data, patch.id, found.start) if edit.before else found.start
        if start < at:
            raise RefusedError(f"{where}: two edits overlap")
        old = data[found.start : found.end]
        try:
            if edit.before and not found.among:
                raise RefusedError("the place is the whole of what an if, an else or a loop without braces controls")
            if edit.before:
                new, end = marks.block(patch.id, _filled(edit.before, found).decode("utf-8", "surrogateescape"), data, start), start
            elif edit.replace:
                new, end = marks.instead(patch.id, _filled(edit.replace, found), old), found.end
            else:
                head, tail = (marks.inline(patch.id, _filled(text, found)) for text in edit.wrap)
                new, end = head + old + tail, found.end
        except RefusedError as error:
            raise RefusedError(f"{where}: {error.what}") from error
        pieces += [data[at:start], new]
        at = end
    patched = b"".join((*pieces, data[at:]))
    back, _ = marks.strip(patched, patch.id)
    if back != data:
        raise RefusedError(f"{file.path}: the edits could not be taken back to the byte here")
    _read(file, patched, [edit for edit, _ in edits])
    return patched


def _read(file: _File, changed: bytes, places: Iterable[Place]) -> None:
    """Raises RefusedError if the parser reads less of the changed text than of the one before."""
    for language in sorted({place.language for place in places}):
        if Text(changed, file.path).unread(language) > file.text.unread(language):
            raise RefusedError(f"{file.path}: the changed text is no longer read as {language}")


def _foreign(patch: Patch, found: list[tuple[_File, Found]]) -> Outlook:
    """What others made by hand: `original` is the file without it. Refused where more than that would go."""
    changes, sites = [], []
    for file in dict.fromkeys(file for file, _ in found):
        data, without, at = file.text.data, list[bytes](), 0
        try:
            spans = sorted(file.text.whole_lines(place) for other, place in found if other is file)
            for start, end in spans:
                without.append(data[at : max(at, start)])
                at = max(at, end)
            changes.append(Change(file.path, file.current, b"".join((*without, data[at:])), data))
            _read(file, changes[-1].original, patch.foreign)
        except RefusedError as error:
            reason = f"{file.path} holds an edit of other make that only a person can take out: {error.what}"
            return Outlook(patch.id, "refused", "", (), (reason,), ())
        sites += [Site(file.path, _line(data, start), "made by somebody else, without our marks") for start, _ in spans]
    reason = f"{len(sites)} such edit{'s' * (len(sites) > 1)} of other make; `revert` takes it away and leaves comments"
    return Outlook(patch.id, "foreign", "", tuple(sites), (reason,), tuple(changes))


def _where(place: Place, files: Iterable[_File]) -> list[tuple[_File, Found]]:
    return [(file, found) for file in _named(place, files) for found in file.text.find(place)]


def _named(place: Place, files: Iterable[_File]) -> list[_File]:
    wanted = [pattern.split("/") for pattern in place.files]
    return [file for file in files if any(Sources.ends(file.path, parts) for parts in wanted)]


def _why_not(place: Place, files: list[_File]) -> str:
    """Why a place does not fit; empty if it does."""
    named = _named(place, files)
    if not named:
        return f"{place.what}: no file {', '.join(place.files)}" if place.count else ""
    counts = {file.path: len(file.text.find(place)) for file in named}
    total, where = sum(counts.values()), ", ".join(f"{count} in {path}" for path, count in counts.items() if count)
    if total != place.count:
        if place.function and place.count and not any(file.text.has_function(place) for file in named):
            return f"{place.what}: there is no function {place.function} in {', '.join(counts)}"
        return f"{place.what}: {place.count} place{'s' * (place.count != 1)} expected, {total} found{f' ({where})' if where else ''}"
    odd = [path for path, count in counts.items() if place.per_file and count not in (0, place.per_file)]
    return f"{place.what}: {place.per_file} expected in each file, {where}" if odd else ""


def _filled(text: str, found: Found) -> bytes:
    filled = text.encode()
    for name in sorted(found.captures, key=len, reverse=True):
        filled = filled.replace(b"$" + name.encode(), found.captures[name])
    return filled


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
