"""The tables of docs/performance.md from what the other benchmarks wrote.

    python benchmarks/conv_pages.py conv_speed.json own/conv_speed.json > tables.md

The first file is a run with the BLAS of torch, the second one of our own kernels alone (`conv_speed.py --own-kernels`).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
DIRECTIONS = ("forward", "forward+backward")


def ratio(row: Row, other: str) -> float:
    """Time of the engine over that of another."""
    value: float = row["engine_ms"] / row[f"{other}_ms"]
    return value


def mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *rows])


def means(rows: list[Row]) -> str:
    lines = []
    for suite in ("all", *dict.fromkeys(row["suite"] for row in rows)):
        cells = [suite]
        for direction in DIRECTIONS:
            part = [row for row in rows if row["direction"] == direction and suite in ("all", row["suite"])]
            for other in ("vendor", "native"):
                values = [ratio(row, other) for row in part]
                cells += [f"{mean(values):.2f}", f"{max(values):.2f}"]
        lines.append(cells)
    each = ["/ cuDNN", "worst", "/ native", "worst"]
    return table(["suite", *(f"{direction} {name}" for direction in ("forward", "both") for name in each)], lines)


def layers(rows: list[Row]) -> str:
    found: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["suite"], row["layer"]][row["direction"]] = row
    lines = []
    for (suite, layer), both in found.items():
        cells = [f"{suite} {layer}"]
        for direction in DIRECTIONS:
            row = both[direction]
            cells += [f"{row['engine_ms'] * 1e3:.0f}", f"{ratio(row, 'vendor'):.2f}", f"{ratio(row, 'native'):.2f}"]
        lines.append([*cells, both["forward+backward"]["algorithm"].replace("+", " ")])
    head = ["layer", "forward us", "/ cuDNN", "/ native", "both us", "/ cuDNN", "/ native", "algorithms"]
    return table(head, lines)


def main() -> None:
    with_blas, alone = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    print(f"### Suites\n\n{means(with_blas['rows'])}\n\n### Suites, our own kernels alone\n\n{means(alone['rows'])}\n")
    print(f"### Layers\n\n{layers(with_blas['rows'])}")


if __name__ == "__main__":
    main()
