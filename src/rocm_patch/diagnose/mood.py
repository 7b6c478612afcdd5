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

_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+|,? (?:but|however|yet) ")
_TOKEN: Final = re.compile("[a-z]+")
_EVIL: Final = (
    r"(?:crash(?:es|ed|ing)?|hangs?|freezes?|resets?|errors?|issues?|problems?|troubles?|fault(?:s|ed)?|page faults?"
    r"|nans?|failures?|artifacts?|time-?outs?|bugs?|regressions?|segfaults?|slowdowns?|oom|ooms)"
)
_DENIED: Final = re.compile(
    rf"\b(?:no|without|zero|fewer|less|free of) (?:(?:more|any|a|single|further|such|kernel|gpu|hip|real|major) ){{0,2}}{_EVIL}\b(?: messages?\b)?"
    rf"|\b(?:never|not|nor|n.t) (?:(?:had|have|seen|see|a|an|any|one|single|been|get|got) ){{0,3}}{_EVIL}\b"
    rf"|\b{_EVIL} (?:check )?clean\b"
    r"|\b(?:no longer|not|n.t) (?:\w{1,10} )?(?:needed|necessary|required)\b"
)
_DENIERS: Final = frozenset(["no", "without", "zero", "never", "not", "nor", "t", "fewer", "less", "free", "clean"])
_SILENT: Final = re.compile(r"\b(?:no|without) (?:any )?errors?\b(?: messages?)?")
"""Nothing printed: what hangs or is wrong without a word is often told so."""
_OVER: Final = re.compile(
    r"(?<!be )(?<!get )(?<!not )(?<!never )\b(?:solved|resolved|fixed|cured)\b|\bwas all (?:it|i) |\bdid the trick\b|\bdid it[.!]?$"
    rf"|\b(?:{_EVIL}|it|that|this|message) (?:has|have|is|are|had) (?:now )?gone\b|\b(?:{_EVIL}|it|that|this|message) went away\b"
    r"|\b(?:card|gpu|device|screen|everything) (?:is|are) back\b|\bhas not come back\b|\bgood news\b|\byou can drop\b"
    r"|\b(?:no longer|n.t|not|never) (?:happen|occur|appear|crash|hang|fail|freez)\w{0,3}\b(?: any ?more| again)?[.!]?$"
)
_LESSON: Final = re.compile(r"\brelease notes?\b|\bchangelog\b|^step \d|\bif you (?:skip|forget)\b|\bwhat happens (?:if|when)\b|\bjust asking\b")
_OVER_WORDS: Final = frozenset(
    ["solved", "resolved", "fixed", "cured", "all", "did", "gone", "away", "back", "news", "drop", "longer", "t", "not", "never"]
)
_LESSON_WORDS: Final = frozenset(["notes", "note", "changelog", "step", "if", "what", "asking"])
_PEACEFUL: Final = ((_OVER_WORDS, _OVER), (_LESSON_WORDS, _LESSON))
"""Words of which each match has one, and the expression: to look for words first spares most of the work."""
_SOFT: Final = re.compile(
    r"\bthanks\b(?! to)|\bthank you\b|\bcheers\b|\bat last\b|\bis (?:now )?(?:out|released)\b(?! of)|\bnow available\b|\bannounc|\bblog post\b"
    r"|\broad ?map\b|\bpoll\b|\bguide\b|\b\d[\d.,]{0,8} ?(?:k )?(?:img|images?|it|iter\w{0,7}|tok\w{0,3}|t|samples?|steps?)/s\b|\btok/s\b"
    r"|\b\d{1,5} (?:fps|tflops)\b|\bexplain (?:what|how)\b"
    r"|^(?:\w{1,12}[,:] )?(?:what|which|who|how (?:long|much|many|fast|big|does|do)|is (?:there|it|that|this|wsl|rocm)|are there|any|any\w{3,4}|will"
    r"|would|should|can|could|does|do|has (?:any|some)\w{3,4})\b.{0,200}\?$"
)
"""Thanks, news, figures and questions: they say that all is well only where nothing beside them says otherwise."""
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
        for sentence in _SENTENCE.split(line.lower()):
            words = set(_TOKEN.findall(sentence))
            rest = sentence if words.isdisjoint(_DENIERS) else _DENIED.sub(" ", _SILENT.sub(" ", sentence))
            peaceful = any(not words.isdisjoint(needed) and mood.search(rest) for needed, mood in _PEACEFUL)
            if not peaceful and ((rest == sentence and not words.isdisjoint(_PLAIN)) or _FAILURE.search(rest)):
                return "failure"
            calm = calm or peaceful or (rest != sentence and _DENIED.search(_SILENT.sub(" ", sentence)) is not None) or _SOFT.search(rest) is not None
    return "calm" if calm else ""
