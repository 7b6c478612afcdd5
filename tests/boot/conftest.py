"""Opt-in: each of these tests starts whole machines in emulation, minutes each."""

from __future__ import annotations

import pytest

from boot import qemu
from systems import debian, opt_in
from systems.opt_in import patience  # noqa: F401  a fixture


def pytest_collection_modifyitems(items):
    opt_in.mark(items, __file__, "starts whole machines in emulation: minutes each", lambda: debian.why_not() or qemu.why_not())


@pytest.fixture
def disk(tmp_path):
    """A Debian 13's disk, switched off."""
    return debian.copy_disk(debian.DEBIAN_13, tmp_path)
