"""kill -9 at every file-system call of a real process, by the tracer's injection, then recovery.

A kill at a call that only looks leaves the disk as a kill at the next call that changes something does. So each commit
sweeps over the calls that change, sync or lock something, or read a content; the slow test over every call there is.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from changes_support import CASES, EXHAUSTIVE, DieAt, Killed, Truth, clone, count_operations, do_apply, do_recover, prepare

import rocm_patch
from rocm_patch.errors import RefusedError

SOME = 20
"""Points of each kind and verb that a commit tries: every primitive of it dies in test_crash.py, and all calls on demand."""
SOURCE = str(Path(rocm_patch.__file__).parents[1])
DRIVER = str(Path(__file__).with_name("driver.py"))
LOOKS = {
    "close", "newfstatat", "fstat", "lstat", "stat", "statx", "lseek", "readlink", "access", "faccessat", "faccessat2", "dup", "getcwd",
    "getdents64", "fcntl", "flistxattr", "fgetxattr",
}  # fmt: skip
CALL = re.compile(r"^(?P<call>\w+)\((?P<rest>.*)")


def recover_once_dead(root):
    """The tracer may end a moment before the kernel has taken the lock from the process that it killed."""
    for _ in range(600):
        try:
            return do_recover(root)
        except RefusedError as error:
            if "another run" not in error.what:
                raise
            time.sleep(0.05)
    return do_recover(root)


def tracer():
    """The tracer's command, or a reason for there being none."""
    strace = shutil.which("strace")
    if strace is None:
        return None, "strace is not installed"
    probe = subprocess.run(
        [strace, "-qq", "-o", "/dev/null", "-e", "inject=getcwd:signal=KILL:when=1", "/bin/pwd", "-P"], capture_output=True, check=False
    )  # fmt: skip
    if probe.returncode not in (-9, 137):
        return None, f"strace cannot trace or inject here: {probe.stderr.decode(errors='replace').strip()[:200]}"
    return strace, ""


STRACE, WHY_NOT = tracer()
needs_tracer = pytest.mark.skipif(STRACE is None, reason=WHY_NOT)


class Driver:
    """A driver process and the tracer's attachment to each of its forks."""

    def __init__(self):
        argv = [sys.executable, "-I", "-S", "-B", DRIVER, SOURCE]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def do(self, verb, case, root, options=None, log="/dev/null"):
        """Run one verb, traced with these options; how it ended: an exit code, or minus a signal."""
        self.process.stdin.write(f"{verb} {case} {root}\n")
        child = int(self.process.stdout.readline())
        strace = None
        if options is not None:
            strace = subprocess.Popen([STRACE, "-o", log, *options, "-p", str(child)], stderr=subprocess.PIPE)
            # It says so after it asked the child to stop. A tracer by name only (TracerPid) has let a whole run pass on a busy machine.
            said = strace.stderr.readline()
            assert b"attached" in said, said + strace.stderr.read()
        self.process.stdin.write("go\n")
        code = int(self.process.stdout.readline())
        if strace is not None:
            strace.communicate()
        return code

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def drivers(number):
    """So many drivers in a queue; take one, and put it back."""
    waiting, started = queue.SimpleQueue(), [Driver() for _ in range(number)]
    for driver in started:
        waiting.put(driver)
    try:
        yield waiting
    finally:
        for driver in started:
            driver.close()


def points_of(driver, verb, case, source, scratch, every_call):
    """(call, number) of each call between the marks, numbers counted from the attachment as strace does."""
    root, log = clone(source, f"{scratch}/count"), f"{scratch}/count.log"
    assert driver.do(verb, case, root, ["-e", "trace=%file,%desc"], log) == 0
    counts, points, inside = {}, [], False
    for line in Path(log).read_text(errors="replace").splitlines():
        found = CALL.match(line)
        if not found:
            continue
        call, rest = found["call"], found["rest"]
        counts[call] = counts.get(call, 0) + 1
        if "rocm-patch-begin" in rest:
            inside = True
        elif "rocm-patch-end" in rest:
            break
        elif inside and (every_call or (call not in LOOKS and not (call == "openat" and "O_CREAT" not in rest))):
            points.append((call, counts[call]))
    return points


