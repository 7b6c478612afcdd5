"""What is said of an expression without running it is true: the words that each match contains, and that no line makes it slow."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocm_patch import knowledge
from rocm_patch.knowledge import check
from rocm_patch.knowledge.expressions import alternatives, study
from rocm_patch.knowledge.matching import LINE, Finder, Pattern, cut
from rocm_patch.model import Signature

TABLES = knowledge.load()
PARTS = [(pattern.row.id, part) for pattern in TABLES.finder.patterns for part in pattern.parts]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("out of memory", ("out of memory",)),
        ("cannot (?:see|find) the card", (" the card",)),
        (r"ring (?:gfx|comp)\d{1,3} timeout", (" timeout",)),
        (r"(?:segfault|crashed)\b", ("segfault", "crashed")),
        ("colou?r of things", ("r of things",)),
        (r"a\.b\.so", ("a.b.so",)),
        ("[ab]{2,3}", ("",)),
        ("(?!not )working", ("working",)),
        ("(?:maybe)?certain", ("certain",)),
        ("Error|FAULT", ("error", "fault")),
    ],
)
def test_words_are_runs_that_every_match_has(pattern, words):
    assert study(pattern).words == words


def test_alternatives_are_cut_outside_brackets_only():
    assert alternatives(r"a(?:b|c)|d\|e|[|]f") == ("a(?:b|c)", r"d\|e", "[|]f")


@pytest.mark.parametrize(("pattern", "bounded"), [("a.{0,9}b", True), ("a.*b", False), ("(?:ab)+", False), ("a{3}b?", True), (r"\d+", False)])
def test_a_repetition_without_bound_is_seen(pattern, bounded):
    assert study(pattern).bounded is bounded


def test_ways_multiply_along_a_sequence_and_not_over_alternatives():
    assert study("a.{0,9}b.{0,9}c").ways == 100
    assert study("a.{0,9}b|c.{0,4}d").ways == 10
    assert study("(?:a.{0,9}b){0,2}").ways == 30


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_signature_matches_holds_one_of_its_words(data):
    name, part = data.draw(st.sampled_from([item for item in PARTS if "(?!" not in item[1].regex.pattern and "(?<" not in item[1].regex.pattern]))
    line = data.draw(st.from_regex(part.regex))
    assert any(word in line for word in part.words), name


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        (".{0,40}", "plain run"),
        ("hip.*error", "without bound"),
        ("hip.{0,300}error.{0,300}here", "can fail in"),
        ("hip (error", "only a human"),
        ("hip (error))", "only a human"),
    ],
)
def test_a_row_that_a_line_could_make_slow_is_refused(pattern, complaint):
    bad = Signature("bad", pattern, "hip error here", ("https://example.org/1",))
    from dataclasses import replace

    complaints = [text for text in check.problems(replace(TABLES, signatures=(bad,))) if "bad" in text]
    assert any(complaint in text or "no regular expression" in text for text in complaints), complaints


def test_a_signature_is_found_in_a_large_text_as_in_a_small_one():
    row = Signature("one", "device function is invalid", "the device function is invalid", ("https://example.org/1",))
    finder = Finder((Pattern.of(row),))
    filler = [f"line {number} of something else, {number * 7919:x}" for number in range(12_000)]
    for before in (0, 5, 12_000):
        lines = [*filler[:before], row.sample, *filler[before:]] if before else [row.sample]
        assert [hits for _, hits in finder.search(lines)] == [(lines.index(row.sample),)]


def test_a_long_line_is_cut_in_its_middle():
    line = "begin " + "x" * 5000 + " end"
    assert len(cut(line)) < LINE + 10
    assert cut(line).startswith("begin ")
    assert cut(line).endswith(" end")
