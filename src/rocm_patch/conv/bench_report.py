"""What measured layers say together: geometric means, worst layers, tables in words and JSON. Nothing is printed here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .bench import DIRECTIONS, Row

COMPARISONS = (("engine", "vendor"), ("engine", "native"), ("native", "vendor"), ("engine", "cpu"))


def ratio(row: Row, ours: str, theirs: str) -> float | None:
    """Time of one alternative in units of another's; None where either is missing."""
    over, under = getattr(row, f"{ours}_ms"), getattr(row, f"{theirs}_ms")
    return over / under if over is not None and under else None


def geometric_mean(values: Iterable[float]) -> float | None:
    """None for no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def mean_ratio(rows: Iterable[Row], ours: str, theirs: str) -> float | None:
    """Geometric mean of a ratio over the rows that have it; each shape of a suite counts once, however often its network has it."""
    return geometric_mean(value for row in rows if (value := ratio(row, ours, theirs)) is not None)


def worst(rows: Iterable[Row], ours: str, theirs: str, count: int) -> list[tuple[float, Row]]:
    """The rows with the largest ratio, largest first."""
    found = [(value, row) for row in rows if (value := ratio(row, ours, theirs)) is not None]
    return sorted(found, key=lambda pair: -pair[0])[:count]


def comparisons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The pairs of alternatives that these rows can compare."""
    return [pair for pair in COMPARISONS if any(ratio(row, *pair) is not None for row in rows)]


def table(head: Sequence[str], body: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Aligned columns, those of numbers to the right."""
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    right = [all(_numeric(line[column]) for line in body) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(line, widths, right, strict=True)]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    return "\n".join([text(head), *([f"| {' | '.join(rule)} |"] if markdown else []), *(text(line) for line in body)])


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("-")[:1].isdigit()


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def layers_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """Every row: times, the ratios that can be had, rates, the engine's algorithm and extra memory."""
    pairs = comparisons(rows)
    times = [name for name in ("engine", "vendor", "native", "cpu") if any(getattr(row, f"{name}_ms") is not None for row in rows)]
    with_engine = "engine" in times
    rates = [name for name in times if name != "cpu"]
    head = [
        "suite",
        "layer",
        "direction",
        "GFLOP",
        *(f"{name} ms" for name in times),
        *(f"{a}/{b}" for a, b in pairs),
        *(f"{n} TFLOP/s" for n in rates),
    ]
    head += ["algorithm", "extra MiB"] if with_engine else []
    head += ["difference", "note"]
    body = []
    for row in rows:
        line = [row.suite, row.layer, row.direction, _number(row.gflop, 2)]
        line += [_number(getattr(row, f"{name}_ms"), 4) for name in times]
        line += [_number(ratio(row, *pair), 2) for pair in pairs]
        line += [_number(row.gflop / elapsed, 1) if (elapsed := getattr(row, f"{name}_ms")) else "-" for name in rates]
        line += [row.algorithm, _number(None if row.peak_bytes is None else row.peak_bytes / 2**20, 1)] if with_engine else []
        body.append([*line, "-" if row.difference is None else f"{row.difference:.1e}", row.note])
    return table(head, body, markdown)


def means_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """Geometric means of every ratio, over all suites first and then for each, with the worst layer of each."""
    pairs = comparisons(rows)
    head = ["suite", "direction", "shapes", *(text for a, b in pairs for text in (f"{a}/{b}", "worst"))]
    suites = list(dict.fromkeys(row.suite for row in rows))
    body = []
    for name, members in (("all", suites), *((suite, [suite]) for suite in suites)):
        for direction in DIRECTIONS:
            chosen = [row for row in rows if row.suite in members and row.direction == direction]
            if not chosen:
                continue
            line = [name, direction, str(len(chosen))]
            for pair in pairs:
                line += [_number(mean_ratio(chosen, *pair)), _number(max((value for value, _ in worst(chosen, *pair, 1)), default=None), 2)]
            body.append(line)
    return table(head, body, markdown)


def worst_table(rows: Sequence[Row], ours: str, theirs: str, count: int = 15, markdown: bool = False) -> str:
    """The layers where one alternative does worst against another."""
    head = [f"{ours}/{theirs}", "suite", "layer", "direction", f"{ours} ms", f"{theirs} ms", "algorithm"]
    body = [
        [
            _number(value, 2),
            row.suite,
            row.layer,
            row.direction,
            _number(getattr(row, f"{ours}_ms"), 4),
            _number(getattr(row, f"{theirs}_ms"), 4),
            row.algorithm,
        ]
        for value, row in worst(rows, ours, theirs, count)
    ]
    return table(head, body, markdown)


def document(rows: Sequence[Row], about: dict[str, object]) -> str:
    """JSON: what was measured on, the means, every row."""
    means = {
        direction: {f"{a}/{b}": mean_ratio([row for row in rows if row.direction == direction], a, b) for a, b in comparisons(rows)}
        for direction in DIRECTIONS
    }
    return json.dumps({"schema": 1, "about": about, "geometric_means": means, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
