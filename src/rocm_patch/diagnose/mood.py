"""Whether somebody's words state a failure that is there, or ask, announce, compare and thank.

The words of a failure stand in both: "no hang in a week", "the crash is gone", "release notes name fewer page faults", "what happens if
it crashes?". So words are judged by the sentence, and what is denied is taken out first. Only prose is judged so: what a program
prints about a failure, it prints because there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

Mood = Literal["failure", "calm", ""]

_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+")
_ENDS: Final = re.compile(r"[.!?;]\s")
_TOKEN: Final = re.compile("[a-z]+")
_EVIL: Final = (
    r"(?:crash(?:es|ed|ing)?|hangs?|freezes?|resets?|errors?|issues?|problems?|troubles?|fault(?:s|ed)?|page faults?"
    r"|nans?|nan check|failures?|fail(?:s|ed)?"
    r"|artifacts?|time-?outs?|bugs?|complaints?|warnings?|regressions?|segfaults?|slowdowns?|drawbacks?|oom|ooms)"
)
_DENIED: Final = re.compile(
    rf"\b(?:no|without|zero|never|not|nor|or|n.t|fewer|less|free of|instead of"
    rf"|nothing)\b (?:\w{{1,12}} ){{0,3}}{_EVIL}\b(?: (?:messages?|at all|since))?"
    rf"|\b{_EVIL} (?:clean|free|none)\b|\bnan check clean"
    r"|\b(?:no longer|not|n.t) (?:\w{1,10} )?(?:needed|necessary|required)\b"
)
_DENIERS: Final = frozenset(
    ["no", "without", "zero", "never", "not", "nor", "or", "t", "fewer", "less", "free", "instead", "nothing", "clean", "none"]
)
_OVER: Final = re.compile(
    rf"(?<!be )(?<!get )\b(?:solved|resolved|fixed|cured|closing|thanks(?! to)|thank you|cheers)\b|\bwas all (?:it|i) "
    rf"|\bdid (?:it|the trick)\b"
    rf"|\b(?:has|have|is|are|had) gone\b|\bwent away\b|\b(?:is|are) (?:back|gone)\b|\bhas not come back\b|\bat last\b"
    rf"|\bgood news\b|\byou can drop\b"
    r"|\b(?:no longer|n.t|not|never) (?:happen|occur|appear|crash|hang|fail|freez)\w{0,3}\b(?: any ?more| again)?[.!]?$"
    rf"|\b{_EVIL} (?:was|were|is|are|has been|have been|got) (?:now )?(?:fixed|solved|resolved|gone|cured)\b"
)
_NEWS: Final = re.compile(
    r"\brelease notes?\b|\bis (?:now )?(?:out|released)\b(?! of)|\bnow available\b|\bchangelog\b|\bannounc|\bblog post\b"
    r"|\broad ?map\b|\bmention\w{0,2}\b|\bpoll\b|\bguide\b"
)
_FIGURES: Final = re.compile(
    r"\b\d[\d.,]{0,8} ?(?:k )?(?:img|images?|it|iter\w{0,7}|tok\w{0,3}|t|samples?|steps?)/s\b|\btok/s\b|\b\d{1,5} (?:fps|tflops)\b"
)
_LESSON: Final = re.compile(
    r"^step \d|\bif you (?:skip|forget|do not|don.t)\b|\bmake sure\b|\bmight\b|\bwhat happens (?:if|when)\b|\bjust asking\b|\bbefore i\b"
)
_PEACEFUL: Final = (
    # words of which each match has one, and the expression: to look for words first spares most of the work
    (
        frozenset(
            [
                "solved",
                "resolved",
                "fixed",
                "cured",
                "closing",
                "thanks",
                "thank",
                "cheers",
                "all",
                "did",
                "gone",
                "away",
                "back",
                "last",
                "news",
                "drop",
                "longer",
                "t",
                "not",
                "never",
            ]
        ),
        _OVER,
    ),
    (
        frozenset(["notes", "note", "out", "released", "available", "changelog", "blog", "road", "roadmap", "poll", "guide"])
        | {f"announc{end}" for end in ("e", "ed", "es", "ing", "ement", "ements")}
        | {f"mention{end}" for end in ("", "s", "ed")},
        _NEWS,
    ),
    (frozenset(("s", "fps", "tflops")), _FIGURES),
    (frozenset(["step", "if", "make", "might", "what", "asking", "before"]), _LESSON),
)
_ASKED: Final = re.compile(
    r"^(?:\w{1,12}[,:] )?(?:what|which|who|how (?:long|much|many|fast|big|does|do)|is (?:there|it|that|this|wsl|rocm)"
    r"|are there|any|any\w{3,4}|will|would|should|can|could"
    r"|does|do|has (?:any|some)\w{3,4})\b.{0,200}\?$"
)
_FAILURE: Final = re.compile(
    r"\berrors?\b|exception|traceback|\bfail(?:s|ed|ure|ures|ing)?\b|(?:can|could|does|did|do|will|would|is|was|are|has)(?: ?not|n.t) \w"
    r"|\bunable\b|\bnot work|won.t|\bbroke?n?\b|\bbreaks?\b|\bcrash|\bhangs?\b|\bhung\b|\bhanging\b|\bfault|\bproblems?\b"
    r"|\bissues?\b|\bwrong|\babort|\bfatal\b|\bpanic\b|\bdead\b"
    r"|\bmissing\b|\binvalid\b|\breject|\bdenied\b|\bstuck\b|\blost\b|\bkilled\b|corrupt|\bslow|\bunsupported\b"
    r"|\bincompatib|\bnot? \w{0,12} ?(?:found|supported|available|detected|recogni|visible"
    r"|loaded|possible|permitted|implemented|listed|used)|\bno (?:\w{1,10} )?(?:gpus?|devices?|agents?|kernel|support"
    r"|output|images?|binaries|code)\b|regress|\btime-?outs?\b|\bfreez|\bno such file\b"
    r"|\bconflict|\bmismatch|stopped working|\bno longer\b|used to work|\bseg ?-?fault|\bsegv\b|core dump|\bsuddenly\b"
    r"|\bcannot\b|disappear|\bvanish|\breboots?\b|shuts? down|\bunstable\b"
    r"|\bonly (?:sees|works|detects|as|on|the|cpu)|\bnans?\b|\bblack\b|\bgarbage\b|\bgibberish\b|\bnoise\b|\breset"
    r"|\bfalls? (?:off|back)\b|\bnever\b|\btrouble\b|struggl|refus|incorrect|underperform"
    r"|\boutage\b|\bpowers? (?:off|cut)|\bfalse\b|\bnot list|instead of|n.t\b|\boom\b|out of memory|\bneed(?:s"
    r"|ed)? .{0,24}to work|\bnot a? ?member|\bmakes nothing\b|\b100 ?%"
    r"|\bplease (?:add|increase|enable) (?:\w{1,10} )?support\b"
)
"""What states a failure. A request for support and a "how to" are not among them: they ask."""
_PLAIN: Final = frozenset(
    [
        "error",
        "errors",
        "exception",
        "fail",
        "fails",
        "failed",
        "failure",
        "unable",
        "broken",
        "crash",
        "crashes",
        "crashed",
        "crashing",
        "segfault",
        "hang",
        "hangs",
        "hung",
        "freezes",
        "stuck",
        "slow",
        "wrong",
        "invalid",
        "missing",
        "problem",
        "problems",
        "issue",
        "issues",
        "cannot",
        "timeout",
        "fault",
        "unsupported",
        "regression",
        "nan",
    ]
)
"""Some of its words: most sentences that match have one."""


def of(lines: Iterable[str]) -> Mood:
    """'failure': a sentence states one; 'calm': none does, and one says that all is well, asks, tells news or figures; '': neither."""
    calm = False
    for line in lines:
        low = line.lower()
        for sentence in _SENTENCE.split(low) if _ENDS.search(low) else (low,):
            words = set(_TOKEN.findall(sentence))
            rest = sentence if words.isdisjoint(_DENIERS) else _DENIED.sub(" ", sentence)
            peaceful = any(not words.isdisjoint(needed) and mood.search(rest) for needed, mood in _PEACEFUL)
            if not peaceful and ((rest == sentence and not words.isdisjoint(_PLAIN)) or _FAILURE.search(rest)):
                return "failure"
            calm = calm or peaceful or rest != sentence or (sentence.endswith("?") and _ASKED.search(rest) is not None)
    return "calm" if calm else ""
