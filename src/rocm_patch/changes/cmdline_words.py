"""Our words: which file of ours holds them on which loader, and whether the running kernel has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rocm_patch.changes import cmdline_trial, grub_drop_in, install_plugin
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.kind import Held, Look
from rocm_patch.errors import FormatError
from rocm_patch.model import Step
from rocm_patch.root import Root, State

FILES: Final = (grub_drop_in.PATH, install_plugin.PATH, cmdline_trial.UNIT)
"""Each is ours as a whole or not at all."""
Now = Callable[[str], State]


def file_of(loader: Loader) -> str:
    """The drop-in that makes words permanent on this loader."""
    return install_plugin.PATH if loader.installer else grub_drop_in.PATH


def text_of(path: str, words: Sequence[str]) -> tuple[bytes, int]:
    """The drop-in's bytes and its mode."""
    return (install_plugin.text_of(words), 0o755) if path == install_plugin.PATH else (grub_drop_in.text_of(words), 0o644)


def permanent(now: Now) -> tuple[str, ...]:
    """The words of our drop-ins.

    Raises:
        FormatError: one is not as we write it.
    """
    return tuple(dict.fromkeys((*grub_drop_in.parse(now(grub_drop_in.PATH)), *install_plugin.parse(now(install_plugin.PATH)))))


def on_trial(now: Now) -> tuple[str, ...]:
    """The words on trial.

    Raises:
        FormatError: the trial's unit is not as we write it.
    """
    return cmdline_trial.unit_words(now(cmdline_trial.UNIT))


def in_force(_steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Each word of ours, and whether the running kernel has it."""
    try:
        kept, trial = permanent(look.now), on_trial(look.now)
    except FormatError:
        return ()
    found = list[Held]()
    answer = Root("/").text("proc/cmdline", 1 << 16) if look.ground.live else None
    line = (getattr(answer, "value", None) or "").split()
    for word in (*kept, *trial):
        name, _, value = word.partition("=")
        last = next((other.partition("=")[2] for other in reversed(line) if other.partition("=")[0] == name), None)
        why = ""
        if word in trial:
            why = (
                "on trial; to keep it: rocm-patch confirm"
                if word in line
                else "on trial at the next start, if there was none since; else it did not come up"
            )
        elif look.ground.live and word not in line:
            why = "after a restart"
        holds = word in line if look.ground.live else None
        found.append(Held(name, value, last, "/proc/cmdline", holds, why or ("" if look.ground.live else "is seen once that system runs")))
    return tuple(found)
