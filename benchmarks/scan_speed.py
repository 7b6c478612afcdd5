"""How long a coverage scan of a library takes, beside LLVM's own tool on the same file: wall time, CPU time, memory.

    python benchmarks/scan_speed.py [--llvm FOLDER] [--scratch FOLDER] [--rounds N] [--cold] LIBRARY...

Each case is a process of its own with nothing else to do, measured from start to end by its resource use; cases take turns
within a round, so that noise meets them alike; medians are shown. Memory is that of the largest process: of its resident
pages, those of a mapped file count as well. `--cold` drops the file from the page cache before each case.

- read: `cat FILE`, the least that reading every byte costs
- start: our reader on an empty bundle: two Python processes and their imports
- targets: our reader behind its limits, targets and sizes
- kernels: the same with the kernels of every code object counted
- objdump: `llvm-objdump --offloading`, which also writes each code object to the scratch folder; it cannot be told not to
- counted: the same and `llvm-nm` on the code objects, as objdump does not count kernels
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SCAN = """
import sys
from rocm_patch.images import pool, walk
found = [row for done in pool.scan(list(walk.candidates(sys.argv[2:])), count=sys.argv[1] == "kernels") for row in done.images]
print(sum(len(row.targets) for row in found), sum(max(code.kernels, 0) for row in found for code in row.targets.values()))
"""

EMPTY = b"__CLANG_OFFLOAD_BUNDLE__" + bytes(8)


@dataclass(frozen=True)
class Run:
    """One process: seconds from start to end, seconds of computing, bytes of its largest process, its last line."""

    wall: float
    cpu: float
    memory: int
    said: str


def timed(command: list[str], folder: Path) -> Run:
    """Run to the end and take its use of resources, children included."""
    output = folder / "output"
    with output.open("wb") as stream:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.DEVNULL, cwd=folder)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[0]} ended with {child.returncode}")
    said = output.read_bytes()[-200:].decode(errors="replace").split("\n")
    output.unlink()
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, next((line for line in reversed(said) if line), ""))


def forget(path: Path) -> None:
    """Ask for the file to leave the page cache."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def commands(library: Path, objdump: str, nm: str) -> dict[str, list[str]]:
    """The cases. What is unpacked lies beside the file that is named, so LLVM's is a link in the scratch folder."""
    ours = [sys.executable, "-c", SCAN]
    unpack = [objdump, "--offloading", "library"]
    count = '"$1" --offloading library > /dev/null; "$2" --dynamic --defined-only --format=just-symbols library.*amdgcn* | grep -c "[.]kd$"'
    return {
        "read": ["sh", "-c", 'cat "$1" > /dev/null', "sh", str(library)],
        "start": [*ours, "targets", "empty"],
        "targets": [*ours, "targets", str(library)],
        "kernels": [*ours, "kernels", str(library)],
        "objdump": unpack,
        "counted": ["sh", "-c", count, "sh", objdump, nm],
    }


def measure(library: Path, tools: tuple[str, str], scratch: str | None, rounds: int, cold: bool) -> dict[str, list[Run]]:
    """All cases, in turn."""
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        for name, command in commands(library, *tools).items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                (Path(folder) / "library").symlink_to(library)
                (Path(folder) / "empty").write_bytes(EMPTY)
                # What the case before wrote is not to be paid for in this one.
                os.sync()
                if cold:
                    forget(library)
                else:
                    subprocess.run(["cat", str(library)], stdout=subprocess.DEVNULL, check=True)
                runs.setdefault(name, []).append(timed(command, Path(folder)))
    return runs


def tool(name: str, folder: str | None) -> str:
    """The newest of a tool; ends the program where there is none."""
    for version in ("", *(f"-{number}" for number in range(30, 21, -1))):
        if found := shutil.which(name + version, path=folder):
            return found
    sys.exit(f"{name} of LLVM 22 or newer was not found; name its folder with --llvm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llvm", help="folder of LLVM's tools")
    parser.add_argument("--scratch", help="folder for what LLVM unpacks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before each case")
    parser.add_argument("libraries", nargs="+")
    arguments = parser.parse_args()
    tools = tool("llvm-objdump", arguments.llvm), tool("llvm-nm", arguments.llvm)
    for library in (Path(name).resolve() for name in arguments.libraries):
        size = library.stat().st_size
        runs = measure(library, tools, arguments.scratch, arguments.rounds, arguments.cold)
        objdump, counted = (statistics.median(run.wall for run in runs[name]) for name in ("objdump", "counted"))
        print(f"{library.name}, {size / 1e6:.0f} MB, {'cold' if arguments.cold else 'warm'}, {arguments.rounds} rounds")
        print(f"{'case':10} {'wall s':>8} {'minimum':>8} {'CPU s':>8} {'memory':>9} {'GB/s':>7} {'objdump takes':>14} {'counted takes':>14}")
        for name, some in runs.items():
            wall, cpu = statistics.median(run.wall for run in some), statistics.median(run.cpu for run in some)
            said = some[0].said if name in ("targets", "kernels", "counted") else ""
            print(
                f"{name:10} {wall:8.3f} {min(run.wall for run in some):8.3f} {cpu:8.3f} {max(run.memory for run in some) / (1 << 20):6.1f}MiB "
                f"{size / wall / 1e9:7.2f} {objdump / wall:13.1f}x {counted / wall:13.1f}x  {said}"
            )
        print(flush=True)


if __name__ == "__main__":
    main()
