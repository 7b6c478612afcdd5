"""What is done to a whole Debian between two starts, and what it says of itself over the serial port once it is up."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from boot import qemu
from systems.debian import System

PARAMETERS: Final = ("mtype_local", "noretry", "vm_fragment_size", "gpu_recovery", "cwsr_enable", "lockup_timeout")
UP: Final = "REPORT end"
PANIC: Final = "---[ end Kernel panic - not syncing"
"""The last line of a panic."""
NOT_LOADED: Final = "not loaded"
_LINE: Final = re.compile(r"^REPORT (\S+) ?(.*)$", re.MULTILINE)

# Last of all units, after the one that notes a trial. `sync` is not called: what must be durable is made so by its maker.
_UNIT: Final = """[Unit]
Description=Say over the serial port what came up
After=multi-user.target rocm-patch-trial.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/boot-report
[Install]
WantedBy=multi-user.target
"""
_REPORT: Final = """#!/bin/sh
[ -d /proc/1 ] || mount -t proc proc /proc
[ -d /sys/module ] || mount -t sysfs sysfs /sys
exec >/dev/ttyS0 2>&1
echo
echo "REPORT cmdline $(cat /proc/cmdline)"
echo "REPORT kernel $(uname -r)"
for name in {parameters}; do
    echo "REPORT $name $(cat /sys/module/amdgpu/parameters/$name 2>/dev/null || echo {not_loaded})"
done
echo "REPORT note $(cat /run/rocm-patch/trial 2>/dev/null | tr '\\n' ' ')"
{commands}
echo "{up}"
[ $$ != 1 ] || sleep infinity
"""
# What an emulated start spends most of its time on, and this test has no use for.
_MASKED: Final = (
    "getty.target", "serial-getty@ttyS0.service", "systemd-timesyncd.service", "e2scrub_reap.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer", "systemd-random-seed.service", "systemd-networkd.service", "keyboard-setup.service",
    "console-setup.service", "systemd-udev-settle.service", "systemd-pcrphase.service", "systemd-binfmt.service",
)  # fmt: skip
# Emulation pays for each of these, and a machine that waits for its turn is no lockup.
_WORDS: Final = "mitigations=off nowatchdog audit=0"
_SCRIPT: Final = "/usr/local/sbin/boot-report"


@dataclass(frozen=True)
class Report:
    """What a start said. `values` has one word or line for each thing asked; `run` the whole start."""

    values: dict[str, str]
    run: qemu.Run

    def parameters(self) -> dict[str, str]:
        """The parameters of the loaded driver."""
        return {name: self.values[name] for name in PARAMETERS}

    @property
    def words(self) -> list[str]:
        """The kernel's command line."""
        return self.values["cmdline"].split()


def prepare(system: System, commands: str = "", *, systemd: bool = False) -> None:
    """Put the report in: as the first and only program, or (three times as slow) as systemd's last unit.

    `commands`: shell lines run once the machine is up, their output between the other lines.
    """
    report = _REPORT.format(parameters=" ".join(PARAMETERS), not_loaded=NOT_LOADED, commands=commands, up=UP)
    system.write(_SCRIPT, report, 0o755)
    if not system.path("/etc/systemd/system/boot-report.service").exists():
        system.write("/etc/systemd/system/boot-report.service", _UNIT)
        system.call("systemctl", "enable", "boot-report.service")
        system.call("systemctl", "mask", *_MASKED)
        words = _WORDS if systemd else f"{_WORDS} init={_SCRIPT}"
        system.write("/etc/default/grub.d/emulated.cfg", f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {words}"\n')
        system.call("update-grub")
        system.call("systemd-machine-id-setup")  # the first start would write it, and a tree be changed by others than us


def start(disk: Path, *, say: Callable[[str], None] | None = None, watch: dict[str, str] | None = None, bad_sector: int | None = None) -> Report:
    """Start the machine, read its report and pull the plug."""
    run = qemu.boot(disk, {**(watch or {}), UP: "stop"}, bad_sector=bad_sector, echo=say)
    assert run.ended == "stopped", f"the machine did not come up in {run.seconds:.0f} s ({run.ended}); its last words:\n{run.text[-4000:]}"
    last = run.text.rpartition("REPORT cmdline")
    return Report(dict(_LINE.findall("".join(last[1:]))), run)
