"""The verb scan: which chips' code is in libraries, wheels, folders, and what a chip gets from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.common import JsonOption, verb
from rocm_patch.model import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, Image, Known, UsageError

if TYPE_CHECKING:
    from rocm_patch.diagnose.case import Case
    from rocm_patch.images.walk import Candidate
    from rocm_patch.knowledge import Knowledge
    from rocm_patch.report.scan import Chip

Judge = Callable[[Sequence[Image], str, bool], tuple[Image, ...]]
"""Images, a chip and whether kernels shall be listed, to the same images with `safety` filled in for that chip."""
judge: Judge | None = None


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(scan)


@verb
def scan(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Libraries, wheels, folders, environments; without: what is installed.")
    ] = None,
    target: Annotated[str, typer.Option("--for", help="The chip to judge for; without: this machine's card.", metavar="GFX")] = "",
    as_json: JsonOption = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="List the kernels that are unsafe on the chip.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One row a file, not a library.")] = False,
) -> None:
    """Say which GPU code is in libraries and wheels, and whether a card finds its own. Reads only; needs no GPU."""
    from rocm_patch import knowledge
    from rocm_patch.report import documents, words
    from rocm_patch.report import scan as report

    tables = knowledge.load()
    if target and target not in tables.gpus:
        raise UsageError(f"--for {target}: no such chip", f"known are {', '.join(tables.gpus)}")
    for path in paths or ():
        if not os.path.exists(path):
            raise UsageError(f"{path}: there is no such file")
    case = None if paths and target else _case(tables)
    chip = _chip(case, target, tables)
    found = _read(list(paths) if paths else _installed(case))
    if judge is not None and chip is not None:
        found = judge(found, chip.gfx, kernels)
    if as_json:
        documents.show(report.document(found, chip))
    else:
        report.show(found, chip, tables, words.console(), verbose=verbose)
    raise SystemExit(_exit_code(found, chip if target else None))


def _exit_code(found: Sequence[Image], chip: Chip | None) -> int:
    from rocm_patch.images import coverage
    from rocm_patch.report.scan import libraries

    if chip is not None:
        missing = any(coverage.of(rows, chip.gfx, chip.generic).answer == "other" for rows in libraries(found).values())
        if missing or any(image.safety[chip.gfx].certain for image in found if chip.gfx in image.safety):
            return EXIT_PROBLEMS
    return EXIT_INCONCLUSIVE if any(image.unread for image in found) else EXIT_FINE


def _case(tables: Knowledge) -> Case:
    from rocm_patch.diagnose.case import Case
    from rocm_patch.machine import collect
    from rocm_patch.model import Images
    from rocm_patch.root import Root

    return Case(collect(Root("/"), tables, interpreters=[], environment=dict(os.environ)), Images(), None, tables)


def _chip(case: Case | None, target: str, tables: Knowledge) -> Chip | None:
    from rocm_patch.images.coverage import forced
    from rocm_patch.report.scan import Chip

    gfx = target or (case.gfx if case else "")
    if not gfx:
        return None
    places = case.override() if case else None
    value = places.value if places else os.environ.get("HSA_OVERRIDE_GFX_VERSION", "")
    return Chip(gfx, tables.gpus[gfx].generic, value, forced(value) if value else None)


def _installed(case: Case | None) -> list[str]:
    """The torches' folders and the system's ROCm libraries."""
    from rocm_patch import images
    from rocm_patch.root import Root

    if case is None:
        return []
    found = [place for torch in case.rocm_torches for place in images.places(Root("/"), torch)]
    found += [f"{rocm.path}/lib" for rocm in case.machine.rocms if isinstance(rocm.version, Known)]
    return [place for place in found if os.path.isdir(place)]


def _read(paths: Sequence[str]) -> tuple[Image, ...]:
    """All rows, in the order of paths."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from rocm_patch.images import pool, walk
    from rocm_patch.report import words

    tasks: list[Candidate] = list(dict.fromkeys(walk.candidates(paths)))
    rows: dict[str, tuple[Image, ...]] = {}
    bar = Progress(
        BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=words.console(error=True), disable=not sys.stderr.isatty(), transient=True
    )
    with bar:
        line = bar.add_task("", total=sum(task.size for task in tasks))
        for done in pool.scan(tasks):
            rows[done.path] = done.images
            bar.advance(line, done.size)
    return tuple(image for task in tasks for image in rows.get(task.path, ()))
