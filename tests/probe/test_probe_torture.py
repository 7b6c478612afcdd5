"""Children that misbehave in every way that we know, through the real parent: named rightly, in time, nothing left."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
from probe_support import PRELUDE, kit, probe

from rocm_patch.probe import parent, session

HANG = 1.0
"""Deadline of those that never end."""
SLEEP = "\ntime.sleep(60)"

TORTURE = {
    "exit 0": ("good()", "passed", ""),
    "exit 0 without a result": ("", "error", "without a result"),
    "exit 3": ("sys.exit(3)", "error", "exit code 3 in stage forward"),
    "exit 3 after a result": ("good(); sys.exit(3)", "error", "exit code 3"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "SIGSEGV in stage forward"),
    "real segfault": ("ctypes.string_at(0)", "crash", "SIGSEGV in stage forward"),
    "abort": ("print('terminate called: HSA says no', flush=True); os.abort()", "crash", "SIGABRT in stage forward: terminate called: HSA says no"),
    "bus": ("os.kill(os.getpid(), signal.SIGBUS)", "crash", "SIGBUS"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "crash", "SIGKILL, sent from outside"),
    "signal told by a wrapper": ("sys.exit(139)", "crash", r"SIGSEGV \(told as exit code 139\)"),
    "fault in words": ("print('Memory access fault by GPU node-1 on address 0x7f', flush=True); sys.exit(1)", "crash", "GPU fault .*node-1"),
    "fault as exception": (
        "say(event='error', stage='forward', type='AcceleratorError', text='CUDA error: an illegal memory access was encountered'); sys.exit(1)",
        "crash",
        "GPU fault in stage forward: AcceleratorError: CUDA error: an illegal memory access",
    ),
    "out of memory": (
        "say(event='error', stage='forward', type='OutOfMemoryError', text='HIP out of memory. Tried to allocate 2 GiB'); sys.exit(1)",
        "error",
        "in stage forward: OutOfMemoryError",
    ),
    "hang": (SLEEP, "hang", "no end after 1 s, in stage forward"),
    "busy hang": ("while True: pass", "hang", r"(0\.[1-9]|1\.\d) s of CPU time used"),
    "hang ignoring TERM": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SLEEP, "hang", "no end after 1 s"),
    "hang with a closed stdout": ("os.close(1); os.close(2)" + SLEEP, "hang", "no end after 1 s"),
    "hang after the result": ("good(); say(event='begin', stage='exit')" + SLEEP, "hang", "in stage exit"),
    "crash after the result": ("good(); say(event='begin', stage='exit'); os.abort()", "crash", "SIGABRT in stage exit"),
    "stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", "hang", "stopped by a signal"),
    "traced": ("ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGUSR1)", "hang", "stopped by a signal"),
    "stdout closed": ("os.close(1); os.close(2); good()", "passed", ""),
    "a gigabyte on stdout": ("block = b'x' * (1 << 20)\nfor _ in range(1024): os.write(1, block)\ngood()", "passed", ""),
    "endless stdout": ("while True: os.write(1, b'x' * 65536)", "hang", "no end after 1 s"),
    "endless results": ("while True: os.write(fd, b'{\"event\": \"begin\", \"stage\": \"forward\"}\\n' * 100)", "hang", "no end after 1 s"),
    "grandchild with the pipe": ("good()\nif os.fork() == 0:" + SLEEP.replace("\n", " "), "passed", "left 1 processes"),
    "grandchild in its own session": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nos.wait(); good()",
        "passed",
        "left 1 processes",
    ),
    "grandchild that writes for ever": (
        "good()\nif os.fork() == 0:\n    os.setsid()\n    while True: os.write(1, b'x' * 4096)",
        "passed",
        "left 1 processes",
    ),
    "grandchild ignoring TERM, parent hanging": (
        "if os.fork() == 0:\n    os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SLEEP.replace("\n", "\n    ") + SLEEP,
        "hang",
        "no end after 1 s",
    ),
    "thirty children": (
        "me = os.getpid()\nfor _ in range(5): os.fork()\nif os.getpid() == me: time.sleep(0.2); good()\nelse: time.sleep(60)",
        "passed",
        "left 31 processes",
    ),
    "daemons in thirty sessions": (
        "for _ in range(30):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(60)\ntime.sleep(0.2); good()",
        "passed",
        "left 30 processes",
    ),
    "memory hog": ("hold = []\nwhile True: hold.append(b'x' * (1 << 24))", "error", "more memory than allowed|MemoryError"),
    "broken result": ("os.write(fd, b'{nonsense\\n'); good()", "error", "makes no sense"),
    "result of the wrong shape": ("say(event='value', name=3); say(event='end')", "error", "makes no sense"),
    "binary result": ("os.write(fd, bytes(range(256))); good()", "error", "wrote a result line"),
    "half a result line": ("good(); os.write(fd, b'{\"event\": ')", "error", "without an end"),
    "two results": ("good(); good()", "error", "2 results"),
    "too many results": ("os.write(fd, b'x' * (2 << 20))", "error", "more than a megabyte"),
    "no value": ("say(event='end')", "error", "without telling a value"),
    "deletes its folder": ("shutil.rmtree(os.getcwd()); good()", "passed", ""),
    "wrong value": ("good(error=0.5)", "wrong", "relative error 0.5 where rounding explains 1e-06"),
    "NaN as error": ("good(error=float('nan'))", "wrong", "relative error nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", TORTURE)
def test_torture(bench, name, monkeypatch):
    body, verdict, words = TORTURE[name]
    if name == "memory hog":
        monkeypatch.setattr(session, "_memory_limit", lambda: 256 << 20)
    never_ends = verdict == "hang"
    trial, took = bench.torture(body, deadline=HANG if never_ends else 20.0)
    assert (trial.verdict, bool(re.search(words, trial.detail))) == (verdict, True), trial.detail
    assert trial.seconds < (HANG + 1.0 if never_ends else 10.0)
    assert took < (HANG + 2.0 if never_ends else 12.0), "with the records, on a busy machine"
    assert bench.left() == []
    assert all(value == value for value in trial.errors.values()), "NaN is no JSON"


def test_the_memory_of_a_child_is_watched_without_a_limit_on_its_addresses(bench):
    """As on a GPU, where RLIMIT_AS is out of the question."""
    ending = parent.execute(
        [sys.executable, "-c", "x = []\nwhile True: x.append(b'x' * (1 << 24))"],
        deadline=20, environment=bench.environment(), folder=str(bench.folder), memory=256 << 20,
    )  # fmt: skip
    assert (ending.ended_by_us, ending.code) == ("memory", -signal.SIGTERM)
    assert ending.seconds < 10


def test_the_memory_of_its_children_counts(bench):
    body = "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        x = b'x' * (100 << 20); time.sleep(60)\ntime.sleep(60)"
    ending = parent.execute([sys.executable, "-c", body], deadline=20, environment=bench.environment(), folder=str(bench.folder), memory=256 << 20)
    assert ending.ended_by_us == "memory"


def test_no_core_file_and_no_input(bench):
    body = "import os, resource, sys; print(resource.getrlimit(resource.RLIMIT_CORE), sys.stdin.read() == '')"
    ending = parent.execute(["/bin/sh", "-c", 'sleep 0.2; exec "$@"', "sh", sys.executable, "-c", body],
                            deadline=20, environment=bench.environment(), folder=str(bench.folder), memory=1 << 30)  # fmt: skip
    assert ending.output == b"(0, 0) True\n"


@pytest.mark.parametrize("without", ["pidfd", ""])
def test_old_kernels_have_no_pidfd(bench, monkeypatch, without):
    if without:
        monkeypatch.setattr(parent, "_pidfd", lambda pid: -1)
    trial, took = bench.torture("good()\nif os.fork() == 0: time.sleep(60)")
    assert trial.verdict == "passed"
    assert took < 3


def test_output_is_kept_at_both_ends(bench):
    ending = parent.execute(
        [sys.executable, "-c", "print('first'); print('x' * (8 << 20)); print('last')"],
        deadline=20, environment=bench.environment(), folder=str(bench.folder), memory=1 << 30,
    )  # fmt: skip
    assert ending.output.startswith(b"first\nxxx")
    assert ending.output.endswith(b"xxx\nlast\n")
    assert b"bytes left out" in ending.output
    assert len(ending.output) < 2 * parent.KEEP + 100
    assert ending.output_lost == (8 << 20) + 12 - 2 * parent.KEEP


def test_the_parent_stays_small(bench, tmp_path):
    """Growth of the parent's largest size over 1 GB of output, endless results and a hog: under 10 MiB."""
    (tmp_path / "child_script.py").write_text(
        PRELUDE.replace("{kind!r}", "'cpu'")
        + textwrap.dedent("""
        if spec["seed"] % 2:
            good(); sys.exit(0)
        block = b"x" * (1 << 20)
        for _ in range(1024):
            os.write(1, block)
        for _ in range(64):
            os.write(fd, block)
    """)
    )
    script = f"""
import json, resource, sys
sys.path.insert(0, {str(tmp_path)!r})
from rocm_patch.probe import parent
def one(seed):
    parent.execute(lambda fd: [sys.executable, {str(tmp_path / "child_script.py")!r}, json.dumps(dict(fd=fd, workload="x", seed=seed))],
                   deadline=60, environment={{}}, folder="/", memory=1 << 30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = one(1)
print(one(2) - before)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 10 << 10


def test_what_we_were_before_we_are_again(bench):
    """Neither the subreaper mark nor descriptors nor children of ours are left behind."""

    def state():
        mark = ctypes.c_int(-1)
        ctypes.CDLL(None).prctl(37, ctypes.byref(mark), 0, 0, 0)
        return mark.value, sorted(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_AS)

    before = state()
    bench.torture("good()\nif os.fork() == 0: time.sleep(60)")
    assert state() == before


def test_children_that_we_had_before_are_not_touched(bench):
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        trial, _ = bench.torture("good()\nif os.fork() == 0: time.sleep(60)")
        assert "left 1 processes" in trial.detail
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_interpreter_that_does_not_start(bench, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(parent.UsageError, match="cannot be run"):
        bench.run(kit(tmp_path, "good()", probe()), interpreter=str(broken))


# ------------------------------------------------------------------ stuck in the kernel
# A process in state D needs a driver that hangs, or a FUSE file that never answers, which needs rights and a module:
# so what decides is tested on the text of /proc, and the way around the wait with a child that seems not to go away.

STAT = "{} (python3 (probe) ) {} 1 4242 4242 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0"


def test_a_stat_line_is_read_from_its_last_parenthesis():
    assert parent.parse_stat(STAT.format(7, "D")) == (7, "D", 1, 4242)


@pytest.mark.parametrize(
    ("states", "answer"),
    [("", "gone"), ("Z", "gone"), ("X", "gone"), ("S", "alive"), ("R", "alive"), ("T", "alive"), ("D", "stuck"), ("ZD", "stuck"), ("ZS", "alive")],
)
def test_what_remains_of_a_killed_process(states, answer):
    assert parent.remains(STAT.format(7 + number, state) for number, state in enumerate(states)) == answer


def stick(monkeypatch):
    """From here on, children seem not to take SIGKILL."""
    pids = []

    def refuse(self, pid):
        pids.append(pid)
        return False

    monkeypatch.setattr(parent, "PATIENCE", 0.3)
    monkeypatch.setattr(parent._Run, "_reap", refuse)
    monkeypatch.setattr(parent, "_stats", lambda pid: [STAT.format(pid, "Z"), STAT.format(pid + 1, "D")])
    return pids


def test_stuck_is_never_waited_for_and_ends_the_run(bench, tmp_path, monkeypatch):
    def body():
        return kit(tmp_path, "if spec['workload'] == 'torture': time.sleep(60)\ngood()", probe(deadline=HANG), probe("later"), kind="hip")

    with monkeypatch.context() as patch:
        refused = []
        trials = bench.run(body(), progress=lambda told: refused.append(stick(patch)) if told == "torture float32 ..." else None)
    for pid in set(refused[0]):
        os.waitpid(pid, 0)
    by_name = {trial.probe: trial for trial in trials.trials}
    assert by_name["torture"].verdict == "stuck"
    assert "state D" in by_name["torture"].detail
    assert by_name["torture"].seconds < HANG + 1
    assert (by_name["later"].verdict, "restart before probing again" in by_name["later"].detail) == ("skipped", True)

    again = bench.run(body(), environment=bench.environment())
    assert {trial.verdict for trial in again.trials} == {"skipped"}, "nothing touches a GPU with a stuck process in the same boot"
    memory = json.loads((bench.records / "memory.json").read_text())
    assert [item["verdict"] for item in memory["items"]] == ["stuck"]
    monkeypatch.setattr(session, "boot_id", lambda: "another boot")
    assert next(trial for trial in bench.run(body(), only=["later"]).trials if trial.probe == "later").verdict == "passed"
