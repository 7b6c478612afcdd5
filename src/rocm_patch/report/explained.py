"""An explained log, in words and as a document; and what is known, with its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from rocm_patch import codec
from rocm_patch.knowledge.conditions import recommended, status
from rocm_patch.model import SCHEMA, Finding, Known

if TYPE_CHECKING:
    from rich.console import Console

    from rocm_patch.explain import Explained
    from rocm_patch.knowledge import Knowledge
    from rocm_patch.model import Evidence

_SURE: Final = ((0.9, "almost certain"), (0.75, "likely"), (0.5, "more likely than not"), (0.0, "a guess to begin with"))
_MARKS: Final = {"problem": ("[problem]", "bold red"), "warning": ("[warning]", "yellow"), "info": ("[info]", "cyan")}


def document(answer: Explained) -> dict[str, Any]:
    """The answer as one document; `told` are the facts that it rests on."""
    return {
        "schema": SCHEMA,
        "told": {**answer.told.values, **{f"env.{name}": value for name, value in answer.told.environment.items()}},
        "findings": codec.encode(answer.diagnosis.findings),
        "healthy": answer.diagnosis.healthy,
    }


def say(answer: Explained, used: str, out: Console) -> None:
    """What it means, which lines say so, how sure, what to do and what not to do."""
    cards = ", ".join(f"{gpu.name} ({gpu.gfx.value if isinstance(gpu.gfx, Known) else 'target unknown'})" for gpu in answer.machine.gpus)
    about = [cards or "no card named", *(f"{name} {answer.told.values[name]}" for name in ("torch", "rocm", "kernel") if name in answer.told.values)]
    out.print(Text("; ".join(about) + (f" (facts of {used})" if used else ""), style="bold"), soft_wrap=True)
    findings = answer.diagnosis.findings
    if not findings:
        _unknown(answer, out)
        return
    problems = [item for item in findings if item.severity == "problem"]
    if not problems:
        out.print(Text("Nothing in it is known to be a fault here.", style="bold green"))
    out.print()
    # Beside a fault, what is merely worth knowing would hide it.
    for item in findings:
        if not problems or item.severity != "info":
            _finding(item, out)


def _finding(item: Finding, out: Console) -> None:
    mark, style = _MARKS[item.severity]
    sure = next(words for least, words in _SURE if item.certainty >= least)
    out.print(Text(f"{mark} ", style=style) + Text(f"{item.cause}: {sure} ({item.certainty:.2f})", style="bold"))
    for line in item.why:
        quoted = line.startswith("line ")
        out.print(Text("  > " if quoted else "  ") + Text(line, style="italic" if quoted else ""), soft_wrap=True)
    for number, advice in enumerate(item.remedies[:3], 1):
        out.print(Text(f"  {number}. ", style="green") + Text(advice.text.replace("\n", "\n     ")), soft_wrap=True)
    out.print()


def _unknown(answer: Explained, out: Console) -> None:
    out.print("Nothing known matches. That is no proof that all is well.")
    missing = [name for name in ("gpu", "torch", "kernel") if name not in answer.told.values]
    if missing:
        out.print(f"It may help to say more: {' '.join(f'--given {name}=...' for name in missing)}", soft_wrap=True)
    out.print("To have it looked at, send the log with what `rocm-patch record -o machine.json` writes; names and addresses are left out there.")


def known(knowledge: Knowledge) -> dict[str, Any]:
    """All signatures and remedies, with the status that follows from the evidence."""
    return {
        "schema": SCHEMA,
        "checked": knowledge.checked,
        "signatures": codec.encode(knowledge.signatures),
        "remedies": [
            {**codec.encode(row), "status": status(rows), "recommended": recommended(rows), "evidence": codec.encode(rows)}
            for row in knowledge.remedies.values()
            for rows in [_evidence(knowledge, row.id)]
        ],
    }


def say_known(knowledge: Knowledge, out: Console) -> None:
    """The same in words: what each line means where, and what was seen of each remedy."""
    readings = sum(len(row.readings) for row in knowledge.signatures)
    counts = (len(knowledge.signatures), readings, len(knowledge.remedies), len(knowledge.evidence))
    out.print("{} signatures with {} readings, {} remedies, {} rows of evidence".format(*counts))
    out.print(f"last checked {knowledge.checked}\n")
    for row in knowledge.signatures:
        out.print(Text(row.id, style="bold") + Text(f"  {row.sample[:120]}"), soft_wrap=True)
        for reading in row.readings:
            where = ", ".join((*reading.when.gfx, *reading.when.system, *reading.when.signs)) or "anywhere else"
            out.print(
                Text(f"    {where}: {reading.cause} ({reading.severity}, {reading.certainty:.2f}) -> {', '.join(reading.remedies) or 'nothing'}"),
                soft_wrap=True,
            )
        out.print(Text("    " + " ".join(row.sources), style="dim"), soft_wrap=True)
    out.print()
    for remedy in knowledge.remedies.values():
        rows = _evidence(knowledge, remedy.id)
        out.print(Text(remedy.id, style="bold") + Text(f"  {status(rows)}: {remedy.title}"), soft_wrap=True)
        for item in rows:
            scope = ", ".join(item.when.gfx) or "any card"
            out.print(Text(f"    {item.outcome} ({item.kind}, {scope}, {item.date}): {item.note} {item.source}", style="dim"), soft_wrap=True)


def _evidence(knowledge: Knowledge, remedy: str) -> list[Evidence]:
    return [row for row in knowledge.evidence if row.remedy == remedy]
