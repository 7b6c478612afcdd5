"""The walk over the rows: what is remembered, what is skipped and why, and what the children are given."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from probe_support import PRELUDE, kit, probe

from rocm_patch import codec
from rocm_patch.errors import FormatError, KnowledgeError, RefusedError, UsageError
from rocm_patch.model import Trials
from rocm_patch.probe import kernel_log, latest, load, record, session, table

CONV = {"level": "disruptive", "configurations": ()}


def verdicts(trials):
    return {(trial.probe, trial.configuration): trial.verdict for trial in trials.trials}


def details(trials):
    return {trial.probe: trial.detail for trial in trials.trials}


# ------------------------------------------------------------------ a machine that went down


def plant(bench, boot, name="torture", **changes):
    """A started record as a run leaves it that did not come back."""
    bench.records.mkdir(parents=True, exist_ok=True)
    stack = latest_stack(bench)
    started = {"schema": 1, "boot": boot, "stack": stack, "probe": name, "configuration": "any", "dtype": "float32", **changes}
    (bench.records / "started.json").write_text(json.dumps(started))


def latest_stack(bench):
    found = latest(str(bench.state))
    return found.stack if found else ""


def test_a_probe_that_took_the_machine_down_is_remembered(bench, tmp_path):
    with_two = kit(tmp_path, "good()", probe(), probe("later"))
    assert set(verdicts(bench.run(with_two)).values()) == {"passed"}
    plant(bench, "the boot before")
    after = bench.run(with_two)
    assert verdicts(after) == {("device", "any"): "passed", ("elementwise", "any"): "passed", ("torture", "any"): "reset", ("later", "any"): "passed"}
    assert "the machine went down during torture float32" in after.notes
    assert not (bench.records / "started.json").exists()
    assert verdicts(bench.run(with_two))["torture", "any"] == "reset", "and stays so"
    assert verdicts(bench.run(with_two, again=True))["torture", "any"] == "passed", "unless asked"
    assert verdicts(bench.run(with_two))["torture", "any"] == "passed", "having run to its end it is forgiven"


def test_another_stack_is_another_matter(bench, tmp_path):
    """A reset under an override says nothing about the same probe without it."""
    spoofed = bench.environment(HSA_OVERRIDE_GFX_VERSION="10.3.0")
    one = kit(tmp_path, "good()", probe(), kind="hip")
    assert "HSA_OVERRIDE_GFX_VERSION=10.3.0" in bench.run(one, environment=spoofed).stack
    plant(bench, "the boot before")
    assert verdicts(bench.run(one, environment=spoofed))["torture", "any"] == "reset"
    assert verdicts(bench.run(one))["torture", "any"] == "passed"


def test_interrupted_in_the_same_boot_runs_again(bench, tmp_path):
    one = kit(tmp_path, "good()", probe())
    bench.run(one)
    plant(bench, record.boot_id())
    trials = bench.run(one)
    assert verdicts(trials)["torture", "any"] == "passed"
    assert "the run before this one was interrupted during torture float32; it runs again" in trials.notes


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "\0" * 100])
def test_a_broken_record_is_no_record(bench, tmp_path, content):
    bench.run(kit(tmp_path, "good()", probe()))
    for name in ("started.json", "memory.json", "latest.json"):
        (bench.records / name).write_text(content)
    assert verdicts(bench.run(kit(tmp_path, "good()", probe())))["torture", "any"] == "passed"


def test_a_reset_while_finding_the_device(bench, tmp_path):
    one = kit(tmp_path, "good()", probe())
    plant(bench, "the boot before", "device", dtype="none", stack=f"{sys.executable}, auto")
    trials = bench.run(one)
    assert verdicts(trials)["device", "any"] == "reset"
    assert verdicts(trials)["torture", "any"] == "skipped"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_record_is_on_disk_before_the_child_starts(bench, tmp_path):
    (tmp_path / "child_script.py").write_text(PRELUDE.replace("{kind!r}", "'cpu'") + "good()\n")
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from probe_support import kit, probe, new_bench
new_bench(Path({str(tmp_path)!r})).run(kit(Path({str(tmp_path)!r}), "good()", probe()), device="cpu")
"""
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,execve,openat"
    command = ["strace", "-f", "-y", "-s", "400", "-e", calls, "-o", str(trace), sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    children = [number for number, line in enumerate(lines) if "execve(" in line and "child_script.py" in line]
    assert len(children) == 3  # device, elementwise, torture
    for before, child in zip([0, *children], children, strict=False):
        window = lines[before:child]
        moved = max(number for number, line in enumerate(window) if "rename" in line and "started.json" in line)
        temporary = re.search(r'"(\.rocm-patch-[0-9a-f]+)"', window[moved]).group(1)
        assert any("fsync(" in line and temporary in line for line in window[:moved]), "the file before its name"
        assert any("fsync(" in line and "= 0" in line and "/rocm-patch-probes>" in line for line in window[moved:]), "the folder after it"


def test_only_the_records_are_written(bench, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*") if bench.state not in path.parents)
    one = kit(tmp_path, "good()", probe())
    bench.run(one)
    after = sorted(path for path in tmp_path.rglob("*") if bench.state not in path.parents)
    assert set(after) - set(before) == {bench.state, Path(one.child)}
    assert sorted(path.name for path in bench.records.iterdir())[:2] == ["latest.json", "lock"], "no scratch, no started record"
    assert {oct(path.stat().st_mode & 0o777) for path in bench.records.iterdir()} == {"0o600"}


# ------------------------------------------------------------------ results kept


def test_an_interrupted_run_goes_on_where_it_was(bench, tmp_path):
    body = f"""
    open({str(tmp_path / "runs")!r}, "a").write(spec["workload"] + "\\n")
    good()
    """
    two = kit(tmp_path, body, probe(), probe("later"))

    def interrupt(told):
        if told == "later float32 ...":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(two, resume=True, progress=interrupt)
    trials = bench.run(two, resume=True)
    assert (tmp_path / "runs").read_text().split() == ["elementwise", "torture", "later"]
    assert "2 results are from an earlier run of the same stack in this boot" in trials.notes
    bench.run(two, resume=False)
    assert (tmp_path / "runs").read_text().split()[3:] == ["elementwise", "torture", "later"]


def test_results_of_another_boot_or_definition_are_not_kept(bench, tmp_path, monkeypatch):
    one = kit(tmp_path, "good()", probe())
    bench.run(one)
    changed = kit(tmp_path, "good(error=0.5)", probe())
    assert verdicts(bench.run(changed, resume=True))["torture", "any"] == "wrong", "the child is another one"
    assert verdicts(bench.run(one, resume=True))["torture", "any"] == "wrong"
    monkeypatch.setattr(session, "boot_id", lambda: "another boot")
    assert bench.run(changed, resume=True).notes == tuple(note for note in bench.run(changed).notes if "earlier" not in note)


def test_errors_are_tried_again(bench, tmp_path):
    body = f"""
    if not os.path.exists({str(tmp_path / "flag")!r}):
        open({str(tmp_path / "flag")!r}, "w").close()
        sys.exit(3)
    good()
    """
    one = kit(tmp_path, body, probe())
    assert verdicts(bench.run(one, only=["torture"], resume=True))["torture", "any"] == "error"
    assert verdicts(bench.run(one, only=["torture"], resume=True))["torture", "any"] == "passed"


def test_the_last_table_can_be_read_back(bench, tmp_path):
    assert latest(str(bench.state)) is None
    trials = bench.run(kit(tmp_path, "good()", probe()))
    assert latest(str(bench.state)) == trials
    assert codec.loads(Trials, codec.dumps(trials), "trials") == trials


def test_ctrl_c_leaves_nothing_running(bench, tmp_path):
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from probe_support import Bench, kit, probe
place = Path({str(tmp_path)!r})
sleeper = kit(place, "if spec['workload'] == 'torture': time.sleep(60)\\ngood()", probe())
Bench(place, {bench.marked!r}).run(sleeper, device="cpu", progress=lambda told: print(told, flush=True))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with parent:
        for line in parent.stdout:
            if line.startswith("torture"):
                break
        time.sleep(0.3)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(10) != 0
    assert bench.left() == []
    assert json.loads((bench.records / "started.json").read_text())["probe"] == "torture"


# ------------------------------------------------------------------ a GPU that stops answering


def test_after_a_crash_a_sentinel_shows_that_the_gpu_answers(bench, tmp_path):
    body = f"""
    open({str(tmp_path / "runs")!r}, "a").write(spec["workload"] + "\\n")
    if spec["workload"] == "torture": os.abort()
    good()
    """
    trials = bench.run(kit(tmp_path, body, probe(), probe("later"), kind="hip"))
    assert verdicts(trials) == {
        ("device", "any"): "passed",
        ("elementwise", "any"): "passed",
        ("torture", "any"): "crash",
        ("later", "any"): "passed",
    }
    assert (tmp_path / "runs").read_text().split() == ["elementwise", "torture", "elementwise", "later"]


def test_a_gpu_that_answers_no_more_ends_the_run(bench, tmp_path):
    body = f"""
    if spec["workload"] == "torture": open({str(tmp_path / "wedged")!r}, "w").close(); os.abort()
    if os.path.exists({str(tmp_path / "wedged")!r}): time.sleep(60)
    good()
    """
    trials = bench.run(kit(tmp_path, body, probe(), probe("later"), probe("last"), kind="hip"))
    assert verdicts(trials)["torture", "any"] == "crash"
    assert details(trials)["later"] == details(trials)["last"] == "the GPU no longer answers; restart before probing again"
    assert verdicts(trials)["later", "any"] == "skipped"
    assert any("no longer answers: hang" in note for note in trials.notes)
    again = bench.run(kit(tmp_path, body, probe(), probe("later", deadline=1.0), probe("last"), kind="hip"), only=["later", "last"])
    assert [trial.verdict for trial in again.trials] == ["passed", "hang", "skipped"], "another run finds out by itself"


def test_no_sentinel_on_a_cpu(bench, tmp_path):
    body = f"""
    open({str(tmp_path / "runs")!r}, "a").write(spec["workload"] + "\\n")
    if spec["workload"] == "torture": os.abort()
    good()
    """
    bench.run(kit(tmp_path, body, probe(), probe("later")))
    assert (tmp_path / "runs").read_text().split() == ["elementwise", "torture", "later"]


def test_where_nothing_runs_nothing_more_is_tried(bench, tmp_path):
    body = "say(event='error', stage='copy', type='RuntimeError', text='HIP error: invalid device function'); sys.exit(1)"
    trials = bench.run(kit(tmp_path, body, probe(), kind="hip"))
    assert verdicts(trials)["elementwise", "any"] == "error"
    assert "not even the simplest probe runs" in details(trials)["torture"]
    assert "invalid device function" in details(trials)["torture"]


def test_three_hangs_are_enough(bench, tmp_path):
    rows = [probe(f"conv-{number}", workload="conv2d", deadline=0.5, **CONV) for number in range(5)]
    body = "if spec['workload'] == 'conv2d' and spec['cudnn']: time.sleep(60)\ngood()"
    trials = bench.run(kit(tmp_path, body, *rows, kind="hip"), allow="disruptive", configurations=["miopen", "miopen-off"])
    assert [trial.verdict for trial in trials.trials if trial.configuration == "miopen"] == ["hang"] * 3 + ["skipped"] * 2
    assert [trial.verdict for trial in trials.trials if trial.configuration == "miopen-off"] == ["passed"] * 5


def test_a_device_that_cannot_be_found(bench, tmp_path):
    one = kit(tmp_path, "good()", probe(), kind="hip")
    Path(one.child).write_text("import os; os.abort()")
    trials = bench.run(one)
    assert verdicts(trials) == {("device", "any"): "crash", ("elementwise", "any"): "skipped", ("torture", "any"): "skipped"}
    assert "the device could not be found: crash, SIGABRT in stage start" in details(trials)["torture"]


def test_a_card_that_dies_while_it_is_looked_for_is_still_the_card_that_was_meant(bench, tmp_path):
    one = kit(tmp_path, "good()", probe(**CONV), kind="hip")
    text = Path(one.child).read_text().replace("built=KIND, kind=KIND", "built=KIND").replace('say(event="end")\n    sys.exit(0)', "os.abort()", 1)
    Path(one.child).write_text(text)
    trials = bench.run(one)
    assert trials.device == "hip"
    assert verdicts(trials)["torture", "miopen-off"] == "skipped"


@pytest.mark.parametrize(
    ("kind", "asked", "device", "note"),
    [
        ("cpu", "auto", "cpu", ""),
        ("hip", "auto", "hip", ""),
        ("hip", "hip", "hip", ""),
        ("hip", "hip:0", "hip:0", ""),
        ("hip", "cuda", "cuda", "asked for was cuda"),
        ("cpu", "hip", "hip", "asked for was hip"),
    ],
)
def test_the_device_that_was_asked_for(bench, tmp_path, kind, asked, device, note):
    trials = bench.run(kit(tmp_path, "good()", probe(), kind=kind), device=asked)
    assert trials.device == device
    assert note in trials.trials[0].detail
    assert trials.trials[0].verdict == ("error" if note else "passed")
    assert verdicts(trials)["torture", "any"] == ("skipped" if note else "passed")


# ------------------------------------------------------------------ levels, configurations, what a child is given


def test_what_may_hang_the_gpu_runs_only_when_allowed(bench, tmp_path):
    one = kit(tmp_path, "good()", probe(), probe("conv", **CONV), kind="hip")
    first = bench.run(one)
    assert verdicts(first) == {("device", "any"): "passed", ("elementwise", "any"): "passed", ("torture", "any"): "passed",
                               ("conv", "miopen"): "skipped", ("conv", "winograd-off"): "skipped", ("conv", "miopen-off"): "skipped"}  # fmt: skip
    assert details(first)["conv"] == "disruptive: it may hang the GPU or reset the machine; not allowed"
    assert set(verdicts(bench.run(one, allow="disruptive")).values()) == {"passed"}
    assert set(verdicts(bench.run(one, allow="passive")).values()) == {"skipped"}


def test_the_same_on_a_cpu_needs_no_leave(bench, tmp_path):
    trials = bench.run(kit(tmp_path, "good()", probe("conv", **CONV)))
    assert verdicts(trials)["conv", "cpu"] == "passed"


def test_each_configuration_reaches_the_child_before_torch(bench, tmp_path):
    body = f"""
    told = dict(os.environ, device=spec["device"], cwd=os.getcwd(), there=os.path.isdir(os.environ.get("MIOPEN_USER_DB_PATH", "")))
    name = os.environ.get("MIOPEN_DEBUG_CONV_WINOGRAD", "") + str(spec["cudnn"])
    with open({str(tmp_path)!r} + "/" + name, "w") as file: json.dump(told, file)
    good()
    """
    one = kit(tmp_path, body, probe(**CONV), kind="hip")
    environment = bench.environment(MIOPEN_USER_DB_PATH="/the/old/one", HSA_ENABLE_SDMA="0")
    trials = bench.run(one, allow="disruptive", environment=environment, only=["torture"])
    assert trials.stack.endswith("; with HSA_ENABLE_SDMA=0 MIOPEN_USER_DB_PATH=/the/old/one")
    default, off, winograd = (json.loads((tmp_path / name).read_text()) for name in ("True", "False", "0True"))
    caches = {given[name] for given in (default, off, winograd) for name in ("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR", "AMD_COMGR_CACHE_DIR")}
    assert len(caches) == 9
    assert all(path.startswith(str(bench.records / "scratch")) for path in caches)
    for given in (default, off, winograd):
        assert given["HSA_ENABLE_SDMA"] == "0"
        assert (given["device"], given["there"]) == ("cuda:0", True)
        assert given["cwd"].startswith(str(bench.records / "scratch"))
        assert "HOME" not in given, "the environment that was passed, and nothing of ours"


def test_unknown_words_are_usage_errors(bench, tmp_path):
    one = kit(tmp_path, "good()", probe())
    for wrong in (
        {"only": ["nonsense"]},
        {"configurations": ["nonsense"]},
        {"device": "tpu"},
        {"allow": "everything"},
        {"interpreter": "/no/python"},
    ):
        with pytest.raises(UsageError):
            bench.run(one, **wrong)
    assert not bench.records.exists()


def test_never_as_root_for_somebody_else(bench, tmp_path, monkeypatch):
    one = kit(tmp_path, "good()", probe())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("SUDO_UID", "PKEXEC_UID", "DOAS_USER"):
        with pytest.raises(RefusedError, match=name):
            bench.run(one, environment=bench.environment(**{name: "1000"}))
        monkeypatch.setenv(name, "1000")
        with pytest.raises(RefusedError, match=name):
            bench.run(one)
        monkeypatch.delenv(name)
    assert not bench.records.exists()


@pytest.mark.parametrize("which", ["ours", "the machine's"])
def test_never_two_at_once(bench, tmp_path, which):
    one = kit(tmp_path, "good()", probe())
    bench.run(one)
    path = bench.records / "lock" if which == "ours" else record.GPU_LOCKS[0]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="another probe"):
            bench.run(one)
        if which != "ours":
            assert verdicts(bench.run(one, device="cpu"))["torture", "any"] == "passed", "a CPU run takes no GPU"
    finally:
        os.close(descriptor)
    assert verdicts(bench.run(one))["torture", "any"] == "passed"


def test_a_link_in_the_place_of_our_folder_is_refused(bench, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    bench.state.mkdir()
    bench.records.symlink_to(tmp_path / "nowhere")
    with pytest.raises((RefusedError, OSError)):
        bench.run(kit(tmp_path, "good()", probe()))
    assert not (tmp_path / "nowhere").exists()


# ------------------------------------------------------------------ the kernel's log


def test_lines_of_the_kernel_go_to_the_probe_that_caused_them(bench, tmp_path, monkeypatch):
    class Log:
        note = "read by a test"
        calls = 0

        def __init__(self, **_):
            pass

        def mark(self):
            pass

        def close(self):
            pass

        def lines(self, *, expensive):
            self.calls += 1
            return (f"amdgpu: line {self.calls}",)

    monkeypatch.setattr(session, "KernelLog", Log)
    trials = bench.run(kit(tmp_path, "if spec['workload'] == 'torture': os.abort()\ngood()", probe(), kind="hip"), only=["torture"])
    logs = {trial.probe: trial.kernel_log for trial in trials.trials}
    assert logs == {"device": ("amdgpu: line 1", "amdgpu: line 2"), "torture": ("amdgpu: line 3", "amdgpu: line 4")}
    assert trials.notes[0] == "read by a test"


def test_kmsg_is_read_from_the_mark(tmp_path):
    """A pipe gives records one read at a time only where they are written so; a file stands for the device here."""
    kmsg = tmp_path / "kmsg"
    kmsg.write_text("6,1,1,-;amdgpu: before the mark\n")
    log = kernel_log.KernelLog(str(kmsg))
    with kmsg.open("a") as file:
        file.write("3,2,2,-;amdgpu 0000:03:00.0: [gfxhub] page fault\n")
    assert log.lines() == ("amdgpu 0000:03:00.0: [gfxhub] page fault",)
    assert log.lines() == ()
    with kmsg.open("a") as file:
        file.write("3,2,2,-;NVRM: GPU Board Serial Number: 1234567890123\n")
    assert log.lines() == (), "serial numbers are nobody's business"
    with kmsg.open("a") as file:
        file.write("3,2,2,-;NVRM: GPU at PCI:0000:00:06: GPU-01234567-89ab-cdef-0123-456789abcdef\n")
    assert log.lines() == ("NVRM: GPU at PCI:0000:00:06: GPU-...",)
    with kmsg.open("a") as file:
        file.write("3,3,3,-;usb 1-1: new device\n")
    assert log.lines() == ()
    log.close()
    assert (log.note, log.lines()) == ("", ())


def test_the_real_kmsg_gives_whole_records():
    log = kernel_log.KernelLog()
    if log._descriptor < 0:
        pytest.skip("/dev/kmsg is closed to this user")
    os.lseek(log._descriptor, 0, os.SEEK_SET)
    assert all(kernel_log.ABOUT_GPUS.search(line) for line in log.lines())
    assert log.note == ""
    log.close()


def fake_journalctl(folder, lines, code=0):
    tool = folder / "journalctl"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    tool.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_journal_stands_in_where_kmsg_is_closed(tmp_path):
    now = time.time()
    told = ((now - 100, "amdgpu: long ago"), (now + 0.2, "amdgpu: ring gfx timeout"), (now + 0.2, "usb"))
    lines = [f"{stamp:.6f} host kernel: {text}" for stamp, text in told]
    log = kernel_log.KernelLog(str(tmp_path / "closed"), fake_journalctl(tmp_path, lines))
    assert log.note == ""
    assert log.lines(expensive=False) == ()
    time.sleep(0.4)
    assert log.lines() == ("amdgpu: ring gfx timeout",)


@pytest.mark.parametrize("code", [0, 1, None])
def test_where_the_kernel_tells_nothing_the_user_is_told(tmp_path, code):
    environment = {"PATH": str(tmp_path)} if code is None else fake_journalctl(tmp_path, [], code)
    log = kernel_log.KernelLog(str(tmp_path / "closed"), environment)
    assert log.note.startswith("the kernel log cannot be read")
    assert ("absent" if code is None else "no rights") in log.note
    assert log.lines() == ()


# ------------------------------------------------------------------ the rows


def test_the_rows_cover_what_was_asked_for():
    rows = {(row.size, row.channels): row for row in load().probe if row.workload == "conv2d"}
    assert set(rows) == {(size, channels) for size in (32, 42, 44, 64, 224) for channels in ((3, 64), (64, 64))}
    assert all(row.dtypes == ("float32", "float16") and row.level == "disruptive" and not row.configurations for row in rows.values())
    assert {row.id: row.environment for row in load().configurations("hip")} == {
        "miopen": {}, "winograd-off": {"MIOPEN_DEBUG_CONV_WINOGRAD": "0"}, "miopen-off": {}}  # fmt: skip
    assert {row.id: row.cudnn for row in load().configuration} == {
        "any": True, "miopen": True, "winograd-off": True, "miopen-off": False, "cudnn": True, "cudnn-off": False, "cpu": True}  # fmt: skip
    assert [row.id for row in load().probe][:3] == ["device", "elementwise", "gemm"], "harmless ones first"


def test_every_row_has_its_workload():
    source = Path(table.FOLDER, "child.py").read_text()
    for row in load().probe:
        assert row.workload == "device" or f'"{row.workload}": {row.workload}' in source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('id = "gemm"', 'id = "elementwise"'), "there twice"),
        (('level = "interactive"', 'level = "reckless"'), "level"),
        (('configurations = ["any"]', 'configurations = ["nowhere"]'), "unknown configuration 'nowhere'"),
        (("deadline = 90", "deadline = 0"), "deadline"),
        (('dtypes = ["none"]', "dtypes = []"), "dtype"),
        (("quick = true", 'quick = "yes"'), "quick"),
        (("repeats = 3", "repeats = 3\ncolour = 1"), "colour"),
        (('source = "https://github.com/pytorch/pytorch/issues/70036"', 'source = ""'), "after whom"),
    ],
)
def test_bad_rows_are_refused(tmp_path, change, words):
    text = Path(table.FOLDER, "probes.toml").read_text()
    assert change[0] in text
    (tmp_path / "probes.toml").write_text(text.replace(*change, 1))
    with pytest.raises((KnowledgeError, FormatError), match=words):
        load(str(tmp_path / "probes.toml"))
