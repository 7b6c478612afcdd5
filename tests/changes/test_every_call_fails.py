"""Each file-system call of a real process fails, once and from then on, by the tracer's injection.

Whatever fails: the tree is before or after, the exit code is not 0 unless all was done, and the journal says which of the two it is.
Each commit tries a selection that is the same every time; ROCM_PATCH_EXHAUSTIVE=1 tries every call with every error.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from changes_support import CASES, EXHAUSTIVE, Truth, clone, do_apply, do_recover, do_rollback, managed
from test_kill import begin, drivers, needs_tracer, points_of

from rocm_patch.apply import status
from rocm_patch.changes import Locations
from rocm_patch.errors import EXIT_FINE, RocmPatchError

ERRORS = ("EIO", "ENOSPC", "EACCES", "EROFS", "EMFILE", "ENOMEM")
VERBS = ("apply", "rollback", "recover")
SELECTED = 8
"""Points of each case and verb that a commit tries; each with one of the errors, once or from then on."""
CHANGING = {
    "write", "fsync", "flock", "rename", "renameat", "renameat2",
    "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "fchmod", "fchown",
    "fchownat", "fsetxattr", "fremovexattr",
}  # fmt: skip
SURPRISE = 70
"""The driver's exit code for anything that is no error of ours."""


def chosen(points, verb, case):
    """(call, number, error, from then on) of what this run tries."""
    ways = [(error, on) for error in ERRORS for on in (False, True)] + [("EINTR", False)]
    if EXHAUSTIVE:
        return [(*point, *way) for point in points for way in ways]
    draw = random.Random(f"{verb} {case}")
    some = draw.sample(points, min(SELECTED, len(points)))
    return [(*point, *draw.choice(ways)) for point in some]


def what_the_journal_says(root):
    """open, in force or nothing."""
    (scope,) = status(Locations(root))
    return "open" if scope.open else "in force" if scope.transactions else "nothing"


def wrong_with(root, truth, code, verb):
    """None if all is as promised; otherwise a sentence."""
    if code == SURPRISE:
        return "it ended with something that is no error of ours"
    if code < 0:
        return f"it was ended by signal {-code}"
    says = what_the_journal_says(root)
    before = {path: row for path, row in truth.before.items() if path != "var/lib" and not path.startswith("var/lib/")}
    now = {path: row for path, row in managed(root).items() if path != "var/lib"}
    if code == EXIT_FINE and says != {"apply": "in force", "rollback": "nothing", "recover": "nothing"}[verb]:
        return f"it ended with 0 and the journal says: {says}"
    if says == "in force" and now != truth.after:
        return "the journal says that it is in force, and the tree is not as it was left"
    if says == "nothing" and now != before:
        # Names of ours that nobody reads, and the folders that hold them, may wait for the next run.
        waiting = {path for path in now if ".rocm-patch-" in path}
        leftovers = {path for path in now if path not in before and not any(name.startswith(f"{path}/") for name in waiting)} - waiting
        if leftovers or any(now.get(path) != row for path, row in before.items()):
            return f"the journal says that nothing is in force, and the tree is not as before: {sorted(leftovers)[:5]}"
    do_recover(root)
    return truth.judge(root, back=True)


def sweep(verb, case, scratch):
    """Returns (points, failures that it survived with exit code 0, what was wrong)."""
    source, truth = begin(verb, case, scratch), Truth.of(CASES[case], scratch)
    wrong, fine = [], []

    def one(waiting, number, call, when, error, from_then_on):
        root = clone(source, f"{scratch}/run{number}")
        where = f"{verb}, {error} at {call} number {when}{' and from then on' if from_then_on else ''}"
        driver = waiting.get()
        try:
            inject = f"inject={call}:error={error}:when={when}{'+' if from_then_on else ''}"
            code = driver.do(verb, case, root, ["-e", f"trace={call}", "-e", inject])
        finally:
            waiting.put(driver)
        try:
            if code == EXIT_FINE:
                fine.append(where)
            sentence = wrong_with(root, truth, code, verb)
            return [f"{where}: exit code {code}: {sentence}"] if sentence else []
        except Exception as surprise:
            return [f"{where}: exit code {code}, then {surprise!r}"]
        finally:
            shutil.rmtree(root)

    workers = max(2, os.cpu_count() or 1)
    with drivers(workers) as waiting, ThreadPoolExecutor(workers) as pool:
        driver = waiting.get()
        points = points_of(driver, verb, case, source, scratch, every_call=True)
        waiting.put(driver)
        picked = chosen(points, verb, case)
        for found in pool.map(lambda item: one(waiting, item[0], *item[1]), enumerate(picked)):
            wrong += found
    return len(picked), fine, wrong


@needs_tracer
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_every_call_fails(verb, case, scratch):
    points, fine, wrong = sweep(verb, case, scratch)
    calls = sorted({where.split(" at ")[1].split()[0] for where in fine if "EINTR" not in where})  # the interpreter tries those again
    print(f"failing calls, {case}, {verb}: {points} cases, {len(wrong)} wrong; {len(fine)} did no harm ({', '.join(calls)})")
    assert not wrong, wrong[:5]
    assert not CHANGING & {*calls}, fine  # a look may fail and not matter; never a write or a sync
    assert points >= (5_000 if EXHAUSTIVE and case == "five" else 5)


LIMITS = (0, 1, 7, 64, 400, 1000, 5000, 1_000_000)


@pytest.mark.parametrize("verb", ["apply", "rollback"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_short_writes_of_the_kernel(case, verb, scratch):
    """A file may not grow beyond a limit: the kernel takes a part of a write, and refuses the next."""
    source, truth = begin(verb, case, scratch), Truth.of(CASES[case], scratch)
    refused = 0
    for limit in LIMITS:
        root = clone(source, f"{scratch}/run")
        child = os.fork()
        if child == 0:
            code = SURPRISE
            try:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                if verb == "apply":
                    do_apply(root, CASES[case])
                else:
                    do_rollback(root)
                code = 0
            except RocmPatchError as error:
                code = error.exit_code
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        refused += code != 0
        assert wrong_with(root, truth, code, verb) is None, limit
    assert 0 < refused < len(LIMITS) or verb == "rollback"


def test_the_selection_is_the_same_every_time_and_knows_every_error():
    points = [("openat", number) for number in range(100)]
    if not EXHAUSTIVE:
        assert chosen(points, "apply", "five") == chosen(points, "apply", "five")
        seen = {error for case in "abcdefgh" for verb in VERBS for _, _, error, _ in chosen(points, verb, case)}
        assert seen == {*ERRORS, "EINTR"}
    assert all(hasattr(errno, name) for name in ERRORS)
