"""What must survive a reset of the machine: which probe is running, which ones took the machine down, and the results so far.

Everything lies in STATE_HOME/rocm-patch-probes, beside the journal's folder, since that one goes with the last rollback. It is
written through `root.Tree`, synced file and folder:

    started.json     there while a probe runs; written *before* it starts
    memory.json      probes that took the machine down or stuck in the kernel
    trials-*.json    results of one stack in one boot, by which an interrupted run goes on
    latest.json      the `Trials` of the last finished run
    scratch/         working folders and private caches of the children, emptied at both ends
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from rocm_patch import codec
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.model import Trial, Trials
from rocm_patch.root import State, Tree, parent_of

T = TypeVar("T")
Key = tuple[str, str, str]

FOLDER: Final = "rocm-patch-probes"
SCHEMA: Final = 1
GPU_LOCKS: Final = ("/sys/class/kfd", "/sys/class/drm", "/sys/module/nvidia", "/proc/driver/nvidia")
"""The first that is there is locked for the whole machine: flock on a sysfs folder needs no right to write and changes nothing."""


@dataclass(frozen=True)
class Started:
    """A probe that has begun."""

    schema: int
    boot: str
    stack: str
    probe: str
    configuration: str
    dtype: str


@dataclass(frozen=True)
class Remembered:
    """A probe that harmed the machine, on one stack."""

    boot: str
    stack: str
    probe: str
    configuration: str
    dtype: str
    verdict: Literal["reset", "stuck"]

    @property
    def key(self) -> Key:
        """Which trial."""
        return self.probe, self.configuration, self.dtype


@dataclass(frozen=True)
class Memory:
    """All of them."""

    schema: int
    items: tuple[Remembered, ...] = ()


@dataclass(frozen=True)
class Saved:
    """Results of one stack and one definition of the probes, in one boot."""

    schema: int
    boot: str
    definition: str
    stack: str
    trials: tuple[Trial, ...] = ()


def key_of(trial: Trial) -> Key:
    """What tells one trial from another."""
    return trial.probe, trial.configuration, trial.dtype


def boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """The name of the boot that we are in; empty where the kernel does not say."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Records:
    """The folder, held under a lock by one run at a time."""

    def __init__(self, state_home: str, boot: str) -> None:
        # Links above our folder are the user's own business: resolved once, here. Below, links are refused.
        self.folder = os.path.join(os.path.realpath(state_home), FOLDER)
        self.boot = boot
        anchor = self.folder
        while not os.path.isdir(anchor):
            anchor = os.path.dirname(anchor)
        above = Tree(anchor)
        for path in above.missing_folders(f"{os.path.relpath(self.folder, anchor)}/lock"):
            above.make_folder(path, 0o700)
            above.sync_folder(parent_of(path))
        self.tree = Tree(self.folder)

    @contextlib.contextmanager
    def locked(self, *, gpu: bool) -> Iterator[None]:
        """Never two probes on one GPU: one run of this user, and for a GPU one run on this machine.

        Raises:
            RefusedError: another run is under way.
        """
        with contextlib.suppress(FileExistsError):
            self.tree.create("lock", b"")
        places = [os.path.join(self.folder, "lock"), *([place for place in GPU_LOCKS if os.path.isdir(place)][:1] if gpu else [])]
        with contextlib.ExitStack() as held:
            for place in places:
                descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    hint = "wait until it has ended: two probes on one GPU would blame each other"
                    raise RefusedError("another probe is running on this machine", hint) from error
                except OSError:
                    continue  # a file system without flock: nothing to hold
            self.tree.sweep_temporaries("")
            self.clean()
            try:
                yield
            finally:
                self.clean()

    def clean(self) -> None:
        """Remove what children left."""
        shutil.rmtree(self.scratch(), ignore_errors=True)

    def scratch(self, *names: str) -> str:
        """A path for children."""
        return os.path.join(self.folder, "scratch", *names)

    # -- the probe that runs

    def begin(self, key: Key, stack: str) -> None:
        """Make it durable that this probe starts."""
        self._write("started.json", Started(SCHEMA, self.boot, stack, *key))

    def ended(self) -> None:
        """And that it came back."""
        if self.tree.state_kind("started.json") != "absent":
            self.tree.remove("started.json")
            self.tree.sync_folder("")

    def unfinished(self) -> Started | None:
        """The probe that a run before this one began and did not end."""
        return self._read(Started, "started.json")

    # -- what harmed the machine

    def memory(self) -> Memory:
        """Everything that is remembered."""
        return self._read(Memory, "memory.json") or Memory(SCHEMA)

    def remember(self, item: Remembered) -> None:
        """Add one."""
        items = self.memory().items
        if item not in items:
            self._write("memory.json", Memory(SCHEMA, (*items, item)))

    def forget(self, key: Key, stack: str) -> None:
        """It ran to its end after all."""
        items = self.memory().items
        left = tuple(item for item in items if (item.key, item.stack) != (key, stack))
        if left != items:
            self._write("memory.json", Memory(SCHEMA, left))

    # -- results

    def saved(self, stack: str, definition: str) -> Saved:
        """Results of this stack in this boot; none where anything differs."""
        found = self._read(Saved, self._name(stack, definition))
        if found and self.boot and (found.boot, found.stack, found.definition) == (self.boot, stack, definition):
            return found
        return Saved(SCHEMA, self.boot, definition, stack)

    def save(self, saved: Saved) -> None:
        """Keep the results so far."""
        self._write(self._name(saved.stack, saved.definition), saved)

    def finish(self, trials: Trials) -> None:
        """Keep the table of a whole run."""
        self._write("latest.json", trials)

    @staticmethod
    def _name(stack: str, definition: str) -> str:
        return f"trials-{hashlib.sha256(f'{definition} {stack}'.encode()).hexdigest()[:16]}.json"

    def _read(self, kind: type[T], name: str) -> T | None:
        """A broken file is an empty one: nothing here is worth a refusal to start."""
        state = self.tree.state(name)
        try:
            return codec.loads(kind, state.data, name) if state.kind == "file" else None
        except FormatError:
            return None

    def _write(self, name: str, value: Any) -> None:
        now = os.stat(self.folder)
        self.tree.put(name, State("file", 0o600, os.geteuid(), now.st_gid if now.st_mode & 0o2000 else os.getegid(), codec.dumps(value).encode()))


def latest(state_home: str) -> Trials | None:
    """The table of the last run that finished; None where there is none."""
    path = os.path.join(os.path.abspath(state_home), FOLDER, "latest.json")
    try:
        with open(path, "rb") as file:
            return codec.loads(Trials, file.read(), path)
    except (OSError, FormatError):
        return None
