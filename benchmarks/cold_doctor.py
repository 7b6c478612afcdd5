"""How long a cold `rocm-patch doctor` takes on a recording, beside two things that everybody has a feeling for.

    python benchmarks/cold_doctor.py [ROUNDS]

All three are whole processes, run in turn within one round, so that noise meets them alike; the table shows medians and
the ratio of each to the first. Below it, the modules whose import costs most (`-X importtime`, self time).
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

RECORDING = Path(__file__).parents[1] / "tests/machines/rx5600xt-ubuntu2404-mission"
DOCTOR = [sys.executable, "-m", "rocm_patch", "doctor", "--root", str(RECORDING)]
CASES = {
    "python -c 'import json'": [sys.executable, "-c", "import json"],
    "python -c 'import rich.console'": [sys.executable, "-c", "import rich.console"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "rocm-patch doctor --json": [*DOCTOR, "--json"],
    "rocm-patch doctor": DOCTOR,
}


def main(rounds: int) -> None:
    """Measure and print."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, command in CASES.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["python -c 'import json'"])
    print(f"{'command':34} {'median':>8} {'minimum':>8} {'ratio':>7}   ({rounds} rounds)")
    for name, values in times.items():
        print(f"{name:34} {statistics.median(values):7.3f}s {min(values):7.3f}s {statistics.median(values) / base:6.1f}x")
    ended = subprocess.run([DOCTOR[0], "-X", "importtime", *DOCTOR[1:]], capture_output=True, text=True, check=False)
    costs = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", ended.stderr)
    print("\nmost costly imports (self):")
    for cost, module in sorted(((int(cost), module) for cost, module in costs), reverse=True)[:5]:
        print(f"{cost / 1000:8.1f} ms  {module}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
