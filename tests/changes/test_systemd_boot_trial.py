"""The trial with systemd-boot, live: a machine of its own in a mount namespace, the real bootctl, firmware variables in files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rocm_patch

HERE = Path(__file__).parent
BEFORE = HERE / "golden/cmdline/debian-systemd-boot/before"
MACHINE = r"""
set -e
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/inner" "$work/root"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/inner" overlay "$work/root"
cd "$work/root"
for folder in $bind; do [ -d ".$folder/." ] || mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; done
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs none sys
mount -t tmpfs none boot
mount -t tmpfs none run
mkdir -p sys/firmware/efi/efivars
rm -rf .dockerenv etc/kernel etc/systemd/system var/lib/rocm-patch etc/default/grub.d
mkdir -p etc/systemd/system
cp -r "$before/etc/." etc/
cp -r "$before/boot/." boot/
[ "$bootctl" = /usr/bin/bootctl ] || cp "$bootctl" usr/bin/bootctl
mkdir -p etc/kernel/install.d
chown -R 0:0 boot etc/kernel
exec chroot . "$python" "$script"
"""


@pytest.mark.root
def test_live_with_the_real_bootctl(tmp_path):
    bootctl, unshare = shutil.which("bootctl"), shutil.which("unshare")
    if bootctl is None or unshare is None:
        pytest.skip("no bootctl (of systemd-boot) or no unshare here")
    if subprocess.run([unshare, "-m", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace of one's own here")
    source = Path(rocm_patch.__file__).parents[1]
    # Folders that may lie on other file systems than /, which the overlay does not show.
    bind = dict.fromkeys(str(path) for path in (sys.base_prefix, sys.prefix, source, HERE) if os.stat(path).st_dev != os.stat("/").st_dev)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(source), "LC_ALL": "C.UTF-8", "HOME": "/root", "work": str(tmp_path),
        "before": str(BEFORE), "bootctl": bootctl, "python": sys.executable, "script": str(HERE / "live_systemd_boot.py"), "bind": " ".join(bind),
    }  # fmt: skip
    ended = subprocess.run([unshare, "-m", "sh", "-c", MACHINE], capture_output=True, text=True, env=environment, check=False, timeout=120)
    if "overlay" in ended.stderr and "mount" in ended.stderr:
        pytest.skip(f"no overlay of / here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "from trial to permanent and back" in ended.stdout
