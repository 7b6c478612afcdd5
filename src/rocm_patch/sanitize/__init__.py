"""A copy of a library without the hints that are unsafe on a chip: `s_inst_prefetch` becomes `s_nop`, nothing else changes.

    survey -> Outlook -> (copy, record) -> original

Only what can be cured by an edit of the same size is cured. Where anything else in the code that the chip would load is
unsafe, or was not read, nothing is written: half a cure would be taken for a whole one. The bytes are proven, by reading
the copy again and by the record; that a kernel then runs right on the silicon is not: no RDNA1 card has run one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from rocm_patch import codec, isa
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError, UsageError
from rocm_patch.images.files import File, open_file
from rocm_patch.images.source import Bytes
from rocm_patch.model import SCHEMA
from rocm_patch.root import Operation, Tree, join, temporary_name
from rocm_patch.sanitize.record import Edit, Record, content, digest, edits, redone, undone
from rocm_patch.sanitize.survey import Survey, survey

__all__ = ["RECORD_ENDING", "Made", "Outlook", "default_folder", "make", "opened", "outlook", "reasons", "undo"]

RECORD_ENDING = ".record.json"
RECORD_LIMIT = 1 << 31
"""Bytes of a record; it holds each changed bundle twice."""
_NAME_LIMIT = 255
"""Bytes of a file's name."""
Observe = Callable[[Operation], None] | None


