"""Tensile's folders: code files by what they say themselves, and catalogues held against the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.build import compressed_bundle, elf_object, plain_bundle
from rocm_patch.errors import FormatError
from rocm_patch.images import tensile
from rocm_patch.images.source import Bytes, Code, Source, Unread

SS = "TensileLibrary_Type_SS_Contraction_l_Alik_Bljk_Cijk_Dijk"
HH = "TensileLibrary_Type_HH_Contraction_l_Alik_Bljk_Cijk_Dijk"


def catalogue(placeholders: Sequence[str]) -> bytes:
    """A lazy catalogue as Tensile nests it: hardware, operation, problem types, placeholders."""
    rows = [{"predicate": {"type": "TruePred"}, "library": {"type": "Placeholder", "value": name}} for name in placeholders]
    operations = {"type": "ProblemMap", "property": {"type": "OperationIdentifier"}, "map": {"Contraction_l_Alik": {"type": "Problem", "rows": rows}}}
    processor = {"type": "AMDGPU", "value": {"type": "Processor", "value": "gfx1030"}}
    return msgpack.packb({"solutions": [], "library": {"type": "Hardware", "rows": [{"predicate": processor, "library": operations}]}})


FOLDER: dict[str, bytes] = {
    "TensileLibrary_lazy_gfx1010.dat": catalogue([f"{SS}_fallback", f"{HH}_fallback"]),
    "TensileLibrary_lazy_gfx1030.dat": catalogue([f"{SS}_gfx1030", f"{SS}_fallback", f"{HH}_fallback"]),
    f"{SS}_fallback.dat": b"",
    f"{HH}_fallback.dat": b"",
    f"{SS}_gfx1030.dat": b"",
    f"{SS}_gfx1030.co": b"",
    **{f"{name}_fallback_{target}.hsaco": b"" for name in (SS, HH) for target in ("gfx1010", "gfx1030")},
    **{f"Kernels.so-000-{target}.hsaco": b"" for target in ("gfx1010", "gfx1030")},
}


def gaps(folder: dict[str, bytes]) -> dict[str, str]:
    def opened(name: str) -> Source:
        return Bytes(folder[name])

    found = list(tensile.gaps(list(folder), opened))
    assert all(item.store == "tensile" for item in found)
    return {item.inside: item.why for item in found}


def without(*names: str) -> dict[str, bytes]:
    assert set(names) <= set(FOLDER)
    return {name: data for name, data in FOLDER.items() if name not in names}


@pytest.mark.parametrize(
    "path",
    [
        "opt/rocm/lib/rocblas/library/TensileLibrary_gfx1030.co",
        f"rocblas/4.4.1/library/{SS}_fallback_gfx1010.hsaco",
        "torch/lib/rocblas/library/Kernels.so-000-gfx90a-xnack+.hsaco",
        "lib/hipblaslt/library/hipblasltTransform_gfx1100.hsaco",
        "lib/hipblaslt/library/extop_gfx942.co",
        "lib/hipblaslt/library/gfx942/anything.co",
        "Kernels.so-000-gfx1010.hsaco",
    ],
)
def test_code_files_are_known_by_name_and_folder(path: str) -> None:
    assert tensile.recognise(path, b"")


@pytest.mark.parametrize(
    "path", ["rocblas/library/TensileLibrary.dat", "rocblas/library/TensileManifest.txt", "a/kernel.hsaco", "lib/librocblas.so.4"]
)
def test_catalogues_and_foreign_files_are_not_code(path: str) -> None:
    assert not tensile.recognise(path, b"\x7fELF")


def test_the_bytes_say_the_target_whatever_the_name_says() -> None:
    source = Bytes(elf_object("gfx1030", ["Cijk_a", "Cijk_b"]))
    assert list(tensile.read(source, "rocblas/library/TensileLibrary_gfx1010.co")) == [Code("tensile", "", "gfx1030", source)]


@pytest.mark.parametrize("bundle", [plain_bundle, compressed_bundle])
def test_bundles_are_opened(bundle: Callable[[dict[str, bytes]], bytes]) -> None:
    code = elf_object("gfx1200", ["Cijk_a"])
    items = tensile.read(Bytes(bundle({"gfx1200": code})), "hipblaslt/library/TensileLibrary_HH_gfx1200.co")
    # What comes out of a bundle can be read until the next is asked for.
    found = [(item.store, item.target, item.data.read(0, item.data.size)) for item in items if isinstance(item, Code)]
    assert found == [("tensile", "gfx1200", code)]


def test_an_empty_file_is_told() -> None:
    (item,) = tensile.read(Bytes(b""), "Kernels.so-000-gfx1010.hsaco")
    assert isinstance(item, Unread)


def test_a_whole_folder_has_no_gap() -> None:
    assert gaps(FOLDER) == {}


def test_a_lost_fallback_is_a_gap_of_its_chip_alone() -> None:
    lost = f"{SS}_fallback_gfx1010.hsaco"
    assert gaps(without(lost)) == {"TensileLibrary_lazy_gfx1010.dat": f"{lost} should be beside it and is missing"}
    both = gaps(without(lost, f"{HH}_fallback_gfx1010.hsaco"))
    assert both == {"TensileLibrary_lazy_gfx1010.dat": f"{HH}_fallback_gfx1010.hsaco and 1 more should be beside it and is missing"}


def test_a_lost_catalogue_is_a_gap_where_its_kernels_are_there() -> None:
    found = gaps(without("TensileLibrary_lazy_gfx1010.dat"))
    assert found == {"TensileLibrary_lazy_gfx1010.dat": "the catalogue for gfx1010 is missing: its kernels cannot be found"}


def test_lost_libraries_and_assembly_are_gaps() -> None:
    assert gaps(without(f"{SS}_gfx1030.co")) == {"TensileLibrary_lazy_gfx1030.dat": f"{SS}_gfx1030.co should be beside it and is missing"}
    assert set(gaps(without(f"{SS}_fallback.dat"))) == {"TensileLibrary_lazy_gfx1010.dat", "TensileLibrary_lazy_gfx1030.dat"}


def test_a_package_for_one_chip_has_no_gap_for_others() -> None:
    assert gaps({name: data for name, data in FOLDER.items() if "gfx1010" not in name}) == {}


def test_a_folder_that_is_not_lazy_needs_no_lazy_catalogue() -> None:
    assert gaps({"TensileLibrary.dat": b"", "Kernels.so-000-gfx1010.hsaco": b"", "TensileLibrary_gfx1030.co": b""}) == {}


def test_features_in_the_name_serve_the_chip() -> None:
    folder = {"TensileLibrary_lazy_gfx90a.dat": catalogue([f"{SS}_fallback"]), f"{SS}_fallback.dat": b""}
    assert gaps(folder | {f"{SS}_fallback_gfx90a-xnack-.hsaco": b"", "Kernels.so-000-gfx90a-xnack-.hsaco": b""}) == {}


def test_the_manifest_counts_for_chips_that_are_there() -> None:
    listed = "/build/library/TensileLibrary_gfx1010.co\n/build/library/Kernels.so-000-gfx1010.hsaco\n/build/library/TensileLibrary_gfx1100.co\n"
    folder = {"TensileManifest.txt": listed.encode(), "Kernels.so-000-gfx1010.hsaco": b""}
    assert gaps(folder) == {"TensileManifest.txt": "TensileLibrary_gfx1010.co should be beside it and is missing"}


def test_a_catalogue_that_is_none_is_told() -> None:
    for data, why in ((b"", "not a MessagePack table"), (msgpack.packb([1]), "not a catalogue"), (bytes(5 << 20), "a catalogue of")):
        assert why in gaps(FOLDER | {"TensileLibrary_lazy_gfx1010.dat": data})["TensileLibrary_lazy_gfx1010.dat"]


VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(["Placeholder", "a", "../../etc/passwd", "value"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["type", "value", "library", "rows"]), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=2000)
@given(VALUES, st.binary(max_size=60))
def test_any_catalogue_and_manifest(value: Any, manifest: bytes) -> None:
    folder = FOLDER | {"TensileLibrary_lazy_gfx1010.dat": msgpack.packb({"library": value}), "TensileManifest.txt": manifest}
    assert len(gaps(folder)) <= 2


@settings(max_examples=200, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12), st.integers(0, 200), st.binary(max_size=100))
def test_mutated_files(changes: list[tuple[int, int]], cut: int, junk: bytes) -> None:
    for valid in (elf_object("gfx1010", ["a", "b"]), FOLDER["TensileLibrary_lazy_gfx1030.dat"]):
        data = bytearray(valid)
        for place, value in changes:
            data[place % len(data)] = value
        for hostile in (bytes(data[: len(data) - cut]), junk):
            items = list(tensile.read(Bytes(hostile), "rocblas/library/Kernels.so-000-gfx1010.hsaco"))
            assert all(isinstance(item, (Code, Unread)) for item in items)
            assert gaps(FOLDER | {"TensileLibrary_lazy_gfx1030.dat": hostile}).keys() <= {"TensileLibrary_lazy_gfx1030.dat"}


def test_a_file_that_cannot_be_opened_is_told() -> None:
    def closed(name: str) -> Source:
        raise FormatError("Permission denied")

    assert [item.why for item in tensile.gaps(list(FOLDER), closed)] == ["Permission denied"] * 2
