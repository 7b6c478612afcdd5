"""One way to run a child: limits on time and output, and nothing of it left."""

from __future__ import annotations

import os
import sys
import time

import pytest

from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.run import check_program, run

SH = "/bin/sh"


def test_out_err_code_and_stdin():
    ended = run([SH, "-c", "cat; echo two >&2; exit 3"], stdin=b"one\n", timeout=10)
    assert (ended.code, ended.out, ended.err, ended.timed_out) == (3, b"one\n", b"two\n", False)
    assert ended.text == "two"


def test_the_environment_is_named_or_clean(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert b"SECRET" not in run([SH, "-c", "export -p"], timeout=10).out
    assert run([SH, "-c", 'echo "$A"'], environment={"A": "b"}, timeout=10).out == b"b\n"


def test_more_input_and_output_than_a_pipe_holds():
    data = b"x" * 300_000
    ended = run([SH, "-c", "cat"], stdin=data, timeout=10)
    assert ended.out == data
    ended = run([SH, "-c", "cat >/dev/null"], stdin=data, timeout=10)
    assert ended.code == 0
    assert run([SH, "-c", "exec <&-; exit 0"], stdin=data, timeout=10).code == 0


def test_output_is_cut_at_the_limit():
    ended = run([SH, "-c", "head -c 5000000 /dev/zero"], timeout=10, output_limit=1000)
    assert (ended.code, len(ended.out)) == (0, 1000)


@pytest.mark.parametrize("script", ["sleep 60", "trap '' TERM; sleep 60", "while :; do echo x; done"])
def test_too_long(script):
    started = time.monotonic()
    ended = run([SH, "-c", script], timeout=0.5)
    assert ended.timed_out
    assert ended.code == -9
    assert time.monotonic() - started < 30


def test_a_grandchild_with_the_pipe_is_no_hang_and_is_gone(tmp_path):
    pid = tmp_path / "pid"
    started = time.monotonic()
    ended = run([SH, "-c", f"sleep 60 & echo $! >{pid}; echo done"], timeout=30)
    assert (ended.code, ended.out, ended.timed_out) == (0, b"done\n", False)
    assert time.monotonic() - started < 30
    number = int(pid.read_text())
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{number}") and "State:\tZ" not in open_text(f"/proc/{number}/status"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_text(path):
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return "State:\tZ"


def test_a_session_of_its_own_unless_it_must_ask():
    script = "import os; print(os.getsid(0) == os.getpid())"
    python = os.path.realpath(sys.executable)
    assert run([python, "-c", script], timeout=10).out == b"True\n"
    assert run([python, "-c", script], timeout=10, foreground=True).out == b"False\n"


def test_inherited_descriptors():
    reader, writer = os.pipe()
    try:
        script = f"import os; os.write({writer}, b'hello\\n')"
        assert run([os.path.realpath(sys.executable), "-c", script], keep=[writer], timeout=10).code == 0
        assert os.read(reader, 10) == b"hello\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_what_cannot_run():
    with pytest.raises(RocmPatchError, match="absolute"):
        run(["sh"], timeout=1)
    with pytest.raises(RocmPatchError, match="cannot run"):
        run(["/nonexistent"], timeout=1)


def test_root_runs_only_its_own(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o775)
    with pytest.raises(RefusedError, match="changed by others"):
        check_program(str(program))
    if os.geteuid() == 0:
        with pytest.raises(RefusedError):
            run([str(program)], timeout=1)
        program.chmod(0o755)
        assert run([str(program)], timeout=10).code == 0


def test_interrupted(monkeypatch):
    """Ctrl-C ends the child as well."""
    import rocm_patch.run as module

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_has_ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([SH, "-c", "sleep 60"], timeout=30)
