"""Words for people. Everything goes through one console; in JSON mode talk goes to standard error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocm_patch.errors import RocmPatchError
from rocm_patch.model import Diagnosis, Finding, Known
from rocm_patch.report.receipts import by_nature

if TYPE_CHECKING:
    from rocm_patch.apply import ScopeStatus
    from rocm_patch.changes.kind import Held
    from rocm_patch.diagnose.case import Case
    from rocm_patch.diagnose.standing import Standing
    from rocm_patch.model import Receipt, Trial, Trials
    from rocm_patch.planner import Note

_MARKS = {"problem": ("[problem]", "bold red"), "warning": ("[warning]", "yellow"), "info": ("[info]", "cyan")}
_VERDICTS = {"passed": "green", "skipped": "dim"}


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Door(Console):
    """The one door to the terminal: what files and recordings say may hold control characters, and none gets out."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints, with control characters replaced."""
        super().print(*(_clean(item) for item in objects), **options)


def _clean(item: Any) -> Any:
    if isinstance(item, Text) and _CONTROL.search(item.plain):
        item = item.copy()
        item.plain = _CONTROL.sub("?", item.plain)
    return _CONTROL.sub("?", item) if isinstance(item, str) else item


def console(*, error: bool = False) -> Console:
    """The console; NO_COLOR and a pipe switch colours off by themselves."""
    return _Door(stderr=error, highlight=False, markup=False, emoji=False)


def failure(error: RocmPatchError) -> None:
    """What happened, where, and what to do."""
    out = console(error=True)
    out.print(Text("error: ", style="bold red") + Text(error.what), soft_wrap=True)
    if error.hint:
        out.print(Text("  " + error.hint), soft_wrap=True)


def doctor(case: Case, diagnosis: Diagnosis, out: Console) -> None:
    """The diagnosis: the machine in a few lines, what is wrong and why, what to do, what can be used."""
    machine = case.machine
    for gpu in machine.gpus:
        gfx = gpu.gfx.value if isinstance(gpu.gfx, Known) else "target unknown"
        memory = f", {gpu.memory_bytes.value / 2**30:.0f} GiB" if isinstance(gpu.memory_bytes, Known) and gpu.memory_bytes.value else ""
        out.print(Text(f"{gpu.name} ({gfx}{memory}) at {gpu.pci or 'no PCI address'}", style="bold"), soft_wrap=True)
    for name in machine.other_gpus:
        out.print(f"other GPU: {name}", soft_wrap=True)
    for torch in machine.torches:
        version = torch.version.value if isinstance(torch.version, Known) else "of unknown version"
        coverage = case.coverage(torch)
        holds = ""
        if coverage.targets is not None:
            holds = f", code for {', '.join(sorted(coverage.targets)) or 'no GPU'} ({coverage.how})"
        out.print(f"torch {version} in {torch.site}{holds}", soft_wrap=True)
    for rocm in machine.rocms:
        out.print(f"ROCm {rocm.version.value if isinstance(rocm.version, Known) else '?'} in {rocm.path} (wheels bring their own)", soft_wrap=True)
    kernel = machine.platform.kernel
    place = " ".join(fact.value for fact in (machine.platform.distribution, machine.platform.distribution_version) if isinstance(fact, Known))
    out.print(f"kernel {kernel.value if isinstance(kernel, Known) else '?'}{' on ' + place if place else ''}", soft_wrap=True)
    out.print()
    _verdict(case, diagnosis, out)
    for finding in diagnosis.findings:
        if finding.cause != "folklore_setting":
            _finding(finding, out)
    recipes = [finding for finding in diagnosis.findings if finding.cause == "folklore_setting"]
    if recipes:
        out.print(Text("Settings from recipes, in force here:", style="bold"))
        for finding in recipes:
            mark, style = _MARKS[finding.severity]
            _line(Text(f"{mark} ", style=style) + Text(" ".join(finding.why)), 2, out)
        out.print()
    _remedies(diagnosis.findings, out)
    if case.card:
        out.print("What can be used:", style="bold")
        for name, feature in diagnosis.features.items():
            _line(Text(f"{name}: {feature.answer} - {feature.why}"), 2, out)
    for item in machine.unread:
        out.print(f"could not be read: {item.source} ({item.unknown})", style="yellow", soft_wrap=True)


