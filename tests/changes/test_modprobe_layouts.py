"""The drop-in and the words on each distribution's layout, compared with files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from changes_support import snapshot
from kernel_support import AMDGPU, DEBIAN_MARKS, driver, image, kernel, put

from rocm_patch.apply import apply, facts, rollback
from rocm_patch.changes import Locations, modprobe
from rocm_patch.errors import RefusedError
from rocm_patch.model import SCHEMA, Plan, Step

GOLDEN = Path(__file__).with_name("golden") / "modprobe"
LAYOUTS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
WRITE = os.environ.get("ROCM_PATCH_GOLDEN") == "write"
STEPS = (Step("mtype-local", "system", {"value": ("1",)}), Step("noretry", "system", {"value": ("0",)}))
MARKS = {
    "initramfs-tools": DEBIAN_MARKS, "dracut": {"usr/lib/dracut/build-parameter.txt": b""}, "mkinitcpio": {"init_functions": b"", "buildconfig": b""},
}  # fmt: skip


def build(layout, root):
    """The layout's tree with its kernel and image."""
    shutil.copytree(GOLDEN / layout / "before", root, symlinks=True)
    (root / "var").mkdir(exist_ok=True)
    version = ""
    for line in (GOLDEN / layout / "facts").read_text().splitlines():
        word, *rest = line.split()
        if word == "kernel":
            version = rest[0]
            if rest[1] == ".ko.zst" and not shutil.which("zstd"):
                pytest.skip("zstd is not installed")
            kernel(root, version, suffix=rest[1], place=rest[2] if len(rest) > 2 else AMDGPU)
        elif word == "package":
            put(root, f"lib/modules/{version}/pkgbase", rest[0] + "\n")
        elif word == "image":
            files = {**MARKS[rest[2]], **driver(version)} if rest[1] == "driver" else DEBIAN_MARKS
            put(root, rest[0], image(files))


def compared(path, text):
    if WRITE:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, tmp_path):
    root = tmp_path / "root"
    build(layout, root)
    before, where, golden = snapshot(root), Locations(str(root)), GOLDEN / layout
    try:
        receipt = apply(Plan(SCHEMA, STEPS, facts(STEPS, where)), where, say=lambda _: None)[0]
    except RefusedError as error:
        compared(golden / "refused", f"{error.what}\n{error.hint}\n".replace(str(root), "/mnt"))
        assert snapshot(root) == before
        return
    compared(golden / "after.conf", (root / modprobe.PATH[1:]).read_text())
    # Whether a modprobe is installed where the tests run is no part of the layout.
    said = [line for line in receipt.verified if "modprobe" not in re.sub(r"\S*modprobe\.d\S*", "", line)]
    compared(golden / "said", "".join(f"{line.replace(str(root), '/mnt')}\n" for line in said))
    rollback(where, everything=True)
    assert snapshot(root) == before
