"""The verb that copies a library without the hints that can hang a card: sanitize."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rocm_patch.cli.common import JsonOption, case_of, verb
from rocm_patch.errors import RefusedError, UsageError

_FAMILY = "gfx1030"
"""Whose code an RDNA1 card loads under the override that people use."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(sanitize)


@verb
def sanitize(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A library with device code, an offload bundle or a code object.")] = "",
    chip: Annotated[str, typer.Option("--for", help="The chip that shall run it; without it the card of this machine.", metavar="CHIP")] = "",
    code: Annotated[
        str,
        typer.Option("--code", help="The target whose code it loads; without it what the override in force says, else gfx1030.", metavar="TARGET"),
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="The folder for copy and record; with --undo the file to write.", metavar="DIR|FILE")
    ] = "",
    undo: Annotated[str, typer.Option("--undo", help="Write the original again, from this record and the copy beside it.", metavar="RECORD")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be edited.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a library with s_inst_prefetch replaced by s_nop, where that cures all of it. Untested on hardware; loads and installs nothing."""
    if bool(file) == bool(undo):
        raise UsageError("either a FILE or --undo RECORD", "rocm-patch sanitize --for gfx1010 FILE")
    if undo:
        if not output or chip or code or dry_run:
            raise UsageError("--undo goes with -o FILE and nothing else", "rocm-patch sanitize --undo RECORD -o FILE")
        _undo(undo, output, as_json)
    else:
        _sanitize(file, *_targets(chip, code), output, dry_run, as_json)


def _sanitize(path: str, chip: str, code: str, output: str, dry_run: bool, as_json: bool) -> None:
    """`code` is empty where nothing says that the chip shall pass for another."""
    from rocm_patch import __version__, knowledge, sanitize
    from rocm_patch.cli.changing import locations_of
    from rocm_patch.images.coverage import loadable
    from rocm_patch.report import documents, sanitized, words

    rows = knowledge.load().gpus
    generic, own = (row.generic if (row := rows.get(name)) else "" for name in (code or _FAMILY, chip))
    forced, code = bool(code), code or _FAMILY
    with sanitize.opened(path) as source:
        view = sanitize.outlook(source, path, chip, code, generic)
        native = tuple(target for target in view.found.targets if loadable(target, chip, own))
        if native and not forced and not view.found.unread:
            if as_json:
                documents.show(sanitized.document(os.path.abspath(path), chip, code, view, None, native, spared=True))
            else:
                sanitized.spared(path, native, words.console())
            return
        made = None
        if view.edits and not dry_run:
            folder = os.path.abspath(output) if output else sanitize.default_folder(locations_of("/").data_home, source)
            made = sanitize.make(source, path, view, (chip, code, generic), folder, tool=f"rocm-patch {__version__}")
    if as_json:
        documents.show(sanitized.document(os.path.abspath(path), chip, code, view, made, native))
    if view.reasons:
        raise RefusedError(*sanitized.refusal(path, chip, code, view, native))
    if as_json:
        return
    out = words.console()
    if not view.edits:
        sanitized.nothing(path, chip, code, view, out)
        return
    sanitized.edits(view, out)
    if made:
        sanitized.written(made, out)


def _undo(record_path: str, output: str, as_json: bool) -> None:
    from rocm_patch import sanitize
    from rocm_patch.model import SCHEMA
    from rocm_patch.report import documents, sanitized, words

    record = sanitize.undo(record_path, os.path.abspath(output))
    if as_json:
        known = {"size": record.before.size, "sha256": record.before.sha256}
        documents.show({"schema": SCHEMA, "outcome": "restored", "source": record.source, "file": os.path.abspath(output), **known})
    else:
        sanitized.restored(record, output, words.console())


def _targets(chip: str, code: str) -> tuple[str, str]:
    """The chip, and whose code it loads: as asked, else as this machine is, else empty."""
    if chip:
        return chip, code
    case = case_of("/")
    if not case.gfx:
        raise UsageError("no RDNA1 or RDNA2 card was found here", "name the chip: --for gfx1010")
    override = case.override()
    return case.gfx, code or (override.target if override and override.target else "")
