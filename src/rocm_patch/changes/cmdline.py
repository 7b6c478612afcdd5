"""Words on the kernel command line: ours are a set of their own, and nobody else's file is edited for them.

stage=trial: one boot of a copy of the default entry with our words; the default stays what it is until `confirm`.
stage=direct: a drop-in for GRUB's generator that only appends to GRUB_CMDLINE_LINUX_DEFAULT, so that entries for repairs
never have our words, and a menu made anew and compared with the old one before it is put in place. With loader entries: a
plugin for kernel-install, and the same words in the entries that are there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Final

from rocm_patch.changes import (
    boot_loaders,
    cmdline_trial,
    cmdline_words,
    entry_files,
    grub_environment,
    grub_generate,
    grub_menu,
    kernel_parameters,
    system_tools,
    systemd_boot_trial,
)  # fmt: skip
from rocm_patch.changes.boot_loaders import Loader
from rocm_patch.changes.cmdline_words import in_force
from rocm_patch.changes.kind import NOTE, TO_DO, Change, Kind, Look, Tables, Unfinished, Work
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import Root, State, Tree

REMEDIES: Final[Mapping[str, str]] = {"iommu-passthrough": "iommu=pt", "amdgpu-kernel-word": ""}
"""Remedy to its word; empty: it has to be given."""
STAGES: Final = ("trial", "direct")
WORD_LIMIT: Final = 64
MODULE: Final = "amdgpu"
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]+(?:=[A-Za-z0-9_.,:=-]+)?")


# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check a step: a word that the tables allow, in a form that nothing on its way reads as more than a word.

    Raises:
        RefusedError: which it is not.
    """
    word, stage = _word(step), step.parameters.get("stage", ())
    if len(stage) > 1 or any(item not in STAGES for item in stage):
        raise RefusedError(f"remedy {step.remedy}: the stage is one of {', '.join(STAGES)}")
    if len(word) > WORD_LIMIT or not _WORD.fullmatch(word):
        raise RefusedError(f"{word!r} is no word that rocm-patch would put on a kernel command line")
    name, _, value = word.partition("=")
    row = tables.settings.get(name)
    if row is None or row.kind not in ("kernel", "module") or not row.may_set or not re.fullmatch(row.may_set, value):
        raise RefusedError(f"{word} is not a word that our tables allow to set")


def _word(step: Step) -> str:
    if step.remedy not in REMEDIES:
        raise RefusedError(f"{step.remedy!r} is no remedy that sets a kernel word")
    given = step.parameters.get("word", ())
    for key in step.parameters:
        if key not in ("word", "stage"):
            raise RefusedError(f"remedy {step.remedy}: a kernel word has no parameter {key!r}")
    default = REMEDIES[step.remedy]
    if len(given) > 1 or (default and given and given[0] != default):
        raise RefusedError(f"remedy {step.remedy}: it is for {default or 'one word'}")
    if not given and not default:
        raise RefusedError(f"remedy {step.remedy}: which word?", "name one: --set word=amdgpu.NAME=VALUE")
    return given[0] if given else default


def _stage(steps: Sequence[Step], ground: Ground) -> str:
    stages = {step.parameters.get("stage", ("trial" if ground.live else "direct",))[0] for step in steps}
    if len(stages) != 1:
        raise RefusedError("all kernel words of one plan go the same way: stage=trial or stage=direct")
    return stages.pop()


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """The drop-in, or the unit of the trial. What is made from grub.cfg is left to `activate`: often only root may read that.

    Raises:
        RefusedError: a loader whose line is not ours to set, with its owner's command; a file of ours that was edited.
    """
    asked = tuple(dict.fromkeys(_word(step) for step in steps))
    permanent, trial = _ours(look)
    new = tuple(word for word in asked if word not in permanent)
    loader, stage = _loader(look.ground, asked), _stage(steps, look.ground)
    if stage == "direct" and not loader.keeps:
        raise _owned(loader, asked)
    _check_parameters(Root(look.ground.anchor), new)
    with contextlib.suppress(PermissionError):
        _check_menu(look.ground, look.tree, loader, [word for word in new if word not in trial], (*permanent, *trial), stage)
    if stage == "trial":
        return cmdline_trial.changes(tuple(dict.fromkeys((*trial, *new))), look)
    path = cmdline_words.file_of(loader)
    now, (data, mode) = look.now(path), cmdline_words.text_of(path, (*permanent, *new))
    drop_in = Change(path, now if now.data == data else State("file", mode, os.geteuid(), os.getegid(), data))
    # The words that become permanent leave the trial; nothing of a trial stays behind.
    return (drop_in, *cmdline_trial.changes(tuple(word for word in trial if word not in asked), look))


