"""One file system, seen from a root: `/`, a mounted system, a recorded tree or a test's copy.

`Root` reads. It never writes, follows links only inside the root, and answers with facts: present, absent and
unreadable are three answers. `Tree` writes, by descriptor and name, never through a link, in ten primitives that
can be recorded: the power-loss model in the tests replays their log, so nothing of ours may write by other means.
The standard library only; the privileged side imports this module.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Known, Unknown

READ_LIMIT: Final = 1 << 20
READ_STATE: Final = 64 << 20
CONTENT_LIMIT: Final = 1 << 30
"""Bytes of the largest file that is managed: an initramfs with every firmware file has some hundred MiB."""
LINK_LIMIT: Final = 40
TEMPORARY_PREFIX: Final = ".rocm-patch-"
"""Readers of drop-in folders skip names that start with a dot and have none of their endings."""

_TEMPORARY: Final = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{16}")
_INNER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_NUMBER: Final = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts `node10` after `node2`."""
    parts = _NUMBER.split(name)
    return tuple((int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts))


def parent_of(path: str) -> str:
    """The folder of a path in a tree; empty for the anchor."""
    return path.rpartition("/")[0]


def join(folder: str, name: str) -> str:
    """A path in a tree; the anchor's is empty."""
    return f"{folder}/{name}".lstrip("/")


def temporary_name() -> str:
    """A new name that readers of drop-in folders skip."""
    return TEMPORARY_PREFIX + secrets.token_hex(8)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


class Root:
    """The reading side of one root folder. Paths are written as on that machine, with or without the first slash."""

    def __init__(self, path: str = "/") -> None:
        self.path = os.path.abspath(path)
        self.live = self.path == "/"
        self.unread: list[Unknown] = []
        """Folders that `list` could not look into: what is in them is not known to be absent."""

    def host(self, path: str) -> str:
        """Where a path of that machine lies here, links resolved inside the root."""
        if "\0" in path:
            raise OSError(errno.EINVAL, "a zero byte in a path", path.replace("\0", "?"))
        if self.live:
            return "/" + "/".join(_parts(path))
        todo, done, links = list(reversed(_parts(path))), list[str](), 0
        while todo:
            part = todo.pop()
            if part == "..":
                if done:
                    done.pop()
                continue
            try:
                target = os.readlink(os.path.join(self.path, *done, part))
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                done = []
            todo.extend(reversed(_parts(target)))
        return os.path.join(self.path, *done)

    def read(self, path: str, limit: int = READ_LIMIT) -> Known[bytes | None] | Unknown:
        """At most `limit` bytes of a regular file; Known(None) if there is none."""
        descriptor = -1
        try:
            # O_NONBLOCK: a FIFO in somebody's tree must not stop a diagnosis.
            descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Unknown("not a regular file", path)
            chunks, size = list[bytes](), 0
            while size < limit and (chunk := os.read(descriptor, min(1 << 16, limit - size))):
                chunks.append(chunk)
                size += len(chunk)
            return Known(b"".join(chunks), path)
        except OSError as error:
            return self._missing(error, path)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def text(self, path: str, limit: int = READ_LIMIT) -> Known[str | None] | Unknown:
        """The same as text; what is not UTF-8 is replaced, a final newline stays."""
        answer = self.read(path, limit)
        if isinstance(answer, Unknown) or answer.value is None:
            return answer if isinstance(answer, Unknown) else Known(None, path)
        return Known(answer.value.decode("utf-8", "replace"), path)

    def word(self, path: str) -> Known[str | None] | Unknown:
        """The stripped text of a one-line file, as sysfs has them."""
        answer = self.text(path, 1 << 16)
        if isinstance(answer, Unknown) or answer.value is None:
            return answer
        return Known(answer.value.strip(), path)

    def names(self, path: str) -> Known[tuple[str, ...] | None] | Unknown:
        """The names in a folder, numbers in numeric order."""
        descriptor = -1
        try:
            descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return Known(tuple(sorted(os.listdir(descriptor), key=natural_key)), path)
        except OSError as error:
            return self._missing(error, path)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def list(self, path: str) -> tuple[str, ...]:
        """The names in a folder; none where it is absent or closed to us."""
        answer = self.names(path)
        if isinstance(answer, Known):
            return answer.value or ()
        if all(item.source != path for item in self.unread):
            self.unread.append(answer)
        return ()

    def status(self, path: str) -> Known[os.stat_result | None] | Unknown:
        """What `stat` says, links followed."""
        try:
            return Known(os.stat(self.host(path)), path)
        except OSError as error:
            return self._missing(error, path)

    def exists(self, path: str) -> bool:
        """True where something is there for certain."""
        answer = self.status(path)
        return isinstance(answer, Known) and answer.value is not None

    def is_folder(self, path: str) -> bool:
        """True for a folder, also behind a link."""
        answer = self.status(path)
        return isinstance(answer, Known) and answer.value is not None and stat.S_ISDIR(answer.value.st_mode)

    def link(self, path: str) -> str | None:
        """The target of a symbolic link, or None."""
        folder, _, name = path.rstrip("/").rpartition("/")
        try:
            return os.readlink(os.path.join(self.host(folder), name))
        except OSError:
            return None

    def _open(self, path: str, flags: int) -> int:
        """Open what `host` found, one name at a time: its links are resolved, so a link that is met now was put there meanwhile."""
        host = self.host(path)
        if self.live:
            return os.open(host, flags)
        parts = _parts(host[len(self.path) :])
        descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                try:
                    inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                except NotADirectoryError as error:
                    if _kind(os.stat(part, dir_fd=descriptor, follow_symlinks=False).st_mode) == "link":
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from error
                    raise
                os.close(descriptor)
                descriptor = inner
            return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _missing(error: OSError, path: str) -> Known[Any] | Unknown:
        if error.errno in _ABSENT:
            return Known(None, path)
        return Unknown(error.strerror or str(error), path)


