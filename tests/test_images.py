"""What the installed torches contain: their libraries are read, and where there are none, names are asked."""

from __future__ import annotations

import pytest

from images import build
from recorded_machines import MACHINES
from rocm_patch import knowledge, machine
from rocm_patch.diagnose.case import Case
from rocm_patch.images import installed
from rocm_patch.root import Root

SITE = "home/user/cnn-training/venv/lib/python3.12/site-packages"


@pytest.mark.parametrize(("content", "store", "unread"), [(b"not an ELF", {}, True), (None, {"gfx1010"}, False)])
def test_a_library_of_a_torch_is_read(copy_of, content, store, unread):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    site = root / SITE / "torch/lib"
    site.mkdir(parents=True, exist_ok=True)
    data = build.library(build.plain_bundle({"gfx1010": b"code"})) if content is None else content
    (site / "libtorch_hip.so").write_bytes(data)
    tables = knowledge.load()
    found = machine.collect(Root(str(root)), tables)
    first = installed.scan(Root(str(root)), found, tables).files[0]
    assert first.store == "fatbin"
    assert set(first.targets) == set(store)
    assert bool(first.unread) is unread


def test_a_recorded_tree_without_libraries_is_judged_by_names():
    tables = knowledge.load()
    root = Root(str(MACHINES / "rx5700xt-native"))
    code = installed.scan(root, machine.collect(root, tables), tables)
    assert [(item.store, set(item.targets)) for item in code.files] == [("package name", {"gfx1010"})]


def coverage_of(root):
    """What the first torch of a copy covers, with its libraries laid down as `files` say."""
    tables = knowledge.load()
    place = Root(str(root))
    found = machine.collect(place, tables)
    case = Case(found, installed.scan(place, found, tables), None, tables)
    return case.coverage(case.rocm_torches[0])


@pytest.mark.parametrize(
    ("target", "chips"),
    [
        ("gfx1010:xnack-", {"gfx1010"}),
        ("gfx10-1-generic", {"gfx10-1-generic", "gfx1010", "gfx1011", "gfx1012", "gfx1013"}),
        ("gfx1010:xnack+", set()),
    ],
)
def test_features_and_generic_targets_are_understood(copy_of, target, chips):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    folder = root / SITE / "torch/lib"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libtorch_hip.so").write_bytes(build.library(build.compressed_bundle({target: build.elf_object("gfx1010")})))
    answer = coverage_of(root)
    assert answer.targets == chips
    assert answer.how == "read in libtorch_hip.so"


def test_a_chip_needs_the_matrix_library_too(copy_of):
    root = copy_of("rx5600xt-ubuntu2404-mission")
    folder = root / SITE / "torch/lib"
    (folder / "rocblas/library").mkdir(parents=True)
    both = {target: build.elf_object(target) for target in ("gfx1010", "gfx1030")}
    (folder / "libtorch_hip.so").write_bytes(build.library(build.plain_bundle(both)))
    (folder / "rocblas/library/TensileLibrary_gfx1030.co").write_bytes(both["gfx1030"])
    assert coverage_of(root).targets == {"gfx1030"}
