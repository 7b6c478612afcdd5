"""Opt-in: these tests fetch and change whole Debian systems."""

from __future__ import annotations

import faulthandler
import os

import pytest

from systems import debian

WANTED = os.environ.get("ROCM_PATCH_SYSTEMS") == "1"


def pytest_collection_modifyitems(items):
    """The marks and the reason to skip, in one place."""
    reason = debian.why_not() if WANTED else "ROCM_PATCH_SYSTEMS=1 runs the tests on whole Debian systems (300 MB to fetch once, then minutes)"
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
def debian_13(tmp_path):
    """A throwaway Debian 13: linux 6.12."""
    with debian.throwaway(debian.DEBIAN_13, tmp_path) as system:
        yield system


@pytest.fixture
def debian_12(tmp_path):
    """A throwaway Debian 12: linux 6.1, which has no mtype_local."""
    with debian.throwaway(debian.DEBIAN_12, tmp_path) as system:
        yield system


@pytest.fixture(params=debian.RELEASES, ids=lambda release: f"debian{release.number}")
def system(request, tmp_path):
    """Each release in turn, thrown away afterwards."""
    with debian.throwaway(request.param, tmp_path) as system:
        yield system


@pytest.fixture(params=["outside", "inside"])
def tool(request, system):
    """rocm-patch for that system: from a rescue system with --root, and installed in it as on the live one."""
    inside = request.param == "inside"
    if inside:
        system.install_tool()
    return debian.Tool(system, inside)