def _verdict(case: Case, diagnosis: Diagnosis, out: Console) -> None:
    problems = [finding for finding in diagnosis.findings if finding.severity == "problem"]
    for note in diagnosis.notes:
        out.print(f"note: {note}", soft_wrap=True)
    if not case.machine.gpus:
        out.print(Text("Nothing to do here: no AMD GPU was found.", style="bold"))
    elif not case.card and not problems:
        out.print(Text("No RDNA1 or RDNA2 card that this tool is for; nothing was judged.", style="bold"))
    elif problems:
        out.print(Text(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}. The first is the cause to begin with.", style="bold red"))
    elif any(finding.severity == "warning" for finding in diagnosis.findings):
        out.print(Text("Healthy: nothing installed or set here keeps this card from working. Usable, with the warnings below.", style="bold green"))
    else:
        out.print(Text("Healthy: nothing installed or set here keeps this card from working.", style="bold green"))
    out.print()


def _finding(finding: Finding, out: Console) -> None:
    mark, style = _MARKS[finding.severity]
    out.print(Text(f"{mark} ", style=style) + Text(f"{finding.cause} (certainty {finding.certainty:.2f})", style="bold"))
    for line in finding.why:
        _line(Text(line), 4, out)
    if finding.remedies:
        _line(Text("-> " + ", then ".join(advice.id for advice in finding.remedies), style="green"), 4, out)
    out.print()


def _remedies(findings: Iterable[Finding], out: Console) -> None:
    """Each remedy once, whatever it cures; what takes several settings out is told in one line."""
    advice = [item for finding in findings for item in finding.remedies if finding.severity != "info"]
    if not advice:
        return
    out.print(Text("What to do:", style="bold"))
    settings = [item for item in advice if item.id == "drop-setting"]
    told: set[str] = set()
    for item in advice:
        if item.id == "drop-setting" and len(settings) > 1:
            if item.id not in told:
                words = f"Take these {len(settings)} settings out of force with one drop-in of ours; files of your own stay as they are."
                _line(Text("drop-setting: ", style="green") + Text(words), 2, out)
                out.print(Text("    $ rocm-patch plan"), soft_wrap=True)
            told.add(item.id)
            continue
        if item.text in told:
            continue
        told.add(item.text)
        first, *commands = item.text.split("\n")
        _line(Text(f"{item.id}: ", style="green") + Text(first), 2, out)
        for command in commands:
            out.print(Text("    " + command), soft_wrap=True)
        for source in item.evidence[:2]:
            out.print(Text("    seen to work: " + source, style="dim"), soft_wrap=True)
    out.print()


def _line(text: Text, indent: int, out: Console) -> None:
    # rich's own padding fills lines up with blanks, which end up in whatever people paste.
    for line in text.wrap(out, max(out.width - indent, 20)):
        line.rstrip()
        out.print(Text(" " * indent) + line, soft_wrap=True)


def diff(text: str, out: Console) -> None:
    """A unified diff, coloured by line."""
    for line in text.splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "cyan" if line.startswith("@@") else ""
        out.print(Text(line, style=style), soft_wrap=True)


def trial(item: Trial, out: Console) -> None:
    """One line of the running results."""
    worst = max((item.errors[key] / item.bounds[key] for key in item.errors if item.bounds.get(key)), default=None)
    share = f"  error at {worst:.0%} of the bound" if worst is not None else ""
    words = Text(f"{item.verdict:8}", style=_VERDICTS.get(item.verdict, "bold red"))
    out.print(words + Text(f"{item.probe:28} {item.dtype:8} {item.configuration:12} {item.seconds:6.1f} s{share}"), soft_wrap=True)
    if item.detail and item.verdict != "passed":
        _line(Text(item.detail), 10, out)
    for line in item.kernel_log[:3]:
        _line(Text(line, style="dim"), 10, out)


def trials(result: Trials, out: Console) -> None:
    """The closing table: verdicts by configuration."""
    table = Table(title=f"{result.device_name or result.device}: {result.stack}", title_justify="left")
    verdicts = sorted({item.verdict for item in result.trials})
    table.add_column("configuration")
    for verdict in verdicts:
        table.add_column(verdict, justify="right")
    for configuration in dict.fromkeys(item.configuration for item in result.trials):
        counts = [sum(item.configuration == configuration and item.verdict == verdict for item in result.trials) for verdict in verdicts]
        table.add_row(configuration, *(str(count) for count in counts))
    out.print(table)
    for note in result.notes:
        out.print(f"note: {note}", soft_wrap=True)


def receipts(items: Iterable[Receipt], out: Console, root: str = "/") -> None:
    """What a transaction did, and what it still needs; under another root nothing runs that would need it."""
    for item in items:
        out.print(Text(f"{item.outcome}", style="bold") + Text(f"  transaction {item.transaction}" if item.transaction else ""))
        for path in item.changed:
            _line(Text(path), 2, out)
        said = by_nature(item.verified)
        for line in said.verified:
            _line(Text(f"verified: {line}"), 2, out)
        for line in said.notes:
            _line(Text(f"note: {line}"), 2, out)
        for line in said.to_do:
            _line(Text(f"still to do: {line}", style="yellow"), 2, out)
        for path in item.left:
            _line(Text(f"left alone, somebody changed it since: {path}", style="yellow"), 2, out)
        for text in item.differences:
            diff(text, out)
        for line in item.unfinished:
            _line(Text(f"left to do: {line}", style="yellow"), 2, out)
        if item.needs and root == "/":
            words = {"login": "Log out and in again: running programs keep what they have.", "reboot": "Restart the machine."}
            _line(Text(words[item.needs], style="bold"), 2, out)
        if item.undo and item.outcome == "applied":
            out.print(f"  undo without us: sh {root.rstrip('/')}{item.undo}", soft_wrap=True)


def note(item: Note) -> None:
    """What a remedy is worth that somebody named, on stderr, before anything is shown of it."""
    out = console(error=True)
    style = "bold red" if item.status == "harmful" else "bold yellow"
    out.print(Text(f"{item.remedy}: {item.status} on {item.card}", style=style))
    for line in item.said:
        _line(Text(line), 2, out)
    for line in item.instead:
        _line(Text(f"instead: {line}", style="green"), 2, out)


def status(scopes: Iterable[ScopeStatus], held: Mapping[str, Iterable[Held]], others: Iterable[Standing], out: Console) -> None:
    """What is ours, what the running system shows of it, and what somebody else set."""
    for scope in scopes:
        if not scope.readable:
            out.print(f"{scope.scope} scope: the journal belongs to root; `sudo rocm-patch status` shows it")
        elif not scope.transactions:
            out.print(f"{scope.scope} scope: nothing of ours is in force")
        for record in scope.transactions:
            out.print(f"{scope.scope} scope: {record.transaction}: {', '.join(step.remedy for step in record.steps)}", soft_wrap=True)
        for file in scope.files:
            out.print(Text(f"  {file.state:8} {file.path}", style="" if file.state == "as left" else "yellow"), soft_wrap=True)
        for line in held.get(scope.scope, ()):
            answer, style = {True: ("seen", ""), False: ("not seen", "yellow"), None: ("not told", "dim")}[line.holds]
            wanted = "taken away" if line.wanted is None else line.wanted
            found = "" if line.holds or line.found is None else f", there is {line.found!r}"
            why = f" ({line.why})" if line.why else ""
            out.print(Text(f"  {answer:8} {line.name}: {wanted}{found} - {line.where}{why}", style=style), soft_wrap=True)
        if scope.open:
            out.print(Text(f"  half done: {scope.open}; run `rocm-patch recover`", style="bold red"))
    listed = list(others)
    if listed:
        out.print("set by somebody else, left as it is:")
    for item in listed:
        place = f"{item.path} line {item.line}" if item.line else item.path
        style = {"harmful": "red", "no effect": "yellow", "slows": "yellow"}.get(item.does, "")
        out.print(Text(f"  {item.does:10} {item.name}={item.value} - {place}: {item.text}", style=style), soft_wrap=True)
