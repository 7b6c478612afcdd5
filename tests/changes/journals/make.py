"""Store the journal that a released version writes, for test_old_journals.py.

Run with that version's own code and tests:

    git archive VERSION src tests/changes | tar -x -C OLD
    PYTHONPATH=OLD/src:OLD/tests/changes python tests/changes/journals/make.py tests/changes/journals/VERSION.json

Both scopes: environment drop-ins, files replaced, made and removed, and a folder that is filled while the transaction is open.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import sys
import tempfile

import changes_support as support

from rocm_patch.apply import apply
from rocm_patch.changes import Locations, grown
from rocm_patch.changes.kind import Change, Kind
from rocm_patch.model import Step
from rocm_patch.root import State

HOME = "/home/u"
FOLDER = f"{HOME}/.local/share/rocm-patch/thing"


def render(steps, look):
    return (Change(FOLDER, grown.folder_state(0o755), grown=True),)


def fill(steps, changes, work):
    for name in ("a.py", "inner/b.py"):
        path = work.ground.at(f"{FOLDER}/{name}")
        work.tree.ensure_folder(os.path.dirname(path))
        work.tree.put(path, State("file", 0o644, os.geteuid(), os.getegid(), f"# {name}\n".encode()))
    return ()


KINDS = (*support.KINDS, support.FIVE, Kind("thing", ("user",), "", lambda step, tables: None, render, fill, lambda *_: ("filled",)))


class Tables(type(support.TABLES)):
    """The tests' tables, and a row for the folder."""

    @property
    def remedies(self):
        return {**support.TABLES.remedies, "thing": support.remedy("thing", "thing", ())}

    @remedies.setter
    def remedies(self, value):
        pass


def tree_of(root):
    found = {}
    for at, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = os.path.join(at, name)
            status = os.lstat(path)
            row = {"mode": stat.S_IMODE(status.st_mode)}
            if stat.S_ISLNK(status.st_mode):
                row["link"] = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    data = file.read()
                try:
                    row["text"] = data.decode().replace(root, "@ROOT@")
                except UnicodeDecodeError:
                    row["base64"] = base64.b64encode(data).decode()
            found[os.path.relpath(path, root)] = row
    return dict(sorted(found.items()))


def main():
    if os.geteuid() != 0:
        sys.exit("run it as root: the owners that are stored are root's, and the test puts its own in their place")
    root = support.prepare(tempfile.mkdtemp() + "/root")
    os.makedirs(f"{root}{HOME}/.config", 0o700)
    before = tree_of(root)
    locations, tables = Locations(root, HOME), object.__new__(Tables)
    object.__setattr__(tables, "settings", support.TABLES.settings)
    user = Step("drop", "user", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",), "own": ("10.1.0",)})
    for steps in ((*support.ENVIRONMENT_STEPS, user), (*support.FIVE_STEPS, Step("thing", "user", {})), support.ENVIRONMENT_STEPS[:1]):
        marks = support.facts(steps, locations, tables, KINDS)
        apply(support.Plan(support.SCHEMA, steps, marks), locations, tables=tables, kinds=KINDS, say=lambda _: None)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"before": before, "after": tree_of(root)}, file, indent=1, ensure_ascii=True)
        file.write("\n")
    shutil.rmtree(os.path.dirname(root))


main()
