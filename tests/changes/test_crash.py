"""Killed before every primitive, failed at every primitive: before or after, and recovery may be killed too.

The sweep by real system calls is in test_kill.py; this one needs no tracer and always runs.
"""

from __future__ import annotations

import errno
import os

import pytest
from changes_support import (
    CASES,
    EXHAUSTIVE,
    DieAt,
    FailAt,
    Killed,
    Truth,
    clone,
    count_operations,
    do_apply,
    do_recover,
    do_rollback,
    prepare,
    snapshot,
)

from rocm_patch.errors import EXIT_FINE, RocmPatchError

VERBS = ("apply", "rollback")


def start(steps, verb, scratch):
    """The tree in which a verb begins."""
    root = prepare(f"{scratch}/start")
    if verb == "rollback":
        do_apply(root, steps)
    return root


def act(steps, verb, root, observe):
    if verb == "apply":
        return do_apply(root, steps, observe)
    return do_rollback(root, observe)


def kill_sweep(steps, verb, scratch):
    """Returns (points, what was wrong)."""
    truth, source = Truth.of(steps, scratch), start(steps, verb, scratch)
    total = count_operations(lambda observe: act(steps, verb, clone(source, f"{scratch}/run"), observe))
    wrong = []
    for point in range(1, total + 1):
        root = clone(source, f"{scratch}/run")
        try:
            act(steps, verb, root, DieAt(point))
            wrong.append(f"point {point} of {total} was not reached")
        except Killed:
            pass
        wrong += [f"{verb}, killed before primitive {point} of {total}: {text}" for text in truth.torn(root)]
        try:
            do_recover(root)
            verdict = truth.judge(root, back=True)
        except Exception as error:
            verdict = f"recovery fails: {error!r}"
        if verdict:
            wrong.append(f"{verb}, killed before primitive {point} of {total}: {verdict}")
    return total, wrong


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_at_every_primitive(case, verb, scratch):
    points, wrong = kill_sweep(CASES[case], verb, scratch)
    print(f"killed, {case}, {verb}: {points} points, {len(wrong)} wrong")
    assert not wrong, wrong[:5]
    assert points > 20


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_recovery_killed_as_well(case, verb, scratch):
    """Recovery is killed before each of its primitives, then run again: for every first kill, or for some of them in each commit."""
    steps = CASES[case]
    truth, source = Truth.of(steps, scratch), start(steps, verb, scratch)
    total = count_operations(lambda observe: act(steps, verb, clone(source, f"{scratch}/run"), observe))
    pairs, wrong = 0, []
    for first in range(1, total + 1, 1 if EXHAUSTIVE else max(4, total // 5)):
        broken = clone(source, f"{scratch}/broken")
        with pytest.raises(Killed):
            act(steps, verb, broken, DieAt(first))
        for second in range(1, 1000):
            root = clone(broken, f"{scratch}/run")
            try:
                do_recover(root, DieAt(second))
            except Killed:
                pairs += 1
                do_recover(root)
                if verdict := truth.judge(root):
                    wrong.append(f"{verb}, killed at {first}, recovery at {second}: {verdict}")
            else:
                break
    print(f"killed twice, {case}, {verb}: {pairs} pairs, {len(wrong)} wrong")
    assert not wrong, wrong[:5]
    assert pairs > (100 if EXHAUSTIVE else 10)


def etc_of(tree):
    return {path: row for path, row in tree.items() if path.startswith("etc/")}


def failure_sweep(steps, verb, scratch, error, for_ever):
    truth, source = Truth.of(steps, scratch), start(steps, verb, scratch)
    total = count_operations(lambda observe: act(steps, verb, clone(source, f"{scratch}/run"), observe))
    wrong = []
    for point in range(1, total + 1):
        root, observe = clone(source, f"{scratch}/run"), FailAt(point, error, for_ever)
        where = f"{verb}, {errno.errorcode[error]} at primitive {point} of {total}"
        try:
            act(steps, verb, root, observe)
            wrong.append(f"{where}: no error was reported")
        except RocmPatchError as said:
            if said.exit_code == EXIT_FINE or not str(said):
                wrong.append(f"{where}: exit code {said.exit_code}, {said}")
        assert observe.hit
        if not for_ever and etc_of(snapshot(root)) not in (etc_of(truth.before), etc_of(truth.after)):
            wrong.append(f"{where}: a single error was not taken back at once")
        do_recover(root)
        if verdict := truth.judge(root):
            wrong.append(f"{where}: {verdict}")
    return total, wrong


@pytest.mark.parametrize(("error", "for_ever"), [(errno.EIO, False), (errno.EIO, True), (errno.ENOSPC, True), (errno.EACCES, False)])
@pytest.mark.parametrize("verb", VERBS)
def test_every_primitive_fails(verb, error, for_ever, scratch):
    total, wrong = failure_sweep(CASES["five"], verb, scratch, error, for_ever)
    print(f"failed with {errno.errorcode[error]}, {verb}: {total} points, {len(wrong)} wrong")
    assert not wrong, wrong[:5]


def test_short_writes(scratch, monkeypatch):
    """The kernel may take less than it is given."""
    real = os.write
    truth, root = Truth.of(CASES["five"], scratch), prepare(f"{scratch}/run")
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    do_apply(root, CASES["five"])
    monkeypatch.undo()
    assert truth.judge(root, back=True) is None


def test_a_read_that_fails_is_not_an_empty_file(scratch, monkeypatch):
    """Each read of apply and of rollback fails in turn."""
    real = os.read
    for verb in VERBS:
        truth, source = Truth.of(CASES["five"], f"{scratch}/{verb}"), start(CASES["five"], verb, f"{scratch}/{verb}")
        failed = 0
        for point in range(1, 10000):
            seen = [0]

            def read(descriptor, size, seen=seen, point=point):
                seen[0] += 1
                if seen[0] == point:
                    raise OSError(errno.EIO, "Input/output error")
                return real(descriptor, size)

            root = clone(source, f"{scratch}/run")
            monkeypatch.setattr(os, "read", read)
            try:
                act(CASES["five"], verb, root, None)
                told = False
            except (RocmPatchError, OSError):
                told = True
            monkeypatch.undo()
            if seen[0] < point:
                break
            failed += 1
            assert told, f"{verb}: read {point} failed and nobody said so"
            do_recover(root)
            assert truth.judge(root, back=True) is None
        assert failed > 10


def test_interrupted_by_the_user(scratch):
    """Ctrl-C in the middle takes everything back at once."""

    class Interrupt:
        seen = 0

        def __call__(self, operation):
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt

    root = prepare(f"{scratch}/run")
    before = snapshot(root)
    for at in range(1, 40):
        interrupt = Interrupt()
        interrupt.at = at
        with pytest.raises(KeyboardInterrupt):
            do_apply(root, CASES["five"], interrupt)
        left = snapshot(root)
        if left != before:  # killed while it was being born: nobody holds it, and the next run buries it
            assert at <= 12
            do_recover(root)
        assert snapshot(root) == before
