"""The verb that runs things on the GPU: probe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.common import JsonOption, case_of, torch_python, verb
from rocm_patch.errors import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_PROBLEMS, RocmPatchError
from rocm_patch.model import Trials

if TYPE_CHECKING:
    from rocm_patch.model import Trial

NO_TORCH_HINT = (
    "name an interpreter with --python; to get one without a GPU: "
    "python3 -m venv torch-env && torch-env/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu (about 200 MB)"
)


class NoTorchError(RocmPatchError):
    """No interpreter on this machine has a torch."""

    exit_code = EXIT_INCONCLUSIVE


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(probe)


def state_home() -> str:
    """$XDG_STATE_HOME, or its default."""
    told = os.environ.get("XDG_STATE_HOME", "")
    return told if told.startswith("/") else os.path.expanduser("~/.local/state")


def exit_code(trials: Trials) -> int:
    """0: all that ran passed; 1: something did not; 3: nothing ran."""
    verdicts = {trial.verdict for trial in trials.trials}
    if verdicts & {"wrong", "crash", "hang", "stuck", "reset"}:
        return EXIT_PROBLEMS
    return EXIT_FINE if "passed" in verdicts and "error" not in verdicts else EXIT_INCONCLUSIVE


@verb
def probe(
    python: Annotated[
        str, typer.Option("--python", help="The interpreter whose torch is probed; without it the first that is found.", metavar="PATH")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or hip; cuda:1, hip:1 for the second card.")] = "auto",
    only: Annotated[list[str], typer.Option(help="A probe or a kind of work; may be given again.", metavar="ID")] = [],  # noqa: B006
    configuration: Annotated[list[str], typer.Option(help="miopen, winograd-off, miopen-off, cudnn, cudnn-off, cpu.", metavar="ID")] = [],  # noqa: B006
    quick: Annotated[bool, typer.Option("--quick", help="The small set in fp32: under half a minute on a CPU.")] = False,
    allow: Annotated[str, typer.Option(help="interactive, or disruptive: also what may hang the card or reset the machine.")] = "interactive",
    again: Annotated[bool, typer.Option("--again", help="Also what took the machine down before.")] = False,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Keep results that this stack already has since the last boot.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run small work on the GPU, each in a process of its own, and compare values and gradients with the CPU."""
    from rocm_patch.probe import run
    from rocm_patch.report import documents, words

    out = words.console(error=as_json)

    def tell(item: Trial | str) -> None:
        if isinstance(item, str):
            sys.stderr.write(f"{item}\n")
        else:
            words.trial(item, out)

    interpreter = python or torch_python(case_of("/"))
    if not interpreter:
        raise NoTorchError("no torch was found on this machine, so nothing can be probed", NO_TORCH_HINT)
    trials = run(
        interpreter,
        device,
        only=only,
        configurations=configuration,
        quick=quick,
        allow=allow,  # type: ignore[arg-type]  # checked there, with words for the user
        state_home=state_home(),
        progress=tell,
        again=again,
        resume=resume,
    )
    if as_json:
        documents.show(documents.probe(trials))
    else:
        words.trials(trials, out)
    raise SystemExit(exit_code(trials))
