"""The one command that most people need: doctor, probe, plan, diff, ask, apply, verify."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from rocm_patch.cli.changing import IndexOption, VenvPythonOption, confirmed, finish, locations_of, plan_of, show_plan, split, steps_of
from rocm_patch.cli.common import PythonOption, RootOption, YesOption, case_of, diagnosis_of, verb
from rocm_patch.cli.probing import NO_TORCH_HINT, exit_code, state_home
from rocm_patch.errors import EXIT_FINE, EXIT_PROBLEMS, EXIT_REFUSED, RocmPatchError
from rocm_patch.model import Known, Trial, Trials

if TYPE_CHECKING:
    from rocm_patch.diagnose.case import Case


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(fix)


@verb
def fix(
    root: RootOption = "/",
    python: PythonOption = [],  # noqa: B006
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop before anything is changed.")] = False,
    probing: Annotated[bool, typer.Option("--probe/--no-probe", help="Run probes before and after.")] = True,
    allow: Annotated[str, typer.Option(help="interactive, or disruptive: also probes that may hang the card.")] = "interactive",
    index_url: IndexOption = "",
    venv_python: VenvPythonOption = "",
) -> None:
    """Diagnose, probe, show what would change, ask, change it, and prove that it helped."""
    from rocm_patch import apply as door
    from rocm_patch.report import words

    out = words.console()
    case = case_of(root, "", python)
    diagnosis = diagnosis_of(case, dated=True)
    words.doctor(case, diagnosis, out)
    if not case.machine.gpus and root == "/":
        return
    if probing:
        case = replace(case, trials=probes(case, root, allow))
        if case.trials is not None:
            diagnosis = diagnosis_of(case, dated=True)
    wanted = steps_of(case, diagnosis, root, remedies=[], values=[], index=index_url, python=venv_python)
    steps, elsewhere = split(wanted, root)
    where = locations_of(root)
    made, shown = plan_of(steps, where)
    show_plan(steps, elsewhere, shown)
    if not steps:
        raise SystemExit(EXIT_FINE if diagnosis.healthy else EXIT_PROBLEMS)
    if dry_run:
        return
    if not confirmed("Change this?", yes):
        sys.stderr.write("nothing was changed\n")
        raise SystemExit(EXIT_REFUSED)
    receipts = door.apply(made, where)
    code = finish(receipts, where, False)
    if all(item.outcome == "already there" for item in receipts) and not diagnosis.healthy:
        out.print("All that we can change is in place, and a problem remains: what is left is in your hands (above).", style="bold")
        raise SystemExit(EXIT_PROBLEMS)
    if root == "/" and any(step.parameters.get("name") for step in steps):
        code = _verify(where.data_home, steps[0].parameters["name"][0], allow, probing) or code
    raise SystemExit(code)


def probes(case: Case, root: str, allow: str, interpreter: str = "", quick: bool = True) -> Trials | None:
    """Probe the torch that matters, or say why not. Under another root nothing is there that could run."""
    from rocm_patch import launch
    from rocm_patch.cli.common import torch_python
    from rocm_patch.probe import run
    from rocm_patch.report import words

    out = words.console()
    if root != "/":
        out.print("no probe: what lies under another root is not run here")
        return None
    chosen = interpreter or torch_python(case)
    if not chosen:
        out.print(f"no probe: no torch was found; {NO_TORCH_HINT}", soft_wrap=True)
        return None
    import os

    def tell(item: Trial | str) -> None:
        if isinstance(item, Trial):
            words.trial(item, out)

    out.print(f"Probing {chosen}:", style="bold", soft_wrap=True)
    # What harms is left out: the probe shall tell what the stack can do once the plan is carried out.
    environment = launch.prepare(case, dict(os.environ)).environment
    trials = run(chosen, quick=quick, allow=allow, state_home=state_home(), environment=environment, progress=tell)  # type: ignore[arg-type]
    words.trials(trials, out)
    return trials


def _verify(data_home: str, name: str, allow: str, probing: bool) -> int:
    """The new environment, looked at from outside and probed."""
    from rocm_patch.report import words

    interpreter = f"{data_home}/rocm-patch/venvs/{name}/bin/python"
    case = case_of("/", "", [interpreter])
    torch = next((item for item in case.machine.torches if item.interpreter == interpreter), None)
    if torch is None or not isinstance(torch.version, Known):
        raise RocmPatchError(f"{interpreter}: the new environment has no torch", "rocm-patch rollback takes it back")
    coverage = case.coverage(torch)
    out = words.console()
    out.print(f"torch {torch.version.value} holds code for {', '.join(sorted(coverage.targets or ())) or 'no GPU'} ({coverage.how})", soft_wrap=True)
    if not probing:
        return 0
    trials = probes(case, "/", allow, interpreter)
    out.print(f"Use it: {interpreter}", style="bold", soft_wrap=True)
    return EXIT_PROBLEMS if trials is not None and exit_code(trials) == EXIT_PROBLEMS else 0
