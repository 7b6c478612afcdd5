"""How much memory a build believes that it has: of the machine, of its control groups, of its own limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rocm_patch.sources.build_memory import memory_free

MIB = 1 << 20


def machine(root: Path, groups: str, files: dict[str, str]) -> int:
    """A machine with 8 GiB free, 1 GiB of it in swap."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {7 << 20} kB\nSwapFree: {1 << 20} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text)
    return memory_free(str(root))


SECOND = {"user.slice/x.scope/memory.max": f"{3000 * MIB}\n", "user.slice/x.scope/memory.current": f"{2900 * MIB}\n"}
CASES = {
    "no group": ("", {}, 8192),
    "no limit": ("0::/user.slice/x.scope\n", {**SECOND, "user.slice/x.scope/memory.max": "max\n"}, 8192),
    "a limit": ("0::/user.slice/x.scope\n", SECOND, 100),
    "full of files that were read": (
        "0::/user.slice/x.scope\n",
        {**SECOND, "user.slice/x.scope/memory.stat": f"anon 5\nactive_file {2000 * MIB}\ninactive_file {500 * MIB}\n"},
        2600,
    ),
    "a limit above": ("0::/user.slice/x.scope\n", {"user.slice/memory.max": f"{300 * MIB}", "user.slice/memory.current": f"{50 * MIB}"}, 250),
    "in a container that shows the host's path": ("0::/../../host/path\n", {"memory.max": f"{300 * MIB}", "memory.current": f"{50 * MIB}"}, 250),
    "the first version": (
        "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n",
        {
            "memory/box/memory.limit_in_bytes": f"{700 * MIB}",
            "memory/box/memory.usage_in_bytes": f"{600 * MIB}",
            "memory/box/memory.stat": f"cache 1\ntotal_inactive_file {200 * MIB}\ntotal_active_file {100 * MIB}\n",
            "memory/memory.limit_in_bytes": str(1 << 62),
            "memory/memory.usage_in_bytes": "0",
        },
        400,
    ),
    "used up": ("0::/a\n", {"a/memory.max": "5", "a/memory.current": f"{50 * MIB}"}, 0),
    "unreadable": ("0::/a\nnonsense\n", {"a/memory.max": "what\n", "a/memory.current": "7"}, 8192),
}


@pytest.mark.parametrize(("groups", "files", "free"), CASES.values(), ids=CASES)
def test_the_smallest_of_all_limits_counts(tmp_path, groups, files, free):
    assert machine(tmp_path, groups, files) == free


def test_the_limit_of_a_process():
    code = "import resource; from rocm_patch.sources.build_memory import process_limit as limit; print(limit());"
    code += "resource.setrlimit(resource.RLIMIT_DATA, (5 << 30, -1)); print(limit());"
    code += "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, -1)); print(limit())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[1:] == ["5120", "4096"]
