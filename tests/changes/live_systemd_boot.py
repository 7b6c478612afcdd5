"""Run by test_systemd_boot_trial inside a machine of its own: from trial to permanent and back, live, with the real bootctl.

The machine is the running system's own tree under an overlay, in a private mount namespace, with firmware variables in files.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from rocm_patch import knowledge
from rocm_patch.apply import apply, confirm, facts, rollback
from rocm_patch.changes import Locations, systemd_boot_trial
from rocm_patch.errors import RefusedError
from rocm_patch.model import SCHEMA, Plan, Step

VARIABLES = Path("/sys/firmware/efi/efivars")
GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
ENTRIES = Path("/boot/efi/loader/entries")
DEBIAN = ENTRIES / "debian-6.12.48+deb13-amd64+3-0.conf"
STEPS = (Step("iommu-passthrough", "system", {}),)
HERE = Locations("/")


def write(name, text):
    (VARIABLES / f"{name}-{GUID}").write_bytes(struct.pack("<I", 7) + text.encode("utf-16-le") + b"\0\0")


def one_shot():
    path = VARIABLES / f"LoaderEntryOneShot-{GUID}"
    return path.read_bytes()[4:].decode("utf-16-le").rstrip("\0") if path.exists() else None


def files():
    tops = ("/boot", "/etc/kernel", "/etc/systemd/system")
    return {str(path): path.read_bytes() for top in tops for path in Path(top).rglob("*") if path.is_file()}


def try_it():
    tables = knowledge.load()
    return apply(Plan(SCHEMA, STEPS, facts(STEPS, HERE, tables)), HERE, tables=tables, say=lambda _: None)


def refused(says):
    try:
        try_it()
    except RefusedError as error:
        assert says in f"{error.what} {error.hint}", error.what
        return
    raise AssertionError(f"it was not refused: {says}")


def main():
    before = files()

    refused("do not say that systemd-boot started this system")
    write("LoaderInfo", "systemd-boot 257.8")
    refused("an entry that the loader does not name")
    write("LoaderEntrySelected", "mine.conf")
    write("LoaderInfo", "systemd-boot 249.11")
    refused("sudo bootctl set-default mine.conf")
    write("LoaderEntrySelected", "debian-6.12.48+deb13-amd64.conf")
    refused("a new entry could become the default")
    write("LoaderInfo", "systemd-boot 257.8")
    write("LoaderEntryOneShot", "windows.conf")
    refused("somebody else's choice")
    (VARIABLES / f"LoaderEntryOneShot-{GUID}").unlink()
    (ENTRIES / systemd_boot_trial.ENTRY).write_text("title mine\n")
    refused("is somebody else's")
    (ENTRIES / systemd_boot_trial.ENTRY).unlink()
    os.rename("/usr/bin/bootctl", "/usr/bin/bootctl.away")
    refused("/usr/bin/bootctl is not there")
    Path("/usr/bin/bootctl").write_text("#!/bin/sh\nexit 1\n")
    os.chmod("/usr/bin/bootctl", 0o755)
    try:
        try_it()
    except Exception as error:
        assert "set-oneshot failed" in str(error), error
    else:
        raise AssertionError("a failing bootctl went unnoticed")
    os.rename("/usr/bin/bootctl.away", "/usr/bin/bootctl")
    assert files() == before
    assert one_shot() is None

    try_it()
    assert one_shot() == systemd_boot_trial.ENTRY
    trial = (ENTRIES / systemd_boot_trial.ENTRY).read_text()
    assert "options root=UUID=0b1c2d3e-0000-4000-8000-00000000c0de ro quiet iommu=pt\n" in trial
    assert "sort-key" not in trial
    assert DEBIAN.read_bytes() == before[str(DEBIAN)]
    rollback(HERE, everything=True)
    assert files() == before
    assert one_shot() is None

    try_it()
    write("LoaderEntryOneShot", "other.conf")
    rollback(HERE, everything=True)
    assert files() == before
    assert one_shot() == "other.conf", "somebody else's choice stays"

    # The start of the trial: systemd-boot has taken its variable out, and the kernel has the word.
    (VARIABLES / f"LoaderEntryOneShot-{GUID}").unlink()
    try_it()
    (VARIABLES / f"LoaderEntryOneShot-{GUID}").unlink()
    write("LoaderEntrySelected", systemd_boot_trial.ENTRY)
    Path("/run/line").write_text("initrd=\\debian\\initrd root=/dev/vda1 ro quiet iommu=pt\n")
    subprocess.run(["mount", "--bind", "/run/line", "/proc/cmdline"], check=True)
    Path("/run/rocm-patch").mkdir(parents=True, exist_ok=True)
    Path("/run/rocm-patch/trial").write_text(Path("/proc/sys/kernel/random/boot_id").read_text() + Path("/proc/cmdline").read_text())
    confirm(HERE, say=lambda _: None)
    assert DEBIAN.read_text().count(" iommu=pt\n") == 1
    assert (ENTRIES / "mine.conf").read_bytes() == before[str(ENTRIES / "mine.conf")]
    assert not (ENTRIES / systemd_boot_trial.ENTRY).exists()
    assert Path("/etc/kernel/install.d/95-rocm-patch.install").stat().st_mode & 0o111
    assert not Path("/etc/systemd/system/rocm-patch-trial.service").exists()
    rollback(HERE, everything=True)
    assert files() == before
    assert one_shot() is None
    print("from trial to permanent and back")


if __name__ == "__main__":
    main()