def sweep(verb, case, source, scratch, every_call, some=False):
    """Returns (points, what was wrong). `some`: at most SOME of the points, spread over the whole run."""
    truth = Truth.of(CASES[case], scratch)
    wrong, unreached = [], []

    def one(waiting, number, call, when):
        root = clone(source, f"{scratch}/run{number}")
        where = f"{verb} killed at {call} number {when}"
        driver = waiting.get()
        try:
            code = driver.do(verb, case, root, ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"])
        finally:
            waiting.put(driver)
        try:
            if code == 0:  # the tracer may or may not count the call during which it was attached
                unreached.append(where)
            elif code != -9:
                return [f"{where}: it was not killed, it ended with {code}"]
            found = [f"{where}: {text}" for text in truth.torn(root)]
            recover_once_dead(root)
            verdict = truth.judge(root, back=True)
            return found + ([f"{where}: {verdict}"] if verdict else [])
        except Exception as error:
            return [f"{where}: recovery fails: {error!r}"]
        finally:
            shutil.rmtree(root)

    workers = max(2, os.cpu_count() or 1)
    with drivers(workers) as waiting, ThreadPoolExecutor(workers) as pool:
        driver = waiting.get()
        points = points_of(driver, verb, case, source, scratch, every_call)
        waiting.put(driver)
        if some:
            points = points[:: -(-len(points) // SOME)]
        for found in pool.map(lambda item: one(waiting, item[0], *item[1]), enumerate(points)):
            wrong += found
    assert len(unreached) <= 4, unreached
    return len(points) - len(unreached), wrong


def begin(verb, case, scratch):
    root = prepare(f"{scratch}/source")
    if verb == "rollback":
        do_apply(root, CASES[case])
    elif verb == "recover":
        with pytest.raises(Killed):
            do_apply(
                root, CASES[case], DieAt(count_operations(lambda observe: do_apply(prepare(f"{scratch}/counted"), CASES[case], observe)) * 4 // 5)
            )
        assert os.path.exists(f"{root}/var/lib/rocm-patch/plan")
    return root


@needs_tracer
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("verb", ["apply", "rollback", "recover"])
def test_killed_at_every_call_that_matters(verb, case, scratch):
    points, wrong = sweep(verb, case, begin(verb, case, scratch), scratch, every_call=False, some=not EXHAUSTIVE and case != "five")
    print(f"kill -9, {case}, {verb}: {points} points, {points - len(wrong)} exactly before or after")
    assert not wrong, wrong[:5]
    assert points > 9


@needs_tracer
@pytest.mark.slow
@pytest.mark.skipif(not EXHAUSTIVE, reason="four minutes and more: ROCM_PATCH_EXHAUSTIVE=1 runs it")
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("verb", ["apply", "rollback"])
def test_killed_at_every_call(verb, case, scratch):
    points, wrong = sweep(verb, case, begin(verb, case, scratch), scratch, every_call=True)
    print(f"kill -9 at every call, {case}, {verb}: {points} points, {points - len(wrong)} exactly before or after")
    assert not wrong, wrong[:5]
    assert points > 200


@needs_tracer
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_satisfied_plan_writes_nothing(case, scratch):
    """Counted by the tracer: no call of a second apply, and none of a second rollback, changes anything."""
    root = prepare(f"{scratch}/run")
    with drivers(1) as waiting:
        driver = waiting.get()
        for verb in ("apply", "rollback", "recover"):
            log = f"{scratch}/{verb}.log"
            assert driver.do(verb, case, root) == 0
            assert driver.do(verb, case, root, ["-e", "trace=%file,%desc"], log) == 0
            inside = Path(log).read_text(errors="replace").split("rocm-patch-begin")[1].split("rocm-patch-end")[0]
            assert len(inside.splitlines()) > 5
            assert [line for line in inside.splitlines() if writes(line)] == []
        waiting.put(driver)


def writes(line):
    found = CALL.match(line)
    if not found:
        return False
    call, rest = found["call"], found["rest"]
    if call == "openat":
        return bool(re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", rest))
    words = "p?write|mkdir|unlink|rmdir|rename|link|symlink|f?chmod|f?chown|lchown|fsync|fdatasync|f?set|f?remove|utime|truncate|mknod"
    return bool(re.match(words, call))
