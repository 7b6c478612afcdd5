"""Verbs that only look: doctor, record, run."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rocm_patch.cli.common import JsonOption, MachineOption, PythonOption, RootOption, case_of, diagnosis_of, verb
from rocm_patch.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, UsageError
from rocm_patch.model import SCHEMA


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command()(doctor)
    app.command()(record)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False})(run)


@verb
def doctor(root: RootOption = "/", machine: MachineOption = "", python: PythonOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Say what is wrong and what to do. Reads only; needs no root."""
    from rocm_patch.report import documents

    case = case_of(root, machine, python)
    diagnosis = diagnosis_of(case, dated=not as_json)
    if as_json:
        documents.show(documents.doctor(case, diagnosis))
    else:
        from rocm_patch.report import words

        words.doctor(case, diagnosis, words.console())
    if not diagnosis.healthy:
        raise SystemExit(EXIT_PROBLEMS)
    raise SystemExit(EXIT_INCONCLUSIVE if case.machine.unread else EXIT_FINE)


@verb
def record(
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write; must not exist yet.", metavar="FILE")],
    root: RootOption = "/",
    python: PythonOption = [],  # noqa: B006
) -> None:
    """Write a redacted recording of this machine, for `doctor --machine FILE` or a report."""
    import getpass
    import socket

    from rocm_patch import __version__, codec
    from rocm_patch.machine import redact
    from rocm_patch.model import Recording

    case = case_of(root, "", python)
    made = Recording(SCHEMA, f"rocm-patch {__version__}", case.machine, case.images)
    redacted = redact.recording(made, (getpass.getuser(), socket.gethostname(), socket.gethostname().partition(".")[0]))
    try:
        with open(output, "x", encoding="utf-8") as stream:
            stream.write(codec.dumps(redacted))
    except FileExistsError:
        raise UsageError(f"{output} exists already", "name another file; nothing is overwritten") from None
    sys.stderr.write(f"written: {output}. User and host names, homes, serials and addresses are left out; read it before you send it.\n")


@verb
def run(
    context: typer.Context,
    python: PythonOption = [],  # noqa: B006
    keep: Annotated[list[str], typer.Option("--keep", help="Leave this variable as it is; may be given again.", metavar="NAME")] = [],  # noqa: B006
    prefix: Annotated[
        str, typer.Option("--prefix", help="Take libraries from this folder first, as the patched-prefix remedy makes it.", metavar="DIR")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be set.")] = False,
) -> None:
    """Run a command under the best configuration known for this card: `rocm-patch run -- python train.py`. Writes nothing."""
    import shutil
    from dataclasses import replace

    from rocm_patch import launch
    from rocm_patch.changes import prefix_reach
    from rocm_patch.diagnose.case import Case
    from rocm_patch.machine import torches
    from rocm_patch.root import Root

    command = context.args[1:] if context.args[:1] == ["--"] else list(context.args)
    if not command:
        raise UsageError("no command", "rocm-patch run -- python train.py")
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"{command[0]}: there is no such program")
    named = [*python, program] if os.path.basename(program).startswith("python") else list(python)
    case = case_of("/", "", named)
    interpreters = {found.interpreter for path in named for found in torches.named(Root("/"), path)}
    own = tuple(torch for torch in case.machine.torches if torch.interpreter in interpreters)
    if own:  # the torch of the command counts; what lies elsewhere on the machine does not
        case = Case(replace(case.machine, torches=own), case.images, case.trials, case.knowledge)
    prepared = launch.prepare(case, dict(os.environ), tuple(keep))
    if prefix:
        sites = tuple(torch.site for torch in case.rocm_torches)
        mine, others = (sites, ()) if own else ((), (*sites, prefix_reach.SYSTEM))  # it need not be a torch
        prepared = launch.with_prefix(prepared, prefix, mine, others, keep)
    for line in (*prepared.changes, *(f"warning: {line}" for line in prepared.warnings)):
        sys.stderr.write(f"rocm-patch: {line}\n")
    if dry_run:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # The command takes our place: no shell, and the environment is the whole point.
    os.execve(program, command, dict(prepared.environment))  # noqa: S606
