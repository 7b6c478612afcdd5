"""Journals that earlier versions wrote, stored as they were: the newest code takes them back, and so do their own scripts.

`journals/make.py` says how one is made; every released version gets one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from changes_support import CASES, TABLES, TEST_KINDS, difference, do_apply, snapshot

from rocm_patch.apply import recover, rollback, status
from rocm_patch.changes import Locations

STORED = sorted(Path(__file__).with_name("journals").glob("*.json"))
OWNER = re.compile(r'"(uid|gid)": 0')


def put(tree, root):
    """Make a stored tree, owned by whoever runs the tests."""
    own = {"uid": os.geteuid(), "gid": os.getegid()}
    os.makedirs(root)
    for path, row in tree.items():
        place = f"{root}/{path}"
        if "link" in row:
            os.symlink(row["link"], place)
        elif "text" in row or "base64" in row:
            text = row.get("text", "").replace("@ROOT@", root)
            if path.endswith("/receipt"):
                text = OWNER.sub(lambda found: f'"{found[1]}": {own[found[1]]}', text)
            Path(place).write_bytes(base64.b64decode(row["base64"]) if "base64" in row else text.encode())
            os.chmod(place, row["mode"])
        else:
            os.mkdir(place)
    for path, row in tree.items():
        if "link" not in row:
            os.chmod(f"{root}/{path}", row["mode"])
    return root


@pytest.fixture(params=STORED, ids=lambda path: path.stem)
def stored(request, scratch):
    found = json.loads(request.param.read_text())
    before = snapshot(put(found["before"], f"{scratch}/before"))
    return before, put(found["after"], f"{scratch}/after")


def test_there_is_one_for_this_version():
    from rocm_patch import __version__

    assert f"{__version__}.json" in [path.name for path in STORED]


def test_an_old_journal_is_read_and_rolled_back(stored):
    before, root = stored
    locations = Locations(root, "/home/u")
    assert recover(locations) == ()
    found = status(locations)
    assert {file.state for scope in found for file in scope.files} == {"as left"}
    assert sum(len(scope.transactions) for scope in found) >= 4
    receipts = rollback(locations, everything=True, tables=TABLES, kinds=TEST_KINDS)
    assert {receipt.outcome for receipt in receipts} == {"rolled back"}
    assert snapshot(root) == before, difference(before, snapshot(root))


def test_step_by_step_and_with_a_new_change_on_top(stored):
    before, root = stored
    locations = Locations(root, "/home/u")
    (receipt,) = do_apply(root, CASES["grown"])
    assert receipt.outcome == "applied"
    rounds = 0
    while any(scope.transactions for scope in status(locations)):
        receipts = rollback(locations, tables=TABLES, kinds=TEST_KINDS)
        assert {receipt.outcome for receipt in receipts} == {"rolled back"}
        rounds += 1
    assert rounds >= 3
    assert snapshot(root) == before, difference(before, snapshot(root))


@pytest.mark.skipif(os.geteuid() != 0, reason="the stored scripts speak of root's files")
def test_their_own_scripts(stored):
    before, root = stored
    scripts = sorted([*Path(root).glob("var/lib/rocm-patch/2*/undo.sh"), *Path(root).glob("home/u/.local/state/rocm-patch/2*/undo.sh")])
    for script in sorted(scripts, key=lambda path: path.parent.name, reverse=True):
        done = subprocess.run(["/bin/sh", str(script), root], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(root) == before, difference(before, snapshot(root))
