"""Children that misbehave, and how the tests run them through the real parent."""

from __future__ import annotations

import os
import sys
import textwrap
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from rocm_patch.model import Trial, Trials
from rocm_patch.probe import Configuration, Kit, Probe, Table, run

MARK = "PROBE_TEST_MARK"

PRELUDE = """
import ctypes, json, os, shutil, signal, sys, time
spec = json.loads(sys.argv[1])
fd = spec["fd"]
def say(**what):
    os.write(fd, (json.dumps(what) + "\\n").encode())
def good(error=1e-9):
    say(event="value", stage="forward", name="forward", error=error, bound=1e-6, broken=0, elements=4)
    say(event="end")
KIND = {kind!r}
if spec["workload"] == "device":
    say(event="facts", facts=dict(torch="0.0", git="", built=KIND, kind=KIND, name="Pretended", arch="gfx1010", count=1))
    say(event="end")
    sys.exit(0)
say(event="begin", stage="forward")
"""


def probe(identity: str = "torture", **changes: object) -> Probe:
    row = Probe(identity, identity, "interactive", 20.0, ("float32",), "a test", "a test", True, configurations=("any",))
    return replace(row, **changes)


def table(*probes: Probe) -> Table:
    rows = (
        Configuration("any", "any", ""),
        Configuration("cpu", "cpu", ""),
        Configuration("miopen", "hip", ""),
        Configuration("winograd-off", "hip", "", MappingProxyType({"MIOPEN_DEBUG_CONV_WINOGRAD": "0"})),
        Configuration("miopen-off", "hip", "", cudnn=False),
    )
    return Table(1, "2026-01-01", rows, (probe("device", dtypes=("none",)), probe("elementwise"), *probes))


def kit(folder: Path, body: str, *probes: Probe, kind: str = "cpu") -> Kit:
    script = folder / "child_script.py"
    script.write_text(PRELUDE.replace("{kind!r}", repr(kind)) + textwrap.dedent(body))
    return Kit(table(*(probes or (probe(),))), str(script), sentinel_deadline=1.5)


@dataclass
class Bench:
    """Runs children of one test, in a state folder of its own."""

    folder: Path
    marked: str

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def records(self) -> Path:
        return self.state / "rocm-patch-probes"

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], MARK: self.marked, **more}

    def run(self, kit: Kit, device: str = "auto", **more: object) -> Trials:
        more.setdefault("environment", self.environment())
        more.setdefault("interpreter", sys.executable)
        more.setdefault("resume", False)
        return run(device=device, state_home=str(self.state), kit=kit, **more)

    def torture(self, body: str, deadline: float = 20.0, **changes: object) -> tuple[Trial, float]:
        """One child; its trial and the wall time that it took."""
        began = [0.0, 0.0]

        def progress(told: object) -> None:
            if isinstance(told, str):
                began[0] = time.monotonic()
            else:
                began[1] = time.monotonic()

        trials = self.run(kit(self.folder, body, probe(deadline=deadline, **changes)), only=["torture"], progress=progress)
        return trials.trials[-1], began[1] - began[0]

    def left(self) -> list[int]:
        """Living processes that carry this test's mark."""
        found = list[int]()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    if self.marked.encode() in Path("/proc", name, "environ").read_bytes():
                        found.append(int(name))
                except OSError:
                    continue
        return found


def new_bench(folder: Path) -> Bench:
    return Bench(folder, uuid.uuid4().hex)
