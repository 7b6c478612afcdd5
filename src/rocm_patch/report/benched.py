"""Words for the bench: a bar while it runs, tables after it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def progress(out: Console) -> Progress:
    """A bar that leaves nothing behind; silent where nobody looks."""
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)


def about(facts: dict[str, Any]) -> str:
    """What is measured, on what."""
    return f"{facts['device']}, torch {facts['torch']}, {facts['dtype']}{'' if facts['blas'] else ', without BLAS'}"


def step(answer: dict[str, Any]) -> str:
    """What was just finished."""
    if "row" in answer:
        row = answer["row"]
        return f"{row['suite']} {row['layer']} {row['direction']}"
    return str(answer["outcome"]["problem"])


def measured(document: dict[str, Any], tables: str, out: Console) -> None:
    """Every layer, the geometric means last. Ratios are times: below 1 the first is faster."""
    out.print(Text(about(document["about"]), style="bold"), soft_wrap=True)
    out.print(tables, soft_wrap=True)
    for row in document["rows"]:
        if row["engine_ms"] is None:
            out.print(Text(f"not served by the engine: {row['suite']} {row['layer']} {row['direction']}: {row['note']}", style="red"), soft_wrap=True)


def tuned(document: dict[str, Any], out: Console) -> None:
    """What is fastest for each problem, by how much, and what must not be used."""
    outcomes = document["outcomes"]
    for outcome in outcomes:
        rows = outcome["rows"]
        best = rows[0] if rows and rows[0]["verdict"] == "ok" else None
        if best is None:
            out.print(Text(f"{outcome['problem']}: nothing measured is right; {outcome['note'] or 'PyTorch decides'}", style="red"), soft_wrap=True)
        else:
            name = ":".join([best["algorithm"], *map(str, best["variant"])])
            known = "" if outcome["measured"] else ", known before"
            out.print(f"{outcome['problem']}: {name} {best['microseconds']:.1f} us{_slower(rows)}{known}", soft_wrap=True)
        for row in rows:
            if row["verdict"] in ("wrong", "crashed", "hung"):
                name = ":".join([row["algorithm"], *map(str, row["variant"])])
                out.print(Text(f"  {row['verdict']}: {name}: {row['error']}", style="yellow"), soft_wrap=True)
    good = len(document["rows"])
    new = sum(1 for outcome in outcomes if outcome["measured"])
    if outcomes:
        out.print(
            f"{good} of {len(outcomes)} problems have a measured choice, {new} of them measured now; kept in {document['stored_in']}", soft_wrap=True
        )


def _slower(rows: list[dict[str, Any]]) -> str:
    """The native path's time beside the best one's."""
    native = next((row["microseconds"] for row in rows if row["algorithm"] == "native" and row["verdict"] == "ok"), None)
    return f" (native {native:.1f} us)" if native and rows[0]["algorithm"] != "native" else ""


def stopped(why: str, out: Console) -> None:
    """Why it could not go on."""
    out.print(Text("stopped: ", style="bold red") + Text(why), soft_wrap=True)
