"""Two processes at once: one wins, the other says who holds the lock; a killed holder frees it at once.

Fifty rounds a commit; ROCM_PATCH_EXHAUSTIVE=1 runs a thousand.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import CASES, EXHAUSTIVE, Truth, do_apply, do_recover, do_rollback, managed, prepare, snapshot

import rocm_patch
from rocm_patch.errors import RefusedError

ROUNDS = 1000 if EXHAUSTIVE else 50
RACER = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import changes_support as support
from rocm_patch.changes.places import Locations
from rocm_patch.errors import RefusedError

root = sys.argv[3]

def hold(operation):
    time.sleep(0.0002)

def stop(operation):
    if operation.call == sys.argv[4]:
        print("holding", flush=True)
        time.sleep(600)

for line in sys.stdin:
    verb, case = line.split()
    steps = support.CASES[case]
    plan = support.plan_for(steps, Locations(root)) if verb != "rollback" else None
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        if verb == "rollback":
            answer = support.do_rollback(root, hold)[0].outcome
        else:
            answer = support.do_apply(root, steps, hold if verb == "apply" else stop, plan)[0].outcome
        print(answer, flush=True)
    except RefusedError as error:
        print("refused: " + error.what, flush=True)
"""


@contextlib.contextmanager
def racers(number, root, call="rename"):
    source = str(Path(rocm_patch.__file__).parents[1])
    argv = [sys.executable, "-I", "-S", "-B", "-c", RACER, source, str(Path(__file__).parent), root, call]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)) for _ in range(number)
        ]


def race(pair, verb, case):
    for racer in pair:
        racer.stdin.write(f"{verb} {case}\n")
    assert [racer.stdout.readline() for racer in pair] == ["ready\n"] * len(pair)
    for racer in pair:
        racer.stdin.write("go\n")
    return [racer.stdout.readline().strip() for racer in pair]


@pytest.mark.parametrize("verb", ["apply", "rollback"])
def test_one_wins_and_the_other_says_who_holds_the_lock(verb, scratch):
    root = prepare(f"{scratch}/root")
    truth = Truth.of(CASES["five"], scratch)
    won, named, late = (("applied", "already there") if verb == "apply" else ("rolled back", "nothing to undo")), 0, 0
    with racers(2, root) as pair:
        for number in range(ROUNDS // 2):
            if verb == "rollback":
                do_apply(root, CASES["five"])
            answers = race(pair, verb, "five")
            winner = answers.index(won[0])
            other = answers[1 - winner]
            if f"(process {pair[winner].pid})" in other:
                named += 1
            else:
                # It came when the winner had finished, or was about to move the journal away.
                late += 1
                assert other == won[1] or re.search("another run has just|changed since the plan was made", other), other
            if verb == "apply":
                assert managed(root) == truth.after, number
                do_rollback(root)
            assert snapshot(root) == truth.before, number
        for racer in pair:
            racer.stdin.close()
    print(f"racing, {verb}: {ROUNDS // 2} rounds, one winner each; the other named the holder {named} times, came late {late} times")
    assert named > late


@pytest.mark.parametrize("call", ["create", "rename"])
def test_a_killed_holder_frees_the_lock_at_once(call, scratch):
    """Before the plan is written and after: the next run waits for nobody."""
    root = prepare(f"{scratch}/root")
    before = snapshot(root)
    rounds = 25 if EXHAUSTIVE else 4
    do_apply(root, CASES["environment"])  # the journal is there, so it is its lock that is fought for
    held = snapshot(root)
    for _ in range(rounds):
        with racers(1, root, call) as (racer,):
            racer.stdin.write("stop five\n")
            assert racer.stdout.readline() == "ready\n"
            racer.stdin.write("go\n")
            assert racer.stdout.readline() == "holding\n"
            with pytest.raises(RefusedError, match=f"process {racer.pid}"):
                do_rollback(root)
            racer.kill()
            racer.wait()
            do_recover(root)  # at the first try
        assert snapshot(root) == held
    do_rollback(root)
    assert snapshot(root) == before
    assert not os.path.lexists(f"{root}/var/lib")
