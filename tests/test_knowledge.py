"""The tables are whole, a bad row is refused by name, and a status follows from evidence."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from rocm_patch import knowledge
from rocm_patch.errors import KnowledgeError
from rocm_patch.knowledge import check
from rocm_patch.knowledge.conditions import Context, holds, in_range, in_scope, parse_version, recommended, status
from rocm_patch.model import Condition, Evidence


@pytest.fixture
def raw():
    return copy.deepcopy(json.loads(knowledge.baked()))


def test_every_row_of_the_tables_is_good():
    assert list(check.problems(knowledge.load())) == []


def test_the_baked_tables_are_the_same_tables(raw):
    assert knowledge.build(raw) == knowledge.load()


def test_all_chips_in_scope_have_ids_from_which_they_are_found():
    tables = knowledge.load()
    for gfx in ["gfx1010", "gfx1011", "gfx1012", *(f"gfx103{digit}" for digit in range(7))]:
        assert tables.gpus[gfx].scope, gfx
        assert tables.gpus[gfx].devices, gfx
    assert tables.devices["731f"][0].gfx == "gfx1010"
    assert tables.devices["7340"][0].gfx == "gfx1012"  # four peers call this card gfx1011 or gfx1034
    assert tables.devices["7362"][0].gfx == "gfx1011"
    assert tables.devices["731f"][1].revisions["ca"] == "Radeon RX 5600 XT"


@pytest.mark.parametrize(
    ("table", "spoil", "complaint"),
    [
        ("gpus", lambda t: t["gpu"].append(t["gpu"][0]), "stands in"),
        ("gpus", lambda t: t["gpu"][0].pop("gfx_target_version"), "'gfx_target_version' is missing"),
        ("gpus", lambda t: t["gpu"][0].update(colour="red"), "unknown key 'colour'"),
        ("settings", lambda t: t["setting"].append(t["setting"][0]), "stands there twice"),
        ("remedies", lambda t: t["remedy"][0].update(kind="magic"), "'magic' is none of"),
        ("evidence", lambda t: t["evidence"][0].update(outcome="wonderful"), "'wonderful' is none of"),
        ("signatures", lambda t: t["signature"][0]["reading"][0].update(certainty="high"), "float was expected"),
        ("wheels", lambda t: t.update(whel=[]), "unknown top-level key whel"),
    ],
)
def test_a_row_of_the_wrong_shape_is_refused(raw, table, spoil, complaint):
    spoil(raw[table])
    with pytest.raises(KnowledgeError) as caught:
        knowledge.build(raw)
    assert complaint in caught.value.what
    assert caught.value.what.startswith(table)


@pytest.mark.parametrize(
    ("table", "spoil", "complaint"),
    [
        ("gpus", lambda t: t["gpu"][0].update(gfx_target_version=100101), "another chip"),
        ("gpus", lambda t: t["gpu"][0]["devices"][0].update(id="73ZZ"), "no PCI id"),
        ("settings", lambda t: t["setting"][0].update(may_set="("), "no regular expression"),
        ("remedies", lambda t: t["remedy"][0].update(remedy="pray"), "no class of remedy"),
        ("remedies", lambda t: t["remedy"].append({**t["remedy"][0], "id": "new-one"}), "no evidence at all"),
        ("evidence", lambda t: t["evidence"][0].update(remedy="nothing"), "no such remedy"),
        ("evidence", lambda t: t["evidence"][0].update(source="a friend"), "no https address"),
        ("evidence", lambda t: t["evidence"][0].update(date="lately"), "no date"),
        ("evidence", lambda t: t["evidence"][0].update(when={"rocm": "new"}), "no version range"),
        ("signatures", lambda t: t["signature"][0].update(sample="nothing"), "its own sample"),
        ("signatures", lambda t: t["signature"].append({**t["signature"][0], "id": "twin"}), "matched by"),
        ("signatures", lambda t: t["signature"][0]["reading"][0].update(cause="bad luck"), "no class of cause"),
        ("wheels", lambda t: t["wheel"][0].update(gfx=["gfx9999"]), "no GPU row"),
    ],
)
def test_a_row_that_says_something_impossible_is_reported(raw, table, spoil, complaint):
    spoil(raw[table])
    found = list(check.problems(knowledge.build(raw)))
    assert any(complaint in line and line.startswith(table) for line in found), found


def evidence(outcome, kind="independent report", **when):
    return Evidence("x", outcome, kind, Condition(**when), "https://example.org/", "2026-01", "")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "untested"),
        ([evidence("works", "inference")], "untested"),
        ([evidence("works")], "works"),
        ([evidence("no effect"), evidence("works", "inference")], "no effect"),
        ([evidence("harmful"), evidence("partial")], "harmful"),
        ([evidence("harmful"), evidence("works")], "partial"),
    ],
)
def test_a_status_is_derived_from_evidence_and_inference_counts_for_nothing(rows, expected):
    assert status(rows) == expected
    assert recommended(rows) == (expected in ("works", "partial"))


def test_evidence_counts_only_where_it_was_made():
    rows = [evidence("works", gfx=("gfx103*",)), evidence("harmful", gfx=("gfx1010",))]
    assert [row.outcome for row in in_scope(rows, "x", Context(gfx="gfx1032"))] == ["works"]
    assert [row.outcome for row in in_scope(rows, "x", Context(gfx="gfx1010"))] == ["harmful"]


def test_no_refuted_remedy_of_the_tables_is_ever_recommended():
    tables = knowledge.load()
    for gfx in ("gfx1010", "gfx1011", "gfx1012"):
        for id_ in ("mtype-local", "rocm-5.7-downgrade"):
            assert not recommended(in_scope(tables.evidence, id_, Context(gfx=gfx))), (gfx, id_)
    assert not recommended(in_scope(tables.evidence, "set-override", Context(gfx="gfx1010")))


@pytest.mark.parametrize(
    ("text", "release"),
    [("6.14.0-33-generic", "6.14.0"), ("6.2.41133-dd7f95766", "6.2.41133"), ("2.5.1+rocm6.2", "2.5.1"), ("garbage", None), ("", None), (None, None)],
)
def test_versions_are_read_out_of_what_people_have(text, release):
    assert (str(parse_version(text)) if parse_version(text) else None) == release


def test_seven_fourteen_is_newer_than_seven_two():
    # A peer that compares floats takes 7.14 for older than 7.2.
    assert in_range(">=7.2", "7.14.1")
    assert not in_range("<7.2", "7.14.1")


def test_what_is_not_known_meets_no_condition():
    assert not holds(Condition(rocm=">=6"), Context())
    assert not holds(Condition(gfx=("gfx10*",)), Context())
    assert holds(Condition(environment={"A": ""}), Context())
    assert not holds(Condition(environment={"A": ""}), Context(environment={"A": "1"}))
    assert holds(Condition(gfx=("gfx1010",)), Context(gfx="gfx1010:xnack-"))


def test_chips_are_named_from_kfd_numbers_also_unknown_ones():
    tables = knowledge.load()
    assert tables.chip_of_version(100302) == "gfx1032"
    assert tables.chip_of_version(90010) == "gfx90a"
    assert tables.chip_of_version(130000) == "gfx1300"
    assert tables.chip_of_version(0) is None
    assert dataclasses.is_dataclass(tables)
