"""Exit codes, and the errors that a user can read and act on. Apart from `model`, so that a child that only reads files starts fast."""

from __future__ import annotations

from typing import Final

EXIT_FINE: Final = 0
EXIT_PROBLEMS: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCONCLUSIVE: Final = 3
EXIT_NEEDS_RESTART: Final = 4
EXIT_REFUSED: Final = 5


class RocmPatchError(Exception):
    """Something a user can read and act on; `exit_code` is what the command ends with."""

    exit_code = EXIT_PROBLEMS

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class UsageError(RocmPatchError):
    """The command was called in a way that cannot be meant."""

    exit_code = EXIT_USAGE


class FormatError(RocmPatchError):
    """A file is not what it claims to be. The only error that leaves a parser."""

    exit_code = EXIT_INCONCLUSIVE


class RefusedError(RocmPatchError):
    """A safety gate said no: a foreign edit, changed facts, missing rights."""

    exit_code = EXIT_REFUSED


class KnowledgeError(RocmPatchError):
    """A row of our own tables is wrong; names the table, the row and the key."""
