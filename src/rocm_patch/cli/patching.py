"""The verbs of source patches: patches list, show, diff, apply, revert."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.common import JsonOption, verb
from rocm_patch.errors import EXIT_REFUSED, RefusedError, UsageError

if TYPE_CHECKING:
    from rocm_patch.sources import Outlook, Patch, Sources

NameArgument = Annotated[str, typer.Argument(metavar="ID", help="As `patches list` names it.")]
SourceOption = Annotated[str, typer.Option("--source", help="The folder of the sources, or one above it.", metavar="DIR")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Source patches for MIOpen, HIP, ROCr and the kernel, on any source tree.")
    for name, function in (("list", _list), ("show", _show), ("diff", _diff), ("apply", _apply), ("revert", _revert)):
        group.command(name)(function)
    app.add_typer(group, name="patches")


@verb
def _list(source: SourceOption = "", as_json: JsonOption = False) -> None:
    """All patches, with the status that follows from their evidence; with --source also whether they fit and are applied."""
    from rocm_patch import sources
    from rocm_patch.report import documents, patching, words

    patches = sources.load()
    tree = sources.Sources(source) if source else None
    outlooks = {name: sources.examine(patch, tree) for name, patch in patches.items()} if tree else {}
    if as_json:
        documents.show(patching.listing(patches.values(), outlooks))
    else:
        patching.say_listing(patches.values(), outlooks, words.console())


@verb
def _show(name: NameArgument, as_json: JsonOption = False) -> None:
    """What a patch does, why, for whom, and what is known of it."""
    from rocm_patch import sources
    from rocm_patch.model import SCHEMA
    from rocm_patch.report import documents, patching, words

    patch = sources.find(name)
    if as_json:
        documents.show({"schema": SCHEMA, "patch": patching.header(patch)})
    else:
        patching.say_patch(patch, words.console())


@verb
def _diff(name: NameArgument, source: SourceOption = "", as_json: JsonOption = False) -> None:
    """The patch as a unified diff for this tree; nothing is written. For `git apply` and the like."""
    from rocm_patch import sources
    from rocm_patch.report import documents, patching

    patch, tree = sources.find(name), _tree(source)
    outlook = sources.examine(patch, tree)
    text = sources.render(outlook)
    if as_json:
        documents.show(patching.document(patch, outlook, outlook.state, text))
    elif outlook.state == "refused":
        _refuse(patch, outlook, as_json, "does not fit")
    else:
        # Bytes, as they are: some of these files have CRLF ends, some are not UTF-8.
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    if outlook.state == "refused":
        raise SystemExit(EXIT_REFUSED)


@verb
def _apply(
    name: NameArgument,
    source: SourceOption = "",
    harmful: Annotated[bool, typer.Option("--harmful", help="Apply it although it is known to do harm.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the edits, all or none. Exit 0: applied, or there already; 5: refused, with the reason."""
    from rocm_patch import sources
    from rocm_patch.report import documents, patching, words

    patch, tree = sources.find(name), _tree(source)
    outlook = sources.examine(patch, tree)
    if patch.status == "harmful" and outlook.state == "ready" and not harmful:
        worst = next(row for row in patch.evidence if row.outcome == "harmful")
        if as_json:
            _refuse(patch, outlook, as_json, "refused: harmful")
        raise RefusedError(f"{patch.id} is harmful: {worst.note} {worst.source}", "--harmful applies it all the same; nobody should need it")
    if outlook.state in ("refused", "foreign"):
        _refuse(patch, outlook, as_json, "refused")
    done = sources.apply(patch, tree)
    outcome = {"applied": "there already", "upstream": "not needed"}.get(done.state, "applied")
    if as_json:
        documents.show(patching.document(patch, done, outcome))
    else:
        patching.say_outlook(patch, done, outcome, words.console())


@verb
def _revert(name: NameArgument, source: SourceOption = "", as_json: JsonOption = False) -> None:
    """Take the edits back, to the byte; also those of other make that a patch knows. Exit 5: nothing of it can be taken back."""
    from rocm_patch import sources
    from rocm_patch.report import documents, patching, words

    patch, tree = sources.find(name), _tree(source)
    done = sources.revert(patch, tree)
    outcome = "reverted" if any(change.current != change.original for change in done.changes) else "nothing to revert"
    if as_json:
        documents.show(patching.document(patch, done, outcome))
    else:
        patching.say_outlook(patch, done, outcome, words.console())


def _tree(source: str) -> Sources:
    from rocm_patch import sources

    if not source:
        raise UsageError("--source DIR: which source tree?", "rocm-patch patches apply miopen-batchnorm-gfx101x --source MIOpen")
    return sources.Sources(source)


def _refuse(patch: Patch, outlook: Outlook, as_json: bool, outcome: str) -> None:
    """End with 5 and the reasons."""
    if as_json:
        from rocm_patch.report import documents, patching

        documents.show(patching.document(patch, outlook, outcome))
        raise SystemExit(EXIT_REFUSED)
    hint = (
        f"rocm-patch patches revert {patch.id} --source ... takes it away"
        if outlook.state == "foreign"
        else f"it is made for {patch.component} {patch.versions}"
    )
    raise RefusedError(f"{patch.id}: {'; '.join(outlook.reasons)}", hint)
