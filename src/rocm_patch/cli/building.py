"""The verb build: a patched MIOpen, ROCr, HIP or kernel object from source, staged for the `prefix` change."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rocm_patch.cli.common import JsonOption, verb
from rocm_patch.errors import EXIT_FINE, EXIT_REFUSED

EXIT_INTERRUPTED = 130
_PREFIX = "/opt/rocm-patched/current"


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(build)


@verb
def build(
    component: Annotated[str, typer.Argument(metavar="miopen|rocr|hip|kernel", help="What to build.")],
    version: Annotated[str, typer.Option("--version", help="As 6.4.3; without: what is installed.", metavar="V")] = "",
    source: Annotated[
        str, typer.Option("--source", help="A folder, an archive, 'URL.tar.gz#sha256=...', 'REPOSITORY#tag', or apt.", metavar="WHERE")
    ] = "",
    gpu: Annotated[str, typer.Option("--gpu", help="The card's own target.", metavar="GFX")] = "gfx1010",
    prefix: Annotated[str, typer.Option("--prefix", help="What the result calls its home; nothing is written there.", metavar="DIR")] = _PREFIX,
    jobs: Annotated[int, typer.Option("--jobs", help="Without: as many as memory and processors bear.", metavar="N")] = 0,
    patch: Annotated[list[str], typer.Option("--patch", help="Take this patch in; may be given again; 'none' for none.", metavar="ID")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look whether everything is there, and stop.")] = False,
    allow_root: Annotated[bool, typer.Option("--allow-root", help="Build as root; for a throw-away container.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a patched component from source, into a folder of the cache. Checked first, resumable at any point, nothing installed.

    Exit 5: something is missing, a checksum is wrong, a patch does not fit; nothing was built.
    """
    from rocm_patch.report import building, documents, words
    from rocm_patch.root import Root
    from rocm_patch.sources import build as building_flow
    from rocm_patch.sources import build_recipe

    request = building_flow.Request(component, version, source, gpu, os.path.normpath(prefix), jobs, tuple(patch), allow_root)
    plan = building_flow.plan(request, build_recipe.load(), Root("/"), os.environ)
    if dry_run or plan.checks.misses:
        if as_json:
            documents.show(building.document(plan))
        else:
            building.say_plan(plan, words.console())
        raise SystemExit(EXIT_REFUSED if plan.checks.misses else EXIT_FINE)
    if not as_json:
        building.say_plan(plan, words.console())
    try:
        with building.Meter() as meter:
            result = building_flow.run(plan, meter.say, meter.show)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: nothing is installed, what was built stays, and the same command goes on from there\n")
        raise SystemExit(EXIT_INTERRUPTED) from None
    if as_json:
        documents.show(building.document(plan, result))
    else:
        building.say_result(plan, result, words.console())
