"""Opt-in: each of these tests starts whole machines in emulation, minutes each."""

from __future__ import annotations

import faulthandler
import os

import pytest

from boot import qemu
from systems import debian

WANTED = os.environ.get("ROCM_PATCH_SYSTEMS") == "1"


def pytest_collection_modifyitems(items):
    """The marks and the reason to skip, in one place."""
    reason = (debian.why_not() or qemu.why_not()) if WANTED else "ROCM_PATCH_SYSTEMS=1 starts whole machines in emulation: minutes each"
    for item in items:
        if os.path.dirname(__file__) in str(item.path):
            for mark in (pytest.mark.slow, pytest.mark.root, pytest.mark.network):
                item.add_marker(mark)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def patience():
    """Without the project's limit of five minutes a test: it ends the process, and mounts and machines would stay."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def disk(tmp_path):
    """A Debian 13's disk, switched off."""
    return debian.copy_disk(debian.DEBIAN_13, tmp_path)
