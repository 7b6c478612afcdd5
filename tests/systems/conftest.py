"""Opt-in: these tests fetch and change whole Debian systems."""

from __future__ import annotations

import pytest

from systems import debian, opt_in
from systems.opt_in import patience  # noqa: F401  a fixture


def pytest_collection_modifyitems(items):
    opt_in.mark(items, __file__, "runs the tests on whole Debian systems (300 MB to fetch once, then minutes)", debian.why_not)


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