def _ours(look: Look) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Our words in force, and those on trial.

    Raises:
        RefusedError: a file of ours is not as we left it.
    """
    for path in cmdline_words.FILES:
        now = look.now(path)
        if now.kind != "absent" and look.journal_read and not look.ours(path):
            raise RefusedError(
                f"{path} is there and is not as rocm-patch left it; it stays as it is",
                f"look at it, and move it away if it is not needed: sudo mv {path} ~/",
            )
    try:
        return cmdline_words.permanent(look.now), cmdline_words.on_trial(look.now)
    except FormatError as error:
        raise RefusedError(
            f"a file of that name is there, and it stays as it is: {error.what}", "look at it, and move it away if it is not needed"
        ) from error


def _loader(ground: Ground, words: Sequence[str]) -> Loader:
    loader = boot_loaders.recognise(Root(ground.anchor))
    if not loader.name.startswith("grub") and loader.name != "systemd-boot":
        raise _owned(loader, words)
    return loader


def _owned(loader: Loader, words: Sequence[str]) -> RefusedError:
    hint = f"its own way: {loader.owners_command(words)}" if loader.command else "add the words by your boot loader's own means"
    if loader.name.startswith("grub") or loader.name == "systemd-boot":
        able = "" if loader.name == "systemd-boot" else ", where GRUB can do that"
        hint += f"; to try them for one start first{able}: --set stage=trial"
    return RefusedError(f"the kernel command line here belongs to {loader.title}; nothing was changed", hint)


def _check_parameters(root: Root, words: Sequence[str]) -> None:
    """A word for amdgpu that its kernel does not take would be ignored, or keep the driver from loading."""
    mine = [word for word in words if word.startswith(f"{MODULE}.")]
    for kernel in kernel_parameters.kernels(root, MODULE) if mine else ():
        module = kernel_parameters.read(root, kernel.version, MODULE)
        for word in mine:
            name, _, value = word.removeprefix(f"{MODULE}.").partition("=")
            kernel_parameters.check(module, name, value)


def _check_menu(ground: Ground, tree: Tree, loader: Loader, words: Sequence[str], ours: Sequence[str], stage: str) -> None:
    """What would stop `activate`, as far as it can be seen now."""
    if not words:
        return
    if stage == "trial":
        try:
            _trial_of(loader).check(ground, tree, loader, words, ours)
        except RefusedError as error:
            if loader.keeps or error.hint != cmdline_trial.DIRECT:
                raise
            raise RefusedError(error.what, f"without a trial: {loader.owners_command(words)}") from error
        return
    if loader.installer:
        entry_files.check(entry_files.read(ground, tree, loader), words, ours, {}, loader)
        return
    menu, block = tree.state(ground.at(loader.menu)), tree.state(ground.at(loader.environment))
    if menu.kind != "file":
        raise RefusedError(f"{loader.menu} is a {menu.kind}; rocm-patch writes over plain files only")
    try:
        values = grub_environment.parse(block.data).values() if block.kind == "file" else {}
        default = grub_menu.default_entry(grub_menu.parse(menu.data), values)
    except FormatError as error:
        raise RefusedError(f"{loader.menu}: {error.what}; nothing was changed") from error
    cmdline_trial.check_line(default, words, ours, loader)


def _trial_of(loader: Loader) -> ModuleType:
    return systemd_boot_trial if loader.name == "systemd-boot" else cmdline_trial


def _words_of(work: Work) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def now(path: str) -> State:
        return work.tree.state(work.ground.at(path))

    return cmdline_words.permanent(now), cmdline_words.on_trial(now)


def also(steps: Sequence[Step], look: Look) -> tuple[str, ...]:
    """What the next start reads: the menu or the entries, or the entry of the trial and the choice of it."""
    loader = boot_loaders.recognise(Root(look.ground.anchor))
    folders = ", ".join(entry_files.folders(look.ground, loader)) if loader.name == "systemd-boot" or loader.installer else ""
    if _stage(steps, look.ground) == "trial":
        if loader.name == "systemd-boot":
            return (f"{folders}: an entry of ours with the words, chosen in the firmware's variables for the next start alone",)
        return (f"{loader.custom}: a copy of the default entry with the words", f"{loader.environment}: that entry, for the next start alone")
    if loader.installer:
        made = f"{folders}: the same words in the entries that are there"
    else:
        made = f"made by the system's own tools: {loader.menu} ({loader.regenerate.split()[0]}); the command is told where they cannot be run"
    ended = bool(cmdline_words.on_trial(look.now)) and loader.name != "systemd-boot"
    return (made, f"{loader.custom}, {loader.environment}: the trial's entry and the choice of it taken out") if ended else (made,)


# ------------------------------------------------------------------ activate


def activate(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """Make the menu or the entries anew, or set up the one boot of the trial; in a rollback, what others made anew with our words in it.

    Raises:
        RefusedError, RocmPatchError: they would change by more than our words, or the generator failed.
    """
    words = tuple(dict.fromkeys(_word(step) for step in steps))
    if work.back:
        return _back(words, {change.path for change in changes}, work)
    loader = boot_loaders.recognise(Root(work.ground.anchor))
    (permanent, trial), made = _words_of(work), list[Change]()
    if set(words) <= set(permanent):
        if loader.installer:
            made += entry_files.generated(permanent, loader, work, systemd_boot_trial.started(work, loader))
        else:
            made += grub_generate.generated(permanent, loader, work)
    if trial:
        if loader.name == "grub" and not made:
            grub_generate.check_current(permanent, loader, work)
        made += _trial_of(loader).begin(work, loader, trial, permanent)
    else:
        made += _trial_of(loader).end(work, loader)
    return tuple(made)


def _back(words: Sequence[str], stale: Container[str], work: Work) -> tuple[Change, ...]:
    """What others made anew with our words in it. What of theirs cannot be read or made is told, and keeps nothing of ours in place."""
    made = list[Change]()
    with _told(work):
        loader = boot_loaders.recognise(Root(work.ground.anchor))
        permanent, _ = _words_of(work)
        with _told(work):
            made += _taken_back(words, permanent, loader, work)
        made += [change for change in _trial_of(loader).end(work, loader) if change.path in stale]
    return tuple(made)


@contextlib.contextmanager
def _told(work: Work) -> Iterator[None]:
    try:
        yield
    except (RocmPatchError, OSError) as error:
        what = error.what if isinstance(error, RocmPatchError) else f"{error.filename}: {error.strerror}"
        work.say(f"the boot menu was not made anew without our words: {what}")


def _taken_back(words: Sequence[str], kept: Sequence[str], loader: Loader, work: Work) -> tuple[Change, ...]:
    if loader.entries:
        return entry_files.taken_back(words, kept, loader, work)
    return grub_generate.generated(words, loader, work) if grub_generate.left_in_menu(words, kept, loader, work) else ()


# ------------------------------------------------------------------ verify


def verify(steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read back what is in place, and say what happens at the next start.

    Raises:
        RocmPatchError: it is not in place.
    """
    if work.back:
        words = [_word(step) for step in steps]
        try:
            return tuple(Unfinished(line) for line in _seen_back(words, work))
        except (RocmPatchError, OSError) as error:
            what = error.what if isinstance(error, RocmPatchError) else f"{error.filename}: {error.strerror}"
            return (Unfinished(f"whether the boot menu still has {' '.join(words)} could not be seen: {what}"),)
    loader = boot_loaders.recognise(Root(work.ground.anchor))
    permanent, trial = _words_of(work)
    said = []
    if permanent:
        said.append(f"{cmdline_words.file_of(loader)}: {' '.join(permanent)}")
        said += entry_files.seen(permanent, loader, work) if loader.installer else grub_generate.seen(permanent, loader, work)
        if not work.ground.live:
            said.append(f"{NOTE}not tried: a trial is for the machine itself; press e in the boot menu to take a word off the line for one start")
    if trial:
        _trial_of(loader).check_chosen(work, loader)
        said.append(f"on trial: the next start, and that one alone, has {' '.join(trial)}")
        said.append(f"{TO_DO}restart. Came up well: rocm-patch confirm. Did not: reset the machine")
    if boot_loaders.fstype(work.ground, loader.menu) == "xfs":
        said.append(f"{TO_DO}/boot is XFS, whose journal GRUB does not read: sudo fsfreeze -f /boot && sudo fsfreeze -u /boot")
    return tuple(said)


