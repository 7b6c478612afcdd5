"""What the tests on whole systems have in common: they run only where they are asked for."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Sequence

import pytest


def mark(items: Sequence[pytest.Item], conftest: str, cost: str, why_not: Callable[[], str]) -> None:
    """The marks and the reason to skip of the tests beside a conftest; `cost`: what whoever asks for them waits for."""
    reason = why_not() if os.environ.get("ROCM_PATCH_SYSTEMS") == "1" else f"ROCM_PATCH_SYSTEMS=1 {cost}"
    for item in items:
        if os.path.dirname(conftest) in str(item.path):
            for each in (pytest.mark.slow, pytest.mark.root, pytest.mark.network):
                item.add_marker(each)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def patience() -> None:
    """Without the project's limit of five minutes a test: it ends the process, and mounts and machines would stay."""
    faulthandler.cancel_dump_traceback_later()
