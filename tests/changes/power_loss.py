"""What a disk may hold after the power went: a model of names and contents that were not yet made durable.

It replays the log of `Tree`'s primitives. Names become durable when their folder is synced, contents when the file is;
modes and owners count as durable at once. A rename is one unit: it is on disk whole or not at all.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Inode:
    kind: str
    mode: int
    uid: int
    gid: int
    data: bytes = b""
    durable: bytes | None = b""
    """What is certainly on disk; None: nothing is yet."""
    target: str = ""


@dataclass
class Disk:
    """Inodes, and for each folder its names: durable ones, and units that are still on their way."""

    inodes: dict = field(default_factory=dict)
    names: dict = field(default_factory=dict)
    """What a running system sees: folder inode -> name -> inode."""
    durable: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)
    """(folders it concerns, changes): a change is (folder, name, inode or None)."""
    next: int = 1

    @classmethod
    def of(cls, root):
        disk = cls()
        disk.inodes[0] = _inode(root)
        disk.names[0] = {}
        disk._load(root, 0)
        disk.durable = {number: dict(names) for number, names in disk.names.items()}
        return disk

    def _load(self, path, number):
        for name in os.listdir(path):
            child, self.next = self.next, self.next + 1
            inode = _inode(f"{path}/{name}")
            self.inodes[child] = inode
            self.names[number][name] = child
            if inode.kind == "folder":
                self.names[child] = {}
                self._load(f"{path}/{name}", child)

    # -- replay

    def do(self, operation):
        getattr(self, "_" + operation.call.replace(" ", "_"))(operation)

    def _walk(self, path):
        number = 0
        for part in [part for part in path.split("/") if part]:
            number = self.names[number][part]
        return number

    def _place(self, path):
        folder, _, name = path.rpartition("/")
        return self._walk(folder), name

    def _new(self, path, inode):
        folder, name = self._place(path)
        number, self.next = self.next, self.next + 1
        self.inodes[number] = inode
        if inode.kind == "folder":
            self.names[number], self.durable[number] = {}, {}
        self._change({folder}, [(folder, name, number)])

    def _change(self, folders, changes):
        for folder, name, number in changes:
            if number is None:
                del self.names[folder][name]
            else:
                self.names[folder][name] = number
        self.pending.append((frozenset(folders), tuple(changes)))

    def _mkdir(self, operation):
        self._new(operation.path, Inode("folder", operation.mode, os.geteuid(), os.getegid()))

    def _create(self, operation):
        self._new(operation.path, Inode("file", operation.mode, os.geteuid(), os.getegid(), operation.data, None))

    def _symlink(self, operation):
        self._new(operation.path, Inode("link", 0o777, os.geteuid(), os.getegid(), target=operation.target))

    def _dress(self, operation):
        number = self._walk(operation.path)
        self.inodes[number] = replace(self.inodes[number], mode=operation.mode)

    def _fsync(self, operation):
        number = self._walk(operation.path)
        self.inodes[number] = replace(self.inodes[number], durable=self.inodes[number].data)

    def _fsync_folder(self, operation):
        number = self._walk(operation.path)
        rest = []
        for folders, changes in self.pending:
            if number in folders:
                _put(self.durable, changes)
            else:
                rest.append((folders, changes))
        self.pending = rest

    def _rename(self, operation):
        (source, old), (destination, new) = self._place(operation.path), self._place(operation.target)
        number = self.names[source][old]
        self._change({source, destination}, [(source, old, None), (destination, new, number)])

    def _unlink(self, operation):
        folder, name = self._place(operation.path)
        self._change({folder}, [(folder, name, None)])

    def _rmdir(self, operation):
        folder, name = self._place(operation.path)
        if not self.names[self.names[folder][name]]:  # the log has what was tried; one that is not empty stays
            self._change({folder}, [(folder, name, None)])

    def _rmtree(self, operation):
        """Many calls in one primitive: each name goes by itself, the innermost first."""
        folder, name = self._place(operation.path)
        self._empty(self.names[folder][name])
        self._change({folder}, [(folder, name, None)])

    def _empty(self, number):
        for name, child in list(self.names[number].items()):
            if child in self.names:
                self._empty(child)
            self._change({number}, [(number, name, None)])

    # -- what may be left

    def outcomes(self):
        """(word, names, content of a file) for each thing that the disk may hold."""

        def whole(inode):
            return inode.data

        def lost(inode):
            return b"" if inode.durable is None else inode.durable

        def cut(inode):
            return inode.data[: len(inode.data) // 2] if inode.durable is None else inode.durable

        unsynced = any(inode.kind == "file" and inode.durable is None for inode in self.inodes.values())
        contents = [("kept", whole), *([("lost", lost), ("cut", cut)] if unsynced else [])]
        for word, content in contents:
            yield f"names kept, data {word}", self._names(lambda _: True), content
        if self.pending:
            for word, content in contents:
                yield f"all pending names lost, data {word}", self._names(lambda _: False), content
        if len(self.pending) > 1:
            for word, content in contents:
                for skip in range(len(self.pending)):
                    yield f"pending name {skip} lost, data {word}", self._names(lambda index, skip=skip: index != skip), content
                    yield f"pending name {skip} alone kept, data {word}", self._names(lambda index, skip=skip: index == skip), content

    def unconfirmed(self):
        """Pending names in folders that are still there."""
        there, todo = {0}, [0]
        while todo:
            for child in self.names.get(todo.pop(), {}).values():
                if child in self.names and child not in there:
                    there.add(child)
                    todo.append(child)
        return [changes for folders, changes in self.pending if folders & there]

    def _names(self, keep):
        names = {number: dict(inside) for number, inside in self.durable.items()}
        for index, (_, changes) in enumerate(self.pending):
            # What rests on a name that was lost is lost with it.
            if keep(index) and all(number is not None or name in names.get(folder, {}) for folder, name, number in changes):
                _put(names, changes)
        return names

    def mark(self, names, content, number=0):
        """A value that is equal for equal outcomes."""
        found = []
        for name, child in sorted(names.get(number, {}).items()):
            inode = self.inodes[child]
            inside = self.mark(names, content, child) if inode.kind == "folder" else content(inode)
            found.append((name, inode.kind, inode.mode, inode.target, inside))
        return hash(tuple(found))

    def write(self, names, content, target):
        """Put an outcome into a folder of this machine."""
        os.makedirs(target, exist_ok=True)
        self._write(0, names, content, target)

    def _write(self, number, names, content, path):
        for name, child in names.get(number, {}).items():
            inode, there = self.inodes[child], f"{path}/{name}"
            if inode.kind == "folder":
                os.mkdir(there)
                self._write(child, names, content, there)
            elif inode.kind == "link":
                os.symlink(inode.target, there)
                continue
            else:
                with open(there, "wb") as file:
                    file.write(content(inode))
            os.chmod(there, inode.mode)


def _put(names, changes):
    for folder, name, number in changes:
        if number is None:
            names[folder].pop(name, None)
        else:
            names[folder][name] = number


def _inode(path):
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Inode("link", mode, status.st_uid, status.st_gid, target=os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return Inode("folder", mode, status.st_uid, status.st_gid)
    with open(path, "rb") as file:
        data = file.read()
    return Inode("file", mode, status.st_uid, status.st_gid, data, data)
