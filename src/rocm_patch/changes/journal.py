"""The journal of one scope: a folder, its lock, one folder a transaction, and at most one open plan file.

    STATE/made             the folders that were made for the journal itself
    STATE/plan             the record of an open transaction; removing it is the commit
    STATE/<transaction>/   receipt (the record of a finished one), undo.sh, and copies of contents under their digests

The state folder is born by one rename and goes by one rename, so that at no moment a folder lies about of which nobody
knows that it is ours. The lock is flock on the folder itself: it dies with its holder and writes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from rocm_patch import codec
from rocm_patch.changes import grown
from rocm_patch.changes.places import Ground
from rocm_patch.changes.record import Record, Shape, digest, state_of
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.root import ABSENT, CONTENT_LIMIT, State, join, parent_of, temporary_name

PLAN: Final = "plan"
MADE: Final = "made"
RECEIPT: Final = "receipt"
UNDO: Final = "undo.sh"
ATTEMPTS: Final = 8
_TRANSACTION: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


def is_transaction(name: str) -> bool:
    """Whether a name can be a transaction's."""
    return _TRANSACTION.fullmatch(name) is not None


class Journal:
    """Use with `open`; nothing is written before `create`, `store` or one of the other verbs is called."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.tree = ground.tree()
        self.folder = ground.state
        self.lock = -1

    # ------------------------------------------------------------------ the lock

    @contextlib.contextmanager
    def opened(self) -> Iterator[Journal]:
        """Hold the lock, if there is a state folder; `create` takes it later if there is none.

        Raises:
            RefusedError: another run holds it, or the folder is not safe to use.
        """
        try:
            self._take()
            yield self
        finally:
            self._drop()

    @property
    def exists(self) -> bool:
        """Whether the state folder is there and locked by us."""
        return self.lock >= 0

    def _drop(self) -> None:
        if self.lock >= 0:
            # Said, not left to close: a child that another thread is just starting holds a copy of the descriptor until it executes,
            # and the next run in this process found the lock taken by nobody (1 sweep of 6 in tests/changes/test_kill.py).
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            os.close(self.lock)
            self.lock = -1

    def _take(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                with self.tree.opened(self.folder) as descriptor:
                    _lock(descriptor, self.ground.on_machine(self.folder))
                    _check_owner(descriptor, self.ground.on_machine(self.folder))
                    if self._is_at(descriptor, self.folder):
                        self.lock = os.dup(descriptor)
                        return
            except FileNotFoundError:
                return
        raise RefusedError("the journal's folder is being replaced all the time", "try again")

    def _is_at(self, descriptor: int, path: str) -> bool:
        """Whoever held the lock before us may have moved the folder away."""
        try:
            with self.tree.opened(path) as now:
                return os.path.samestat(os.fstat(now), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    # ------------------------------------------------------------------ birth and burial of the state folder

    def create(self) -> None:
        """Make the state folder and what is missing above it, in one rename, and lock it.

        Raises:
            RefusedError: another run was faster.
        """
        for _ in range(ATTEMPTS):
            if self.exists:
                return
            try:
                self._birth()
            except FileNotFoundError:
                continue  # a burial next door took our folder for a dead one, or the parent went
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                self._take()
                if self.exists:
                    # All that we looked at is from before that run. Going on, we found its files in our way, and taking
                    # ourselves back we took back its change as well: it had written just what we were about to write.
                    self._drop()
                    what = f"another run has just finished its work with {self.ground.on_machine(self.folder)}"
                    raise RefusedError(what, "look at 'rocm-patch status', and make a new plan") from error
        if not self.exists:
            raise RocmPatchError(f"the journal's folder {self.ground.on_machine(self.folder)} cannot be made")

    def _birth(self) -> None:
        missing = [*self.tree.missing_folders(self.folder), self.folder]
        top, base = missing[0], parent_of(missing[0])
        temporary = join(base, temporary_name())
        self.tree.make_folder(temporary, 0o700 if top == self.folder else 0o755)
        try:
            with contextlib.ExitStack() as locks:
                _lock(locks.enter_context(self.tree.opened(temporary)), temporary)
                inner = [temporary + path[len(top) :] for path in missing]
                for path in inner[1:]:
                    self.tree.make_folder(path, 0o700 if path == inner[-1] else 0o755)
                held = locks.enter_context(self.tree.opened(inner[-1]))
                if len(inner) > 1:
                    _lock(held, inner[-1])
                made = join(inner[-1], MADE)
                self.tree.create(made, json.dumps([self.ground.on_machine(path) for path in missing]).encode())
                self.tree.sync(made)
                for path in reversed(inner):
                    self.tree.sync_folder(path)
                self.tree.rename(temporary, top)
                self.lock = os.dup(held)
        except OSError:
            with contextlib.suppress(OSError):
                self.tree.remove_tree(temporary)
            raise
        self.tree.sync_folder(base)

    def made(self) -> list[str]:
        """Folders that were made for the journal, outermost first, as paths in the tree."""
        return self._read_made(join(self.folder, MADE))

    def _read_made(self, path: str) -> list[str]:
        state = self.tree.state(path)
        if state.kind != "file":
            return []
        try:
            raw = json.loads(state.data)
        except ValueError:
            return []  # a torn list is an unborn folder's: nothing was moved into place yet
        ours = isinstance(raw, list) and all(isinstance(item, str) for item in raw)
        paths = [self.ground.at(item) for item in raw] if ours else []
        # Only the state folder and what lies above it can be in this list, whatever the file says.
        return [path for path in paths if self.folder == path or self.folder.startswith(path + "/")]

    def dismantle(self) -> None:
        """Remove the state folder and the folders that were made for it. Call when nothing is left in it."""
        made = self.made()
        if not made:
            return
        base = parent_of(made[0])
        tomb = join(base, temporary_name())
        self.tree.rename(self.folder, tomb)
        self.tree.sync_folder(parent_of(self.folder))
        if base != parent_of(self.folder):
            self.tree.sync_folder(base)
        self._bury(tomb)
        self._drop()

    def bury(self) -> None:
        """Finish what a killed birth or burial left in the folders above the state folder."""
        above = parent_of(self.folder)
        while True:
            try:
                found = [path for path in self.tree.temporaries(above) if self.tree.state_kind(path) == "folder"]
            except PermissionError:
                found = []
            for path in found:
                with contextlib.suppress(FileNotFoundError), self.tree.opened(path) as descriptor:
                    if os.fstat(descriptor).st_uid != os.geteuid():
                        continue
                    _lock(descriptor, self.ground.on_machine(self.folder))
                    self._bury(path)
            if not above:
                return
            above = parent_of(above)

    def _bury(self, tomb: str) -> None:
        made = [path for path in self._read_made(join(tomb, MADE)) if path != self.folder]
        for name in self.tree.names(tomb):
            if name != MADE:
                self._clear(join(tomb, name))
        for path in reversed(made):
            if not self._remove_if_empty(path):
                break
        if MADE in self.tree.names(tomb):
            self.tree.remove(join(tomb, MADE))
        self.tree.remove_folder(tomb)
        self.tree.sync_folder(parent_of(tomb))

    def _remove_if_empty(self, path: str) -> bool:
        try:
            self.tree.remove_folder(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        self.tree.sync_folder(parent_of(path))
        return True

    def _clear(self, path: str) -> None:
        """Remove what lies in the state folder: a file, or a folder of ours with its files."""
        if self.tree.state_kind(path) == "folder":
            for name in self.tree.names(path):
                self._clear(join(path, name))
            self.tree.remove_folder(path)
        else:
            self.tree.remove(path)

    # ------------------------------------------------------------------ records

    def open_record(self) -> Record | None:
        """The plan file: a transaction that did not come to its end."""
        state = self._state(join(self.folder, PLAN))
        return None if state.kind != "file" else _record(state.data, "the journal's plan file")

    def records(self) -> list[Record]:
        """Finished transactions, oldest first, but for those that a finished rollback took back."""
        found = list[Record]()
        for name in self.tree.names(self.folder):
            if is_transaction(name):
                state = self._state(f"{self.folder}/{name}/{RECEIPT}")
                if state.kind == "file":
                    record = _record(state.data, f"the journal's record {name}")
                    if record.transaction != name:
                        raise FormatError(f"the journal's record {name} calls itself {record.transaction!r}")
                    found.append(record)
        found.sort(key=lambda record: record.number)
        return found

    def active(self) -> list[Record]:
        """What is in force, oldest first."""
        records = self.records()
        opened = self.open_record()
        pending = opened.transaction if opened else ""
        undone = {name for record in records if record.transaction != pending for name in record.undoes}
        return [record for record in records if record.verb == "apply" and record.transaction not in undone | {pending}]

    def _state(self, path: str) -> State:
        try:
            return self.tree.state(path)
        except PermissionError as error:
            raise RefusedError(f"the journal {self.ground.on_machine(self.folder)} is closed to this user") from error

    def store(self, record: Record, contents: Mapping[str, bytes], undo: bytes) -> None:
        """Put the copies and the script of a transaction on disk, durable. Nothing is promised yet."""
        folder = join(self.folder, record.transaction)
        self.tree.make_folder(folder, 0o700)
        for name, data in {**contents, **({UNDO: undo} if undo else {})}.items():
            path = join(folder, name)
            self.tree.create(path, data, 0o700 if name == UNDO else 0o600)
            self.tree.sync(path)
        self.tree.sync_folder(folder)
        self.tree.sync_folder(self.folder)

    def keep(self, record: Record, data: bytes) -> str:
        """Add one content to a stored transaction; returns its digest."""
        return self.keep_as(record, digest(data), data)

    def keep_as(self, record: Record, name: str, data: bytes) -> str:
        """The same under a name that is not its digest."""
        self.tree.put(f"{self.folder}/{record.transaction}/{name}", _private(data))
        return name

    def write_plan(self, record: Record) -> None:
        """From here on the transaction is open, and recovery will put its before-states back."""
        self.tree.put(join(self.folder, PLAN), _private(codec.dumps(record).encode()))

    def write_receipt(self, record: Record) -> None:
        """Say what was done; believed once the plan file is gone."""
        self.tree.put(f"{self.folder}/{record.transaction}/{RECEIPT}", _private(codec.dumps(record).encode()))

    def withdraw_receipt(self, record: Record) -> None:
        """Take back the receipt of a transaction that is being undone; it must not count once the plan file is gone."""
        if self.tree.state_kind(join(self.folder, record.transaction)) == "folder":
            self.tree.put(f"{self.folder}/{record.transaction}/{RECEIPT}", ABSENT)

    def replace_undo(self, record: Record, script: bytes) -> None:
        """Store a script that knows more than the first one."""
        state = State("file", 0o700, os.geteuid(), os.getegid(), script)
        self.tree.put(f"{self.folder}/{record.transaction}/{UNDO}", state)

    def remove_plan(self) -> None:
        """The commit."""
        self.tree.put(join(self.folder, PLAN), ABSENT)

    def content(self, record: Record, shape: Shape) -> State:
        """The state that a shape of this transaction describes.

        Raises:
            RocmPatchError: the copy is missing or damaged.
        """
        if shape.kind != "file":
            return state_of(shape, b"")
        path = f"{self.folder}/{record.transaction}/{shape.sha256}"
        copy = self.tree.state(path, CONTENT_LIMIT)
        if copy.kind != "file" or digest(copy.data) != shape.sha256:
            raise RocmPatchError(f"the journal's copy {self.ground.on_machine(path)} is missing or damaged")
        return state_of(shape, copy.data)

    def has_garbage(self) -> bool:
        """Whether `sweep` would remove something."""
        return bool(self._garbage()) or not self.active()

    def sweep(self) -> None:
        """Remove what no finished transaction in force needs; with nothing left, the journal itself. No plan may be open."""
        records = {record.transaction: record for record in self.records()}
        for name in self._garbage():
            path = join(self.folder, name)
            if name in records and records[name].verb == "rollback":
                self._clear_tombs(records[name])
            if self.tree.state_kind(path) == "folder":
                inside = self.tree.names(path)
                # The receipt goes first: a folder without one is garbage, wherever we are stopped.
                for part in sorted(inside, key=lambda part: part != RECEIPT):
                    self._clear(join(path, part))
                    if part == RECEIPT:
                        self.tree.sync_folder(path)
                self.tree.remove_folder(path)
            else:
                self.tree.remove(path)
            self.tree.sync_folder(self.folder)
        if not self.active():
            self.dismantle()

    def _clear_tombs(self, rollback: Record) -> None:
        """Remove the folders that a finished rollback set aside, and those of ours that were not empty because of them."""
        for entry in rollback.entries:
            at = self.ground.at(entry.path)
            if entry.before.kind == "grown":
                grown.clear_tomb(self.tree, at, rollback.transaction)
            elif (entry.before.kind, entry.after.kind) == ("folder", "absent") and self.tree.state_kind(at) == "folder":
                self._remove_if_empty(at)

    def _garbage(self) -> list[str]:
        """Names to remove, in the order that is safe: what a rollback took back goes before the rollback's own record."""
        active = {record.transaction for record in self.active()}
        rollbacks = [record.transaction for record in self.records() if record.verb == "rollback"]
        names = [name for name in self.tree.names(self.folder) if name not in active | {MADE, PLAN}]
        ours = [name for name in names if is_transaction(name) or name.startswith(".rocm-patch-")]
        return sorted(ours, key=lambda name: name in rollbacks)


@functools.lru_cache(maxsize=64)
def _record(data: bytes, what: str) -> Record:
    """Records never change, and one verb reads the same ones again and again: a third of its time went into decoding."""
    return codec.loads(Record, data, what)


def _private(data: bytes) -> State:
    return State("file", 0o600, os.geteuid(), os.getegid(), data)


def _check_owner(descriptor: int, path: str) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise RefusedError(f"the journal {path} belongs to another user or can be written by others; it is not trusted")


def _lock(descriptor: int, path: str) -> None:
    who = ""
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            who = _holder(descriptor)
        if who:
            break
        # Let go between our two looks: one race of four for a new journal named nobody.
    by = f" (process {who})" if who else ""
    raise RefusedError(f"another run{by} is at work with {path}", "wait for it, or end it, and try again")


def _holder(descriptor: int) -> str:
    """Process that holds the lock, by /proc/locks; empty where it does not say."""
    inode = str(os.fstat(descriptor).st_ino)
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            rows = [line.split() for line in locks]
    except OSError:
        return ""
    return next((row[4] for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5].rsplit(":", 1)[-1] == inode), "")
