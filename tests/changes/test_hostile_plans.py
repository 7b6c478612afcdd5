"""Plans that somebody made up: no path, no content and no id outside the tables gets through."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile

from changes_support import TABLES, prepare, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch import codec, knowledge
from rocm_patch.apply import apply, rollback
from rocm_patch.changes import KINDS, Locations, facts, preview
from rocm_patch.changes.environment import parse
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Plan, Step

DROP_IN = "etc/profile.d/zz-rocm-patch.sh"
DROP_INS = {"/etc/profile.d/zz-rocm-patch.sh", "/home/u/.config/environment.d/90-rocm-patch.conf"}
MANAGED = DROP_INS | {"/etc/udev/rules.d/70-rocm-patch.rules", "/etc/group", "/etc/gshadow"}

NASTY = st.sampled_from(
    ["/etc/shadow", "../../etc/shadow", "$(id)", "`id`", "';id;'", '"', "\n", "\x00", "\x1b[2J", "HSA_OVERRIDE_GFX_VERSION=10.3.0"]
    + ["LD_PRELOAD=/tmp/x.so", "PATH=/tmp", "MIOPEN_FIND_MODE=FAST"]
    + ["MIOPEN_FIND_MODE=FAST; id", "HSA_OVERRIDE_GFX_VERSION=$(id)", "A" * 5000, "", "=", "10.1.0", "\ud800"]
)
WORDS = NASTY | st.text(max_size=20)
STEPS = st.builds(
    Step,
    st.sampled_from([*TABLES.remedies, "nobody's", "../x"]) | st.text(max_size=8),
    st.sampled_from(["user", "system"]),
    st.dictionaries(st.sampled_from(["set", "unset", "own", "path", "data", "index", "name"]), st.lists(WORDS, max_size=3).map(tuple), max_size=4),
)
KEYS = st.sampled_from(["schema", "steps", "facts", "remedy", "scope", "parameters", "path"]) | WORDS
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=600, deadline=None)
def test_a_document_is_a_plan_or_a_format_error(raw):
    try:
        text = json.dumps(raw)
        plan = codec.loads(Plan, text, "plan")
    except FormatError:
        return
    assert codec.encode(plan) == raw


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_bytes_are_a_plan_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        codec.loads(Plan, data, "plan")


@given(st.lists(STEPS, min_size=1, max_size=3))
@settings(max_examples=600, deadline=None)
def test_only_our_paths_and_words_come_of_any_steps(steps):
    """Nothing but our two drop-ins is ever planned, and in them nothing but rows of the table."""
    locations = Locations("/nonexistent-root", "/home/u")
    try:
        found = preview(steps, locations, TABLES, KINDS)
    except (RefusedError, FormatError) as error:
        assert error.what
        return
    for path, _, after in found:
        assert path in MANAGED
        assert (after.kind, after.mode) == ("file", 0o644)
        if path not in DROP_INS:
            continue
        scope = "system" if path.startswith("/etc") else "user"
        text = after.data.decode()
        assert re.fullmatch(r"[ -~\n]*", text) or not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
        for name, item in parse(after.data, scope).items():
            row = TABLES.settings[name]
            assert row.kind == "environment"
            if item.value is not None:
                assert re.fullmatch(row.may_set, item.value)


@given(st.lists(STEPS, min_size=1, max_size=2), st.dictionaries(WORDS, WORDS, max_size=2), st.booleans())
@settings(max_examples=150, deadline=None)
def test_applied_or_refused_and_nothing_else_touched(steps, marks, honest):
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        root = prepare(f"{folder}/root")
        before = snapshot(root)
        locations = Locations(root, "/home/u")
        try:
            plan = Plan(1, tuple(steps), {**(facts(steps, locations, TABLES, KINDS) if honest else {}), **marks})
            receipts = apply(plan, locations, tables=TABLES, kinds=KINDS, say=lambda _: None)
        except RocmPatchError as error:
            assert error.exit_code != 0
            assert snapshot(root) == before
            return
        assert honest
        assert {path for receipt in receipts for path in receipt.changed} <= MANAGED
        rollback(locations, everything=True, tables=TABLES, kinds=KINDS)
        assert snapshot(root) == before
    finally:
        shutil.rmtree(folder)


def test_the_real_tables_allow_no_loader_variables():
    """What makes a program load or run something else is no setting of ours, whatever row is added."""
    for name, row in knowledge.load().settings.items():
        if row.kind == "environment" and re.match(r"LD_|PATH$|PYTHON|BASH_ENV$|ENV$|IFS$", name):
            assert row.may_set == "", name
