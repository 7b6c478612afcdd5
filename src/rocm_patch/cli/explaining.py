"""The verb that explains a log: explain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.common import JsonOption, MachineOption, case_of, read_input, verb
from rocm_patch.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, UsageError

if TYPE_CHECKING:
    from rocm_patch.explain import Explained
    from rocm_patch.knowledge import Knowledge
    from rocm_patch.logs.facts import Told
    from rocm_patch.model import Recording

_LIMIT = 64 << 20


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(explain)


@verb
def explain(
    file: Annotated[str, typer.Argument(help="A log; - or nothing: standard input.", metavar="[FILE|-]")] = "-",
    given: Annotated[
        list[str],
        typer.Option("--given", help="A fact: gfx=gfx1010, torch=2.5.1+rocm6.2, env.NAME=VALUE ...; may be given again.", metavar="NAME=VALUE"),
    ] = [],  # noqa: B006
    machine: MachineOption = "",
    here: Annotated[
        bool, typer.Option("--here/--not-here", help="Use this machine's facts where neither the log nor --given names a card or a torch.")
    ] = True,
    batch: Annotated[bool, typer.Option("--batch", help="JSON lines on standard input, one answer a line on standard output.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print what is known, with its evidence, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an error log means on a card, and what to do. Reads only, asks nobody."""
    from rocm_patch import knowledge

    tables = knowledge.load()
    if listing:
        _list(tables, as_json)
    elif batch:
        if given or machine or file != "-":
            raise UsageError("--batch reads its facts from each line", 'one object a line: {"id": ..., "log": "...", "given": {...}}')
        _batch(tables)
    else:
        _one(tables, file, _facts(given), machine, here, as_json)


def _batch(tables: Knowledge) -> None:
    import gc

    from rocm_patch.explain import batch

    # The tables live until the end: to look through them for garbage again and again would cost a tenth.
    assert tables.finder.index  # noqa: S101  # made before, so that it is left alone as well
    gc.freeze()
    write, encode = sys.stdout.write, json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
    for answer in batch(sys.stdin.buffer, tables):
        write(encode(answer) + "\n")
    raise SystemExit(EXIT_FINE)


def _facts(pairs: list[str]) -> Told:
    from rocm_patch.logs.picture import given

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--given {pair}: NAME=VALUE was expected", "--given gfx=gfx1010")
    return given(dict(pair.split("=", 1) for pair in pairs))


def _one(tables: Knowledge, file: str, given: Told, machine: str, here: bool, as_json: bool) -> None:
    from rocm_patch import codec, explain
    from rocm_patch.logs import text
    from rocm_patch.model import Recording

    data = sys.stdin.buffer.read(_LIMIT) if file == "-" else read_input(file, _LIMIT, "name a log file, or pipe one in")
    shown = text.decode(data)
    base: Recording | None = None
    if machine:
        base = codec.loads(Recording, read_input(machine, _LIMIT, "make one with: rocm-patch record -o FILE"), machine)
    answer = explain.explain(shown, given, tables, base)
    used = ""
    if base is None and here and not answer.machine.gpus and not answer.machine.torches:
        found = _this_machine()
        if found.machine.gpus:
            answer, used = explain.explain(shown, given, tables, found), "this machine"
    answer = explain.without(_names(), answer)
    _show(answer, used, as_json)


def _this_machine() -> Recording:
    from rocm_patch.model import SCHEMA, Recording

    case = case_of("/")
    return Recording(SCHEMA, "", case.machine, case.images)


def _names() -> Iterator[str]:
    import getpass
    import socket

    host = socket.gethostname()
    yield from (host, host.partition(".")[0])
    try:
        yield getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return


def _show(answer: Explained, used: str, as_json: bool) -> None:
    from rocm_patch.report import documents, explained

    if as_json:
        documents.show(explained.document(answer))
    else:
        from rocm_patch.report import words

        explained.say(answer, used, words.console())
    if not answer.diagnosis.healthy:
        raise SystemExit(EXIT_PROBLEMS)
    raise SystemExit(EXIT_FINE if answer.diagnosis.findings else EXIT_INCONCLUSIVE)


def _list(tables: Knowledge, as_json: bool) -> None:
    from rocm_patch.report import documents, explained

    if as_json:
        documents.show(explained.known(tables))
    else:
        from rocm_patch.report import words

        explained.say_known(tables, words.console())
