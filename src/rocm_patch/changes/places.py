"""Where the two scopes lie: which folder is never left, which one holds the journal, whose home is meant."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from rocm_patch.errors import RefusedError
from rocm_patch.model import Scope
from rocm_patch.root import Operation, Tree

NAME: Final = "rocm-patch"
SYSTEM_STATE: Final = "var/lib/rocm-patch"


@dataclass(frozen=True)
class Ground:
    """One scope of one machine: everything that is written lies below `anchor`, links refused on the way.

    `base` is the folder that short paths are relative to (the root, or the home); it and every path in records are
    absolute as on that machine.
    """

    scope: Scope
    anchor: str
    base: str
    state: str
    """The journal's folder in the tree."""
    live: bool
    config: str = ""
    """User scope: the folder for settings, as on that machine."""
    data: str = ""
    observe: Callable[[Operation], None] | None = field(default=None, compare=False)

    def tree(self) -> Tree:
        """The writing side of this ground."""
        return Tree(self.anchor, self.observe)

    def at(self, path: str) -> str:
        """A machine's absolute path as a path in the tree.

        Raises:
            RefusedError: it does not lie below the anchor.
        """
        if not path.startswith("/") or os.path.normpath(path) != path:
            raise RefusedError(f"{path!r} is not a plain absolute path")
        if not self.live or self.anchor == "/":
            return path[1:]
        if not path.startswith(self.anchor + "/"):
            raise RefusedError(f"{path} lies outside {self.anchor}")
        return path[len(self.anchor) + 1 :]

    def on_machine(self, tree_path: str) -> str:
        """The reverse of `at`."""
        return "/" + tree_path if not self.live or self.anchor == "/" else f"{self.anchor}/{tree_path}"

    def host(self, path: str) -> str:
        """Where a machine's absolute path lies here."""
        return f"{self.anchor.rstrip('/')}/{self.at(path)}"

    def label(self, path: str) -> str:
        """The key of a path in `Plan.facts`: scope and the path relative to the base where it lies in it."""
        inside = path[len(self.base) :].lstrip("/") if path.startswith(self.base.rstrip("/") + "/") else path
        return f"{self.scope}:{inside}"


@dataclass(frozen=True)
class Locations:
    """Which machine, and whose home. Paths other than `root` are as on that machine."""

    root: str = "/"
    home: str = ""
    data_home: str = ""
    state_home: str = ""
    cache_home: str = ""
    observe: Callable[[Operation], None] | None = field(default=None, compare=False)

    @classmethod
    def here(cls, root: str = "/", home: str = "", environ: Mapping[str, str] | None = None) -> Locations:
        """The live machine by its environment; for another root only `home` counts, which lies inside it."""
        root = os.path.abspath(root)
        if root != "/":
            return cls(root, home)
        environ = os.environ if environ is None else environ

        def folder(name: str, default: str) -> str:
            value = environ.get(name, "")
            return value if value.startswith("/") else default  # the XDG rule: a relative one is ignored

        home = home or folder("HOME", "") or _home()
        return cls(
            root, home,
            folder("XDG_DATA_HOME", f"{home}/.local/share"),
            folder("XDG_STATE_HOME", f"{home}/.local/state"),
            folder("XDG_CACHE_HOME", f"{home}/.cache"),
        )  # fmt: skip

    @property
    def live(self) -> bool:
        """True for the running system."""
        return os.path.abspath(self.root) == "/"

    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that exist here, in the order of applying."""
        return ("user", "system") if self.home else ("system",)

    def ground(self, scope: Scope) -> Ground:
        """Resolve one scope.

        Raises:
            RefusedError: user scope without a home, or under sudo.
        """
        root = os.path.abspath(self.root)
        if scope == "system":
            return Ground("system", root, "/", SYSTEM_STATE, self.live, observe=self.observe)
        if not self.home.startswith("/"):
            raise RefusedError("user scope needs a home folder, and none is known", "name one with --home")
        if not self.live:
            home = os.path.normpath(self.home)
            return Ground(
                "user", root, home, f"{home[1:]}/.local/state/{NAME}", False, f"{home}/.config", f"{home}/.local/share/{NAME}", self.observe
            )  # fmt: skip
        if os.geteuid() == 0 and "SUDO_UID" in os.environ:
            raise RefusedError("changes in a home are made by its user, not through sudo", "run the same command without sudo")
        # Links above the managed folders are the user's own business: resolved once, here. Below, links are refused.
        home = os.path.realpath(self.home)
        config = os.path.realpath(f"{self.home}/.config")
        data = os.path.realpath(self.data_home or f"{self.home}/.local/share")
        state = os.path.realpath(self.state_home or f"{self.home}/.local/state")
        anchor = os.path.commonpath([home, config, data, state])
        inside = os.path.relpath(state, anchor)
        state_path = NAME if inside == "." else f"{inside}/{NAME}"
        return Ground("user", anchor, home, state_path, True, config, f"{data}/{NAME}", self.observe)


@contextlib.contextmanager
def as_owner(ground: Ground) -> Iterator[None]:
    """Work in the home of another root as the user that it belongs to; elsewhere, and for anybody but root, nothing changes.

    As root we left folders there that the user could not write any longer, ~/.config among them. And a journal that lies in a
    user's home can say what it likes: the kernel sees to it that what is done by it is what that user could do.

    Raises:
        RefusedError: the user cannot reach the home from here.
    """
    if ground.scope != "user" or ground.live or os.geteuid() != 0:
        yield
        return
    try:
        with ground.tree().opened(ground.base) as descriptor:
            home: os.stat_result | None = os.fstat(descriptor)
    except FileNotFoundError:
        home = None  # it belongs to nobody yet
    if home is None or home.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        try:
            os.setgroups([home.st_gid])
            os.setegid(home.st_gid)
            os.seteuid(home.st_uid)
            os.stat(f"{ground.host(ground.base)}/.")
        except OSError as error:
            raise RefusedError(
                f"{ground.base} belongs to user {home.st_uid}, who cannot reach it below {ground.anchor}: {error.strerror}",
                "run this as that user on the booted system, or mount it where everybody may look",
            ) from error
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