# ------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Operation:
    """One entry of the log: what a primitive was asked to do. Paths are relative to the tree's anchor."""

    call: str
    path: str
    target: str = ""
    data: bytes = b""
    mode: int = 0


@dataclass(frozen=True)
class State:
    """All of one path that a rollback must restore exactly. `kind`: absent, file, link, folder or other."""

    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    target: str = ""
    attributes: tuple[tuple[str, bytes], ...] = ()

    def digest(self) -> str:
        """A name for this state; equal states have equal names."""
        mark = hashlib.sha256()
        for part in (
            self.kind.encode(), b"%o" % self.mode, b"%d" % self.uid, b"%d" % self.gid, self.data, self.target.encode(),
            *(piece for pair in self.attributes for piece in (pair[0].encode(), pair[1])),
        ):  # fmt: skip
            mark.update(b"%d:" % len(part) + part)
        return mark.hexdigest()


ABSENT: Final = State("absent")


class Tree:
    """The writing side. `anchor` is opened once, at the first look; every path below it is walked by descriptor, links refused."""

    def __init__(self, anchor: str, observe: Callable[[Operation], None] | None = None) -> None:
        self.anchor = os.path.abspath(anchor)
        self._observe = observe
        self._held = -1

    # -- looking

    def state(self, path: str, limit: int = READ_STATE) -> State:
        """What is at a path. An error is raised, never taken for an empty file."""
        try:
            with self._parent(path) as (folder, name):
                return _state_at(folder, name, path, limit)
        except FileNotFoundError:
            return ABSENT

    def names(self, path: str) -> list[str]:
        """The names in a folder of ours; none where it is absent."""
        try:
            with self._folder(_parts(path), path) as folder:
                return sorted(os.listdir(folder), key=natural_key)
        except FileNotFoundError:
            return []

    # -- the primitives; nothing else in this package changes a file system

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        """Create one folder."""
        self._note("mkdir", path, mode=mode)
        with self._parent(path) as (folder, name):
            os.mkdir(name, mode, dir_fd=folder)
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fchmod(descriptor, mode)  # the caller's umask has no say
            finally:
                os.close(descriptor)

    def create(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """Create a file that must not exist yet, and write it; not durable before `sync`."""
        self._note("create", path, data=data, mode=mode)
        with self._parent(path) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def make_link(self, path: str, target: str) -> None:
        """Create a symbolic link."""
        self._note("symlink", path, target=target)
        with self._parent(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    def dress(self, path: str, state: State) -> None:
        """Give a file, link or folder of ours the owner, mode and attributes of `state`."""
        self._note("dress", path, mode=state.mode)
        with self._parent(path) as (folder, name):
            if state.kind == "link":
                os.chown(name, state.uid, state.gid, dir_fd=folder, follow_symlinks=False)
                return
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                now = os.fstat(descriptor)
                if (now.st_uid, now.st_gid) != (state.uid, state.gid):
                    os.fchown(descriptor, state.uid, state.gid)
                os.fchmod(descriptor, state.mode)
                if state.kind == "file":
                    _set_attributes(descriptor, state.attributes)
            finally:
                os.close(descriptor)

    def sync(self, path: str) -> None:
        """Make a file's content durable. A failed fsync is final: there is no second try on the descriptor."""
        self._note("fsync", path)
        with self._parent(path) as (folder, name):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""
        self._note("fsync folder", path)
        with self._folder(_parts(path), path) as folder:
            os.fsync(folder)

    def rename(self, path: str, target: str) -> None:
        """Move a name over another: the one moment at which readers see the change."""
        self._note("rename", path, target=target)
        with self._parent(path) as (source, old), self._parent(target) as (destination, new):
            os.rename(old, new, src_dir_fd=source, dst_dir_fd=destination)

    def remove(self, path: str) -> None:
        """Remove a file or a link."""
        self._note("unlink", path)
        with self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        self._note("rmdir", path)
        with self._parent(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def remove_tree(self, path: str) -> None:
        """Remove a folder of ours with all that is in it, by descriptor. For folders whose content others made for us."""
        self._note("rmtree", path)
        with self._parent(path) as (folder, name):
            _remove_tree(name, folder)

    # -- composed of them

    def missing_folders(self, path: str) -> list[str]:
        """The folders above a path that are not there, outermost first."""
        missing, walked = list[str](), ""
        for part in _parts(path)[:-1]:
            walked = f"{walked}/{part}".lstrip("/")
            if missing or self.state_kind(walked) == "absent":
                missing.append(walked)
        return missing

    def ensure_folder(self, path: str, mode: int = 0o755) -> None:
        """Create a folder and those above it that are missing, durable."""
        for folder in [*self.missing_folders(path), *([path] if path and self.state_kind(path) == "absent" else [])]:
            self.make_folder(folder, mode)
            self.sync_folder(parent_of(folder))

    def state_kind(self, path: str) -> str:
        """The kind of what is at a path, without reading it."""
        try:
            with self._parent(path) as (folder, name):
                return _kind(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return "absent"

    def put(self, path: str, state: State) -> None:
        """Bring a path to `state`, atomically and durably; its folder must exist. No call is made if it is so already.

        A folder is made or removed empty; a folder in the place of something else, or the reverse, is an error.
        """
        now = self.state(path, CONTENT_LIMIT)
        if now == state:
            return
        folder = parent_of(path)
        if state.kind == "absent":
            if now.kind == "folder":
                self.remove_folder(path)
            else:
                self.remove(path)
        else:
            temporary = join(folder, temporary_name())
            try:
                if state.kind == "folder":
                    self.make_folder(temporary, state.mode)
                    self.dress(temporary, state)
                    self.sync_folder(temporary)
                elif state.kind == "link":
                    self.make_link(temporary, state.target)
                    self.dress(temporary, state)
                elif state.kind == "file":
                    self.create(temporary, state.data)
                    self.dress(temporary, state)
                    self.sync(temporary)
                else:
                    raise RefusedError(f"{path}: {state.kind!r} is nothing that we would make")
                self.rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    if state.kind == "folder":
                        self.remove_folder(temporary)
                    else:
                        self.remove(temporary)
                raise
        self.sync_folder(folder)

    def temporaries(self, folder: str) -> list[str]:
        """Paths in a folder that bear our temporary names, whatever they are. Nobody else makes these names."""
        return [join(folder, name) for name in self.names(folder) if _TEMPORARY.fullmatch(name)]

    def sweep_temporaries(self, folder: str) -> None:
        """Remove what a killed `put` left in a folder: files, links and empty folders."""
        for path in self.temporaries(folder):
            if self.state_kind(path) != "folder":
                self.remove(path)
            elif not self.names(path):
                self.remove_folder(path)
            else:
                continue
            self.sync_folder(folder)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """The descriptor of a folder, for a lock on it."""
        with self._folder(_parts(path), path) as descriptor:
            yield descriptor

    # -- walking

    def _note(self, call: str, path: str, target: str = "", data: bytes = b"", mode: int = 0) -> None:
        if self._observe is not None:
            self._observe(Operation(call, path, target, data, mode))

    @contextlib.contextmanager
    def _folder(self, parts: list[str], path: str) -> Iterator[int]:
        if self._held < 0:
            # By its name once only: whoever owns the folder above could put a link in its place between two of our steps.
            self._held = os.open(self.anchor, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, _close, self._held)
        # Opened anew, not duplicated: duplicates share the place in a listing, and locks.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._held)
        try:
            for part in parts:
                if part == "..":
                    raise RefusedError(f"{path}: a path with '..' is never written")
                try:
                    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.ENOTDIR):
                        # O_DIRECTORY|O_NOFOLLOW on a link answers ENOTDIR, as a plain file does.
                        why = f"{self.anchor}: {part!r} in {path} is a link or no folder; links are not followed when writing"
                        raise RefusedError(why) from error
                    raise
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parts = _parts(path)
        if not parts or parts[-1] == "..":
            raise RefusedError(f"{path!r} names no file")
        with self._folder(parts[:-1], path) as folder:
            yield folder, parts[-1]


def _remove_tree(name: str, folder: int) -> None:
    """Not os.fwalk: that opens what a link points to before it looks whether it is one."""
    descriptor = os.open(name, _INNER, dir_fd=folder)
    try:
        with os.scandir(descriptor) as entries:
            inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for each, is_folder in inside:
            if is_folder:
                _remove_tree(each, descriptor)
            else:
                os.unlink(each, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=folder)


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "other"


def _state_at(folder: int, name: str, path: str, limit: int) -> State:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kind, mode = _kind(status.st_mode), stat.S_IMODE(status.st_mode)
    if kind == "link":
        return State(kind, mode, status.st_uid, status.st_gid, target=os.readlink(name, dir_fd=folder))
    if kind != "file":
        return State(kind, mode, status.st_uid, status.st_gid)
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        chunks, size = list[bytes](), 0
        while chunk := os.read(descriptor, 1 << 20):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise RocmPatchError(f"{path} is larger than {limit} bytes; it is not a file that we would manage")
        return State(kind, mode, status.st_uid, status.st_gid, b"".join(chunks), "", _attributes(descriptor))
    finally:
        os.close(descriptor)


def _attributes(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    """Extended attributes, less `trusted.*`: root alone sees those, and a digest must not depend on who looks."""
    try:
        names = sorted(os.listxattr(descriptor))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            return ()
        raise
    return tuple((name, os.getxattr(descriptor, name)) for name in names if not name.startswith("trusted."))


def _set_attributes(descriptor: int, wanted: tuple[tuple[str, bytes], ...]) -> None:
    now = dict(_attributes(descriptor))
    for key, value in wanted:
        if now.get(key) != value:
            os.setxattr(descriptor, key, value)
    for key in now.keys() - dict(wanted).keys():
        # A new file may get labels from the kernel and an access list from its folder: the first stay, the second is not ours.
        if not key.startswith("security."):
            os.removexattr(descriptor, key)
