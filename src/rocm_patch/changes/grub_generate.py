"""grub.cfg made anew by the system's own generator: checked by GRUB's parser, compared with the one in place, and not yet put there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rocm_patch.changes import boot_loaders, cmdline_trial, grub_compare, grub_environment, grub_menu, system_tools
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.grub_compare import Compared
from rocm_patch.changes.kind import TO_DO, Change, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.root import State
from rocm_patch.run import CLEAN

TIMEOUT: Final = 300.0
"""Seconds for grub-mkconfig: os-prober mounts every partition that it finds."""
READS: Final = ("/etc/default/grub", boot_loaders.DROP_INS, "/etc/grub.d")
_LANGUAGE: Final = re.compile(rb"^[ \t]*set lang=([A-Za-z_]{1,16})[ \t\r]*$", re.MULTILINE)


def left_in_menu(words: Sequence[str], kept: Sequence[str], loader: Loader, work: Work) -> list[str]:
    """After a rollback: our words in a menu that somebody made anew while our drop-in was there."""
    menu = work.tree.state(work.ground.at(loader.menu)) if loader.menu else State("absent")
    if menu.kind != "file" or b"linux" not in menu.data:
        return []
    try:
        there = {word for entry in grub_menu.parse(menu.data).every() if entry.kernel and not entry.recovery for word in entry.kernel.values}
    except FormatError:  # a menu that no generator writes must not keep our own files in place: its kernel lines say enough
        lines = [line.split() for line in menu.data.decode("utf-8", "replace").splitlines()]
        kernels = [line[1:] for line in lines if line and line[0] in grub_menu.KERNEL_COMMANDS]
        there = {word.strip("'\"") for line in kernels if not grub_menu.RECOVERY_WORDS.intersection(line) for word in line}
    return [word for word in words if word in there and word not in kept]


def generated(words: Sequence[str], loader: Loader, work: Work) -> tuple[Change, ...]:
    """grub.cfg as the system's own generator makes it now, checked, compared with the one in place."""
    why = why_not(loader, work.ground)
    if why:
        if work.ground.live:
            raise RefusedError(f"{loader.menu} cannot be made anew: {why}; nothing was changed")
        work.say(f"{loader.menu} was not made anew ({why}); there: {system_tools.words_for(work.ground, loader.regenerate)}")
        return ()
    old, data, compared = _made(words, loader, work)
    if not work.back:
        values = block_values(loader, work)
        default = grub_menu.default_entry(grub_menu.parse(data), values)
        if default.title not in compared.titles:
            raise RefusedError(
                f"the menu made anew has no {' '.join(words)} in its default entry {default.title!r}: something after our file takes it away"
            )
    return (Change(loader.menu, State("file", old.mode, old.uid, old.gid, data, "", old.attributes)),)


def check_current(words: Sequence[str], loader: Loader, work: Work) -> None:
    """Before a trial: the menu in place is what its generator makes today, but for our words. Else a passed trial could not be kept.

    Raises:
        RefusedError: it is not, with the difference.
    """
    if not why_not(loader, work.ground):
        _made(words, loader, work)


def _made(words: Sequence[str], loader: Loader, work: Work) -> tuple[State, bytes, Compared]:
    old = work.tree.state(work.ground.at(loader.menu))
    # To standard output: with -o it would write over the live file by cutting it off first.
    ended = system_tools.run_there(work.ground, [loader.generator], timeout=TIMEOUT, keep=[work.lock], environment=_speaking(old.data))
    if ended.code != 0 or not ended.out:
        raise RocmPatchError(f"{loader.generator} failed ({ended.code}): {ended.err.decode('utf-8', 'replace').strip()[-500:]}")
    cmdline_trial.check_room(work.ground, loader, len(ended.out))
    cmdline_trial.check_script(work, loader, ended.out)
    compared = grub_compare.compare(old.data, ended.out, words, system_tools.words_for(work.ground, loader.regenerate))
    return old, ended.out, compared


def _speaking(menu: bytes) -> dict[str, str]:
    """The environment of a generator that shall speak the language of the menu in place: titles and `lang` come from it.

    A menu made in English beside one made in German differed in every title.
    """
    found = _LANGUAGE.search(menu)
    return {"PATH": CLEAN["PATH"], **({"LANG": f"{found[1].decode()}.UTF-8"} if found else {})}


def seen(words: Sequence[str], loader: Loader, work: Work) -> list[str]:
    """What the menu in place has now, for the receipt."""
    if why := why_not(loader, work.ground):
        return [f"{TO_DO}{loader.menu} was not made anew ({why}). To be done there: {system_tools.words_for(work.ground, loader.regenerate)}"]
    entries = [entry for entry in grub_menu.parse(work.tree.state(work.ground.at(loader.menu)).data).every() if entry.kernel]
    have = [entry for entry in entries if entry.kernel and set(words) <= set(entry.kernel.values)]
    spared = [entry for entry in entries if entry.recovery and entry not in have]
    return [f"{loader.menu}: {len(have)} entries have {' '.join(words)}, {len(spared)} entries for repairs have not"]


def why_not(loader: Loader, ground: Ground) -> str:
    """Why the menu cannot be made anew from here; empty: it can."""
    if not loader.generator or not loader.checker:
        return "its generator is not there"
    return system_tools.why_not(ground, [loader.generator, loader.checker], READS)


def block_values(loader: Loader, work: Work) -> dict[str, str]:
    """The variables of GRUB's environment block; none where there is no block."""
    block = work.tree.state(work.ground.at(loader.environment))
    return grub_environment.parse(block.data).values() if block.kind == "file" else {}
