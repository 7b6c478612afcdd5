"""How a user without the rights gets a system-scope change done: sudo, root's own copy, ids and parameters on stdin."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import Final, TypeVar

from rocm_patch import codec
from rocm_patch.changes import privileged
from rocm_patch.changes.places import Ground, Locations
from rocm_patch.errors import EXIT_REFUSED, EXIT_USAGE, FormatError, RefusedError, RocmPatchError, UsageError
from rocm_patch.run import run

T = TypeVar("T")

SUDO: Final = ("/usr/bin/sudo", "/bin/sudo", "/run/wrappers/bin/sudo")
PATIENCE: Final = 24 * 3600.0
"""sudo may wait for a password."""
ANSWER_LIMIT: Final = 64 << 20


def may_write(ground: Ground, paths: Sequence[str]) -> bool:
    """Whether this process can change these paths and keep the journal, without asking anybody."""
    if os.geteuid() == 0:
        return True
    state = f"{ground.anchor.rstrip('/')}/{ground.state}"
    try:
        if os.lstat(state).st_uid != os.geteuid():
            return False
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return all(_folder_is_writable(os.path.dirname(path)) for path in [state, *map(ground.host, paths)])


def _folder_is_writable(path: str) -> bool:
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True)


def has_journal(ground: Ground) -> bool:
    """Whether there is a state folder, seen without opening it."""
    return os.path.lexists(f"{ground.anchor.rstrip('/')}/{ground.state}")


def ask_root(kind: type[T], locations: Locations, zipapp: str, verb: str, *words: str, document: str = "") -> T:
    """Let root's copy do a verb, and read its answer.

    Raises:
        RefusedError: no sudo, sudo said no, or root's side refused.
        RocmPatchError: root's side failed; its own words.
    """
    argv = [privileged.PYTHON, "-I", privileged.check(locations.cache_home, zipapp), verb, "--root", os.path.abspath(locations.root), *words]
    sudo = next((path for path in SUDO if os.access(path, os.X_OK)), None)
    if sudo is None:
        raise RefusedError("this needs root's rights, and there is no sudo", f"as root: {shlex.join(argv)}")
    ended = run(
        [sudo, *argv], stdin=document.encode(), environment=dict(os.environ), timeout=PATIENCE, foreground=True, output_limit=ANSWER_LIMIT
    )  # fmt: skip
    if not ended.out:
        raise RefusedError(f"sudo did not run root's copy (it ended with {ended.code})", f"try: sudo {shlex.join(argv)}")
    try:
        raw = json.loads(ended.out)
    except ValueError as error:
        raise FormatError("root's side did not answer in JSON") from error
    if isinstance(raw, dict) and "error" in raw:
        error_class = {EXIT_REFUSED: RefusedError, EXIT_USAGE: UsageError}.get(ended.code, RocmPatchError)
        raise error_class(str(raw["error"]), str(raw.get("hint", "")))
    answer: T = codec.decode(kind, raw, "root's answer")
    return answer
