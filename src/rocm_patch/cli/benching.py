"""The verb of the convolution engine: bench."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rocm_patch.cli.common import JsonOption, case_of, read_input, torch_python, verb
from rocm_patch.cli.probing import NO_TORCH_HINT, NoTorchError
from rocm_patch.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

DTYPES = ("float32", "float16", "bfloat16", "float64")
DIRECTIONS = ("forward", "forward+backward")
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(bench)


def exit_code(document: dict[str, Any], *, tune: bool) -> int:
    """0: the engine served all; 1: not all; 3: nothing was measured."""
    if tune:
        found = [bool(each["rows"]) and each["rows"][0]["verdict"] == "ok" for each in document["outcomes"]]
    else:
        found = [row["engine_ms"] is not None for row in document["rows"]]
    if not found:
        return EXIT_INCONCLUSIVE
    return EXIT_FINE if all(found) else EXIT_PROBLEMS


@verb
def bench(
    python: Annotated[
        str, typer.Option("--python", help="The interpreter whose torch is measured; without it the first that is found.", metavar="PATH")
    ] = "",
    venv: Annotated[str, typer.Option("--venv", help="The environment whose torch is measured.", metavar="DIR")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda (as torch calls AMD cards too).", metavar="NAME")] = "auto",
    suite: Annotated[list[str], typer.Option(help="A network; may be given again; a wrong name lists them. All without it.", metavar="NAME")] = [],  # noqa: B006
    layer: Annotated[str, typer.Option(help="Only layers whose name, SUITE/LAYER, it matches anywhere.", metavar="REGEX")] = "",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES), metavar="NAME")] = "float32",
    direction: Annotated[list[str], typer.Option(help=" or ".join(DIRECTIONS) + "; both without it.", metavar="NAME")] = [],  # noqa: B006
    vendor: Annotated[str, typer.Option(help="Also the vendor's library: yes, no, auto. auto is no on ROCm, where it may hang the card.")] = "auto",
    cpu: Annotated[bool, typer.Option("--cpu", help="Also the processor.")] = False,
    blas: Annotated[bool, typer.Option("--blas/--no-blas", help="Whether the engine may call the vendor's matrix product.")] = True,
    budget: Annotated[float, typer.Option(help="Milliseconds of measured work for each alternative of a layer.", min=0.01)] = 20.0,
    deadline: Annotated[float, typer.Option(help="Seconds of silence after which what runs is taken for hung.", min=1.0)] = 120.0,
    tune: Annotated[bool, typer.Option("--tune", help="Measure the engine's algorithms and keep the best for later.")] = False,
    problems: Annotated[
        str, typer.Option("--from", help="With --tune: a file of problems, one a line, as conv.problems() names them.", metavar="FILE")
    ] = "",
    again: Annotated[bool, typer.Option("--again", help="With --tune: also what was measured before, or crashed.")] = False,
    variants: Annotated[int, typer.Option(help="With --tune: variants of an algorithm that are tried.", min=1)] = 6,
    output: Annotated[str, typer.Option("-o", "--output", help="Write the JSON document to this file.", metavar="FILE")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure the convolution engine on this device against what else there is, or tune it."""
    from rocm_patch import bench as running
    from rocm_patch.report import benched, words

    if problems and not tune:
        raise UsageError("--from goes with --tune")
    _can_be_written(output)
    request = {
        "verb": "tune" if tune else "bench",
        "device": _one_of("--device", device, ("auto", "cpu", "cuda")),
        "dtype": _one_of("--dtype", dtype, DTYPES),
        "vendor": _one_of("--vendor", vendor, ("yes", "no", "auto")),
        "directions": [_one_of("--direction", each, DIRECTIONS) for each in direction] or list(DIRECTIONS),
        "suites": suite,
        "layer": _expression(layer),
        "problems": _named(problems) if problems else None,
        "cpu": cpu,
        "blas": blas,
        "budget_ms": budget,
        "deadline_s": deadline,
        "again": again,
        "most": variants,
    }
    interpreter = _interpreter(python, venv)
    talk = words.console(error=True)
    document: dict[str, Any] = {"schema": 1, "rows": [], "outcomes": []}
    text = stopped = ""
    interrupted = False
    with benched.progress(talk) as bar:
        try:
            for answer in _shown(running.answers(interpreter, request, os.environ), bar, talk):
                document, text, stopped = answer["document"], answer.get("words", ""), answer.get("stopped", "")
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    elif tune:
        benched.tuned(document, words.console())
    elif text:
        benched.measured(document, text, words.console())
    if output:
        _write(output, document)
    if stopped:
        benched.stopped(stopped, talk)
    if interrupted:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED)
    raise SystemExit(EXIT_INCONCLUSIVE if stopped else exit_code(document, tune=tune))


def _shown(answers: Iterator[dict[str, Any]], bar: Progress, talk: Console) -> Iterator[dict[str, Any]]:
    """Moves the bar, or where nobody looks writes a line for each tenth; what remains is the document."""
    from rocm_patch.report import benched

    task, total, done = bar.add_task("starting torch", total=None), 0, 0
    for answer in answers:
        if "total" in answer:
            total = answer["total"]
            bar.update(task, total=total, description=benched.about(answer["about"]))
        elif "at" in answer:
            bar.update(task, description=answer["at"])
        elif "document" in answer:
            yield answer
        else:
            done += 1
            bar.update(task, advance=1, description=benched.step(answer))
            if not talk.is_terminal and total and done * 10 // total > (done - 1) * 10 // total:
                talk.print(f"{done} of {total}: {benched.step(answer)}", soft_wrap=True, markup=False, highlight=False)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{option} {value}: it is one of {', '.join(known)}")
    return value


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"--layer {text}: {error}") from None
    return text


def _named(path: str) -> list[str]:
    lines = [
        line.strip()
        for line in read_input(path, 16 << 20, "one problem a line, as conv.problems() names them").decode("utf-8", "replace").splitlines()
    ]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UsageError(f"{path} names no problem", "write one with: open(FILE, 'w').write('\\n'.join(rocm_patch.conv.problems()))")
    return names


def _interpreter(python: str, venv: str) -> str:
    if python and venv:
        raise UsageError("--python and --venv name the same thing: give one")
    if venv:
        python = os.path.join(venv, "bin", "python")
        if not os.path.exists(python):
            raise UsageError(f"--venv {venv}: there is no {python}")
    found = python or torch_python(case_of("/"))
    if not found:
        raise NoTorchError("no torch was found on this machine, so nothing can be measured", NO_TORCH_HINT)
    return os.path.abspath(found) if os.sep in found else found


def _can_be_written(path: str) -> None:
    """Said before the measuring, which may take hours; UsageError."""
    if not path:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"--output {path}: there is no folder {folder}")
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--output {path}: it cannot be written")


def _write(path: str, document: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1) + "\n")
