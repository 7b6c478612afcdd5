"""A scratch folder in memory: these tests make thousands of trees, and what they test is not the disk's speed."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest


@pytest.fixture
def scratch():
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    folder = tempfile.mkdtemp(prefix="rocm-patch-test-", dir=base)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
