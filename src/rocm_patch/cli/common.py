"""What the verbs share: their common options, the case they are about, and one place where errors become words."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rocm_patch.errors import EXIT_PROBLEMS, EXIT_REFUSED, RefusedError, RocmPatchError, UsageError
from rocm_patch.model import Known, Machine

if TYPE_CHECKING:
    from rocm_patch.diagnose.case import Case
    from rocm_patch.model import Trials
    from rocm_patch.root import Root

F = TypeVar("F", bound=Callable[..., Any])

RootOption = Annotated[str, typer.Option("--root", help="Look at the system under this folder instead of the running one.", metavar="DIR")]
MachineOption = Annotated[str, typer.Option("--machine", help="Look at a recording made by `rocm-patch record`.", metavar="FILE")]
PythonOption = Annotated[
    list[str], typer.Option("--python", help="Look into this interpreter's torch as well, first; may be given again.", metavar="PATH")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def verb(function: F) -> F:
    """Turn our errors into words and exit codes; a surprise says where it happened, and the trace is there on demand."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except RocmPatchError as error:
            from rocm_patch.report import words

            words.failure(error)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted\n")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # Whoever read us has gone; a second complaint at interpreter exit would be noise.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(EXIT_PROBLEMS) from None
        except PermissionError as error:
            from rocm_patch.report import words

            hint = "do it as the user to whom it belongs; changes below /etc of the running system go through sudo by themselves"
            words.failure(RefusedError(f"no right to do this: {error.filename or function.__name__}", hint))
            raise SystemExit(EXIT_REFUSED) from None
        except OSError as error:
            from rocm_patch.report import words

            if os.environ.get("ROCM_PATCH_TRACE"):
                raise
            words.failure(RocmPatchError(f"{error.filename or function.__name__}: {error.strerror or error}", "ROCM_PATCH_TRACE=1 shows where"))
            raise SystemExit(EXIT_PROBLEMS) from None
        except Exception as error:
            if os.environ.get("ROCM_PATCH_TRACE"):
                raise
            from rocm_patch.report import words

            place = _place(error)
            words.failure(
                RocmPatchError(f"this is a defect of rocm-patch: {type(error).__name__} in {place}: {error}", "ROCM_PATCH_TRACE=1 shows the trace")
            )
            raise SystemExit(EXIT_PROBLEMS) from None

    return guarded  # type: ignore[return-value]


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"


def root_of(path: str) -> Root:
    """The root that was named; UsageError if it is no folder."""
    from rocm_patch.root import Root

    if not os.path.isdir(path):
        raise UsageError(f"--root {path}: there is no such folder")
    return Root(path)


def read_input(path: str, limit: int, hint: str) -> bytes:
    """A file that the user named. UsageError for anything but a readable regular file: a FIFO would wait for ever."""
    from rocm_patch.model import Unknown
    from rocm_patch.root import Root

    answer = Root("/").read(os.path.abspath(path), limit)
    if isinstance(answer, Unknown):
        raise UsageError(f"{path}: {answer.unknown}", hint)
    if answer.value is None:
        raise UsageError(f"{path}: there is no such file", hint)
    return answer.value


def case_of(root: str, machine: str = "", python: list[str] | None = None, trials: Trials | None = None) -> Case:
    """Collect, scan and put together what the rules ask about."""
    from rocm_patch import codec, knowledge
    from rocm_patch.diagnose.case import Case
    from rocm_patch.images import installed
    from rocm_patch.machine import collect
    from rocm_patch.model import Recording

    tables = knowledge.load()
    if machine:
        if root != "/" or python:
            raise UsageError("--machine goes without --root and --python: a recording holds what was found")
        recording = codec.loads(Recording, read_input(machine, 64 << 20, "make one with: rocm-patch record -o FILE"), machine)
        return Case(recording.machine, recording.images, trials, tables)
    place = root_of(root)
    for path in python or []:
        if not place.exists(path) and not os.path.exists(path):
            raise UsageError(f"--python {path}: there is no such file")
    found: Machine = collect(place, tables, interpreters=python or [], environment=dict(os.environ) if place.live else None)
    case = Case(found, installed.scan(place, found, tables), trials, tables)
    return _with_safety(case) if place.live and case.gfx and case.images.files else case


def _with_safety(case: Case) -> Case:
    """What an earlier `scan` found of the same files: judging them now would take minutes."""
    from rocm_patch import safety
    from rocm_patch.diagnose.case import Case
    from rocm_patch.isa import cache
    from rocm_patch.model import Images

    places = case.override()
    chip = safety.chip_of(case.gfx, places.value if places else "", case.knowledge)
    known = safety.recall(case.images.files, chip, cache.folder(os.environ))
    return Case(case.machine, Images(known), case.trials, case.knowledge)


def diagnosis_of(case: Case, *, dated: bool = False) -> Any:
    """The diagnosis; `dated` adds a word about the age of our tables."""
    from datetime import date

    from rocm_patch.diagnose import diagnose

    return diagnose(case.machine, case.images, case.knowledge, case.trials, date.today() if dated else None)


def torch_python(case: Case) -> str:
    """The interpreter of the torch that matters most on this machine; empty without one."""
    for torch in (*case.rocm_torches, *case.machine.torches):
        if isinstance(torch.version, Known):
            return torch.interpreter
    return ""
