"""Every state that a disk may hold after the power went during apply or rollback, and recovery from each."""

from __future__ import annotations

import shutil

import pytest
from changes_support import CASES, Truth, do_apply, do_recover, do_rollback, prepare
from power_loss import Disk


def complaints(steps, verb, scratch, limit=None):
    """Replay one run, cut the power after each primitive; returns (states looked at, what was wrong)."""
    truth = Truth.of(steps, scratch)
    root = prepare(f"{scratch}/run")
    if verb == "rollback":
        do_apply(root, steps)
    disk, log = Disk.of(root), []
    (do_apply if verb == "apply" else lambda root, _, observe: do_rollback(root, observe))(root, steps, log.append)
    wrong, states, seen = [], 0, set()
    for number in range(len(log) + 1):
        for word, names, content in disk.outcomes():
            states += 1
            back = word == "names kept, data kept"
            if (mark := (disk.mark(names, content), back)) in seen:
                continue  # the same disk by another way
            seen.add(mark)
            where = f"{verb}, after {number} of {len(log)} primitives, {word}"
            left = f"{scratch}/left"
            disk.write(names, content, left)
            wrong += [f"{where}: before recovery {text}" for text in truth.torn(left)]
            try:
                do_recover(left)
                verdict = truth.judge(left, back=back)
            except Exception as error:
                verdict = f"recovery fails: {error!r}"
            if verdict:
                wrong.append(f"{where}: {verdict}")
            shutil.rmtree(left)
            if limit is not None and len(wrong) >= limit:
                return states, wrong
        if number < len(log):
            disk.do(log[number])
    if disk.unconfirmed():
        wrong.append(f"{verb} returned with names that are not durable: {disk.unconfirmed()}")
    return states, wrong


@pytest.mark.parametrize("verb", ["apply", "rollback"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_power_loss(case, verb, scratch):
    states, wrong = complaints(CASES[case], verb, scratch)
    print(f"power loss, {case}, {verb}: {states} states, {len(wrong)} wrong")
    assert not wrong, wrong[:5]
    assert states >= (400 if case == "five" else 100)