def _seen_back(words: Sequence[str], work: Work) -> tuple[str, ...]:
    loader = boot_loaders.recognise(Root(work.ground.anchor))
    permanent, _ = _words_of(work)
    if loader.entries:
        return tuple(entry_files.left(words, permanent, loader, work))
    left = grub_generate.left_in_menu(words, permanent, loader, work)
    return (f"{loader.menu} still has {' '.join(left)}. To be done there: {system_tools.words_for(work.ground, loader.regenerate)}",) if left else ()


# ------------------------------------------------------------------ confirm


def confirm(steps: Sequence[Step], look: Look) -> tuple[Step, ...]:
    """The steps that make permanent what is on trial; none where nothing is.

    Raises:
        RefusedError: the trial was not passed, or the words are not ours to make permanent here.
    """
    permanent, trial = _ours(look)
    if not trial:
        return ()
    cmdline_trial.check_passed(trial, look)
    loader = boot_loaders.recognise(Root(look.ground.anchor))
    if not loader.keeps:
        raise RefusedError(
            f"the trial was passed; but the kernel command line here belongs to {loader.title}",
            f"make it permanent its own way: {loader.owners_command(trial)}; then: rocm-patch rollback",
        )
    mine = [step for step in steps if _word(step) in trial and _word(step) not in permanent]
    return tuple(replace(step, parameters={**step.parameters, "stage": ("direct",)}) for step in {_word(step): step for step in mine}.values())


KIND: Final = Kind(
    "cmdline", ("system",), "reboot", validate, render, activate, verify, confirm=confirm, in_force=in_force, asked_back=True, also=also
)  # fmt: skip
