"""Words and JSON about builds: what will be done, what is missing, how far it is, what came out."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from rocm_patch import codec
from rocm_patch.changes import Locations
from rocm_patch.model import SCHEMA
from rocm_patch.sources.build import Plan, Result
from rocm_patch.sources.build_run import Progress

_PAUSE: Final = 30.0
"""Seconds between two lines of progress where no bar can be drawn."""


def document(plan: Plan, result: Result | None = None) -> dict[str, Any]:
    """The one JSON document of `build`."""
    checks = plan.checks
    return {
        "schema": SCHEMA,
        "component": plan.recipe.component,
        "version": plan.version,
        "installed": plan.installed,
        "recipe": plan.recipe.name,
        "source": codec.encode(plan.origin),
        "gpu": plan.request.gpu,
        "patches": [patch.id for patch in plan.patches],
        "folder": plan.work.folder,
        "jobs": checks.jobs,
        "disk_mib": {"needed": plan.recipe.disk, "free": checks.disk_free},
        "memory_mib": {"one_job": plan.recipe.memory, "free": checks.memory_free},
        "tools": {name: {"path": tool.path, "version": tool.version} for name, tool in checks.tools.items()},
        "misses": [codec.encode(miss) for miss in checks.misses],
        "install": checks.install,
        "notes": list(checks.notes),
        "result": {**codec.encode(result), "plan": command(plan, result)} if result else None,
    }


def command(plan: Plan, result: Result) -> str:
    """What puts the result into use; empty for kernel objects, which are linked into a module before anybody could load them."""
    if plan.recipe.component == "kernel":
        return ""
    given = {"name": plan.recipe.component, "version": plan.version or "local", "sha256": result.digest, "source": result.staged}
    words = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in given.items())
    return f"rocm-patch plan --remedy patched-prefix {words} -o patched.json"


def say_plan(plan: Plan, out: Console) -> None:
    """What will be done."""
    recipe, checks = plan.recipe, plan.checks
    out.print(Text(f"{recipe.component} {plan.version or 'of unknown version'} for {plan.request.gpu}: {recipe.name}", "bold"), soft_wrap=True)
    out.print(Text(f"source: {plan.origin.words}" + (f"; installed is {plan.installed}" if plan.installed else "")), soft_wrap=True)
    patches = ", ".join(patch.id for patch in plan.patches)
    out.print(Text(f"patches: {patches or 'none; `rocm-patch patches list` shows them, --patch takes one in'}"), soft_wrap=True)
    memory = f"{recipe.memory} MiB for each of {checks.jobs} jobs, {checks.memory_free} free"
    out.print(Text(f"disk: {recipe.disk} MiB of {checks.disk_free} free; memory: {memory}"))
    if recipe.minutes:
        out.print(Text(f"time: about {recipe.minutes} minutes on two cores"))
    out.print(Text(f"folder: {plan.work.folder}"), soft_wrap=True)
    for note in checks.notes:
        out.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
    for miss in checks.misses:
        out.print(Text("[to do] ", "bold red") + Text(f"{miss.what}: {miss.remedy}"), soft_wrap=True)
    if checks.install:
        out.print(Text(f"all missing packages: {checks.install}"), soft_wrap=True)


def say_result(plan: Plan, result: Result, out: Console) -> None:
    """What came out."""
    for proven in result.proven:
        words = [f"calls itself {proven.soname}"] if proven.soname else []
        words += [f"code for {', '.join(proven.targets)}"] if proven.targets else ["no device code in it"]
        words += [{"yes": "loads"}.get(proven.loads, proven.loads)]
        out.print(Text(f"{proven.file}: {'; '.join(words)}"), soft_wrap=True)
    if result.reused:
        out.print(Text(f"done before: {', '.join(result.reused)}"))
    out.print(Text(f"staged in {result.staged}; sha256 of its manifest {result.digest}"), soft_wrap=True)
    use = command(plan, result)
    if not use:
        out.print(Text("nothing is installed: objects prove that the patch compiles here; rocm-patch makes no module out of them"), soft_wrap=True)
        return
    out.print(Text(f"nothing is installed yet: {use}"), soft_wrap=True)
    current = f"{Locations.here().data_home}/rocm-patch/prefixes/current"
    for what, line in (
        ("to put it there", "rocm-patch apply patched.json"),
        ("to use it", f"rocm-patch run --prefix {shlex.quote(current)} -- python PROGRAM.py"),
        ("to take it back", "rocm-patch rollback"),
    ):
        out.print(Text(f"{what}: {line}"), soft_wrap=True)


class Meter:
    """Progress on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Bar(*columns, console=self._console, disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._said = 0.0

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, words: str) -> None:
        """A line of talk."""
        self._console.print(Text(words), soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """One more step."""
        left = _time(progress.left)
        self._bar.update(self._task, description=progress.stage, completed=progress.done, total=progress.total, left=left)
        if not sys.stderr.isatty() and time.monotonic() > self._said + _PAUSE:
            self._said = time.monotonic()
            self.say(f"{progress.stage}: {progress.done}/{progress.total}{f', {left}' if left else ''}")


def _time(seconds: float) -> str:
    if seconds < 0:
        return ""
    return f"about {round(seconds / 60)} min left" if seconds >= 90 else f"about {round(seconds)} s left"