@dataclass(frozen=True)
class Outlook:
    """What would be done: `edits`, or `reasons` why nothing is. Both empty: there is nothing to do."""

    found: Survey
    edits: tuple[Edit, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """The two files written, and what the record says."""

    copy: str
    record_path: str
    record: Record


def opened(path: str) -> File:
    """The file to work on. Raises UsageError where there is none or anything but a regular file, RefusedError for a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    if stat.S_ISLNK(mode):
        raise RefusedError(f"{path} is a link", f"name the file itself: {os.path.realpath(path)}")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is a folder" if stat.S_ISDIR(mode) else f"{path} is no regular file", "name one library, bundle or code object")
    return open_file(path)


def outlook(file: File, path: str, chip: str, code: str, generic: str = "") -> Outlook:
    """Look at a file for a chip that passes for `code`; `generic` is the generic target that covers that.

    Raises:
        RefusedError: a compressed bundle that would not fit into its place.
        UsageError: a file of another kind, or chip or code is not of the gfx10 family.
    """
    if not isa.judges(code, chip):
        raise UsageError(f"{code} code on {chip} cannot be judged: both have to be of the gfx10 family")
    found = survey(file, path, chip, code, generic)
    why = reasons(found)
    return Outlook(found, () if why else edits(file, found.hints), why)


def reasons(found: Survey, readable: Callable[[str], str] = str) -> tuple[str, ...]:
    """Why nothing is edited; `readable` turns a kernel's symbol into what people read."""
    why = [f"not all could be read: {item}" for item in found.unread]
    for rule, count in sorted(found.remaining.items()):
        names = ", ".join(readable(name) for name in found.kernels[rule])
        why.append(f"{rule}: {count.certain} certain and {count.possible} possible places that no edit of the same size cures (first in {names})")
    return tuple(why)


def make(file: File, path: str, view: Outlook, names: tuple[str, str, str], folder: str, *, tool: str, observe: Observe = None) -> Made:
    """Write the copy and its record into a folder, which is made. `names`: chip, code, generic target, as for the outlook.

    The copy is judged again before it is written. Raises RefusedError where a file of its name is there.
    """
    chip, code, generic = names
    data = content(file)
    before = digest(data)
    redone(data, view.edits)
    whole, name = bytes(data), os.path.basename(path)
    del data
    record = Record(SCHEMA, tool, os.path.abspath(path), name, chip, code, before, digest(whole), view.edits)
    back = bytearray(whole)
    undone(back, view.edits)
    if digest(back) != before:
        raise RocmPatchError("the edits cannot be taken back, so nothing was written; this is a defect of rocm-patch")
    del back
    _check(view.found, survey(Bytes(whole), path, chip, code, generic))
    text = codec.dumps(record).encode("utf-8", "surrogatepass")  # names of files need not be UTF-8; JSON is read so too
    mode = stat.S_IMODE(os.fstat(file.descriptor).st_mode) & 0o777
    # The record first: a copy is never there without it. It holds parts of the file, so whoever may not read that may not read it.
    _write(folder, [(name + RECORD_ENDING, text, mode & 0o666), (name, whole, mode)], observe)
    return Made(os.path.join(folder, name), os.path.join(folder, name + RECORD_ENDING), record)


def undo(record_path: str, output: str, observe: Observe = None) -> Record:
    """Write the original again, from a record and the copy beside it.

    Raises:
        RefusedError: the copy is not as we left it, or the output is there already.
        FormatError: the record is damaged.
    """
    with opened(record_path) as stream:
        if stream.size > RECORD_LIMIT:
            raise FormatError(f"{record_path}: {stream.size} bytes of record")
        record = codec.loads(Record, bytes(content(stream)), record_path)
    if record.schema != SCHEMA:
        raise FormatError(f"{record_path}: schema {record.schema}, and this version knows {SCHEMA}")
    if not _is_name(record.name):
        raise FormatError(f"{record_path}: {record.name!r} is no name of a file beside it")
    copy = os.path.join(os.path.dirname(os.path.abspath(record_path)), record.name)
    with opened(copy) as file:
        data = content(file)
        mode = stat.S_IMODE(os.fstat(file.descriptor).st_mode) & 0o777
    if digest(data) != record.after:
        raise RefusedError(f"{copy} is not as it was left: somebody changed it since", "nothing was written")
    undone(data, record.edits)
    if digest(data) != record.before:
        raise FormatError(f"{record_path}: its edits do not lead back to the original")
    _write(os.path.dirname(os.path.abspath(output)), [(os.path.basename(output), bytes(data), mode)], observe)
    return record


def _is_name(name: str) -> bool:
    """Whether a file in a folder can be called so."""
    try:
        return 0 < len(os.fsencode(name)) <= _NAME_LIMIT and name not in (".", "..") and not {"/", "\0"} & set(name)
    except UnicodeEncodeError:
        return False


def default_folder(data_home: str, file: File) -> str:
    """Where copies of this content go. It is ours alone, so what a killed run left in it is removed."""
    folder = os.path.join(os.path.realpath(data_home), "rocm-patch", "sanitized", digest(content(file)).sha256[:16])
    if os.path.isdir(folder):
        Tree(folder).sweep_temporaries("")
    return folder


def _check(before: Survey, after: Survey) -> None:
    """The edits have done what they should, and nothing else is judged otherwise."""
    same = (before.targets, before.judged, before.instructions) == (after.targets, after.judged, after.instructions)
    if not same or after.hints or after.remaining or after.unread:
        raise RocmPatchError("the edited copy is not judged as it should be, so it was not written; this is a defect of rocm-patch")


def _write(folder: str, files: list[tuple[str, bytes, int]], observe: Observe) -> None:
    """New files under their names, whole and durable. The last is what it is about: one of its name is never overwritten.

    Others may be there with the same content already: that is what a kill between two names leaves.
    """
    tree, inside = _tree(folder, observe)
    wanted = []
    for name, data, mode in files:
        kind, last = tree.state_kind(join(inside, name)), name == files[-1][0]
        if kind != "absent" and (last or tree.state(join(inside, name), RECORD_LIMIT).data != data):
            raise RefusedError(f"{os.path.join(folder, name)} exists already", "name another place; nothing is overwritten")
        if kind == "absent":
            wanted.append((name, data, mode, join(inside, temporary_name())))
    if inside:
        tree.ensure_folder(inside)
    try:
        for _, data, mode, temporary in wanted:
            tree.create(temporary, data, mode)
            tree.sync(temporary)
        for name, _, _, temporary in wanted:
            if tree.state_kind(join(inside, name)) != "absent":
                raise RefusedError(f"{os.path.join(folder, name)} appeared meanwhile", "nothing is overwritten")
            tree.rename(temporary, join(inside, name))
            tree.sync_folder(inside)
    except BaseException:
        for _, _, _, temporary in wanted:
            with contextlib.suppress(OSError):
                if tree.state_kind(temporary) != "absent":
                    tree.remove(temporary)
        raise


def _tree(folder: str, observe: Observe) -> tuple[Tree, str]:
    """The part of a folder's path that is there, and the rest. Raises RefusedError where it ends in a link or a file."""
    anchor = folder
    while not os.path.lexists(anchor):
        anchor = os.path.dirname(anchor)
    if os.path.islink(anchor):
        raise RefusedError(f"{anchor} is a link; links are not followed when writing", f"name the folder itself: {os.path.realpath(anchor)}")
    if not os.path.isdir(anchor):
        raise RefusedError(f"{anchor} is no folder")
    return Tree(anchor, observe), os.path.relpath(folder, anchor) if folder != anchor else ""
