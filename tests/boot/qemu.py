"""An emulated PC: a disk goes in, its serial port comes out; it has a reset button. Software emulation only, so no right is needed."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROGRAM: Final = "qemu-system-x86_64"
MEMORY_MIB: Final = 2048  # amdgpu of 6.12 fails to load in 1,024


def why_not() -> str:
    """Why no machine can be started here; empty: it can."""
    return "" if shutil.which(PROGRAM) else f"{PROGRAM} is not installed (Debian: apt-get install qemu-system-x86)"


@dataclass
class Run:
    """What came over the serial port from power-on to power-off, and when."""

    text: str = ""
    seconds: float = 0.0
    resets: int = 0
    ended: str = ""
    """"off": the machine switched itself off; "stopped": it was switched off here; "time": it took too long."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since power-on of each watched text that was seen."""


def boot(disk: Path, watch: dict[str, str], *, limit: float = 3600, bad_sector: int | None = None, echo: Callable[[str], None] | None = None) -> Run:
    """Power on, and act on what is read: `watch` maps a text to "note", "reset" (the button, once) or "stop" (the plug).

    "stop" and "reset" lose what the guest holds in its own memory. What it has given to the disk stays, synced or not: only
    this process ends, not the machine that it runs on. Writing to `bad_sector` (512 bytes each, of the whole disk) fails.
    """
    run, begun = Run(), time.monotonic()
    file = os.fspath(disk)
    folder = tempfile.mkdtemp(prefix="rocm-patch-qemu-")
    if bad_sector is not None:
        rules = Path(folder, "rules")
        rules.write_text(f'[inject-error]\nevent = "write_aio"\nerrno = "5"\nsector = "{bad_sector}"\n')
        file = f"blkdebug:{rules}:{disk}"
    argv = [
        PROGRAM, "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY_MIB), "-smp", "1", "-display", "none", "-monitor", "none",
        "-serial", "stdio", "-qmp", f"unix:{folder}/control,server=on,wait=off", "-nic", "none", "-no-user-config",
        "-drive", f"file={file},format=raw,if=virtio,cache=unsafe",
    ]  # fmt: skip
    machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert machine.stdout is not None
    pending, seen_to = dict(watch), 0
    try:
        while True:
            left = begun + limit - time.monotonic()
            if left <= 0:
                run.ended = "time"
                break
            if not select.select([machine.stdout], [], [], min(left, 5))[0]:
                continue
            data = os.read(machine.stdout.fileno(), 1 << 16)
            if not data:
                run.ended = "off"
                break
            text = data.decode("utf-8", "replace").replace("\r", "")
            run.text += text
            if echo is not None:
                echo(text)
            for word, action in list(pending.items()):
                # A little of the text before: a word may arrive in two pieces.
                if word not in run.text[max(0, seen_to - len(word)) :]:
                    continue
                run.marks.append((time.monotonic() - begun, word))
                if action == "reset":
                    del pending[word]
                    _control(f"{folder}/control", "system_reset")
                    run.resets += 1
                elif action == "stop":
                    run.ended = "stopped"
            seen_to = len(run.text)
            if run.ended:
                break
    finally:
        machine.kill()
        machine.wait()
        machine.stdout.close()
        shutil.rmtree(folder)
        run.seconds = time.monotonic() - begun
    return run


def _control(path: str, command: str) -> None:
    """One command over QEMU's control socket."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(path)
        stream = link.makefile("rw")
        stream.readline()  # its greeting
        for word in ("qmp_capabilities", command):
            stream.write(json.dumps({"execute": word}) + "\n")
            stream.flush()
            while "return" not in json.loads(stream.readline()):
                pass  # events come in between
