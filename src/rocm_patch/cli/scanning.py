"""The verb scan: which chips' code is in libraries, wheels, folders, and what a chip gets from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.common import JsonOption, verb
from rocm_patch.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, UsageError
from rocm_patch.model import Image, Known

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from rocm_patch.diagnose.case import Case
    from rocm_patch.images.walk import Candidate
    from rocm_patch.knowledge import Knowledge
    from rocm_patch.report.scan import Verified
    from rocm_patch.safety import Chip, Judged


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(scan)


@verb
def scan(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Libraries, wheels, folders, environments; without: what is installed.")
    ] = None,
    target: Annotated[
        str, typer.Option("--for", help="The chip to judge for, as gfx1010 or 'RX 5700'; without: this machine's card.", metavar="GFX")
    ] = "",
    as_json: JsonOption = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="List the kernels that are unsafe on the chip.")] = False,
    targets_only: Annotated[bool, typer.Option("--targets-only", help="Do not judge whether the code is safe: only what is there.")] = False,
    check: Annotated[bool, typer.Option("--verify", help="Decode the code with the newest LLVM on this machine as well, and compare.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Judge everything anew, and keep nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One row a file, not a library; every kernel.")] = False,
) -> None:
    """Say which GPU code is in libraries and wheels, whether a card finds its own, and whether what it would run is safe on it.

    Needs no GPU and no root. What was judged is kept in the cache folder; a scan that was broken off goes on where it stopped.
    """
    from rocm_patch import knowledge, safety
    from rocm_patch.isa import cache
    from rocm_patch.report import documents, words
    from rocm_patch.report import scan as report

    tables = knowledge.load()
    target = _known(target, tables) if target else ""
    for path in paths or ():
        try:
            os.stat(path)
        except OSError as error:
            raise UsageError(f"{path}: {'there is no such file' if isinstance(error, FileNotFoundError) else error.strerror}") from None
    case = None if paths and target else _case(tables)
    chip = _chip(case, target, tables)
    if chip is None and (kernels or check):
        raise UsageError("no AMD card of known target here", "say which chip is meant: --for gfx1010")
    tasks = _tasks(list(paths) if paths else _installed(case))
    before = {task.path: safety.state(task.path) for task in tasks}
    found = _read(tasks)
    judged: list[Judged] = []
    if chip is not None and not targets_only:
        folder = "" if no_cache else cache.folder(os.environ)
        try:
            judged = _judge(found, chip, folder, kernels=kernels)
        except KeyboardInterrupt:
            if folder:
                sys.stderr.write("\nwhat was judged so far is kept: the same command goes on from there")
            raise
        found = safety.summed(found, judged, chip)
        if folder:
            safety.remember(found, chip, folder, before)
    verified = _verify(found, chip) if check and chip else None
    named = [kernel for each in judged for kernel in each.kernels]
    out = words.console()
    if not out.is_terminal:
        out.width = 10_000  # a row stays a line for whoever greps it
    if as_json:
        documents.show(report.document(found, chip, named if kernels else None, verified))
    else:
        if not found:
            out.print(_nothing(paths, chip))
        else:
            report.show(found, chip, tables, out, verbose=verbose)
        if kernels:
            report.show_kernels(named, out, verbose=verbose)
        if verified:
            report.show_verified(verified, out)
    raise SystemExit(_exit_code(found, chip if target else None))


def _exit_code(found: Sequence[Image], chip: Chip | None) -> int:
    from rocm_patch.safety import outlooks

    if chip is not None:
        missing = any(not look.runs and look.how not in ("none", "unread") for look, _ in outlooks(found, chip))
        if missing or any(image.safety[chip.gfx].certain for image in found if chip.gfx in image.safety):
            return EXIT_PROBLEMS
    return EXIT_INCONCLUSIVE if any(image.unread for image in found) else EXIT_FINE


def _nothing(paths: Sequence[str] | None, chip: Chip | None) -> str:
    if paths:
        return "no device code"
    card = f"the card here is a {chip.gfx}" if chip else "no AMD card is here"
    return f"no ROCm torch and no ROCm libraries are installed, and {card}; name what to read: rocm-patch scan PATH --for gfx1010"


def _known(target: str, tables: Knowledge) -> str:
    """The chip that somebody means: a target in any case, an override's number, or a card's name. Raises UsageError."""
    from rocm_patch.images.coverage import base, forced

    wanted = base(target.strip().lower())
    for name in (wanted, forced(target) or ""):
        if name in tables.gpus:
            return name
    letters = wanted.replace(" ", "").removeprefix("amd").removeprefix("radeon")
    sold = {
        gfx: [name for device in row.devices for name in (*device.names, *device.revisions.values())] for gfx, row in tables.gpus.items() if row.scope
    }
    found = [gfx for gfx, names in sold.items() if any(name.lower().replace(" ", "").removeprefix("radeon").startswith(letters) for name in names)]
    if letters and len(found) == 1:
        return found[0]
    if found and letters:
        raise UsageError(f"--for {target}: cards of that name are {', '.join(found)}", "say which")
    raise UsageError(f"--for {target}: no such chip", f"known are {', '.join(tables.gpus)}; an RX 5700 is gfx1010, an RX 6600 gfx1032")


def _case(tables: Knowledge) -> Case:
    from rocm_patch.diagnose.case import Case
    from rocm_patch.machine import collect
    from rocm_patch.model import Images
    from rocm_patch.root import Root

    return Case(collect(Root("/"), tables, interpreters=[], environment=dict(os.environ)), Images(), None, tables)


def _chip(case: Case | None, target: str, tables: Knowledge) -> Chip | None:
    from rocm_patch.safety import chip_of

    gfx = target or (case.gfx if case else "")
    if not gfx:
        return None
    places = case.override() if case else None
    return chip_of(gfx, places.value if places else os.environ.get("HSA_OVERRIDE_GFX_VERSION", ""), tables)


def _installed(case: Case | None) -> list[str]:
    """The torches' folders and the system's ROCm libraries."""
    from rocm_patch.images import installed
    from rocm_patch.root import Root

    if case is None:
        return []
    found = [place for torch in case.rocm_torches for place in installed.places(Root("/"), torch)]
    found += [f"{rocm.path}/lib" for rocm in case.machine.rocms if isinstance(rocm.version, Known)]
    return [place for place in found if os.path.isdir(place)]


@contextmanager
def _bar(what: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from rocm_patch.report import words

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=words.console(error=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        yield progress, progress.add_task(what, total=total)


def _tasks(paths: Sequence[str]) -> list[Candidate]:
    """Files to read; one that is named twice, or also through a link, is one file."""
    from rocm_patch.images import walk

    return list({os.path.realpath(task.path): task for task in walk.candidates(paths)}.values())


def _read(tasks: Sequence[Candidate]) -> tuple[Image, ...]:
    """All rows, in the order of files."""
    from rocm_patch.images import pool

    rows: dict[str, tuple[Image, ...]] = {}
    with _bar("reading", sum(task.size for task in tasks)) as (progress, line):
        for done in pool.scan(tasks):
            rows[done.path] = done.images
            progress.advance(line, done.size)
    return tuple(image for task in tasks for image in rows.get(task.path, ()))


def _judge(found: Sequence[Image], chip: Chip, folder: str, *, kernels: bool) -> list[Judged]:
    from rocm_patch import safety

    judged = []
    with _bar(f"judging for {chip.gfx}", safety.size(found, chip)) as (progress, line):
        for each in safety.judge(found, chip, folder, kernels=kernels):
            judged.append(each)
            progress.advance(line, each.size)
    # Children answer as they end; what is shown has an order.
    return sorted(judged, key=lambda each: (each.path, each.member, each.inside, each.target))


def _verify(found: Sequence[Image], chip: Chip) -> Verified:
    from rocm_patch import safety
    from rocm_patch.isa import llvm
    from rocm_patch.report.scan import Verified

    libraries = llvm.find()
    if not libraries:
        raise UsageError("no LLVM found to compare with", f"install one, or name its shared library: {llvm.VARIABLE}=/path/to/libLLVM.so")
    verified = Verified(libraries[0].path)
    with _bar(f"decoding with LLVM {libraries[0].version or ''}", safety.size(found, chip)) as (progress, line):
        for path, said in safety.verify(found, chip, libraries[0].path):
            verified.add(path, said)
            progress.advance(line, int(str(said.get("bytes", 0))))
    return verified
