"""Values survive JSON, and JSON that is not a value is refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocm_patch import codec
from rocm_patch.errors import FormatError
from rocm_patch.model import Atomics, Known, Plan, Step, Trial, Unknown

names = st.text(min_size=1, max_size=12)
plans = st.builds(
    Plan,
    schema=st.integers(0, 9),
    steps=st.lists(
        st.builds(
            Step,
            remedy=names,
            scope=st.sampled_from(["user", "system"]),
            parameters=st.dictionaries(names, st.lists(names, max_size=3).map(tuple), max_size=3),
        ),
        max_size=3,
    ).map(tuple),
    facts=st.dictionaries(names, names, max_size=3),
)


@given(plans)
def test_a_plan_comes_back_as_it_was(plan):
    again = codec.loads(Plan, codec.dumps(plan), "plan")
    assert codec.encode(again) == codec.encode(plan)
    assert again.steps == plan.steps


def test_known_and_unknown_are_told_apart():
    value = Atomics("refused", "why", Unknown("closed", "here"), Known(138, "there"), 145)
    assert codec.loads(Atomics, codec.dumps(value), "x") == value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda raw: raw.pop("facts"), "'facts' is missing"),
        (lambda raw: raw.update(path="/etc/passwd"), "unknown key 'path'"),
        (lambda raw: raw.update(schema="1"), "plan.schema: int was expected"),
        (lambda raw: raw.update(schema=True), "plan.schema: int was expected"),
        (lambda raw: raw["steps"][0].update(scope="root"), "'root' is none of"),
        (lambda raw: raw["steps"][0].update(parameters=[]), "an object was expected"),
        (lambda raw: raw.update(steps={}), "a list was expected"),
        (lambda raw: raw["steps"][0].update(parameters={"a": ["\ud800"]}), "is no text"),
        (lambda raw: raw["steps"][0].update(parameters={"\udfff": ["b"]}), "is no text"),
        (lambda raw: raw["facts"].update({"user:\ud800": "0"}), "is no text"),
    ],
)
def test_what_is_no_plan_is_refused_by_place(change, complaint):
    raw = codec.encode(Plan(1, (Step("x", "user", {"a": ("b",)}),), {"user:x": "0"}))
    change(raw)
    with pytest.raises(FormatError) as caught:
        codec.decode(Plan, raw, "plan")
    assert complaint in caught.value.what
    caught.value.what.encode()  # it goes to a terminal


@given(st.binary(max_size=200))
def test_only_our_error_leaves(data):
    try:
        codec.loads(Plan, data, "plan")
    except FormatError as error:
        assert error.what.startswith("plan")


def test_a_float_may_be_written_as_a_whole_number():
    raw = json.loads(codec.dumps(Trial("p", "c", "float32", "passed", 1.0, "", {}, {})))
    raw["seconds"] = 2
    assert codec.decode(Trial, raw, "trial").seconds == 2.0
